"""The transform that takes the usage event out, before those that pass the rest."""

from __future__ import annotations

import pytest

from proxy.dialects import DIALECTS
from proxy.model import Ending
from proxy.protocol.sse_observer import EventStreamObserver
from proxy.relay.event_source import ForEventSource
from proxy.relay.passthrough import Passthrough
from proxy.relay.transform import StreamError
from proxy.relay.without_usage import WithoutUsage, fields_without_usage
from tests.relay.one_client import error_event

TEXT = b'data: {"choices":[{"delta":{"content":"hi"}}],"usage":null}\n\n'
TOLD = b'data: {"choices":[],"usage":{"total_tokens":1}}\n\n'


def passthrough(*, is_watched: bool = True) -> WithoutUsage:
    observer = EventStreamObserver() if is_watched else None
    return WithoutUsage(Passthrough(status=200, observer=observer, error_event=error_event))


BROKEN = StreamError("upstream_unreachable", "It broke.")


def for_event_source() -> WithoutUsage:
    shape = DIALECTS["openai"]
    return WithoutUsage(
        ForEventSource(id_="e1", status=200, shape=shape, is_event_stream=True, told=lambda _ending: None)
    )


def test_without_usage_counts_what_is_left() -> None:
    """Only events that the client was given are counted."""
    stream = passthrough()
    assert stream.transform(TEXT + TOLD + TEXT) == TEXT + TEXT
    assert stream.events == 2


def test_without_usage_boundary_is_the_clients() -> None:
    """While a beginning is held the client is between two events, but no event may pass it by."""
    stream = passthrough()
    assert not stream.allows_ping
    assert stream.transform(TEXT) == TEXT
    assert stream.allows_fast_path
    assert stream.transform(TOLD[:9]) == b""
    assert (stream.at_boundary, stream.allows_ping, stream.allows_fast_path) == (True, True, False)
    assert stream.transform(TOLD[9:]) == b""
    assert (stream.at_boundary, stream.allows_ping, stream.allows_fast_path) == (True, True, True)
    assert stream.transform(TEXT[:40]) == TEXT[:40]
    assert (stream.at_boundary, stream.allows_ping, stream.allows_fast_path) == (False, False, False)
    assert not stream.has_failed


@pytest.mark.parametrize("rest", [b"data: [DONE]", b"data: [DONE]\n", TOLD[:20]])
def test_without_usage_passes_the_rest(rest: bytes) -> None:
    """What is held when the body ends is passed, unless it is the event."""
    stream = passthrough()
    assert stream.transform(TEXT + rest) == TEXT
    assert stream.complete() == (Ending.COMPLETE, rest, b"", None)


def test_without_usage_removes_the_last_event() -> None:
    """The event is not passed at the body's end either, and an `EventSource` gets its own last event unbroken."""
    stream = for_event_source()
    assert stream.transform(TEXT + TOLD[:-2]) == TEXT
    completion = stream.complete()
    assert completion.rest == b""
    assert completion.added.startswith(b"event: end\n")


def test_without_usage_passes_the_rest_before_the_last_event() -> None:
    """What is left of the stream comes before the event that an `EventSource` is told the end in."""
    stream = for_event_source()
    assert stream.transform(TEXT + b"data: [DONE]\n") == TEXT
    completion = stream.complete()
    assert completion.rest == b"data: [DONE]\n"
    assert b"event: end\n" in completion.added
    assert not completion.added.startswith(b"event: end\n")


def test_without_usage_breaks_off() -> None:
    """A beginning that is held when the stream breaks off is dropped, and the error event stands in its place."""
    stream = passthrough()
    stream.transform(TEXT + TOLD[:9])
    epilogue = stream.epilogue(Ending.UPSTREAM_CLOSED, BROKEN, is_behind=False)
    assert epilogue == (error_event("upstream_unreachable", ""), False)
    assert passthrough(is_watched=False).epilogue(Ending.UPSTREAM_CLOSED, BROKEN, is_behind=False) == (b"", False)


def test_fields_without_usage() -> None:
    """Fields that describe the upstream's bytes go, in any case; the others stay in order."""
    fields = [(b"X-A", b"1"), (b"eTag", b'"x"'), (b"Content-Type", b"text/event-stream"), (b"Digest", b"d")]
    assert fields_without_usage(fields) == [fields[0], fields[2]]
