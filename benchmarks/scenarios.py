"""The six loads, and what is read of the kernel around each.

Every function runs one load against one peer and gives a `Sample`. The peer's CPU is read before and after, once it is
quiet: so neither an earlier load's end (thousands of held streams that are settled at once take seconds) nor a log line
still to be written is missed or counted for another load; nothing of the load or the upstream is in it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import results as figures
from benchmarks.accounting import cpu_ns, pss_bytes
from benchmarks.native import LoadFailed
from benchmarks.results import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from benchmarks.native import Load, Upstream
    from benchmarks.peers.peer import Peer, Started
    from benchmarks.sizes import Sizes

_QUIET_S = 0.15
# Quiet is what takes less of a core than that; a peer that is never quiet is measured all the same.
_QUIET_SHARE = 0.02
_LONGEST_UNREST_S = 20.0
_KIB = 1024
_NS_PER_US = 1_000
_US_PER_S = 1_000_000
# A load that takes longer has lost its peer.
_LIMIT_S = 120.0
# Descriptors that a proxy needs besides two per stream.
RESERVE = 512
# How long the upstream may take to see the last of the clients that left, before they count as never seen.
_CLOSES_S = 3.0
# Memory is read once half of what is left of a hold is over.
_SETTLE = 0.6
_TICK_S = 0.1


@dataclass(frozen=True)
class Bench:
    """What every scenario works with."""

    sizes: Sizes
    load: Load
    upstream: Upstream
    descriptors: int


@dataclass(frozen=True)
class Scenario:
    """A load by its name; `needs_fresh`: memory is compared with that of a process that has served next to nothing."""

    name: str
    title: str
    run: Callable[[Bench, Peer, Started], Sample]
    has_base: bool = False  # whether it says something without a proxy too
    needs_fresh: bool = False
    kind: str = ""  # whose number of rounds it has; its own name's when empty

    def rounds(self, sizes: Sizes) -> int:
        """How often it is measured."""
        return sizes.rounds[self.kind or self.name]


def warm_up(bench: Bench, peer: Peer, started: Started) -> None:
    """A few requests, so that what happens once has happened.

    Raises:
        LoadFailed: not one of them was answered as it should be.
    """
    options = _request_options(bench, 4, scaled(bench.sizes.warm_up_requests, peer, least=8))
    report = bench.load.run(started, peer.path, "request", options, limit_s=_LIMIT_S)
    if not report["complete"]:
        raise LoadFailed(f"no request was answered: {report['failures']}")


def request(bench: Bench, peer: Peer, started: Started) -> Sample:
    """One-event answers over kept connections, one after the other on each."""
    sizes = bench.sizes
    count = scaled(sizes.requests, peer, least=32)
    connections = scaled(sizes.request_connections, peer, least=4)
    report, cpu = _priced(bench, peer, started, "request", _request_options(bench, connections, count))
    found = {
        figures.REQUEST_P50: report["request_us"]["p50"],
        figures.REQUEST_P99: report["request_us"]["p99"],
        figures.PER_SECOND: report["complete"] / max(report["wall_s"], 1e-9),
    }
    return sample(report, started, found, {figures.CPU_PER_REQUEST: (cpu, report["complete"])})


def paced(bench: Bench, peer: Peer, started: Started) -> Sample:
    """Many streams at the pace of a model: cost per event, and how much later each event comes."""
    sizes = bench.sizes
    options = [
        *("--connections", scaled(sizes.paced_streams, peer, least=4), "--events", sizes.paced_events),
        *("--interval-us", sizes.paced_interval_us, "--size", sizes.event_bytes, "--ramp-ms", sizes.paced_ramp_ms),
    ]
    bench.upstream.reset()
    report, cpu = _priced(bench, peer, started, "streams", options)
    found = {
        figures.LAG_P99: bench.upstream.stats()["lag_us"]["p99"],
        figures.DELAY_P50: report["delay_us"]["p50"],
        figures.DELAY_P99: report["delay_us"]["p99"],
        figures.TTFB_P50: report["ttfb_us"]["p50"],
        figures.TTFB_P99: report["ttfb_us"]["p99"],
    }
    return sample(report, started, found, {figures.CPU_PER_EVENT: (cpu, report["events"])})


def flat(bench: Bench, peer: Peer, started: Started) -> Sample:
    """Answers of many events, each as fast as they go, one after the other on each of some connections."""
    sizes = bench.sizes
    options = [
        *("--connections", scaled(sizes.flat_streams, peer, least=1)),
        *("--requests", scaled(sizes.flat_answers, peer, least=1)),
        *("--events", sizes.flat_events, "--interval-us", 0, "--size", sizes.event_bytes),
    ]
    report, cpu = _priced(bench, peer, started, "request", options)
    found = {figures.PER_SECOND: report["events"] / max(report["wall_s"], 1e-9)}
    return sample(report, started, found, {figures.CPU_PER_EVENT: (cpu, report["events"])})


def hold(bench: Bench, peer: Peer, started: Started) -> Sample:
    """As many streams as the descriptors let through, an event a second: what each takes of memory."""
    sizes = bench.sizes
    possible = (bench.descriptors - RESERVE) // 2
    streams = scaled(min(sizes.hold_streams or possible, possible), peer, least=8)
    wait_until_quiet(started.roots)
    before = pss_bytes(started.roots)
    watch = Watch("holding", lambda: pss_bytes(started.roots), after_s=sizes.hold_s * _SETTLE, until_s=sizes.hold_s)
    options = [
        *("--connections", streams, "--interval-us", sizes.hold_interval_us, "--size", sizes.event_bytes),
        *("--ramp-ms", sizes.hold_ramp_ms, "--hold-s", sizes.hold_s),
        *("--events", 1_000_000),
    ]
    report = watched(bench, peer, started, "streams", options, watch)
    found = {figures.STREAMS: float(streams)}
    if watch.values:
        found[figures.KIB_PER_STREAM] = (watch.values[-1] - before) / streams / _KIB
    return sample(report, started, found, missing=None if watch.values else "never all held")


def cancel(bench: Bench, peer: Peer, started: Started) -> Sample:
    """Clients that leave at random moments: how long until the upstream sees it.

    About half leave while the answer's first byte is awaited, the others between two events that are a second apart:
    a proxy that notices only when it has something to write is late.
    """
    sizes = bench.sizes
    bench.upstream.reset()
    options = [
        *("--connections", scaled(sizes.cancel_connections, peer, least=4)),
        *("--requests", scaled(sizes.cancel_streams, peer, least=40), "--leave-ms", sizes.cancel_leave_ms),
        *(
            "--events",
            1_000,
            "--first-us",
            sizes.cancel_first_us,
            "--interval-us",
            _US_PER_S,
            "--size",
            sizes.event_bytes,
        ),
    ]
    report = bench.load.run(started, peer.path, "cancel", options, limit_s=_LIMIT_S)
    leaves = {int(number): int(at_ns) for number, at_ns in report["leaves"]}
    closes, unseen = _closes(bench.upstream)
    delays = sorted((closes[number] - at_ns) / _NS_PER_US for number, at_ns in leaves.items() if number in closes)
    found = {figures.STREAMS: float(len(leaves))}
    if delays:
        found |= {figures.CANCEL_P50: quantile(delays, 0.5), figures.CANCEL_P99: quantile(delays, 0.99)}
    made = sample(report, started, found, missing=None if delays else "no leave was seen")
    if unseen:
        made.failures[f"not seen by the upstream within {_CLOSES_S:.0f} s"] = unseen
    return made


def slow(bench: Bench, peer: Peer, started: Started) -> Sample:
    """Readers that stall while the upstream has megabytes for each: what the proxy keeps for them meanwhile."""
    sizes = bench.sizes
    streams = scaled(sizes.slow_streams, peer, least=1)
    wait_until_quiet(started.roots)
    before = pss_bytes(started.roots)
    watch = Watch("stalled", lambda: pss_bytes(started.roots), after_s=0.2, until_s=sizes.slow_stall_s)
    options = [
        *("--connections", streams, "--events", sizes.slow_events, "--size", sizes.slow_bytes),
        *("--stall-s", sizes.slow_stall_s),
    ]
    report = watched(bench, peer, started, "slow", options, watch)
    found = {figures.STREAMS: float(streams)}
    if watch.values:
        # The last reading against the middle one: what still grows once the buffers are full has no bound.
        middle = watch.values[len(watch.values) // 2]
        found[figures.KIB_PER_STREAM] = (max(watch.values) - before) / streams / _KIB
        found[figures.GROWTH_PER_STREAM] = (watch.values[-1] - middle) / streams / _KIB
    return sample(report, started, found, missing=None if watch.values else "never stalled")


# hold comes first: a peer that takes long to start is then measured as it was started.
SCENARIOS = (
    Scenario("hold", "memory of held streams", hold, needs_fresh=True),
    Scenario("request", "one-event answers", request, has_base=True),
    Scenario("paced", "streams at a model's pace", paced, has_base=True),
    Scenario("flat", "events as fast as they go", flat),
    Scenario("cancel", "clients that leave", cancel, has_base=True),
    Scenario("slow", "readers that stall", slow, needs_fresh=True),
)


def scaled(count: int, peer: Peer, *, least: int) -> int:
    """The peer's share of a count; never more than the count itself."""
    return min(count, max(least, round(count * peer.share)))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least that share of the ordered values does not exceed."""
    return ordered[max(0, min(len(ordered) - 1, -int(-len(ordered) * share // 1) - 1))]


def _request_options(bench: Bench, connections: int, requests: int) -> Iterable[object]:
    return ["--connections", connections, "--requests", requests, "--events", 1, "--size", bench.sizes.event_bytes]


def _priced(
    bench: Bench, peer: Peer, started: Started, mode: str, options: Iterable[object]
) -> tuple[dict[str, Any], int]:
    """A load's report, and the nanoseconds of CPU that the peer's trees took for it."""
    wait_until_quiet(started.roots)
    before = cpu_ns(started.roots)
    report = bench.load.run(started, peer.path, mode, options, limit_s=_LIMIT_S)
    wait_until_quiet(started.roots)
    return report, cpu_ns(started.roots) - before


def wait_until_quiet(roots: Sequence[int]) -> None:
    """Wait until trees of processes have all but stopped to use CPU: at least `_QUIET_S`, and not for ever."""
    until = time.monotonic() + _LONGEST_UNREST_S
    used_ns, begun_s = cpu_ns(roots), time.monotonic()
    while True:
        time.sleep(_QUIET_S)
        last_ns, last_s = used_ns, begun_s
        used_ns, begun_s = cpu_ns(roots), time.monotonic()
        if used_ns - last_ns < _QUIET_SHARE * (begun_s - last_s) * 1e9 or begun_s >= until:
            return


class Watch:
    """Reads a value, and when, at intervals within a window that a line of the load opens."""

    def __init__(self, word: str, read: Callable[[], int], *, after_s: float, until_s: float) -> None:
        self.readings: list[tuple[float, int]] = []
        self._word = word
        self._read = read
        self._after_s = after_s
        self._until_s = until_s
        self._began: float | None = None

    @property
    def values(self) -> list[int]:
        """The values alone."""
        return [value for _, value in self.readings]

    def line(self, line: str) -> None:
        """The load has said something."""
        if line.startswith(self._word):
            self._began = time.monotonic()

    def tick(self) -> None:
        """Read, if the window is open."""
        if self._began is not None and self._after_s <= time.monotonic() - self._began < self._until_s:
            self.readings.append((time.monotonic(), self._read()))


def watched(
    bench: Bench, peer: Peer, started: Started, mode: str, options: Iterable[object], watch: Watch
) -> dict[str, Any]:
    """A load's report, something read meanwhile."""
    return bench.load.run(
        started, peer.path, mode, options, limit_s=_LIMIT_S, on_line=watch.line, on_tick=watch.tick, tick_s=_TICK_S
    )


def _closes(upstream: Upstream) -> tuple[dict[int, int], int]:
    """The closes once all are in or the time is up, and how many streams the upstream still believes in.

    A client that leaves before the proxy has passed its request on is none: the upstream never heard of it.
    """
    until = time.monotonic() + _CLOSES_S
    while (active := upstream.stats()["active"]) and time.monotonic() < until:
        time.sleep(_TICK_S)
    return upstream.closes(), active


def sample(
    report: dict[str, Any],
    started: Started,
    found: dict[str, Any],
    costs: dict[str, tuple[int, int]] | None = None,
    *,
    missing: str | None = None,
) -> Sample:
    """The sample of a report. Costs are (nanoseconds, how many shared them), told in microseconds each."""
    failures = {str(reason): int(count) for reason, count in report["failures"].items() if count}
    if report["failed"] and not failures:
        failures["failed"] = int(report["failed"])
    if missing is not None:
        failures[missing] = failures.get(missing, 0) + 1
    for name, (cost_ns, count) in (costs or {}).items():
        if started.programs and count:
            found[name] = cost_ns / count / _NS_PER_US
    # Without one whole answer the load has no quantiles to tell.
    return Sample({name: value for name, value in found.items() if value is not None}, failures)
