"""The request for usage in a body: where it is put, where it is left out, and that nothing else changes."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects import DIALECTS
from tests.steps import counted, finish

if TYPE_CHECKING:
    from proxy.errors import Field

CHAT = b"/v1/chat/completions"
ASKED = '{"include_usage":true}'
SPACE = st.text(" \t\r\n", max_size=3)


def asked(body: bytes, target: bytes = CHAT, fields: tuple[Field, ...] = ()) -> bytes | None:
    result = finish(DIALECTS["openai"].ask_usage(target, fields, body))
    return None if result is None else bytes(result)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"stream":true}', '{"stream":true,"stream_options":' + ASKED + "}"),
        (
            ' {"model" : "m",\n "stream" : true , "n":1.0e0, "messages":[]} ',
            ' {"model" : "m",\n "stream" : true,"stream_options":' + ASKED + ' , "n":1.0e0, "messages":[]} ',
        ),
        ('{"stream_options":{},"stream":true}', '{"stream_options":{"include_usage":true},"stream":true}'),
        ('{"stream":true,"stream_options":{ \n}}', '{"stream":true,"stream_options":{"include_usage":true \n}}'),
        (
            '{"stream":true,"stream_options":{"a":[1]}}',
            '{"stream":true,"stream_options":{"include_usage":true,"a":[1]}}',
        ),
        ('{"stream":true,"stream_options":null}', '{"stream":true,"stream_options":{"include_usage":true}}'),
        ('{"stream":true,"stream_options":{"x":{"include_usage":false}}}', None),
        ('{"\\u0073tream":true}', '{"\\u0073tream":true,"stream_options":' + ASKED + "}"),
    ],
)
def test_ask_usage_where_it_is_open(body: str, expected: str | None) -> None:
    """The member is put where it belongs, and every other byte stays."""
    if expected is None:
        # Deeper inside it is another member.
        expected = body.replace('{"x"', '{"include_usage":true,"x"')
    assert asked(body.encode()) == expected.encode()


@pytest.mark.parametrize(
    "body",
    [
        b'{"stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream":true,"stream_options":{"include_usage":false}}',
        b'{"stream":true,"stream_options":{"include_usage":null}}',
        b'{"stream":true,"stream_options":{"include\\u005fusage":false}}',
        b'{"stream":true,"stream_options":[]}',
        b'{"stream":true,"stream_options":"{}"}',
        b'{"stream":true,"stream_options":true}',
        b'{"stream":true,"stream_options":{"pad":"' + b"x" * 5000 + b'"}}',
        b'{"stream":true,"stream_options":{"a" 1}}',
        b'{"stream":false}',
        b'{"stream":"true"}',
        b'{"stream":1}',
        b'{"stream":null}',
        b'{"model":"m"}',
        b'{"a":{"stream":true}}',
        b'{"stream":true,"stream":true}',
        b'{"stream":true,"str\\u0065am":false}',
        b'{"stream":true,"stream_options":{},"stream_options":{"include_usage":false}}',
        b'\xef\xbb\xbf{"stream":true}',
        '{"stream":true}'.encode("utf-16"),
        b'{"stream":true,"a":"\xff"}',
        b'{"stream":true',
        b'{"stream":true} {}',
        b'[{"stream":true}]',
        b"--frontier\r\n\r\nstream",
        b"",
    ],
    ids=lambda body: body[:60].decode("latin-1"),
)
def test_ask_usage_where_it_is_not(body: bytes) -> None:
    """A body that has decided, does not stream, is ambiguous or is no JSON object is left alone."""
    assert asked(body) is None


@pytest.mark.parametrize(
    ("target", "is_asked"),
    [
        (b"/v1/completions", True),
        (b"/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21", True),
        (b"/v1/responses", False),
        (b"/v1/embeddings", False),
        (b"/v1/responses?next=/chat/completions", False),
        (b"/v1/chat/completions/", False),
    ],
)
def test_ask_usage_by_path(target: bytes, *, is_asked: bool) -> None:
    """Only chat completions and completions know the member."""
    assert (asked(b'{"stream":true}', target) is not None) is is_asked


@pytest.mark.parametrize("name", [b"Content-Encoding", b"content-md5", b"Digest", b"Content-Digest", b"Repr-Digest"])
def test_ask_usage_of_bound_body(name: bytes) -> None:
    """A body in a content coding cannot be read, and one with a digest would no longer match it."""
    assert asked(b'{"stream":true}', fields=((b"Accept", b"*/*"), (name, b"x"))) is None


@pytest.mark.parametrize("dialect", sorted(DIALECTS.keys() - {"openai"}))
def test_ask_usage_of_others(dialect: str) -> None:
    """No other dialect is asked."""
    assert finish(DIALECTS[dialect].ask_usage(CHAT, (), b'{"stream":true}')) is None
    assert not DIALECTS[dialect].usage_on_request


def test_ask_usage_of_large_bodies() -> None:
    """A body of 32 MiB is read and copied in pieces, none of which holds the loop for long."""
    body = b'{"messages":[{"content":"' + b"x" * (32 << 20) + b'"}],"stream":true,"model":"m"}'
    steps = DIALECTS["openai"].ask_usage(CHAT, (), body)
    longest_s = 0.0
    pieces = 0
    result = None
    while True:
        began_s = time.thread_time()
        try:
            next(steps)
        except StopIteration as done:
            result = done.value
            break
        finally:
            longest_s = max(longest_s, time.thread_time() - began_s)
        pieces += 1
    assert result == body.replace(b"true,", b'true,"stream_options":{"include_usage":true},')
    assert pieces > 1000
    assert longest_s < 0.1


def test_ask_usage_of_small_bodies() -> None:
    """A body of the usual size takes one step: nothing waits for a turn of the loop."""
    body = json.dumps({"messages": [{"content": "x" * 1000}] * 10, "stream": True}).encode()
    assert counted(DIALECTS["openai"].ask_usage(CHAT, (), body))[1] == 0


NAMES = st.text(max_size=6).filter(lambda name: name not in {"stream", "stream_options"})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
OPTIONS: st.SearchStrategy[Any] = st.sampled_from([None, {}, "absent"]) | st.dictionaries(
    st.sampled_from(["include_usage", "include_obfuscation", "x", 'incl"ude']), st.booleans(), max_size=3
)


@st.composite
def written(draw: st.DrawFn, value: Any) -> str:
    """JSON text of a value, with white space and escapes as nobody writes them."""

    def space() -> str:
        return draw(SPACE)

    def text(value: str) -> str:
        if draw(st.booleans()):
            return json.dumps(value, ensure_ascii=draw(st.booleans()))
        return '"' + "".join(f"\\u{ord(unit):04X}" for unit in _units(value)) + '"'

    def write(value: Any) -> str:
        if isinstance(value, dict):
            members = [space() + text(name) + space() + ":" + space() + write(own) for name, own in value.items()]
            return "{" + (space() + ",").join(members) + space() + "}"
        if isinstance(value, list):
            return "[" + ",".join(space() + write(own) + space() for own in value) + space() + "]"
        return text(value) if isinstance(value, str) else json.dumps(value)

    return space() + write(value) + space()


def _units(value: str) -> list[str]:
    """The UTF-16 code units of a text, each as a character."""
    data = value.encode("utf-16-be", "surrogatepass")
    return [chr(int.from_bytes(data[at : at + 2])) for at in range(0, len(data), 2)]


@given(
    st.data(),
    st.dictionaries(NAMES, VALUES, max_size=5),
    st.sampled_from([True, True, True, False, None, "absent"]),
    OPTIONS,
    st.randoms(use_true_random=False),
)
def test_ask_usage_of_any_object(
    data: st.DataObject, others: dict[str, Any], stream: Any, options: Any, order: Any
) -> None:
    """Whatever the object and its spelling: it has the member more and nothing else is changed, or no byte is."""
    value = dict(others)
    if stream != "absent":
        value["stream"] = stream
    if options != "absent":
        value["stream_options"] = options
    items = list(value.items())
    order.shuffle(items)
    value = dict(items)
    body = data.draw(written(value)).encode("utf-8", "surrogatepass")
    result = asked(body)
    is_text = body.decode("utf-8", "replace").encode() == body
    if not is_text or stream is not True or (isinstance(options, dict) and "include_usage" in options):
        assert result is None
        return
    assert result is not None
    given_options = options if isinstance(options, dict) else {}
    wanted = {**value, "stream_options": {**given_options, "include_usage": True}}
    assert json.loads(result) == wanted
    if options is None:
        assert len(result) == len(body) - len("null") + len(ASKED)
    else:
        # What was put in is one piece; what stands around it is the client's text.
        piece = next(
            piece
            for piece in (
                b',"stream_options":{"include_usage":true}',
                b'"include_usage":true,',
                b'"include_usage":true',
            )
            if result.replace(piece, b"", 1) == body
        )
        assert piece in result
