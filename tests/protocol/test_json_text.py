"""Strings and values read in pieces are what a parser reads whole, wherever a piece ends."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import InvalidRequestError
from proxy.protocol.json_text import PIECE_BYTES, NotTextError, check_utf8, compact, decode_string, encode_string
from tests.steps import counted, finish

PARTS = ["x", "\\n", '\\"', "\\\\", "\\u00e9", "\\ud83d\\ude00", "\u4f60", "\U0001f600"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("shift", range(13))
def test_encode_string_across_pieces(part: str, shift: int) -> None:
    """No character is cut, whichever it is."""
    text = "x" * shift + part * (3 * PIECE_BYTES // len(part.encode()))
    quoted = f'"{text}"'.encode()

    encoded, turns = counted(encode_string(quoted, 1, len(quoted) - 1))

    assert encoded == json.loads(quoted).encode()
    assert turns >= 2


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("shift", range(13))
def test_compact_across_pieces(part: str, shift: int) -> None:
    """A string that is longer than a piece is the same string, with its characters unescaped."""
    text = f'{{"a" : ["{"x" * shift}{part * (3 * PIECE_BYTES // len(part.encode()))}" , 1 ]}}'.encode()

    compacted, turns = counted(compact(text, 0, len(text)))

    assert compacted == json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")).encode()
    assert turns >= 2


@pytest.mark.parametrize("half", ["\\ud83d", "\\ude00", "\\ud83dx", "\\ude00\\ud83d"])
def test_half_surrogate_across_pieces(half: str) -> None:
    """Half a surrogate pair is no text, and stays what it is in a value."""
    for shift in range(PIECE_BYTES - 14, PIECE_BYTES + 2):
        quoted = f'"{"x" * shift}{half}{"y" * PIECE_BYTES}"'.encode()
        with pytest.raises(NotTextError):
            finish(encode_string(quoted, 1, len(quoted) - 1))
        assert json.loads(finish(compact(quoted, 0, len(quoted)))) == json.loads(quoted)


@pytest.mark.parametrize(
    "part", ["x", "\\u00e9", "\\ud83d", "\\x"], ids=["plain", "escapes", "half pairs", "no escapes"]
)
def test_compact_of_a_long_string_in_pieces(part: str) -> None:
    """One turn a piece to find a string's end, one to write it; and little is held besides the text and its result."""
    text = f'["{part * (64 * PIECE_BYTES // len(part))}"]'.encode()
    pieces = len(text) // PIECE_BYTES
    tracemalloc.start()
    try:
        compacted, turns = counted(compact(text, 0, len(text)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert turns >= 2 * pieces
    assert peak <= len(compacted) * 3 // 2 + 8 * PIECE_BYTES


@pytest.mark.parametrize("escape", ["\\x", "\\u00", "\\u00g0", "\\U0041"])
def test_escape_that_json_does_not_have(escape: str) -> None:
    """It is no text; another reader may take it for one."""
    quoted = f'"{escape}"'.encode()
    with pytest.raises(NotTextError):
        decode_string(quoted)
    for size in (0, PIECE_BYTES - 3, 2 * PIECE_BYTES):
        long = f'"{"x" * size}{escape}{"y" * 2 * PIECE_BYTES}"'.encode()
        with pytest.raises(NotTextError):
            finish(encode_string(long, 1, len(long) - 1))


@given(st.text(st.sampled_from('a"\\\n\u00e9\u4f60\U0001f600'), max_size=20))
def test_encode_string_is_what_was_meant(text: str) -> None:
    """However a text is escaped, its UTF-8 comes out."""
    for quoted in (json.dumps(text).encode(), json.dumps(text, ensure_ascii=False).encode()):
        assert finish(encode_string(quoted, 1, len(quoted) - 1)) == text.encode()


def test_check_utf8_in_pieces() -> None:
    """What is wrong is found wherever it stands, and an unfinished character at the end."""
    finish(check_utf8("\u4f60".encode() * PIECE_BYTES))
    for wrong in (b"\xe4\xbd", b"\xff", b"\xed\xa0\x80", b"\xc0\xa2"):
        for text in (wrong, b"x" * PIECE_BYTES + wrong, b"x" * (PIECE_BYTES - 1) + wrong + b"x" * PIECE_BYTES):
            with pytest.raises(InvalidRequestError):
                finish(check_utf8(text))
