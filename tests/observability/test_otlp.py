"""OTLP's messages: what the SDK's own encoder would make of the same."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]  # the stubs are a package of their own
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event as SdkEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from proxy.observability import otlp
from proxy.observability.gen_ai import _COMMON, Instrument, Reading
from proxy.observability.tracing import Event, Span

RESOURCE: dict[str, Any] = {"service.name": "x", "process.pid": 7}
SCOPE = InstrumentationScope(otlp.SCOPE, "1.2", "https://schema.test")
TRACE, SPAN, PARENT, OTHER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7", "1" * 16
ATTRIBUTES: dict[str, Any] = {
    "s": "é",
    "i": 3,
    "f": 0.5,
    "b": True,
    "t": ("a",),
    "l": ["a", "b"],
    "forward_sse.bytes": 2**40,
}


def context(span: str, *, is_remote: bool = False, state: TraceState | None = None) -> SpanContext:
    return SpanContext(int(TRACE, 16), int(span, 16), is_remote, TraceFlags(1), state)


def test_span_as_the_sdk_has_it() -> None:
    """A span has every member that the SDK's encoder gives it; the flags besides, which that one leaves out."""
    span = Span(
        TRACE, SPAN, PARENT, 1, b"a=1,b=2", "POST /x", is_server=True, start_ns=5, end_ns=9, attributes=ATTRIBUTES,
        events=(Event("e", 6, {"k": "v"}), Event("f", 7)), links=(OTHER,), is_error=True,
    )  # fmt: skip
    message = otlp.trace_request("1.2", RESOURCE, "https://schema.test")
    otlp.add_span(message, span)
    theirs = encode_spans(
        [
            ReadableSpan(
                "POST /x", context(SPAN, state=TraceState([("a", "1"), ("b", "2")])), context(PARENT, is_remote=True),
                Resource(RESOURCE), ATTRIBUTES, [SdkEvent("e", {"k": "v"}, 6), SdkEvent("f", {}, 7)],
                [Link(context(OTHER))], SpanKind.SERVER, None, Status(StatusCode.ERROR), 5, 9, SCOPE,
            )
        ]
    )  # fmt: skip
    ours_span, their_span = (one.resource_spans[0].scope_spans[0].spans[0] for one in (message, theirs))
    assert ours_span.flags == their_span.flags | 1
    assert ours_span.links[0].flags == their_span.links[0].flags | 1
    for one in (ours_span, their_span):
        one.flags = one.links[0].flags = 0
    assert MessageToDict(message) == MessageToDict(theirs)


def test_attributes_that_come_again() -> None:
    """What is kept of earlier spans has the type of its value, and those without a value are left out."""
    message = otlp.trace_request("1.2", {}, "")
    plain = Span(TRACE, SPAN, None, 1, b"", "x", is_server=True, start_ns=1, end_ns=2, attributes={})
    values = (1, True, 1.0, "1", None, 1, True)
    for value in values:
        otlp.add_span(message, plain._replace(attributes={"a": value, "forward_sse.code": None}))
    made = [MessageToDict(span).get("attributes") for span in message.resource_spans[0].scope_spans[0].spans]
    one, true, real, text = (
        [{"key": "a", "value": {name: value}}]
        for name, value in (("intValue", "1"), ("boolValue", True), ("doubleValue", 1.0), ("stringValue", "1"))
    )
    assert made == [one, true, real, text, None, one, true]


def test_root_and_client_span() -> None:
    """A span without a parent has none; a client's parent is of this process."""
    message = otlp.trace_request("1.2", {}, "")
    plain = Span(TRACE, SPAN, None, 1, b"", "x", is_server=True, start_ns=1, end_ns=2, attributes={})
    otlp.add_span(message, plain)
    otlp.add_span(message, plain._replace(is_server=False, parent_id=PARENT))
    root, client = message.resource_spans[0].scope_spans[0].spans
    assert (root.parent_span_id, root.flags, root.kind, root.status.code) == (b"", 0x101, 2, 0)
    assert (client.parent_span_id.hex(), client.flags, client.kind) == (PARENT, 0x101, 3)


def test_metrics_as_the_sdk_has_them() -> None:
    """Histograms and counters are encoded as the SDK's encoder does."""
    histogram = Instrument("a.duration", "s", "words", (1.0, 2.0))
    counter = Instrument("a.tokens", "{token}", "more", None)
    labels = ("main", "openai", "chat", "gpt-x")
    attributes = dict(zip(_COMMON, labels, strict=True))
    message = otlp.metrics_request(
        [(histogram, [Reading(labels, (1, 0, 2), 7.5, ())]), (counter, [Reading(labels, (), 9, ())])],
        version="1.2", resource=RESOURCE, schema_url="https://schema.test", since_ns=5, at_ns=9,
    )  # fmt: skip
    cumulative = AggregationTemporality.CUMULATIVE
    theirs = encode_metrics(
        MetricsData(
            [
                ResourceMetrics(
                    Resource(RESOURCE),
                    [
                        ScopeMetrics(
                            SCOPE,
                            [
                                Metric("a.duration", "words", "s", Histogram([
                                    HistogramDataPoint(attributes, 5, 9, 3, 7.5, [1, 0, 2], [1.0, 2.0], None, None)  # type: ignore[arg-type]  # min and max are optional in OTLP
                                ], cumulative)),
                                Metric("a.tokens", "more", "{token}", Sum([
                                    NumberDataPoint(attributes, 5, 9, 9)
                                ], cumulative, True)),
                            ],
                            "https://schema.test",
                        )
                    ],
                    "",
                )
            ]
        )
    )  # fmt: skip
    assert MessageToDict(message) == MessageToDict(theirs)
