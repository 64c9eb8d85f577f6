"""The metrics, their names, units and labels; a label's values are few and known, never a user."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.utils import floatToGoString

from proxy.observability.process_metrics import ProcessMetrics
from proxy.observability.usage_metrics import UsageCount, collect_usage, family

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text"
OPENMETRICS_CONTENT_TYPE = f"{OPENMETRICS}; version=1.0.0; charset=utf-8"
# RFC 9110 §12.4.2.
_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", re.ASCII)

# Model answers begin within milliseconds (a mock, a cache) or minutes (reasoning).
_FIRST_BYTE_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
# A fast model writes a hundred events a second; a model that thinks is silent for seconds.
_GAP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_DURATION_BUCKETS_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

# Refusals that are the proxy's own fault: alerts ask for an increase, and Prometheus sees none in a series that begins
# with its first 1.
_COUNTED_FROM_ZERO = ("auth_unavailable", "internal_error", "limits_unavailable", "overloaded")


class _Histogram:
    """Observations of one upstream, counted by bucket."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        # Comparing a number with one of another type takes longer.
        self.bounds = tuple(map(float, bounds))
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        # A bucket takes what is at most its bound.
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus wants them: each with what is in those before it."""
        names = [*map(floatToGoString, self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class _Upstream:
    """What is counted of one upstream."""

    __slots__ = ("active", "bytes", "duration", "events", "first_byte", "gap")

    def __init__(self) -> None:
        self.active = self.bytes = self.events = 0
        self.first_byte = _Histogram(_FIRST_BYTE_BUCKETS_S)
        self.duration = _Histogram(_DURATION_BUCKETS_S)
        self.gap = _Histogram(_GAP_BUCKETS_S)


class Metrics:
    """All of a worker's metrics in one registry.

    What every exchange counts is plain numbers, put into the library's form when they are asked for: the library's own
    counters take a lock and four calls for each of the nine numbers of an exchange.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._upstreams: defaultdict[str, _Upstream] = defaultdict(_Upstream)
        self._requests: defaultdict[tuple[str, int | None, str], int] = defaultdict(int)
        self._refusals: defaultdict[str, int] = defaultdict(int, dict.fromkeys(_COUNTED_FROM_ZERO, 0))
        self._limits: defaultdict[tuple[str, str], int] = defaultdict(int)
        # By upstream, plan and model.
        self._usage: defaultdict[tuple[str, str, str], UsageCount] = defaultdict(UsageCount)
        self._attempts: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._retries: defaultdict[str, int] = defaultdict(int)
        self._store_errors = 0
        # By issuer and outcome.
        self._jwks: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.registry.register(self)

    def exchange_settled(
        self,
        *,
        upstream: str,
        status: int | None,
        ending: str,
        code: str | None,
        first_byte_s: float | None,
        duration_s: float,
        bytes_: int,
        events: int,
    ) -> None:
        """Count one exchange."""
        self._requests[upstream, status, ending] += 1
        if code is not None:
            self._refusals[code] += 1
        if first_byte_s is not None:
            counted = self._upstreams[upstream]
            counted.first_byte.observe(first_byte_s)
            counted.duration.observe(duration_s)
            if events > 1:
                counted.gap.observe((duration_s - first_byte_s) / events)
            counted.bytes += bytes_
            counted.events += events

    def limit_reached(self, plan: str, limit: str) -> None:
        """Count a request that a limit refused, or a stream that it cut, by the limit's kind."""
        self._limits[plan, limit] += 1

    def usage_settled(
        self,
        upstream: str,
        plan: str,
        model: str,
        input_: int,
        output: int,
        cached: int,
        reasoning: int,
        cost_nano: int | None,
    ) -> None:
        """Count an exchange's tokens by kind, and its cost in nano-dollars; None where the price is unknown.

        `model` is one of few names (`Prices.label`), whatever was asked for.
        """
        usage = self._usage[upstream, plan, model]
        usage.input += input_
        usage.output += output
        usage.cached += cached
        usage.reasoning += reasoning
        if cost_nano is None:
            usage.unpriced += 1
        else:
            usage.priced += 1
            usage.cost += cost_nano

    def attempt_ended(self, upstream: str, outcome: str) -> None:
        """Count a request to a vendor, by how it came out."""
        self._attempts[upstream, outcome] += 1

    def retried(self, upstream: str) -> None:
        """Count a request that this vendor has failed, and that is tried again."""
        self._retries[upstream] += 1

    def stream_began(self, upstream: str) -> None:
        """One more running answer."""
        self._upstreams[upstream].active += 1

    def stream_ended(self, upstream: str) -> None:
        """One less."""
        self._upstreams[upstream].active -= 1

    def totals(self) -> dict[str, Any]:
        """What was counted since the start: exchanges by ending, refusals by code, attempts by upstream and outcome.

        Retries by the upstream that has failed the request.
        """
        endings: defaultdict[str, int] = defaultdict(int)
        for (_, _, ending), count in self._requests.items():
            # The words themselves, as JSON's keys have to be.
            endings[str(ending)] += count
        attempts: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for (upstream, outcome), count in self._attempts.items():
            attempts[upstream][str(outcome)] = count
        return {
            "endings": dict(endings),
            "refusals": dict(self._refusals),
            "attempts": dict(attempts),
            "retries": dict(self._retries),
        }

    def collect(self) -> Iterator[Metric]:
        """What was counted of exchanges, in the library's form; called by the registry."""
        requests = family("requests", "Exchanges that ended.", "upstream", "status", "ending")
        for (upstream, status, ending), count in self._requests.items():
            requests.add_metric((upstream, "" if status is None else str(status), ending), count)
        refusals = family("refusals", "Answers of the proxy's own, by code.", "code")
        for code, count in self._refusals.items():
            refusals.add_metric([code], count)
        bytes_ = family("relayed_bytes", "Body bytes passed to clients.", "upstream")
        events = family("relayed_events", "Events passed to clients.", "upstream")
        active = GaugeMetricFamily("forward_sse_active_streams", "Answers that are running.", labels=["upstream"])
        first_byte = HistogramMetricFamily(
            "forward_sse_time_to_first_byte_seconds",
            "From the request's head to the first byte of the answer's body.",
            labels=["upstream"],
        )
        duration = HistogramMetricFamily(
            "forward_sse_stream_duration_seconds",
            "From the request's head to the end of the exchange.",
            labels=["upstream"],
        )
        gap = HistogramMetricFamily(
            "forward_sse_mean_event_gap_seconds",
            "Of each stream of two events or more: from its first byte to its end, divided by its events. "
            "A mean of the stream, not its longest silence.",
            labels=["upstream"],
        )
        limits = family(
            "limits_reached", "Requests that a limit refused, and streams that it cut, by its kind.", "plan", "limit"
        )
        for (plan, limit), count in self._limits.items():
            limits.add_metric([plan, limit], count)
        for name, counted in self._upstreams.items():
            active.add_metric([name], counted.active)
            bytes_.add_metric([name], counted.bytes)
            events.add_metric([name], counted.events)
            first_byte.add_metric([name], counted.first_byte.buckets(), counted.first_byte.total)
            duration.add_metric([name], counted.duration.buckets(), counted.duration.total)
            gap.add_metric([name], counted.gap.buckets(), counted.gap.total)
        attempts = family("upstream_attempts", "Requests to vendors, by how they came out.", "upstream", "outcome")
        for (upstream, outcome), count in self._attempts.items():
            attempts.add_metric((upstream, outcome), count)
        retries = family(
            "upstream_retries",
            "Requests that this vendor failed and that were tried again, with another key or elsewhere.",
            "upstream",
        )
        for upstream, count in self._retries.items():
            retries.add_metric([upstream], count)
        store_errors = family("limits_store_errors", "Failed calls of the limits store.")
        store_errors.add_metric((), self._store_errors)
        jwks = family("jwks_refreshes", "Key set fetches.", "issuer", "outcome")
        for fetched, count in self._jwks.items():
            jwks.add_metric(fetched, count)
        yield from collect_usage(self._usage)
        yield from (
            store_errors,
            jwks,
            attempts,
            retries,
            requests,
            refusals,
            limits,
            bytes_,
            events,
            active,
            first_byte,
            duration,
            gap,
        )

    def jwks_refreshed(self, issuer: str, outcome: str) -> None:
        """Count a fetch of an issuer's keys."""
        self._jwks[issuer, outcome] += 1

    def limits_store_failed(self) -> None:
        """Count a failed call of the limits store."""
        self._store_errors += 1

    def watch_connections(self, counts: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Ask `counts` for the upstream connections by (upstream, state) at every scrape."""
        self.registry.register(_Connections(counts))

    def watch_store(self, problem: Callable[[], str | None]) -> None:
        """Ask `problem` at every scrape why the limits store, or a server of it, is not asked; None while all are."""
        self.registry.register(
            _Gauge(
                "limits_store_up",
                "Whether the limits store, with all of its servers, is asked; 0 while `on_store_error` decides.",
                lambda: problem() is None,
            )
        )

    def watch_secrets(self, faulty: Callable[[], int]) -> None:
        """Ask `faulty` at every scrape how many of the files of secrets and certificates cannot be used."""
        self.registry.register(
            _Gauge(
                "secrets_unreadable",
                "Files of secrets or certificates that cannot be used: the last good value is.",
                faulty,
            )
        )

    def watch_process(self, worker: str, *, workers: int, is_alone: bool) -> None:
        """Tell of this process at every scrape; see `ProcessMetrics`."""
        self.registry.register(ProcessMetrics(worker, workers=workers, is_alone=is_alone))

    def watch_ledger(self, counts: Callable[[], tuple[int, int, int]]) -> None:
        """Ask `counts` at every scrape how many rows wait, how often writing failed, and how many rows were dropped."""
        self.registry.register(_Ledger(counts))

    def watch_upstreams(self, reports: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Ask `reports` at every scrape which upstreams are out, and which of their keys rest."""
        self.registry.register(_Health(reports))

    def render(self, *, is_openmetrics: bool = False) -> bytes:
        """The text of a scrape."""
        return render(self.registry, is_openmetrics=is_openmetrics)


def wants_openmetrics(accept: str) -> bool:
    """Whether a scrape names OpenMetrics, which alone has exemplars, and prefers no plain text (RFC 9110 §12.5.1).

    Prometheus weights the formats by the order of its `scrape_protocols`.
    """
    weights = {OPENMETRICS: 0.0, "text/plain": 0.0}
    for option in accept.lower().split(","):
        media_type, *parameters = (part.strip() for part in option.split(";"))
        if media_type in weights:
            weight = next((part.removeprefix("q=") for part in parameters if part.startswith("q=")), "1")
            weights[media_type] = max(weights[media_type], float(weight) if _WEIGHT.fullmatch(weight) else 0.0)
    return 0.0 < weights[OPENMETRICS] >= weights["text/plain"]


def render(registry: CollectorRegistry, *, is_openmetrics: bool) -> bytes:
    """The text of a scrape of a registry, with exemplars where it is OpenMetrics."""
    if is_openmetrics:
        text: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]  # the library has no types here
        return text
    return generate_latest(registry)


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


class _Gauge:
    def __init__(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        self._name = f"forward_sse_{name}"
        self._documentation = documentation
        self._value = value

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(self._name, self._documentation, value=self._value())


class _Ledger:
    def __init__(self, counts: Callable[[], tuple[int, int, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        waiting, errors, dropped = self._counts()
        yield GaugeMetricFamily(
            "forward_sse_ledger_rows_waiting", "Rows that are not in the ledger yet.", value=waiting
        )
        for name, documentation, value in (
            ("ledger_errors", "Failed writes to the ledger.", errors),
            ("ledger_rows_dropped", "Rows that the ledger lacks, because too many waited.", dropped),
        ):
            yield CounterMetricFamily(f"forward_sse_{name}_total", documentation, value=value)


class _Health:
    def __init__(self, reports: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self._reports = reports

    def collect(self) -> Iterator[GaugeMetricFamily]:
        out = GaugeMetricFamily(
            "forward_sse_upstream_out", "Whether routes leave an upstream out: it is out, or off.", labels=["upstream"]
        )
        resting = GaugeMetricFamily(
            "forward_sse_upstream_key_resting",
            "Whether a key rests, by the first digits of its SHA-256.",
            labels=["upstream", "key"],
        )
        for report in self._reports():
            out.add_metric([report["name"]], report["state"] != "on")
            for key in report["keys"]:
                resting.add_metric([report["name"], key["key"]], key["resting"])
        yield from (out, resting)
