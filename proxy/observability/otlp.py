"""OTLP's messages: spans and metrics as protobuf. Imported only where something is exported (the extra `otel`).

The SDK's encoder takes five times as long for a span, and with it the interpreter's lock that the loop waits for.
https://opentelemetry.io/docs/specs/otlp/
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import SpanFlags, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from opentelemetry.proto.metrics.v1.metrics_pb2 import Exemplar, Metric

    from proxy.observability.gen_ai import Instrument, Point, Reading
    from proxy.observability.tracing import Span, Value

SCOPE: Final = "forward-sse"
_KNOWN: Final = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
# Attributes that hardly come again with the same value: they are not kept for the next span.
_VARYING: Final = frozenset(
    {
        "client.address",
        "enduser.id",
        "enduser.pseudo.id",
        "forward_sse.id",
        "forward_sse.bytes",
        "forward_sse.events",
        "forward_sse.cost_usd",
        "gen_ai.response.id",
        "gen_ai.response.time_to_first_chunk",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.usage.cache_creation.input_tokens",
        "gen_ai.usage.cache_write.input_tokens",
        "gen_ai.usage.reasoning.output_tokens",
    }
)
_REMOTE: Final = _KNOWN | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


def trace_request(version: str, resource: Mapping[str, Value], schema_url: str) -> ExportTraceServiceRequest:
    """Make a message that has no spans yet; `add_span` adds them."""
    message = ExportTraceServiceRequest()
    whole = message.resource_spans.add()
    _add_attributes(whole.resource.attributes, resource)
    scope = whole.scope_spans.add(schema_url=schema_url)
    scope.scope.name, scope.scope.version = SCOPE, version
    return message


def add_span(message: ExportTraceServiceRequest, span: Span) -> None:
    """Add a span to a message of `trace_request`."""
    trace_id = bytes.fromhex(span.trace_id)
    known: list[bytes] = []
    others: dict[str, Value] = {}
    for name, value in span.attributes.items():
        if value is None:
            continue
        if name in _VARYING or isinstance(value, list):
            others[name] = value
        else:
            known.append(_span_attribute(name, value))
    made = (
        message.resource_spans[0]
        .scope_spans[0]
        .spans.add(
            trace_id=trace_id,
            span_id=bytes.fromhex(span.span_id),
            trace_state=span.state.decode("ascii"),
            parent_span_id=b"" if span.parent_id is None else bytes.fromhex(span.parent_id),
            name=span.name,
            kind=SpanMessage.SPAN_KIND_SERVER if span.is_server else SpanMessage.SPAN_KIND_CLIENT,
            start_time_unix_nano=span.start_ns,
            end_time_unix_nano=span.end_ns,
            # A server's parent is another process's.
            flags=span.flags | (_REMOTE if span.is_server and span.parent_id is not None else _KNOWN),
        )
    )
    # Messages that follow each other are read as one, with the members of all.
    made.MergeFromString(b"".join(known))
    _add_attributes(made.attributes, others)
    for event in span.events:
        _add_attributes(made.events.add(name=event.name, time_unix_nano=event.at_ns).attributes, event.attributes)
    for link in span.links:
        made.links.add(trace_id=trace_id, span_id=bytes.fromhex(link), flags=span.flags | _KNOWN)
    if span.is_error:
        made.status.code = Status.STATUS_CODE_ERROR


# `typed`, because 1 is not True. A text that clients choose is a path's beginning or a model's name, of 512 characters
# at most.
@lru_cache(maxsize=1024, typed=True)
def _span_attribute(name: str, value: Value) -> bytes:
    """Return a span with one attribute and nothing else, as bytes.

    Most attributes have few values, which come back in every span; those used last are kept.
    """
    message = SpanMessage()
    _add_attributes(message.attributes, {name: value})
    data: bytes = message.SerializeToString()
    return data


def metrics_request(
    counted: Iterable[tuple[Instrument, Sequence[Reading]]],
    *,
    version: str,
    resource: Mapping[str, Value],
    schema_url: str,
    since_ns: int,
    at_ns: int,
) -> ExportMetricsServiceRequest:
    """Make a message of what was counted since a moment: sums that only grow (cumulative temporality)."""
    message = ExportMetricsServiceRequest()
    whole = message.resource_metrics.add()
    _add_attributes(whole.resource.attributes, resource)
    scope = whole.scope_metrics.add(schema_url=schema_url)
    scope.scope.name, scope.scope.version = SCOPE, version
    for instrument, readings in counted:
        metric = scope.metrics.add(name=instrument.name, unit=instrument.unit, description=instrument.documentation)
        for reading in readings:
            _add_reading(metric, instrument, reading, since_ns, at_ns)
    return message


def _add_reading(metric: Metric, instrument: Instrument, reading: Reading, since_ns: int, at_ns: int) -> None:
    cumulative = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    # An attribute without a value, as `error.type` of what went well, is left out.
    attributes = {name: value for name, value in zip(instrument.attributes, reading.values, strict=True) if value}
    if instrument.bounds is None:
        metric.sum.aggregation_temporality, metric.sum.is_monotonic = cumulative, True
        number = metric.sum.data_points.add(
            start_time_unix_nano=since_ns, time_unix_nano=at_ns, as_int=int(reading.total)
        )
        _add_attributes(number.attributes, attributes)
        return
    metric.histogram.aggregation_temporality = cumulative
    point = metric.histogram.data_points.add(
        start_time_unix_nano=since_ns,
        time_unix_nano=at_ns,
        count=sum(reading.counts),
        sum=reading.total,
        bucket_counts=reading.counts,
        explicit_bounds=instrument.bounds,
    )
    _add_attributes(point.attributes, attributes)
    for latest in reading.points:
        _fill(point.exemplars.add(), latest)


def _fill(exemplar: Exemplar, point: Point) -> None:
    traced = point.traced
    exemplar.trace_id, exemplar.span_id = bytes.fromhex(traced.trace_id), bytes.fromhex(traced.span_id)
    exemplar.as_double, exemplar.time_unix_nano = point.value, int(traced.at_s * 1e9)


def _add_attributes(to: Any, attributes: Mapping[str, Value | None]) -> None:
    """Add those that have a value to a repeated field of key-value pairs."""
    for name, value in attributes.items():
        if value is None:
            continue
        # Not `add(key=…)`, which takes half as long again.
        pair = to.add()
        pair.key, made = name, pair.value
        if isinstance(value, str):
            # Half of a character, which a token's JSON may name a user with, is no text to protobuf.
            made.string_value = value if value.isascii() else value.encode("utf-8", "replace").decode()
        elif isinstance(value, bool):
            made.bool_value = value
        elif isinstance(value, int):
            made.int_value = value
        elif isinstance(value, float):
            made.double_value = value
        else:
            for item in value:
                made.array_value.values.add(string_value=item)
