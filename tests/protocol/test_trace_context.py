"""W3C Trace Context, by the standard's own rules and examples."""

from __future__ import annotations

import pytest

from proxy.model import FieldIndex
from proxy.protocol.trace_context import TraceParent, read_traceparent, read_tracestate, write_traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def parent(*values: str) -> TraceParent | None:
    return read_traceparent(FieldIndex([(b"Traceparent", value.encode()) for value in values]))


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-03", 3),
        # Flags that are not known are not passed on (§3.2.2.5).
        (f"00-{TRACE}-{SPAN}-fd", 1),
        # A later version may have more (§3.2.4).
        (f"01-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", 1),
        (f" 00-{TRACE}-{SPAN}-01\t", 1),
    ],
)
def test_traceparent_is_read(text: str, flags: int) -> None:
    """A valid field is read as it is meant."""
    assert parent(text) == TraceParent(TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01.",
        f"01-{TRACE}-{SPAN}-01.what",
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0x",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_traceparent_is_not_valid(text: str) -> None:
    """An invalid field names no trace."""
    assert parent(text) is None


def test_traceparent_missing_or_twice() -> None:
    """Without the field, or with two of them, there is no trace, even where both agree."""
    assert parent() is None
    assert parent(f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01") is None


def test_traceparent_written() -> None:
    """What is written is read as it was."""
    assert write_traceparent(TRACE, SPAN, 0) == f"00-{TRACE}-{SPAN}-00".encode()
    assert parent(write_traceparent(TRACE, SPAN, 1).decode()) == (TRACE, SPAN, 1)


def state(*values: bytes) -> bytes:
    return read_tracestate(FieldIndex([(b"tracestate", value) for value in values]))


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ([], b""),
        ([b"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"], b"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        ([b"a=1", b"b=2 3 , c=4"], b"a=1,b=2 3,c=4"),
        ([b"a=1,,  ,b=2,"], b"a=1,b=2"),
        ([b"fw529a3039@dt=FfAAA-/*"], b"fw529a3039@dt=FfAAA-/*"),
        ([b",".join(b"k%d=v" % number for number in range(32))], b",".join(b"k%d=v" % number for number in range(32))),
    ],
)
def test_tracestate_is_read(values: list[bytes], read: bytes) -> None:
    """The members of all fields count, in order; empty ones are none."""
    assert state(*values) == read


@pytest.mark.parametrize(
    "value",
    [
        b"a",
        b"=1",
        b"A=1",
        b"a=",
        b"a=1=2",
        b"a=\xe9",
        b"a=1\x00",
        b"a=1,a=2",
        b"a b=1",
        b"a=" + b"x" * 257,
        b"k" * 257 + b"=1",
        b",".join(b"k%d=v" % number for number in range(33)),
        b",".join(b"k%d=%b" % (number, b"x" * 200) for number in range(30)),
    ],
)
def test_tracestate_is_dropped(value: bytes) -> None:
    """One member that is not valid, one too many, or too much of them: none is passed on."""
    assert state(b"z=0", value) == b""
