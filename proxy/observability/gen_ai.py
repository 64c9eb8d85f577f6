"""Histograms by OpenTelemetry's conventions for generative AI: counted here once, scraped and pushed.

Names, units and bounds are those of the conventions of `semconv`: "1.41", which boards know, or `latest`, the names in
the repository semantic-conventions-genai. A label's values are few and known: names of the configuration, of models
that have a price or stand in it, of endings; never a user.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from prometheus_client.core import Metric

Semconv: TypeAlias = Literal["1.41", "latest"]

# A client that asks for ever new names, each of which has a price, fills no more than this.
MOST_MODELS: Final = 100
OTHER_MODEL: Final = "other"

# The conventions' advice for each metric.
_DURATION_S: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS: Final = tuple(4**power for power in range(14))
_FIRST_TOKEN_S: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PER_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)

UPSTREAM: Final = "forward_sse.upstream"
_COMMON: Final = (UPSTREAM, "gen_ai.provider.name", "gen_ai.operation.name", "gen_ai.request.model")
_PACE_WORDS: Final = "Seconds for each token of output after the first, of complete streams."


class Instrument(NamedTuple):
    """A metric of the conventions; without bounds a counter."""

    name: str
    unit: Literal["s", "{token}"]
    documentation: str
    bounds: tuple[float, ...] | None
    attributes: tuple[str, ...] = _COMMON


_FIRST_TOKEN: Final = Instrument(
    "gen_ai.server.time_to_first_token", "s", "From the request's head to the first byte of a stream.", _FIRST_TOKEN_S
)
_OUTPUT_TOKEN: Final = Instrument("gen_ai.server.time_per_output_token", "s", _PACE_WORDS, _PER_TOKEN_S)
_OPERATION_WORDS: Final = "How long a request to a vendor took, to the end of its answer."
_OPERATION: Final = {
    "1.41": Instrument(
        "gen_ai.client.operation.duration", "s", _OPERATION_WORDS, _DURATION_S, (*_COMMON, "error.type")
    ),
    "latest": Instrument(
        "gen_ai.client.inference.duration", "s", _OPERATION_WORDS, _DURATION_S, (*_COMMON, "error.type")
    ),
}
_USAGE: Final = Instrument(
    "gen_ai.client.token.usage",
    "{token}",
    "Tokens of an exchange, as the vendor reported them.",
    _TOKENS,
    (*_COMMON, "gen_ai.token.type"),
)
_KINDS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read.input_tokens",
    "cache_write.input_tokens",
    "reasoning.output_tokens",
)
_USAGE_LATEST: Final = {
    kind: Instrument(f"gen_ai.client.inference.usage.{kind}", "{token}", "Tokens, as vendors reported them.", None)
    for kind in _KINDS
}


class Series(NamedTuple):
    """What is counted together."""

    upstream: str
    provider: str
    operation: str
    model: str


class Traced(NamedTuple):
    """The span of an observation, for its exemplar."""

    trace_id: str
    span_id: str
    at_s: float


class Point(NamedTuple):
    """A bucket's latest observation whose trace is recorded."""

    traced: Traced
    value: float


class Histogram:
    """Observations, counted by bucket. `points` has the exemplar of each bucket; None where no trace was recorded."""

    __slots__ = ("bounds", "counts", "points", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.points: list[Point | None] | None = None

    def observe(self, value: float, traced: Traced | None) -> None:
        """Count a value in the first bucket whose bound is not below it."""
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.total += value
        if traced is not None:
            if self.points is None:
                self.points = [None] * len(self.counts)
            self.points[bucket] = Point(traced, value)


class Reading(NamedTuple):
    """A series of an instrument at a moment: for a counter the sum alone, in `total`."""

    values: tuple[str, ...]
    counts: tuple[int, ...]
    total: float
    points: tuple[Point, ...]


class _Histograms:
    """The histograms of an instrument, by the values of its attributes."""

    def __init__(self, instrument: Instrument) -> None:
        assert instrument.bounds is not None  # else it counts
        self.instrument = instrument
        self.series: dict[tuple[str, ...], Histogram] = {}
        self._bounds = instrument.bounds

    def observe(self, values: tuple[str, ...], value: float, traced: Traced | None) -> None:
        histogram = self.series.get(values)
        if histogram is None:
            histogram = self.series[values] = Histogram(self._bounds)
        histogram.observe(value, traced)


class GenAiMetrics:
    """One worker's counts. Everything but `observe_…` is asked a few times a minute."""

    def __init__(self, semconv: Semconv, named_models: Collection[str] = ()) -> None:
        """`named_models` are those that the configuration names: labels, whether they have a price or not."""
        self._named = frozenset(named_models)
        self._models: set[str] = set()
        self._operations = _Histograms(_OPERATION[semconv])
        self._first_tokens, self._output_tokens = _Histograms(_FIRST_TOKEN), _Histograms(_OUTPUT_TOKEN)
        self._tokens = _Histograms(_USAGE) if semconv == "1.41" else None
        self._counts: dict[str, dict[tuple[str, ...], int]] = (
            {} if semconv == "1.41" else {kind: {} for kind in _USAGE_LATEST}
        )

    def model_label(self, model: str | None, *, has_price: bool) -> str:
        """The label of a model: its name where it is known and not one too many, else `other`."""
        if model is None or not (has_price or model in self._named):
            return OTHER_MODEL
        if model not in self._models:
            if len(self._models) >= MOST_MODELS and model not in self._named:
                return OTHER_MODEL
            self._models.add(model)
        return model

    def observe_operation(self, series: Series, duration_s: float, error: str, traced: Traced | None) -> None:
        """Count a request to a vendor; `error` is empty where there was none."""
        self._operations.observe((*series, error), duration_s, traced)

    def observe_tokens(
        self, series: Series, *, input_: int, output: int, cached: int, cache_write: int, reasoning: int
    ) -> None:
        """Count what a vendor has reported."""
        if self._tokens is not None:
            self._tokens.observe((*series, "input"), input_, None)
            self._tokens.observe((*series, "output"), output, None)
            return
        told = (input_, output, cached, cache_write, reasoning)
        for counts, count in zip(self._counts.values(), told, strict=True):
            counts[series] = counts.get(series, 0) + count

    def observe_first_token(self, series: Series, after_s: float, traced: Traced | None) -> None:
        """Count how long a client waited for a stream to begin."""
        self._first_tokens.observe(series, after_s, traced)

    def observe_output_token(self, series: Series, each_s: float, traced: Traced | None) -> None:
        """Count the pace of a stream."""
        self._output_tokens.observe(series, each_s, traced)

    def read(self) -> list[tuple[Instrument, list[Reading]]]:
        """Copy what was counted, for whoever sends it from another thread."""
        histograms = [
            (
                kind.instrument,
                [
                    Reading(values, tuple(one.counts), one.total, tuple(filter(None, one.points or ())))
                    for values, one in kind.series.items()
                ],
            )
            for kind in self._histograms()
        ]
        counters = [
            (_USAGE_LATEST[kind], [Reading(values, (), count, ()) for values, count in counts.items()])
            for kind, counts in self._counts.items()
        ]
        return [(instrument, readings) for instrument, readings in histograms + counters if readings]

    def collect(self) -> Iterator[Metric]:
        """What was counted, in Prometheus's form; called by the registry."""
        for kind in self._histograms():
            instrument = kind.instrument
            histograms = HistogramMetricFamily(
                _prometheus_name(instrument), instrument.documentation, labels=_labels(instrument)
            )
            for values, histogram in kind.series.items():
                histograms.add_metric(values, _buckets(histogram), histogram.total)
            yield histograms
        for name, counts in self._counts.items():
            instrument = _USAGE_LATEST[name]
            counters = CounterMetricFamily(
                _prometheus_name(instrument), instrument.documentation, labels=_labels(instrument)
            )
            for values, count in counts.items():
                counters.add_metric(values, count)
            yield counters

    def _histograms(self) -> list[_Histograms]:
        tokens = [] if self._tokens is None else [self._tokens]
        return [self._operations, *tokens, self._first_tokens, self._output_tokens]


def _prometheus_name(instrument: Instrument) -> str:
    """The name as OpenTelemetry's own exporter writes it; counters get their `_total` from the library."""
    name = instrument.name.replace(".", "_")
    return f"{name}_seconds" if instrument.unit == "s" else name


def _labels(instrument: Instrument) -> list[str]:
    return ["upstream" if name == UPSTREAM else name.replace(".", "_") for name in instrument.attributes]


def _buckets(histogram: Histogram) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
    """As Prometheus wants them: each with what is in those before it."""
    names = [*map(floatToGoString, histogram.bounds), "+Inf"]
    points = histogram.points or [None] * len(names)
    return [
        (name, float(count)) if point is None else (name, float(count), _exemplar(point))
        for name, count, point in zip(names, accumulate(histogram.counts), points, strict=True)
    ]


def _exemplar(point: Point) -> Exemplar:
    traced = point.traced
    return Exemplar({"trace_id": traced.trace_id, "span_id": traced.span_id}, point.value, traced.at_s)
