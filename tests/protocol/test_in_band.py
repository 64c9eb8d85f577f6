"""What an `EventSource` is told in the stream, read as the standard says (WHATWG HTML §9.2.6)."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.model import Ending
from proxy.protocol.in_band import DataLines, end_event, torn
from proxy.protocol.sse_observer import EventStreamObserver, encode_event
from tests.peers import read_events

STEADY = settings(max_examples=300)


def test_read_events_is_the_standards() -> None:
    """The tests' own reader does what the standard's examples say."""
    assert read_events(b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event") == [
        ("message", "first event"),
        ("message", "second event"),
    ]
    assert read_events(b"data\n\ndata\ndata\n\ndata:") == [("message", ""), ("message", "\n")]
    assert read_events(b"event: end\n\nevent: a\r\ndata: 1\rdata:2\n\n") == [("a", "1\n2")]


def test_end_event() -> None:
    """It is one event named `end` whose data is JSON and never empty."""
    assert read_events(end_event("abc", Ending.COMPLETE, 200)) == [
        ("end", '{"id":"abc","ending":"complete","status":200}')
    ]
    told = end_event("abc", Ending.REFUSED, 429, code="rate_limit_exceeded", retry_after_s=3)
    assert json.loads(read_events(told)[0][1]) == {
        "id": "abc",
        "ending": "refused",
        "status": 429,
        "code": "rate_limit_exceeded",
        "retry_after": 3,
    }


STREAM = (
    b'\xef\xbb\xbfdata: {"a":1}\n\nevent: content\r\ndata: one\r\ndata: \xe4\xb8\xad\r\n\r\nid: 7\rdata: two\r\r'
    b": a comment\n\nretry: 5\ndata:last\n\ndata: [DONE]\n\n"
)


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_torn_event_is_no_message(cut: int) -> None:
    """Wherever a stream is cut, a client gets the whole events that came, the half one under no name of a vendor's."""
    observer = EventStreamObserver()
    observer.feed(STREAM[:cut])
    ours = encode_event(b'{"error":1}') + end_event("x", Ending.UPSTREAM_CLOSED, 200)

    got = read_events(STREAM[:cut] + (b"" if observer.at_boundary else torn(in_line=observer.in_line)) + ours)

    # What a client gets of a body that ends here, which drops the half event.
    whole = read_events(STREAM[:cut])
    assert [event for event in got if event[0] != "torn"] == whole + read_events(ours)
    assert len([event for event in got if event[0] == "torn"]) <= 1


@given(
    pieces=st.lists(
        st.lists(st.sampled_from([b"\r", b"\n", b"a", b" ", b":", b"data: x", b"\r\n"]), max_size=4).map(b"".join),
        max_size=6,
    )
)
@STEADY
def test_data_lines_make_one_message(pieces: list[bytes]) -> None:
    """Any body, split anywhere, becomes one message with its lines; nothing in it can end it or name it."""
    lines = DataLines()
    body = b"".join(pieces)

    written = b"".join(lines.feed(piece) for piece in pieces) + lines.end()

    expected = re.sub("\r\n|\r|\n", "\n", body.decode())
    assert read_events(written) == ([("message", expected)] if body else [])
    observer = EventStreamObserver()
    observer.feed(written)
    assert observer.at_boundary
