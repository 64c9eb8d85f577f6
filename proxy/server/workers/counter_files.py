"""The metrics of several workers as one: added up, and kept when a worker dies.

Counts must never go backwards: a monitor takes that for a restart, and reports a burst that never was. So each worker
keeps what it has counted in a file, written before any figure of it is shown, and whoever comes in its place goes on
from there. States (open connections, running streams) are of the living only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_COUNTS = frozenset({"counter", "histogram"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One number and its labels."""

    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Family:
    """A metric with all of its samples; as plain values, so that JSON can carry it."""

    name: str
    kind: str
    documentation: str
    samples: list[Sample]


def take(metrics: Iterable[Metric]) -> list[Family]:
    """What a registry collects, as plain values."""
    return [
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            [Sample(sample.name, sample.labels, sample.value) for sample in metric.samples],
        )
        for metric in metrics
    ]


def read(data: Any) -> list[Family]:
    """Families that came as JSON.

    Raises:
        ValueError: it is something else.
    """
    try:
        return [
            Family(
                str(family["name"]),
                str(family["kind"]),
                str(family["documentation"]),
                [Sample(str(one["name"]), dict(one["labels"]), float(one["value"])) for one in family["samples"]],
            )
            for family in data
        ]
    except (TypeError, KeyError) as exc:
        raise ValueError("not figures") from exc


def counts(families: Iterable[Family]) -> list[Family]:
    """Those that only grow."""
    return [family for family in families if family.kind in _COUNTS]


def add(*workers: Iterable[Family]) -> list[Family]:
    """The sum, label by label; a series that only some have counts as it stands there."""
    families: dict[str, tuple[Family, dict[tuple[str, tuple[tuple[str, str], ...]], float]]] = {}
    for worker in workers:
        for family in worker:
            _, sums = families.setdefault(family.name, (family, {}))
            for sample in family.samples:
                key = sample.name, tuple(sample.labels.items())
                if sample.name.endswith("_created"):
                    # The time when counting began: the earliest.
                    sums[key] = min(sums.get(key, sample.value), sample.value)
                else:
                    sums[key] = sums.get(key, 0.0) + sample.value
    return [
        replace(family, samples=[Sample(name, dict(labels), value) for (name, labels), value in sums.items()])
        for family, sums in families.values()
    ]


def render(families: Iterable[Family]) -> bytes:
    """The text of a scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(families))
    return generate_latest(registry)


class _Given:
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.documentation, family.kind)
            for sample in family.samples:
                metric.add_sample(sample.name, sample.labels, sample.value)
            yield metric


class CounterFile:
    """What a worker and its predecessors in the same place have counted, in a file.

    Not `fsync`ed: it outlives the process, not the machine.
    """

    def __init__(self, directory: Path, name: str, collect: Callable[[], Iterable[Metric]]) -> None:
        self._path = directory / f"{name}.figures"
        self._collect = collect
        self._inherited = left_behind(self._path)
        self._saved = b""

    def current(self) -> list[Family]:
        """Everything, counts of predecessors included."""
        return add(self._inherited, take(self._collect()))

    def keep(self, families: Iterable[Family]) -> None:
        """Write the counts down; to be done before they are told to anybody.

        Raises:
            OSError: it could not be written.
        """
        data = orjson.dumps(counts(families))
        if data == self._saved:
            return
        # Renamed into place, so that nobody ever reads half of it, whenever this process is killed.
        new = self._path.with_suffix(".new")
        new.write_bytes(data)
        new.replace(self._path)
        self._saved = data


def left_behind(path: Path) -> list[Family]:
    """The counts in a file; none where there is no such file, or nothing that can be read in it."""
    try:
        return read(orjson.loads(path.read_bytes()))
    except (OSError, ValueError):
        return []
