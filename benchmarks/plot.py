"""Draws a kept run as SVG, a program of its own: `python -m benchmarks.plot RESULTS.json IMAGE.svg`.

The one module that needs matplotlib, which `make bench` installs into an environment of its own.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

from benchmarks import results as figures
from benchmarks import scale
from benchmarks.results import from_json
from benchmarks.table import number

mpl.use("svg")
from matplotlib import pyplot as plt  # the backend is chosen before

if TYPE_CHECKING:
    from benchmarks.results import Results

_OURS, _OTHERS, _RULE = "#c2410c", "#475569", "#e2e8f0"
_LINES = {"ours": _OURS, "nginx": "#15803d"}
_US_PER_MS = 1_000
# Below this a delay or a memory is noise, and a logarithm needs something to stand on.
_LEAST = 0.01
# Room to the right for the figure, as a factor on a logarithmic axis.
_ROOM = 6.0


@dataclass(frozen=True)
class _Panel:
    title: str
    scenario: str
    figure: str
    per: float = 1


_PANELS = (
    _Panel("CPU per request, µs", "request", figures.CPU_PER_REQUEST),
    _Panel("CPU per event, paced, µs", "paced", figures.CPU_PER_EVENT),
    _Panel("CPU per event, flat, µs", "flat", figures.CPU_PER_EVENT),
    _Panel("Added delay, p99, ms", "paced", figures.ADDED_P99, per=_US_PER_MS),
    _Panel("Memory per held stream, KiB", "hold", figures.KIB_PER_STREAM),
    _Panel("Cancel, p99, ms", "cancel", figures.CANCEL_P99, per=_US_PER_MS),
)


def draw_peers(results: Results) -> Any:
    """The peers side by side: a small chart a figure, logarithmic, as they lie factors of a hundred apart."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 5.6), sharey=True)
    for panel, axis in zip(_PANELS, axes.flat, strict=True):
        _panel(results, panel, axis)
    figure.suptitle("forward-sse and its peers, one worker each; less is better (logarithmic)", x=0.01, ha="left")
    _foot(figure, results)
    return figure


def draw_scale(results: Results) -> Any:
    """Cost and delay against the number of open streams."""
    figure, (cost, delay) = plt.subplots(1, 2, figsize=(12, 4.2))
    for peer in results.peers:
        colour = _LINES.get(peer.name)
        if colour is None:
            continue
        _line(cost, scale.points(results, peer.name, figures.CPU_PER_EVENT), 1, colour, peer.title)
        for name, figure_name, style in (("p50", figures.ADDED_P50, "-"), ("p99", figures.ADDED_P99, "--")):
            line = scale.points(results, peer.name, figure_name)
            _line(delay, line, _US_PER_MS, colour, f"{peer.title}, {name}", style)
    for axis, title in ((cost, "CPU per event, µs"), (delay, "Added delay of an event, ms")):
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("open streams, the same events a second at each point", fontsize=9)
        _bare(axis)
        axis.grid(visible=True, color=_RULE)
        if axis.has_data():
            axis.legend(frameon=False, fontsize=9)
    _foot(figure, results)
    return figure


def _panel(results: Results, panel: _Panel, axis: Any) -> None:
    shown = [peer for peer in results.peers if peer.name != "direct"][::-1]
    values = [results.value(peer.name, panel.scenario, panel.figure) for peer in shown]
    drawn = [max(value / panel.per, _LEAST) for value in values if value is not None]
    left = min(drawn, default=1.0) / 2
    axis.set_xscale("log")
    axis.set_xlim(left, max(drawn, default=1.0) * _ROOM)
    for place, (peer, value) in enumerate(zip(shown, values, strict=True)):
        colour = _OURS if peer.name == "ours" else _OTHERS
        if value is None:
            text = peer.state if peer.state != "measured" else "no result"
            axis.text(left, place, f" {text}", va="center", fontsize=9, color=_OTHERS, style="italic")
            continue
        at = max(value / panel.per, _LEAST)
        axis.hlines(place, left, at, color=colour, linewidth=2)
        axis.plot(at, place, "o", color=colour)
        axis.annotate(
            number(value / panel.per),
            (at, place),
            (7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour,
        )
    axis.set_yticks(range(len(shown)), [peer.title for peer in shown], fontsize=9)
    axis.set_ylim(-0.6, len(shown) - 0.4)
    axis.set_title(panel.title, loc="left", fontsize=10)
    axis.tick_params(axis="x", labelbottom=False, which="both", length=0)
    _bare(axis)


def _line(axis: Any, line: list[tuple[int, float]], per: float, colour: str, label: str, style: str = "-") -> None:
    if line:
        axis.plot([x for x, _ in line], [y / per for _, y in line], style, marker="o", color=colour, label=label)


def _bare(axis: Any) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)


def _foot(figure: Any, results: Results) -> None:
    machine = results.machine
    text = (
        f"{results.date[:10]}, {results.sizes['name']} run, revision {machine['revision'] or 'unknown'}, "
        f"{machine['cores']} cores, {machine['kernel']}; how: docs/benchmark.md"
    )
    figure.text(0.01, 0.01, text, fontsize=8, color=_OTHERS)
    figure.tight_layout(rect=(0, 0.03, 1, 1))


def main(source: Path, image: Path) -> None:
    """Read a run, draw it."""
    # The same run gives the same file.
    mpl.rcParams["svg.hashsalt"] = "forward-sse"
    results = from_json(json.loads(source.read_text()))
    has_scale = any(scale.points(results, name, figures.CPU_PER_EVENT) for name in _LINES)
    figure = draw_scale(results) if has_scale else draw_peers(results)
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
