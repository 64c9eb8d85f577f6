"""The chart of scale: the same number of events a second, spread over more and more streams.

At each point the streams are opened first; only then the peer's CPU is read, at both ends of a window in which nothing
but events passes. What changes along the chart is therefore only how many streams stand open.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks import results as figures
from benchmarks.accounting import cpu_ns
from benchmarks.scenarios import RESERVE, Scenario, Watch, sample, watched
from benchmarks.table import disturbance, grid, machine_text, number, problems

if TYPE_CHECKING:
    from benchmarks.peers.peer import Peer, Started
    from benchmarks.results import Results, Sample
    from benchmarks.scenarios import Bench
    from benchmarks.sizes import Sizes

_US_PER_S = 1_000_000
_NS_PER_US = 1_000
_US_PER_MS = 1_000
_PREFIX = "scale_"
# The window within the hold: neither the last of the opening nor the first of the closing is in it.
_LEAVE_S = 0.1


def scenarios(sizes: Sizes, descriptors: int) -> list[Scenario]:
    """A scenario for each number of streams that the descriptors let through."""
    possible = (descriptors - RESERVE) // 2
    return [
        Scenario(f"{_PREFIX}{streams}", f"{streams} streams", partial(_run, streams), has_base=True, kind="scale")
        for streams in sizes.scale_streams
        if streams <= possible
    ]


def points(results: Results, peer: str, figure: str) -> list[tuple[int, float]]:
    """The chart's line: (streams, figure) where it was measured soundly."""
    found = results.peer(peer)
    names = [name for name in (found.cells if found is not None else {}) if name.startswith(_PREFIX)]
    line = [(int(name.removeprefix(_PREFIX)), results.value(peer, name, figure)) for name in names]
    return sorted((streams, value) for streams, value in line if value is not None)


def render(results: Results) -> str:
    """The chart as text."""
    shown = [peer for peer in results.peers if peer.name != "direct"]
    rows = [["streams", *(word for peer in shown for word in (peer.title, "", ""))]]
    rows.append(["", *(word for _ in shown for word in ("CPU µs", "+p50 ms", "+p99 ms"))])
    columns = [
        {
            "CPU µs": dict(points(results, peer.name, figures.CPU_PER_EVENT)),
            "+p50 ms": dict(points(results, peer.name, figures.ADDED_P50)),
            "+p99 ms": dict(points(results, peer.name, figures.ADDED_P99)),
        }
        for peer in shown
    ]
    for streams in sorted({x for peer in columns for line in peer.values() for x in line}):
        row = [f"{streams:,}"]
        for peer in columns:
            for name, line in peer.items():
                value = line.get(streams)
                row.append("-" if value is None else number(value / (1 if name.startswith("CPU") else _US_PER_MS)))
        rows.append(row)
    return "\n\n".join(filter(None, (machine_text(results), grid(rows, 2), problems(results), disturbance(results))))


def _run(streams: int, bench: Bench, peer: Peer, started: Started) -> Sample:
    sizes = bench.sizes
    watch = Watch(
        "holding",
        lambda: cpu_ns(started.roots),
        after_s=_LEAVE_S,
        until_s=sizes.scale_hold_s - _LEAVE_S,
    )
    options = [
        *("--connections", streams, "--events", 1_000_000, "--size", sizes.event_bytes),
        *("--interval-us", streams * _US_PER_S // sizes.scale_events_per_s),
        *("--ramp-ms", sizes.scale_ramp_ms, "--hold-s", sizes.scale_hold_s),
    ]
    report = watched(bench, peer, started, "streams", options, watch)
    found = {
        figures.STREAMS: float(streams),
        figures.DELAY_P50: report["delay_us"]["p50"],
        figures.DELAY_P99: report["delay_us"]["p99"],
    }
    missing = None
    if len(watch.readings) > 1:
        (began, before), (ended, after) = watch.readings[0], watch.readings[-1]
        if started.programs:
            found[figures.CPU_PER_EVENT] = (after - before) / ((ended - began) * sizes.scale_events_per_s) / _NS_PER_US
    else:
        missing = "never all held"
    return sample(report, started, found, missing=missing)
