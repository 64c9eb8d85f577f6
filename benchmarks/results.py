"""The figures of a run: samples, their medians, what follows from them, and the JSON they are kept in. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

# The figures' names, as the JSON has them.
CPU_PER_REQUEST = "cpu_us_per_request"
CPU_PER_EVENT = "cpu_us_per_event"
DELAY_P50, DELAY_P99 = "delay_p50_us", "delay_p99_us"
ADDED_P50, ADDED_P99 = "added_p50_us", "added_p99_us"
TTFB_P50, TTFB_P99 = "ttfb_p50_us", "ttfb_p99_us"
REQUEST_P50, REQUEST_P99 = "request_p50_us", "request_p99_us"
KIB_PER_STREAM = "kib_per_stream"
GROWTH_PER_STREAM = "growth_kib_per_stream"
STREAMS = "streams"
CANCEL_P50, CANCEL_P99 = "cancel_p50_us", "cancel_p99_us"
PER_SECOND = "per_second"
# How late the upstream sent its events: that the delays are not its own.
LAG_P99 = "upstream_lag_p99_us"


@dataclass(frozen=True)
class Sample:
    """One load against one peer; `stolen` is the share of the machine's time that its host took away meanwhile."""

    figures: dict[str, float]
    failures: dict[str, int] = field(default_factory=dict)
    stolen: float = 0.0


@dataclass(frozen=True)
class Cell:
    """A peer's figures in one scenario: medians over the rounds. With any failure they are no result.

    `by_round` has what the medians are of, `stolen` the share of the machine's time that its host took away in each.
    """

    figures: dict[str, float]
    failures: dict[str, int]
    rounds: int
    by_round: dict[str, list[float]] = field(default_factory=dict)
    stolen: list[float] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether every answer of every round was whole and right."""
        return not self.failures and self.rounds > 0


@dataclass(frozen=True)
class PeerResult:
    """A peer and what came of it; `state` is `measured`, `absent` or `failed`, `reason` why."""

    name: str
    title: str
    state: str
    version: str = ""
    reason: str = ""
    note: str = ""
    cells: dict[str, Cell] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """One run; `repeated` is how many loads were run again because the host took too much of the machine away."""

    date: str
    sizes: dict[str, Any]
    machine: dict[str, Any]
    peers: tuple[PeerResult, ...]
    seconds: float = 0.0
    repeated: int = 0

    def peer(self, name: str) -> PeerResult | None:
        """The peer of that name, if it took part."""
        return next((peer for peer in self.peers if peer.name == name), None)

    def value(self, peer: str, scenario: str, figure: str) -> float | None:
        """A figure; None when it was not measured, or any answer of its rounds was wrong."""
        found = self.peer(peer)
        cell = found.cells.get(scenario) if found is not None else None
        if cell is None or not cell.is_sound:
            return None
        return cell.figures.get(figure)

    def ratio(self, peer: str, to: str, scenario: str, figure: str) -> float | None:
        """A figure as a multiple of another peer's."""
        mine, theirs = self.value(peer, scenario, figure), self.value(to, scenario, figure)
        return mine / theirs if mine is not None and theirs else None


def cell(samples: list[Sample]) -> Cell:
    """The medians of the rounds, and every failure of any of them."""
    failures: Counter[str] = Counter()
    for sample in samples:
        failures.update(sample.failures)
    names = sorted({name for sample in samples for name in sample.figures})
    by_round = {name: [sample.figures[name] for sample in samples if name in sample.figures] for name in names}
    return Cell(
        figures={name: median(values) for name, values in by_round.items()},
        failures=dict(failures),
        rounds=len(samples),
        by_round=by_round,
        stolen=[sample.stolen for sample in samples],
    )


def with_added_delay(peers: tuple[PeerResult, ...], base: str = "direct") -> tuple[PeerResult, ...]:
    """The same peers, their delays also told as what they add to the delay without a proxy."""
    direct = next((peer for peer in peers if peer.name == base), None)
    for scenario, bare in (direct.cells if direct is not None else {}).items():
        for peer in peers:
            mine = peer.cells.get(scenario)
            if mine is None or peer.name == base or not bare.is_sound:
                continue
            for delay, added in ((DELAY_P50, ADDED_P50), (DELAY_P99, ADDED_P99)):
                if delay in mine.figures and delay in bare.figures:
                    mine.figures[added] = mine.figures[delay] - bare.figures[delay]
    return peers


# What is told as a multiple of nginx's: scenario and figure.
_TO_NGINX = (
    ("request", CPU_PER_REQUEST),
    ("paced", CPU_PER_EVENT),
    ("flat", CPU_PER_EVENT),
    ("hold", KIB_PER_STREAM),
    ("slow", KIB_PER_STREAM),
    ("cancel", CANCEL_P99),
)


def ratios(results: Results) -> dict[str, Any]:
    """The multiples that the comparison is about."""
    to_nginx = {
        f"{scenario}.{figure}": {
            peer.name: _rounded(results.ratio(peer.name, "nginx", scenario, figure)) for peer in results.peers
        }
        for scenario, figure in _TO_NGINX
    }
    return {
        "to_nginx": to_nginx,
        "ours_to_nginx_auth": {
            f"{scenario}.{figure}": _rounded(results.ratio("ours", "nginx_auth", scenario, figure))
            for scenario, figure in _TO_NGINX
        },
        "litellm_to_ours": {
            f"{scenario}.{figure}": _rounded(results.ratio("litellm", "ours", scenario, figure))
            for scenario, figure in _TO_NGINX
        },
    }


def to_json(results: Results, targets: list[dict[str, Any]]) -> dict[str, Any]:
    """The run as it is kept."""
    return {
        "schema": 1,
        "date": results.date,
        "seconds": round(results.seconds, 1),
        "repeated": results.repeated,
        "sizes": results.sizes,
        "machine": results.machine,
        "peers": {peer.name: _peer_json(peer) for peer in results.peers},
        "ratios": ratios(results),
        "targets": targets,
    }


def from_json(document: dict[str, Any]) -> Results:
    """A kept run."""
    peers = tuple(
        PeerResult(
            name=name,
            title=data["title"],
            state=data["state"],
            version=data["version"],
            reason=data["reason"],
            note=data["note"],
            cells={scenario: Cell(**found) for scenario, found in data["scenarios"].items()},
        )
        for name, data in document["peers"].items()
    )
    return Results(
        date=document["date"],
        sizes=document["sizes"],
        machine=document["machine"],
        peers=peers,
        seconds=document["seconds"],
        repeated=document.get("repeated", 0),
    )


def _peer_json(peer: PeerResult) -> dict[str, Any]:
    cells = {scenario: asdict(found) for scenario, found in peer.cells.items()}
    for found in cells.values():
        found["figures"] = {name: _rounded(value) for name, value in found["figures"].items()}
        found["by_round"] = {name: list(map(_rounded, values)) for name, values in found["by_round"].items()}
        found["stolen"] = list(map(_rounded, found["stolen"]))
    return {
        "title": peer.title,
        "state": peer.state,
        "version": peer.version,
        "reason": peer.reason,
        "note": peer.note,
        "scenarios": cells,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
