"""Whole events and the parser together: the same bytes and the same count of events, whichever took which read."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.model import Ending
from proxy.protocol.sse_observer import EventStreamObserver
from proxy.upstream.whole_event import missing_of_chunk, whole_event
from tests.relay.one_client import HEAD, LAST, OneRelay

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


def events_in(body: bytes) -> int:
    observer = EventStreamObserver()
    observer.feed(body)
    return observer.events


@pytest.mark.parametrize(
    ("read", "payload_bytes"),
    [
        pytest.param(coded(b"data: something or other\n\n"), 26, id="one line of data"),
        pytest.param(coded(b"event: delta\ndata: {}\n\n"), 23, id="a name and data"),
        pytest.param(coded(b"data: " + b"x" * 4000 + b"\n\n"), 4008, id="the longest size line that is looked for"),
        pytest.param(coded(b"data: " + b"x" * 4096 + b"\n\n"), 0, id="a longer one"),
        pytest.param(b"1A\r\ndata: something or other\n\n\r\n", 0, id="a size in upper case"),
        pytest.param(b"1a;x=y\r\ndata: something or other\n\n\r\n", 0, id="a chunk extension"),
        pytest.param(b"01a\r\ndata: something or other\n\n\r\n", 0, id="a size with a leading zero"),
        pytest.param(b"1b\r\ndata: something or other\n\n\r\n", 0, id="a size that is not the chunk's"),
        pytest.param(coded(b"data: one of two\n\ndata: two\n\n"), 0, id="two events"),
        pytest.param(coded(b"data: two lines of\ndata: data\n\n"), 0, id="two lines of data"),
        pytest.param(coded(b"id: 1\nevent: a\ndata: three lines\n\n"), 0, id="three lines"),
        pytest.param(coded(b"data: a carriage return\r\n\n"), 0, id="a carriage return"),
        pytest.param(coded(b": a comment that is no event\n\n"), 0, id="a comment"),
        pytest.param(coded(b"\ndata: a blank line before it\n\n"), 0, id="a blank line first"),
        pytest.param(coded(b"data: half of an event so far\n"), 0, id="half an event"),
        pytest.param(coded(b"data: something or other\n\n") * 2, 0, id="two chunks"),
        pytest.param(coded(b"data: something or other\n\n")[:-1], 0, id="a chunk that lacks its last byte"),
        pytest.param(LAST, 0, id="the last chunk"),
        pytest.param(b"", 0, id="nothing"),
    ],
)
def test_whole_event(read: bytes, payload_bytes: int) -> None:
    """A read is recognised if it is one chunk, written as everybody does, of one event that ends with data."""
    assert whole_event(read) == payload_bytes


@given(payloads=st.lists(PAYLOADS, min_size=1, max_size=3), cuts=st.lists(st.integers(0, 1000), max_size=2))
def test_whole_event_never_wrong(payloads: list[bytes], cuts: list[int]) -> None:
    """What is recognised is one whole chunk that the observer counts as one whole event."""
    for read in cut(b"".join(map(coded, payloads)), cuts):
        payload_bytes = whole_event(read)
        if payload_bytes:
            body = decoded(read)
            assert (len(body), events_in(body)) == (payload_bytes, 1)
            assert read == coded(body)


async def relay(reads: list[bytes]) -> tuple[bytes, OneRelay]:
    """What the client is given of those reads, and the relay that gave it."""
    one = OneRelay()
    await one.begin(reads[0])
    one.hear(*reads[1:])
    await one.end()
    return one.client.body, one


@given(
    payloads=st.lists(PAYLOADS, min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 4000), max_size=6),
    by_chunk=st.booleans(),
)
def test_fast_path_and_parser_agree(payloads: list[bytes], cuts: list[int], by_chunk: bool) -> None:
    """Whatever the chunks hold and wherever the reads are cut, no byte is lost or changed, and no event miscounted."""
    chunks = [coded(payload) for payload in payloads]
    rest = [*chunks[1:], LAST] if by_chunk else cut(b"".join((*chunks[1:], LAST)), cuts)

    written, one = asyncio.run(relay([HEAD + chunks[0], *rest]))

    body = b"".join(payloads)
    response = one.response
    assert written.endswith(LAST)
    assert decoded(written) == body
    assert (response.ending, response.sent, response.events) == (Ending.COMPLETE, len(body), events_in(body))


@given(
    payloads=st.lists(st.binary(min_size=1, max_size=5000), max_size=6), cuts=st.lists(st.integers(0, 9000), max_size=6)
)
def test_missing_of_chunk_never_wrong(payloads: list[bytes], cuts: list[int]) -> None:
    """What it says is missing is missing; where it cannot tell it says so."""
    data = b"".join(map(coded, payloads))
    ends = [0]
    for payload in payloads:
        ends.append(ends[-1] + len(coded(payload)))
    missing = position = 0
    for read in cut(data, cuts):
        told = missing_of_chunk(read, 0, missing)
        position += len(read)
        if told is None:
            break
        missing = told
        assert position + missing in ends
