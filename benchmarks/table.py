"""The run as text: one table, the targets, what to know about both. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks import results as figures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.results import PeerResult, Results

_US_PER_MS = 1_000
_NONE = "-"
_REASON_LENGTH = 100
# Figures from here on are told without, or with one, decimal place.
_WHOLE, _TENTHS = 100, 10


@dataclass(frozen=True)
class _Column:
    head: str
    unit: str
    scenario: str
    figure: str
    per: float = 1
    to: str = ""  # told as a multiple of this peer's

    def text(self, results: Results, peer: PeerResult) -> str:
        """The cell; a scenario with failures has no figures, only their count."""
        cell = peer.cells.get(self.scenario)
        if cell is None:
            return _NONE
        if not cell.is_sound:
            return "FAILED" if not self.to else _NONE
        value = (
            cell.figures.get(self.figure)
            if not self.to
            else results.ratio(peer.name, self.to, self.scenario, self.figure)
        )
        return _NONE if value is None else number(value / self.per)


_COLUMNS = (
    _Column("request", "CPU µs", "request", figures.CPU_PER_REQUEST),
    _Column("", "× nginx", "request", figures.CPU_PER_REQUEST, to="nginx"),
    _Column("", "p50 ms", "request", figures.REQUEST_P50, per=_US_PER_MS),
    _Column("paced", "CPU µs", "paced", figures.CPU_PER_EVENT),
    _Column("", "× nginx", "paced", figures.CPU_PER_EVENT, to="nginx"),
    _Column("", "+p50 ms", "paced", figures.ADDED_P50, per=_US_PER_MS),
    _Column("", "+p99 ms", "paced", figures.ADDED_P99, per=_US_PER_MS),
    _Column("", "TTFB ms", "paced", figures.TTFB_P50, per=_US_PER_MS),
    _Column("flat", "CPU µs", "flat", figures.CPU_PER_EVENT),
    _Column("", "× nginx", "flat", figures.CPU_PER_EVENT, to="nginx"),
    _Column("hold", "KiB", "hold", figures.KIB_PER_STREAM),
    _Column("", "streams", "hold", figures.STREAMS),
    _Column("slow", "KiB", "slow", figures.KIB_PER_STREAM),
    _Column("", "growth", "slow", figures.GROWTH_PER_STREAM),
    _Column("cancel", "p50 ms", "cancel", figures.CANCEL_P50, per=_US_PER_MS),
    _Column("", "p99 ms", "cancel", figures.CANCEL_P99, per=_US_PER_MS),
)


def render(results: Results, targets: Sequence[dict[str, Any]]) -> str:
    """Everything that is printed at the end."""
    parts = [machine_text(results), _figures(results), problems(results), _notes(results), _targets(targets)]
    return "\n\n".join(part for part in parts if part) + "\n"


def grid(rows: Sequence[Sequence[str]], heads: int) -> str:
    """Columns in line, the first to the left, the others to the right; a rule below the heads."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if not index else text.rjust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(heads, "-" * max(map(len, lines)))
    return "\n".join(lines)


def number(value: float) -> str:
    """About three digits."""
    size = abs(value)
    text = f"{value:,.0f}" if size >= _WHOLE else f"{value:.1f}" if size >= _TENTHS else f"{value:.2f}"
    return text.replace("-0.00", "0.00")


def _figures(results: Results) -> str:
    rows = [["", *(column.head for column in _COLUMNS)], ["", *(column.unit for column in _COLUMNS)]]
    for peer in results.peers:
        if peer.cells:
            rows.append([peer.title, *(column.text(results, peer) for column in _COLUMNS)])
        else:
            rows.append([peer.title, peer.state, *([""] * (len(_COLUMNS) - 1))])
    return grid(rows, 2)


def problems(results: Results) -> str:
    """Who is absent, who fell, and every wrong answer."""
    lines = []
    for peer in results.peers:
        if peer.state != "measured":
            lines.append(f"{peer.title}: {peer.state}: {_short(peer.reason)}")
        for scenario, cell in peer.cells.items():
            told = ", ".join(f"{count} × {_short(reason)}" for reason, count in sorted(cell.failures.items()))
            if told:
                lines.append(f"{peer.title}, {scenario}: FAILED: {told}")
    return "\n".join(lines)


def _short(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 1] + "…"


def _notes(results: Results) -> str:
    lines = [
        "request, paced, flat: the proxy's own CPU, its whole process tree, per request or event.",
        "+p50, +p99: the delay of an event beyond that without a proxy. × nginx: multiples of nginx's figure.",
        "hold, slow: memory per stream; growth: of it, in the second half of the stall.",
        "cancel: from the client's leaving until the upstream sees it.",
    ]
    lines += [f"{peer.title}: {peer.note}." for peer in results.peers if peer.note and peer.state != "absent"]
    lines += results.sizes.get("notes", ())
    lines += filter(None, [disturbance(results)])
    planned = results.sizes.get("rounds", {})
    short = {
        scenario
        for peer in results.peers
        if peer.state == "measured"
        for scenario, cell in peer.cells.items()
        if cell.rounds < planned.get(scenario, 0)
    }
    if short:
        lines.append(f"The machine was busy: {', '.join(sorted(short))} had fewer rounds than planned.")
    return "\n".join(lines)


def disturbance(results: Results) -> str:
    """How much of the machine its host took away while it was measured; empty where nothing."""
    shares = [share for peer in results.peers for cell in peer.cells.values() for share in cell.stolen]
    if not any(shares):
        return ""
    again = f"; {results.repeated} loads were run again for it" if results.repeated else ""
    return (
        f"The host took {median(shares):.1%} of the machine's time away during the median load, "
        f"{max(shares):.0%} during the worst{again}."
    )


def machine_text(results: Results) -> str:
    """Where, when and what was measured."""
    machine = results.machine
    cores = machine["proxy_cores"]
    pinning = (
        "not pinned" if cores is None else f"proxy on core {', '.join(map(str, cores))}, load and upstream elsewhere"
    )
    return (
        f"{results.sizes['name']} run, {results.date}, revision {machine['revision'] or 'unknown'}"
        f"{' with changes' if machine['is_modified'] else ''}, {results.seconds:.0f} s\n"
        f"{machine['cores']} cores ({machine['cpu'] or 'unknown'}), {machine['kernel']}, {pinning}\n"
        + "\n".join(f"{peer.title}: {peer.version}" for peer in results.peers if peer.version)
    )


def _targets(targets: Sequence[dict[str, Any]]) -> str:
    rows = [["target", "", "measured", "bound", "aim"]]
    for target in targets:
        sign = "≥" if target["at_least"] else "≤"
        rows.append(
            [
                target["name"],
                target["state"],
                _with_unit(target["value"], target["unit"]),
                f"{sign} {_with_unit(target['bound'], target['unit'])}",
                _with_unit(target["aim"], target["unit"]) if target["aim"] is not None else "",
            ]
        )
    return grid(rows, 1)


def _with_unit(value: float | None, unit: str) -> str:
    return _NONE if value is None else f"{number(value)} {unit}"
