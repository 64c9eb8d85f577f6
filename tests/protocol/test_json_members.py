"""Members found without parsing: the same as a parser finds, in bounded steps and little memory."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import InvalidRequestError
from proxy.protocol.json_members import JsonMembers, MemberScanner
from proxy.protocol.json_nesting import MAX_DEPTH
from proxy.protocol.json_text import PIECE_BYTES
from tests.steps import counted, finish

SCANNER = MemberScanner(("model", "body"))
SIZE = 2**19


def scan(text: str | bytes) -> JsonMembers:
    return finish(SCANNER.scan(text.encode() if isinstance(text, str) else text))


def filled(before: bytes, unit: bytes, after: bytes) -> bytes:
    """A large body of one thing over and over."""
    return before + unit * ((SIZE - len(before) - len(after)) // len(unit)) + after


# Each was made to be slow: to parse, to scan, to match, or to hold.
HOSTILE = {
    "objects": filled(b'{"body":{"model":1},"x":[', b"{},", b'{}],"model":"m"}'),
    "arrays": filled(b'{"x":[', b"[],", b'[]],"model":"m"}'),
    "one array after the other": filled(b'{"x":[', b"[" * 90_000 + b"]" * 90_000 + b",", b'1],"model":"m"}'),
    "one object after the other": filled(b'{"x":[', b'{"":' * 90_000 + b"1" + b"}" * 90_000 + b",", b'1],"model":"m"}'),
    "nine levels": filled(b'{"x":[', b"[[[[[[[[[]]]]]]]]],", b'1],"model":"m"}'),
    "members of many levels": filled(b"{", b'"a":' + b"[" * 30 + b"]" * 30 + b",", b'"model":"m"}'),
    "zigzag": filled(b'{"x":[', b"[[[[[[[[[[],1]]]],[1]]]]]],", b'1],"model":"m"}'),
    "backslashes": filled(b'{"x":"', b"\\\\", b'","model":"m"}'),
    "quotes": filled(b'{"x":"', b'\\"', b'","model":"m"}'),
    "one string": filled(b'{"x":"', b"x", b'","model":"m"}'),
    "characters": filled(b'{"x":"', "\u4f60".encode(), b'","model":"m"}'),
    "escapes": filled(b'{"x":"', b"\\u0041", b'","model":"m"}'),
    "pairs": filled(b'{"x":"', b"\\ud83d\\ude00", b'","model":"m"}'),
    "digits": filled(b'{"x":', b"7", b',"model":"m"}'),
    "white space": filled(b'{"x":1,', b" ", b'"model":"m"}'),
    "white space behind": filled(b'{"model":"m"}', b"\n", b""),
    "members": filled(b"{", b'"a":1,', b'"model":"m"}'),
    "escaped names": filled(b"{", b'"\\u006d":1,', b'"model":"m"}'),
    "a long name": filled(b'{"', b"x", b'":1,"model":"m"}'),
    "a long escaped name": filled(b'{"', b"\\u0041", b'":1,"model":"m"}'),
    "strings": filled(b'{"x":[', b'"",', b'1],"model":"m"}'),
    "strings of a piece": filled(b'{"x":[', b'"' + b"x" * (PIECE_BYTES - 4) + b'",', b'1],"model":"m"}'),
    "members of a piece": filled(b"{", b'"x":"' + b"x" * (PIECE_BYTES - 4) + b'",', b'"model":"m"}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_scan_large(name: str) -> None:
    """A body of any shape is scanned in steps of a bounded number of bytes, and what is held besides it is small."""
    body = HOSTILE[name]
    tracemalloc.start()
    try:
        members, turns = counted(SCANNER.scan(body))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert members.value("model") == b'"m"'
    # Once for the characters, once for the structure; a member may begin at the end of one piece and be the next.
    assert turns >= 1.5 * (len(body) // PIECE_BYTES)
    assert peak <= len(body) + 100 * PIECE_BYTES


@pytest.mark.parametrize("name", HOSTILE)
def test_scan_large_cut(name: str) -> None:
    """A body that breaks off is refused, wherever that is."""
    body = HOSTILE[name].rstrip()
    for end in (len(body) - 1, len(body) - 9, len(body) // 2, len(body) // 2 + 1):
        with pytest.raises(InvalidRequestError):
            scan(body[:end])


@pytest.mark.parametrize("opener", [b"[", b'{"":'], ids=["arrays", "objects"])
def test_scan_too_deep(opener: bytes) -> None:
    """What is open is held, so that its depth is bounded."""
    with pytest.raises(InvalidRequestError, match="deep"):
        scan(b'{"a":' + opener * (MAX_DEPTH + PIECE_BYTES))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\ufeff",
        "x",
        "[]",
        "null",
        '"s"',
        "{",
        "}",
        "{}}",
        "{}{}",
        "{} x",
        '{"a"}',
        '{"a":}',
        '{"a":1,}',
        "{,}",
        '{"a":1 "b":2}',
        '{"a":1,,"b":2}',
        '{"a" 1}',
        '{"a"::1}',
        "{a:1}",
        "{'a':1}",
        '{"a":1]',
        '{"a":[}',
        '{"a":[}]}',
        '{"a":[}}',
        '{"a":{]}',
        '{"a":[{]}]}',
        '{"a":(1)}',
        '{"a":foo}',
        '{"a":-}',
        '{"a":.5}',
        '{"a":nullnull}',
        '{"a":TRUE}',
        '{"a":1/**/}',
        '{"a":[1/*"*/,"b"]}',
        '{"a":[1 //\n]}',
        '{"a":[#\n]}',
        "{\"a\":['b']}",
        '{"a":[\\"]}',
        '{"a":"b"c"}',
        '{"a":"b',
        '{"a":"b\\',
        '{"a":"b\\"}',
        '{"a',
        '{"a":1\u00a0}',
        '{"a":[\u00a0]}',
        '{"a":[\x00]}',
        '{"a":[\x0b]}',
        '{"\\x":1}',
        '{"\\u00":1}',
        '{"mod\\\nel":1}',
        '{"mod\\el":1}',
        '{"' + "x" * 100 + '\\x":1}',
    ],
    ids=lambda value: repr(value)[:30],
)
def test_scan_no_object(text: str) -> None:
    """What is no object, or has what a lenient reader could take for other members, is refused; so it is when long."""
    for written in (text, " " * 100_000 + text, text + "\n" * 100_000):
        with pytest.raises(InvalidRequestError):
            scan(written)


@pytest.mark.parametrize(
    "text",
    [b"\xff", b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b'{"a":"\xc0\xa2"}', '{"a":1}'.encode("utf-16")],
    ids=["byte", "string", "surrogate", "overlong", "utf-16"],
)
def test_scan_no_utf8(text: bytes) -> None:
    """Two readers may see other quotation marks in what is no UTF-8."""
    for written in (text, text + b" " * 100_000, b'{"x":"' + b"x" * (PIECE_BYTES - 7) + text):
        with pytest.raises(InvalidRequestError):
            scan(written)


def test_scan_character_across_pieces() -> None:
    """A character of several bytes may stand where two pieces meet."""
    for shift in range(4):
        text = b'{"a":"' + b"x" * (PIECE_BYTES - 8 + shift) + "\U0001f600".encode() + b'","model":1}'
        assert scan(text).value("model") == b"1"


def test_scan_places_of_values() -> None:
    """A value's text is exactly what stands there, of whatever kind and wherever a piece ends."""
    for value in (b'"a"', b"-1.5e9", b"true", b"NaN", b"-Infinity", b"[]", b'{"a":[{"]":"}"}]}', b"[" * 40 + b"]" * 40):
        for shift in (0, PIECE_BYTES - 30, PIECE_BYTES - 20, PIECE_BYTES - 3):
            text = b'{"x":"%b", "model" : %b , "y":0}' % (b"x" * shift, value)
            assert scan(text).value("model") == value


def test_members_repeated() -> None:
    """A name that stands there more than once, in any spelling, is told, and its first value counts, or its last."""
    members = scan(r'{"model":1,"m\u006fdel":2,"body":{"body":3}}')

    assert members.repeated.keys() == {"model"}
    assert members.value("model") == b"1"
    assert (members.last("model"), members.last("body"), members.last("x")) == (b"2", b'{"body":3}', None)
    assert members.size("body") == len('{"body":3}')


def test_members_repr() -> None:
    """Content stays out of logs."""
    assert "secret" not in repr(scan('{"model":"secret"}'))


TEXTS = st.text(st.sampled_from('ab"\\\u00e9\U0001f600{}[],:\n'), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.just("model"), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.tuples(st.sampled_from(["model", "body", "x"]) | TEXTS, VALUES), max_size=5),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_scan_finds_what_a_parser_finds(pairs: list[tuple[str, Any]], ascii_only: bool, indent: int | None) -> None:
    """For any object the members are those that a parser finds."""
    written = [
        json.dumps(name, ensure_ascii=ascii_only) + ":" + json.dumps(value, ensure_ascii=ascii_only, indent=indent)
        for name, value in pairs
    ]
    members = scan("{" + ",".join(written) + "}")

    for name in ("model", "body"):
        values = [value for given_name, value in pairs if given_name == name]
        assert (name in members.repeated) == (len(values) > 1)
        if values:
            start, end = members.spans[name]
            assert json.loads(members.text[start:end]) == values[0]
        else:
            assert name not in members.spans


@given(st.text(st.sampled_from('{}[]":,\\ 1a\n'), max_size=30).map(lambda text: '{"model":' + text))
def test_scan_is_no_stricter_than_a_parser(text: str) -> None:
    """What a strict parser takes is taken; what is refused here it refuses, too."""
    try:
        expected = json.loads(text)
    except ValueError:
        return
    pairs = json.loads(text, object_pairs_hook=list)
    members = scan(text)
    if [name for name, _ in pairs].count("model") == 1:
        start, end = members.spans["model"]
        assert json.loads(members.text[start:end]) == expected["model"]
