"""How typed events are written: one LF line each, UTF-8, whole characters."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.model import TYPED_NAMES
from proxy.protocol.typed_events import TypedEncoder, Usage, mend


def read(data: bytes) -> list[dict[str, Any]]:
    """As the `{t, r}` reader does: split on LF LF, each block one `data: ` line of JSON."""
    *blocks, rest = data.split(b"\n\n")
    assert rest == b""
    assert all(block.startswith(b"data: ") for block in blocks)
    return [json.loads(block.removeprefix(b"data: ")) for block in blocks]


def encoder() -> TypedEncoder:
    return TypedEncoder(TYPED_NAMES)


@pytest.mark.parametrize("kind", ["Text", "Think", "Image"])
def test_piece(kind: Any) -> None:
    """A piece is one line with `t` and `r`, in UTF-8, without the escapes that JSON does not need."""
    assert encoder().piece(kind, 'é 你 🙂 </a> "\n') == b'data: {"t":"%b","r":"%b"}\n\n' % (
        kind.encode(),
        'é 你 🙂 </a> \\"\\n'.encode(),
    )


def test_names_that_are_numbers() -> None:
    """A number is written without quotes, 0 too; text that looks like one is not."""
    numbers = TypedEncoder({**TYPED_NAMES, "Text": 0, "Think": "1", "End": 9007199254740991, "Error": -3})
    assert numbers.piece("Text", "a") == b'data: {"t":0,"r":"a"}\n\n'
    assert numbers.piece("Think", "b") == b'data: {"t":"1","r":"b"}\n\n'
    assert numbers.end(None) == b'data: {"t":9007199254740991,"r":""}\n\n'
    assert numbers.error("c", "m") == b'data: {"t":-3,"r":"m","code":"c"}\n\n'


@given(st.text(min_size=1))
def test_piece_is_one_line_for_everybody(text: str) -> None:
    """Whatever the text, no reader of lines takes it for more than one, and it arrives as it was."""
    event = encoder().piece("Text", text)

    assert len(event.decode().removesuffix("\n\n").splitlines()) == 1
    assert read(event) == [{"t": "Text", "r": text}]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, {}),
        (Usage(None, None, None), {}),
        (Usage(1, 2, 3), {"usage": {"input": 1, "output": 2, "total": 3}}),
        (Usage(0, None, None), {"usage": {"input": 0}}),
    ],
)
def test_end(usage: Usage | None, expected: dict[str, Any]) -> None:
    """The end has the usage that was told, and no more."""
    assert read(encoder().end(usage)) == [{"t": "End", "r": "", **expected}]


def test_error_and_cancelled() -> None:
    """An error has its message and its code; whatever stands in them, they are written."""
    assert read(encoder().error("upstream_timeout", "too \ud83d late")) == [
        {"t": "Error", "r": "too \ufffd late", "code": "upstream_timeout"}
    ]
    assert read(encoder().cancelled()) == [{"t": "Cancelled", "r": ""}]


def test_names() -> None:
    """Every event bears the name that was configured for it."""
    names = TypedEncoder({name: name.lower() + '"' for name in TYPED_NAMES})

    events = names.piece("Text", "a") + names.error("c", "m") + names.end(None) + names.cancelled()
    assert [event["t"] for event in read(events)] == ['text"', 'error"', 'end"', 'cancelled"']


def test_halves_of_a_pair_are_joined() -> None:
    """A character that the vendor cut in two arrives whole, each kind of text for itself."""
    typed = encoder()

    assert read(typed.piece("Text", "a\ud83d")) == [{"t": "Text", "r": "a"}]
    assert typed.piece("Think", "\ud83d") == b""
    assert read(typed.piece("Think", "\ude43")) == [{"t": "Think", "r": "🙃"}]
    assert read(typed.piece("Text", "\ude42b")) == [{"t": "Text", "r": "🙂b"}]
    assert read(typed.end(None)) == [{"t": "End", "r": ""}]


def test_half_that_stays_alone() -> None:
    """What never becomes a character is U+FFFD, in its place or before the end."""
    typed = encoder()

    assert read(typed.piece("Text", "\ude42a\ud83d")) == [{"t": "Text", "r": "\ufffda"}]
    assert read(typed.piece("Text", "b\ud83d")) == [{"t": "Text", "r": "\ufffdb"}]
    assert read(typed.error("c", "m")) == [{"t": "Text", "r": "\ufffd"}, {"t": "Error", "r": "m", "code": "c"}]


@given(st.text(st.sampled_from("a\ud83d\ude42\U0001f642é")))
def test_mend(text: str) -> None:
    """Pairs become characters, every lone half U+FFFD; nothing else changes."""
    expected = ""
    for character in text:
        if "\udc00" <= character <= "\udfff" and expected.endswith("\ud83d"):
            expected = expected[:-1] + "\U0001f642"
        else:
            expected += character
    assert mend(text) == expected.replace("\ud83d", "\ufffd").replace("\ude42", "\ufffd")
