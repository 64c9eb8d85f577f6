"""The metrics, their names, units and labels; a label's values are few and known, never a user (contract §7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Model answers begin within milliseconds (a mock, a cache) or minutes (reasoning).
_FIRST_BYTE_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_DURATION_BUCKETS_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

_Labels = tuple[str, ...]


class Metrics:
    """All of a worker's metrics in one registry. Children are kept, so that counting is one call."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._requests = self._counter("requests", "Exchanges that ended.", "upstream", "status", "ending")
        self._refusals = self._counter("refusals", "Answers of the proxy's own, by code.", "code")
        self._bytes = self._counter("relayed_bytes", "Body bytes passed to clients.", "upstream")
        self._events = self._counter("relayed_events", "Events passed to clients.", "upstream")
        self._store_errors = self._counter("limits_store_errors", "Failed calls of the limits store.")
        self._jwks = self._counter("jwks_refreshes", "Key set fetches.", "issuer", "outcome")
        self._active = Gauge(
            "forward_sse_active_streams", "Answers that are running.", ["upstream"], registry=self.registry
        )
        self._first_byte = Histogram(
            "forward_sse_time_to_first_byte_seconds",
            "From the request's head to the first byte of the answer's body.",
            ["upstream"],
            buckets=_FIRST_BYTE_BUCKETS_S,
            registry=self.registry,
        )
        self._duration = Histogram(
            "forward_sse_stream_duration_seconds",
            "From the request's head to the end of the exchange.",
            ["upstream"],
            buckets=_DURATION_BUCKETS_S,
            registry=self.registry,
        )
        self._children: dict[tuple[object, _Labels], Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[tuple[object, str], Histogram] = {}

    def exchange_settled(
        self,
        *,
        upstream: str,
        status: str,
        ending: str,
        code: str | None,
        first_byte_s: float | None,
        duration_s: float,
        bytes_: int,
        events: int,
    ) -> None:
        """Count one exchange."""
        self._child(self._requests, upstream, status, ending).inc()
        if code is not None:
            self._child(self._refusals, code).inc()
        if first_byte_s is not None:
            self._observed(self._first_byte, upstream).observe(first_byte_s)
            self._observed(self._duration, upstream).observe(duration_s)
        if bytes_:
            self._child(self._bytes, upstream).inc(bytes_)
        if events:
            self._child(self._events, upstream).inc(events)

    def stream_began(self, upstream: str) -> None:
        """One more running answer."""
        self._active_child(upstream).inc()

    def stream_ended(self, upstream: str) -> None:
        """One less."""
        self._active_child(upstream).dec()

    def jwks_refreshed(self, issuer: str, outcome: str) -> None:
        """Count a fetch of an issuer's keys."""
        self._child(self._jwks, issuer, outcome).inc()

    def limits_store_failed(self) -> None:
        """Count a failed call of the limits store."""
        self._store_errors.inc()

    def watch_connections(self, counts: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Ask `counts` for the upstream connections by (upstream, state) at every scrape."""
        self.registry.register(_Connections(counts))

    def render(self) -> bytes:
        """The text of a scrape."""
        return generate_latest(self.registry)

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"forward_sse_{name}_total", documentation, labels, registry=self.registry)

    def _child(self, parent: Counter, *labels: str) -> Counter:
        child = self._children.get((parent, labels))
        if child is None:
            child = self._children[(parent, labels)] = parent.labels(*labels)
        return child

    def _observed(self, parent: Histogram, upstream: str) -> Histogram:
        child = self._histograms.get((parent, upstream))
        if child is None:
            child = self._histograms[(parent, upstream)] = parent.labels(upstream)
        return child

    def _active_child(self, upstream: str) -> Gauge:
        child = self._gauges.get(upstream)
        if child is None:
            child = self._gauges[upstream] = self._active.labels(upstream)
        return child


class _Connections:
    def __init__(self, counts: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "forward_sse_upstream_connections", "Open connections to upstreams.", labels=["upstream", "state"]
        )
        for (upstream, state), count in self._counts().items():
            family.add_metric([upstream, state], count)
        yield family
