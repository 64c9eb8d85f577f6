"""Traces: whose they are, and which of them are recorded."""

from __future__ import annotations

import re

import pytest
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from proxy.model import FieldIndex
from proxy.observability.tracing import Sampling, Tracer

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def head(flags: str, state: str = "") -> FieldIndex:
    fields = [(b"traceparent", f"00-{TRACE}-{SPAN}-{flags}".encode())]
    return FieldIndex([*fields, (b"tracestate", state.encode())] if state else fields)


def test_trace_begins() -> None:
    """Without a caller's trace a new one begins, with ids that no other has."""
    tracer = Tracer(Sampling())
    traces = [tracer.begin(None) for _ in range(300)]
    assert all(re.fullmatch("[0-9a-f]{32}", trace.trace_id) for trace in traces)
    assert all(re.fullmatch("[0-9a-f]{16}", trace.span_id) and trace.parent_id is None for trace in traces)
    assert len({trace.trace_id for trace in traces}) == len({trace.span_id for trace in traces}) == 300
    assert all(trace.is_sampled for trace in traces)


def test_trace_continues() -> None:
    """A caller's trace goes on below its span, with its state."""
    trace = Tracer(Sampling()).begin(head("03", "a=1"))
    assert (trace.trace_id, trace.parent_id, trace.state, trace.flags) == (TRACE, SPAN, b"a=1", 3)
    assert trace.span_id != SPAN


def test_invalid_trace_loses_its_state() -> None:
    """Whoever cannot read `traceparent` does not pass `tracestate` on."""
    fields = [(b"traceparent", b"00-0-0-01"), (b"tracestate", b"a=1")]
    trace = Tracer(Sampling()).begin(FieldIndex(fields))
    assert (trace.parent_id, trace.state) == (None, b"")


@pytest.mark.parametrize("ratio", [0.0, 1.0])
@pytest.mark.parametrize("flags", ["00", "01"])
def test_caller_decides(ratio: float, flags: str) -> None:
    """Whether a caller records its trace decides, or does not where that is not asked."""
    assert Tracer(Sampling(ratio)).begin(head(flags)).is_sampled is (flags == "01")
    assert Tracer(Sampling(ratio, follows_parent=False)).begin(head(flags)).is_sampled is (ratio == 1.0)
    assert Tracer(Sampling(ratio)).begin(None).is_sampled is (ratio == 1.0)


def test_same_share_as_the_sdk() -> None:
    """Services that record the same share record the same traces, whoever made them."""
    theirs, tracer = TraceIdRatioBased(0.3), Tracer(Sampling(0.3))
    traces = [tracer.begin(None) for _ in range(1000)]
    expected = [theirs.should_sample(None, int(trace.trace_id, 16), "x").decision.is_sampled() for trace in traces]  # type: ignore[no-untyped-call]  # the SDK's
    assert [trace.is_sampled for trace in traces] == expected
    assert 200 < sum(expected) < 400
