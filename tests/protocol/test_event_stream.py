"""The decoder against a parser written straight from the standard, for every way of cutting a stream."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.protocol.event_stream import Event, EventStreamDecoder

STEADY = settings(max_examples=200)
LARGE = 1000

PIECES = st.sampled_from(
    [
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r", b"\n\n\n"),
        *(b"data", b"data:", b"data: x", b"data:  y", b"dat", b"Data:", b"data :", b" data:", b"datax", b"id:1"),
        *(b"event", b"event:", b"event: e", b"event:f", b"events: g", b":", b": ping", b"retry: 1"),
        *(b"\xef\xbb\xbf", b"\xef", b"\xbb\xbf", b"\x00", b"\xff\xfe", b"\xe4\xb8\xad", b"\xf0\x9f\x99\x82"),
        *(b"data: a\r", b"\ndata: b\r\n", b"data: c\r\n\r\n"),
        *(b"data: one\n\n", b"event: e\ndata: two\ndata\n\n", b"id:1\nevent:r\n:c\ndata:3\n\n", b": ping\n\n"),
    ]
)
STREAMS = st.lists(PIECES, max_size=24).map(b"".join)
CUTS = st.lists(st.integers(0, 400), max_size=12)


def reference(stream: bytes) -> list[Event]:
    """WHATWG HTML §9.2.5 and §9.2.6, with everything kept."""
    lines = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    lines.pop()
    events: list[Event] = []
    name, data = b"", b""
    for line in lines:
        field, colon, value = line.partition(b":")
        value = value.removeprefix(b" ") if colon else b""
        if not line:
            if data:
                events.append(Event(name, data.removesuffix(b"\n")))
            name, data = b"", b""
        elif field == b"event":
            name = value
        elif field == b"data":
            data += value + b"\n"
    return events


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted(min(at, len(stream)) for at in cuts)
    return [stream[start:end] for start, end in zip([0, *ends], [*ends, len(stream)], strict=True)]


def decoded(*reads: bytes, limit: int = LARGE) -> tuple[list[Event], bool]:
    decoder = EventStreamDecoder(max_event_bytes=limit)
    events = [event for read in reads for event in decoder.feed(read)]
    return events, decoder.is_overflown


@given(STREAMS, CUTS)
@STEADY
def test_decoder_any_split(stream: bytes, cuts: list[int]) -> None:
    """A stream cut anywhere, inside a CRLF, a character or a byte order mark, gives the events of the standard."""
    assert decoded(*cut(stream, cuts)) == (reference(stream), False)


@given(STREAMS, CUTS, st.integers(1, 40))
@STEADY
def test_decoder_bound_any_split(stream: bytes, cuts: list[int], limit: int) -> None:
    """Where a block is too large does not depend on how the stream was cut."""
    assert decoded(*cut(stream, cuts), limit=limit) == decoded(stream, limit=limit)


def test_decoder_crlf_cut_in_two() -> None:
    """The halves of a CRLF are one line end: the second does not end the block."""
    decoder = EventStreamDecoder(max_event_bytes=LARGE)
    assert decoder.feed(b"event: e\r") == []
    assert decoder.feed(b"\ndata: a\r") == []
    assert decoder.feed(b"\n\r\n") == [Event(b"e", b"a")]


def test_decoder_gives_an_event_with_its_blank_line() -> None:
    """An event is given by the read that ends it, not by the next one."""
    decoder = EventStreamDecoder(max_event_bytes=LARGE)
    assert decoder.feed(b"data: a\r\n\r") == [Event(b"", b"a")]
    assert decoder.feed(b"\ndata: b\n\n") == [Event(b"", b"b")]
    assert decoder.feed(b"data: cut off\n") == []


@pytest.mark.parametrize("line", [b"data: ", b": ", b"id: ", b"", b"data\ndata\n"])
def test_decoder_bound(line: bytes) -> None:
    """Whatever a block is made of, it is not kept beyond the bound; what came before it was given."""
    first = b"data: fits\n\n"
    events, is_overflown = decoded(first, *([line + b"x" * 50] * 30), b"\n\n", first, limit=1000)

    assert events == [Event(b"", b"fits")]
    assert is_overflown


def test_decoder_block_of_the_bound_fits() -> None:
    """The bound is of one block: many that just fit pass."""
    block = b"data: " + b"x" * 93 + b"\n"
    assert decoded(*([block + b"\n"] * 50), limit=100) == ([Event(b"", b"x" * 93)] * 50, False)
    assert decoded(block + b"\n", limit=99) == ([], True)


def test_decoder_memory() -> None:
    """A large event that trickles in, and an endless line, take no more than a few times the bound."""
    limit = 2**20
    tracemalloc.start()
    try:
        decoder = EventStreamDecoder(max_event_bytes=limit)
        for _ in range(8 * limit // 1000):
            decoder.feed(b"data: " + b"x" * 994)
        for _ in range(1000):
            decoder.feed(b"\n\n")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoder.is_overflown
    assert peak < 4 * limit
