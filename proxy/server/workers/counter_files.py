"""The metrics of several workers as one sum, which never decreases when a worker ends or does not answer.

Prometheus takes a counter that decreases for one that was restarted from zero: of a sum that loses one worker's part,
`rate()` would add all that is left. So a worker writes its counters to a file whenever they are collected, and at its
end; the worker that replaces it starts from that file. Counts since the last scrape are lost with a worker that is
killed. Gauges (open connections, running streams) are of living workers only.

What is 0 or 1 (an upstream that is out, a key that rests) is not summed: 1 where it is so in one worker.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson
import prometheus_client.samples
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from proxy.observability import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

_COUNTS = frozenset({"counter", "histogram"})
# How gauges of several workers become one, where it is not their sum: what is true of the service if it is true of one
# worker, and the store that is up if it is up for all.
_MERGES: Final[Mapping[str, Callable[[float, float], float]]] = {
    "forward_sse_build_info": max,
    "forward_sse_limits_store_up": min,
    "forward_sse_secrets_unreadable": max,
    "forward_sse_upstream_key_resting": max,
    "forward_sse_upstream_out": max,
    "forward_sse_workers_configured": max,
}
_Key: TypeAlias = "tuple[str, tuple[tuple[str, str], ...]]"


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One observation among those of a sample: the labels name its trace, `at_s` is since 1970."""

    labels: dict[str, str]
    value: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One number and its labels."""

    name: str
    labels: dict[str, str]
    value: float
    exemplar: Exemplar | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """A metric with all of its samples; as plain values, so that JSON can carry it."""

    name: str
    kind: str
    documentation: str
    samples: list[Sample]


def take(collected: Iterable[Metric]) -> list[Family]:
    """Turn what a registry collects into plain values."""
    return [
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            [Sample(sample.name, sample.labels, sample.value, _exemplar(sample.exemplar)) for sample in metric.samples],
        )
        for metric in collected
    ]


def read(data: Any) -> list[Family]:
    """Check and convert families that came as JSON.

    Raises:
        ValueError: it is something else.
    """
    try:
        return [
            Family(
                str(family["name"]),
                str(family["kind"]),
                str(family["documentation"]),
                [
                    Sample(
                        str(one["name"]), dict(one["labels"]), float(one["value"]), _read_exemplar(one.get("exemplar"))
                    )
                    for one in family["samples"]
                ],
            )
            for family in data
        ]
    except (AttributeError, TypeError, KeyError) as exc:
        raise ValueError("not metrics") from exc


def _read_exemplar(data: Any) -> Exemplar | None:
    return None if data is None else Exemplar(dict(data["labels"]), float(data["value"]), float(data["at_s"]))


def _exemplar(given: prometheus_client.samples.Exemplar | None) -> Exemplar | None:
    if given is None or given.timestamp is None:
        return None
    return Exemplar(dict(given.labels), given.value, float(given.timestamp))


def counts(families: Iterable[Family]) -> list[Family]:
    """Select the families that only increase."""
    return [family for family in families if family.kind in _COUNTS]


def add(*workers: Iterable[Family]) -> list[Family]:
    """Sum up the workers' samples, label by label; a series that only some have is the sum of those.

    Gauges that have no sum are merged by `_MERGES`; of several exemplars of a sample the latest is kept.
    """
    families: dict[str, tuple[Family, dict[_Key, float]]] = {}
    latest: dict[_Key, Exemplar] = {}
    for worker in workers:
        for family in worker:
            _, sums = families.setdefault(family.name, (family, {}))
            merge: Callable[[float, float], float] = _MERGES.get(family.name, operator.add)
            for sample in family.samples:
                key = sample.name, tuple(sample.labels.items())
                if sample.exemplar is not None and (key not in latest or latest[key].at_s < sample.exemplar.at_s):
                    latest[key] = sample.exemplar
                sums[key] = merge(sums[key], sample.value) if key in sums else sample.value
    return [
        replace(family, samples=[Sample(key[0], dict(key[1]), value, latest.get(key)) for key, value in sums.items()])
        for family, sums in families.values()
    ]


def render(families: Iterable[Family], *, is_openmetrics: bool = False) -> bytes:
    """Render the text of a scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(families))
    return metrics.render(registry, is_openmetrics=is_openmetrics)


class _Given:
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.documentation, family.kind)
            for sample in family.samples:
                one = sample.exemplar
                exemplar = None if one is None else prometheus_client.samples.Exemplar(one.labels, one.value, one.at_s)
                metric.add_sample(sample.name, sample.labels, sample.value, exemplar=exemplar)
            yield metric


class CounterFile:
    """The counters of a worker and of those that it replaced, in a file.

    Not `fsync`ed: the file outlives the process, not the machine.
    """

    def __init__(self, directory: Path, name: str, collect: Callable[[], Iterable[Metric]]) -> None:
        self._path = directory / f"{name}.counters"
        self._collect = collect
        self._inherited = read_file(self._path)

    def collect(self) -> list[Family]:
        """Collect all metrics, with the counters of replaced workers; writes the file before it returns.

        A file that cannot be written costs no scrape: the counters are then lost with the worker.
        """
        families = add(self._inherited, take(self._collect()))
        # Renamed into place, so that nobody reads half a file, whenever this process is killed.
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(orjson.dumps(counts(families)))
            new.replace(self._path)
        except OSError as exc:
            structlog.get_logger().error("counters.not_written", error=exc.strerror)
        return families


def read_file(path: Path) -> list[Family]:
    """The counters in a file; none where there is no such file, or where it cannot be read."""
    try:
        return read(orjson.loads(path.read_bytes()))
    except (OSError, ValueError):
        return []
