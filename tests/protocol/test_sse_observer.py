"""The observer against a parser written straight from the standard, for every way of cutting a stream."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.protocol.sse_observer import PING, EventStreamObserver, encode_event, is_event_stream

STEADY = settings(max_examples=200)

# Streams made of what matters to the grammar: line ends, field names near `data`, marks, colons, ordinary bytes.
PIECES = st.sampled_from(
    [
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r", b"\n\n\n"),
        *(b"data", b"data:", b"data: x", b"dat", b"a:", b"Data:", b"data :", b" data:", b"datax", b"event: e", b"id:1"),
        *(b":", b": ping", b"retry: 1", b"\xef\xbb\xbf", b"\xef", b"\xbb\xbf", b"\x00", b"\xff\xfe", b"\xe4\xb8\xad"),
        *(b"data: one\n\n", b"event: e\ndata: two\n\n", b"id:1\nevent:r\n:c\ndata:3\n\n", b": ping\n\n"),
    ]
)
STREAMS = st.lists(PIECES, max_size=24).map(b"".join)


class Reference:
    """WHATWG HTML §9.2.5 and §9.2.6, one byte at a time, with everything kept."""

    def __init__(self, stream: bytes) -> None:
        self.dispatched: list[bytes] = []
        body = stream.removeprefix(b"\xef\xbb\xbf")
        lines = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        unfinished = lines.pop()
        data: list[bytes] = []
        in_block = False
        for line in lines:
            if not line:
                if data:
                    self.dispatched.append(b"\n".join(data))
                data, in_block = [], False
                continue
            in_block = True
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
        self.at_boundary = not unfinished and not in_block and not body.endswith(b"\r")


def observed(*reads: bytes) -> tuple[int, bool]:
    observer = EventStreamObserver()
    for read in reads:
        observer.feed(read)
    return observer.events, observer.at_boundary


def expected(stream: bytes) -> tuple[int, bool]:
    reference = Reference(stream)
    return len(reference.dispatched), reference.at_boundary


@given(STREAMS)
@STEADY
def test_observer_whole_stream(stream: bytes) -> None:
    """A stream in one read gives the events and the boundary of the standard's parser."""
    assert observed(stream) == expected(stream)


@given(STREAMS, st.lists(st.integers(0, 200), max_size=12))
@STEADY
def test_observer_any_split(stream: bytes, cuts: list[int]) -> None:
    """After every read of a stream cut anywhere, the observer says what the parser says of all bytes so far."""
    observer = EventStreamObserver()
    seen = b""
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(stream)], strict=True):
        read = stream[start:end]
        observer.feed(read)
        seen += read
        assert (observer.events, observer.at_boundary) == expected(seen)


@given(STREAMS)
@STEADY
def test_observer_byte_by_byte(stream: bytes) -> None:
    """A stream that arrives one byte at a time gives the same as in one read."""
    assert observed(*(stream[i : i + 1] for i in range(len(stream)))) == expected(stream)


@given(st.lists(st.lists(PIECES, max_size=6).map(b"".join), max_size=8))
@STEADY
def test_observer_reads_of_blocks(reads: list[bytes]) -> None:
    """Reads that each start and end near a boundary, where the fast ways are taken, give what the parser gives."""
    framed = [b"id: 0\n\n", *(read + b"\n\n" for read in reads)]
    assert observed(*framed) == expected(b"".join(framed))


LINES = st.sampled_from(
    [
        *(b"data: x", b"data:", b"data", b"datb: x", b"dat", b"data;", b"data 1", b"daza:"),
        *(b"e", b"event: data: x", b"", b"\xff"),
    ]
)
BLOCKS = st.lists(LINES, max_size=4).map(lambda lines: b"".join(line + b"\n" for line in lines) + b"\n")


@given(BLOCKS, st.lists(BLOCKS, max_size=3), st.integers(1, 5), st.integers(0, 12))
@STEADY
def test_observer_reads_of_like_blocks(block: bytes, others: list[bytes], times: int, cut: int) -> None:
    """Many blocks of a kind in one read, as vendors send them, and others among them, give what the parser gives."""
    read = b"".join(block * times + other for other in [*others, b""])
    framed = [b"id: 0\n\n", read[:cut], read[cut:], read]
    assert observed(*framed) == expected(b"".join(framed))
    assert observed(read) == expected(read)


@pytest.mark.parametrize("odd", [b"datb: x\n\n", b"data\n\n", b"dat: x\n\n", b"\n\n", b"data:\ndata:\n\n"])
def test_observer_odd_one_of_many(odd: bytes) -> None:
    """One other block, wherever it stands in a large read of like ones, is counted for what it is."""
    block = b"data: " + b"x" * 200 + b"\n\n"
    for place in (0, 1, 300, 599):
        read = block * place + odd + block * (600 - place)
        assert observed(block, read) == expected(block + read)


@pytest.mark.parametrize(
    ("stream", "events", "at_boundary"),
    [
        pytest.param(b"", 0, True, id="nothing yet"),
        # The standard's own examples (§9.2.6).
        pytest.param(b"data: YHOO\ndata: +2\ndata: 10\n\n", 1, True, id="one event of three lines"),
        pytest.param(
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event",
            2,
            False,
            id="unfinished third",
        ),
        pytest.param(b"data\n\ndata\ndata\n\ndata:", 2, False, id="empty data"),
        pytest.param(b"data:test\n\ndata: test\n\n", 2, True, id="space or none"),
        pytest.param(b": ping\n\n", 0, True, id="comment"),
        pytest.param(b"event: x\nid: 1\n\n", 0, True, id="no data"),
        pytest.param(b"data: a\r\n\r\n", 1, True, id="crlf"),
        pytest.param(b"data: a\r\n\r", 1, False, id="half a crlf"),
        pytest.param(b"data: a\r\r", 1, False, id="lone cr may become crlf"),
        pytest.param(b"data: a\n", 0, False, id="line ended, block not"),
        pytest.param(b"data: a", 0, False, id="inside a line"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", 1, True, id="byte order mark"),
        pytest.param(b"\xef\xbb\xbf", 0, True, id="byte order mark alone"),
        pytest.param(b"\xef\xbb", 0, False, id="half a byte order mark"),
        pytest.param(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", 0, True, id="only one byte order mark"),
        pytest.param(b"id: 1\n\n\xef\xbb\xbfdata: a\n\n", 0, True, id="later byte order mark"),
        pytest.param(b"DATA: a\n\ndatas: a\n\n data: a\n\n", 0, True, id="other names"),
        pytest.param(b"\n\n\n\n", 0, True, id="blank lines"),
        pytest.param(b"event: a\n\nevent: b\ndata: 1\ndata: 2\n\n", 1, True, id="two data lines in one block"),
        pytest.param(b"data: a\r\rdata: b\n\n", 2, True, id="two events, one of them with lone cr"),
        pytest.param(b"id: 1\rdata: a\n\n", 1, True, id="data line after a lone cr"),
        pytest.param(b"data: a\nb", 0, False, id="one byte of the next line"),
        pytest.param(b"\ndata: a\n\n", 1, True, id="blank line first"),
        pytest.param(b"\xef\xbb\xbfid: 1\ndata: a\n\n", 1, True, id="byte order mark before another line"),
        pytest.param(b"\xef\xbb\xbf\ndata: a\n\n", 1, True, id="byte order mark before a blank line"),
        pytest.param(b"id: 1\ndata: a\n\n\xef\xbb\xbfdata: b\n\n", 1, True, id="mark after the first event"),
    ],
)
def test_observer_example(stream: bytes, events: int, at_boundary: bool) -> None:
    """Each of these streams dispatches this many events and leaves the stream here."""
    assert observed(stream) == (events, at_boundary)
    assert observed(b": first\n\n", stream) == expected(b": first\n\n" + stream)


def test_observer_boundary_after_crlf() -> None:
    """The LF of a split CRLF restores the boundary, and is no further blank line."""
    observer = EventStreamObserver()
    boundaries = []
    for read in (b"data: a\r\n\r", b"\n", b"data: b\r", b"\n", b"\r", b"\n"):
        observer.feed(read)
        boundaries.append(observer.at_boundary)
    assert boundaries == [False, True, False, False, False, True]
    assert observer.events == 2


def test_observer_mark_after_first_read() -> None:
    """A byte order mark is one only before everything else, however the first event was taken in."""
    for first in (b"data: a\n\n", b"id: 1\ndata: a\n\n"):
        reads = (first, b"\xef\xbb\xbfdata: b\n\n", b"\xef\xbb\xbf\ndata: c\n\n")
        assert observed(*reads) == expected(b"".join(reads)) == (2, True)


def test_observer_endless_line() -> None:
    """A line of 100 MB, and a read of nothing but line ends, are followed without keeping them."""
    observer = EventStreamObserver()
    read = b"data: " + b"x" * 262_138
    ends = b"\n" * 262_144
    tracemalloc.start()
    for _ in range(400):
        observer.feed(read)
    inside = observed(read)
    assert (observer.events, observer.at_boundary) == inside == (0, False)
    observer.feed(ends)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (observer.events, observer.at_boundary) == (1, True)
    assert kept < 16_384
    assert peak < 1_048_576


@given(st.lists(st.sampled_from([b"a", b" ", b":", b"\n", b"\r", b"\r\n", b"data: "]), max_size=12).map(b"".join))
@STEADY
def test_encode_event_is_one_event(data: bytes) -> None:
    """What we encode is read as one event, its data ours with LF line ends, and ends at a boundary."""
    reference = Reference(encode_event(data, b"error"))
    assert reference.dispatched == [data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")]
    assert reference.at_boundary
    assert observed(encode_event(data)) == (1, True)


def test_encode_event_bytes() -> None:
    """An event is worded with LF alone, its name first."""
    assert encode_event(b'{"a":1}') == b'data: {"a":1}\n\n'
    assert encode_event(b"a\r\nb", b"error") == b"event: error\ndata: a\ndata: b\n\n"


@pytest.mark.parametrize("name", [b"a\nb", b"a\rb", b"\r\n"])
def test_encode_event_name_of_two_lines(name: bytes) -> None:
    """A name that would become another field is refused."""
    with pytest.raises(ValueError, match="one line"):
        encode_event(b"x", name)


def test_ping_is_no_event() -> None:
    """The heartbeat dispatches nothing and leaves the stream at a boundary."""
    assert observed(b"data: a\n\n", PING) == (1, True)


@pytest.mark.parametrize(
    ("content_type", "is_stream"),
    [
        (b"text/event-stream", True),
        (b"Text/Event-Stream; charset=latin-1", True),
        (b" text/event-stream\t;x", True),
        (b"text/event-streams", False),
        (b"text/event-stream, text/html", False),
        (b"application/json; x=text/event-stream", False),
        (b"text/event-stream x", False),
        (b"", False),
        (None, False),
    ],
)
def test_is_event_stream(content_type: bytes | None, is_stream: bool) -> None:
    """Only the exact essence makes an event stream, whatever its parameters and case."""
    assert is_event_stream(content_type) is is_stream
