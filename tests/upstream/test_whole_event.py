"""The lane and the parser together: the same bytes and the same count of events, whoever took which read."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import cast

from hypothesis import given
from hypothesis import strategies as st
from proxy.phases.relay import Relay, StreamClocks
from proxy.protocol.chunks import follow

from proxy.model import Ending
from proxy.protocol.sse_observer import EventStreamObserver
from proxy.upstream.connection import Connection
from tests.upstream.wire import Wire

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
PAYLOADS = st.one_of(
    st.sampled_from(
        [
            b'data: {"text":"a longer event than that"}\n\n',
            b"event: delta\ndata: something or other\n\n",
            b"data: one of two\n\ndata: the other one\n\n",
            b"data: half of an event\n",
            b"data: a carriage return\r\ndata: x\n\n",
            b"data: two returns\r\rdata: y\n\n",
            b": a comment that is no event\n\n",
            b"\ndata: a blank line before\n\n",
            b"data: " + b"long " * 200 + b"\n\n",
            b"data: looks like\r\n5\r\na chunk\n\n",
            b"\n\n",
            b"event: no data in this one\nid: 7\n\n",
        ]
    ),
    st.binary(min_size=1, max_size=300).map(lambda junk: junk + b"\n\n"),
)


def coded(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def decoded(data: bytes) -> bytes:
    """The payload of chunks that are whole."""
    body = b""
    while data:
        line, _, data = data.partition(b"\r\n")
        size = int(line, 16)
        body += data[:size]
        assert data[size : size + 2] == b"\r\n"
        data = data[size + 2 :]
    return body


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    return [data[begin:end] for begin, end in pairwise(places)]


async def relay(reads: list[bytes]) -> tuple[bytes, Relay]:
    """What the client is given of those reads, and the relay that gave it."""
    vendor, client = Wire(), Wire()
    connection = Connection(upstream="main", key=None, on_idle=lambda _one: None, on_closed=lambda _one: None)
    vendor.protocol = connection
    connection.connection_made(cast("asyncio.Transport", vendor))
    asked = connection.send(b"", b"", is_head_request=False)
    connection.data_received(reads[0])
    running = Relay(
        await asked,
        cast("asyncio.Transport", client),
        b"",
        framing="chunked",
        observer=EventStreamObserver(),
        error_event=lambda _code, _message: None,
        clocks=StreamClocks(0.0, None, None, None, None),
    )
    running.start()
    for read in reads[1:]:
        vendor.protocol.data_received(read)
    return client.written, running


@given(
    payloads=st.lists(PAYLOADS, min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 4000), max_size=6),
    by_chunk=st.booleans(),
)
def test_lane_and_parser_agree(payloads: list[bytes], cuts: list[int], by_chunk: bool) -> None:
    """Whatever the chunks hold and wherever the reads are cut, no byte is lost or changed, and no event miscounted."""
    chunks = [coded(payload) for payload in payloads]
    rest = [*chunks[1:], LAST] if by_chunk else cut(b"".join((*chunks[1:], LAST)), cuts)

    written, running = asyncio.run(relay([HEAD + chunks[0], *rest]))

    body = b"".join(payloads)
    observer = EventStreamObserver()
    observer.feed(body)
    assert written.endswith(LAST)
    assert decoded(written) == body
    assert (running.ending, running.sent, running.events) == (Ending.COMPLETE, len(body), observer.events)


@given(
    payloads=st.lists(st.binary(min_size=1, max_size=5000), max_size=6), cuts=st.lists(st.integers(0, 9000), max_size=6)
)
def test_follow_never_wrong(payloads: list[bytes], cuts: list[int]) -> None:
    """What it says is missing is missing; where it cannot tell it says so."""
    data = b"".join(map(coded, payloads))
    ends = [0]
    for payload in payloads:
        ends.append(ends[-1] + len(coded(payload)))
    missing = position = 0
    for read in cut(data, cuts):
        told = follow(read, 0, missing)
        position += len(read)
        if told is None:
            break
        missing = told
        assert position + missing in ends
