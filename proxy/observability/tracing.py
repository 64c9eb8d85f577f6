"""Traces: an exchange's place in its trace, which of them are recorded, and the spans that leave.

A span is made once, when its exchange is settled, from moments that were kept anyway. Ids are needed earlier, because
a request to a vendor names its own; nothing else is done while a stream runs.
"""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from proxy.protocol.trace_context import RANDOM, SAMPLED, read_traceparent, read_tracestate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxy.model import FieldIndex

Value: TypeAlias = "str | int | float | bool | Sequence[str]"
# Whoever reads them leaves out those whose value is None: it is done once, in the exporter's thread.
Attributes: TypeAlias = "Mapping[str, Value | None]"

_DIGITS: Final = 16
_IDS_AT_ONCE: Final = 128
_TWO_TO_64: Final = 1 << 64


class Sampling(NamedTuple):
    """Which traces are recorded: a share of those that begin here; of others as the caller says, where it is asked."""

    ratio: float = 1.0
    follows_parent: bool = True


class Trace:
    """An exchange's place in its trace: made as its head is checked, and sent on with each request to a vendor.

    Attributes:
        span_id: The exchange's own span.
        parent_id: The caller's span; None where the trace begins here.
        flags: Those of the field `traceparent`.
        state: The caller's `tracestate`.
        scheme: Of the request's URL; empty where there was no request that could be read.
        version: Of the request's HTTP.
        asked: What the request asks a model for; only where the trace is recorded.
    """

    __slots__ = ("asked", "flags", "parent_id", "scheme", "span_id", "state", "trace_id", "version")

    def __init__(self, trace_id: str, span_id: str, parent_id: str | None, flags: int, state: bytes) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        self.flags = flags
        self.state = state
        self.scheme = self.version = ""
        self.asked: Asked | None = None

    @property
    def is_sampled(self) -> bool:
        """Whether its spans are recorded."""
        return bool(self.flags & SAMPLED)


class Asked(NamedTuple):
    """What a request asks a model for, as far as its body says."""

    is_stream: bool
    max_tokens: int | None


class Event(NamedTuple):
    """Something that happened within a span, at a moment in nanoseconds since 1970."""

    name: str
    at_ns: int
    attributes: Attributes = MappingProxyType({})


class Span(NamedTuple):
    """One span that has ended; times are nanoseconds since 1970, ids hexadecimal digits."""

    trace_id: str
    span_id: str
    parent_id: str | None
    flags: int
    state: bytes
    name: str
    is_server: bool
    start_ns: int
    end_ns: int
    attributes: Attributes
    events: tuple[Event, ...] = ()
    # The spans that this one continues, in the same trace.
    links: tuple[str, ...] = ()
    is_error: bool = False


class SpanSink(Protocol):
    """Takes the spans of an exchange; must not block or raise."""

    def put(self, spans: Sequence[Span]) -> None:
        """Take them, or drop all of them."""
        ...


class Tracer:
    """Begins traces, or continues those of callers. One a worker: what it has drawn must not be drawn twice."""

    def __init__(self, sampling: Sampling) -> None:
        self._follows_parent = sampling.follows_parent
        # As the SDKs of OpenTelemetry decide: services that sample the same share choose the same traces.
        self._bound = round(sampling.ratio * _TWO_TO_64)
        self._drawn = ""
        self._position = 0

    def begin(self, index: FieldIndex | None) -> Trace:
        """Continue the trace that the request's fields name, or begin one; None for one whose head cannot be read."""
        parent = None if index is None else read_traceparent(index)
        if index is None or parent is None:
            trace_id = self.new_id() + self.new_id()
            return Trace(trace_id, self.new_id(), None, SAMPLED * self._chooses(trace_id), b"")
        is_sampled = parent.is_sampled if self._follows_parent else self._chooses(parent.trace_id)
        flags = parent.flags & RANDOM | SAMPLED * is_sampled
        return Trace(parent.trace_id, self.new_id(), parent.span_id, flags, read_tracestate(index))

    def new_id(self) -> str:
        """A new span's id: 64 bits, drawn from the system for many ids at once."""
        if self._position == len(self._drawn):
            self._drawn = os.urandom(_DIGITS // 2 * _IDS_AT_ONCE).hex()
            self._position = 0
        begin = self._position
        self._position = end = begin + _DIGITS
        return self._drawn[begin:end]

    def _chooses(self, trace_id: str) -> bool:
        return int(trace_id[_DIGITS:], 16) < self._bound
