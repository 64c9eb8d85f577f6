"""What this proxy is held to, and whether a run reached it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import results as figures

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.results import Results

_US_PER_MS = 1_000
# May be added to nginx's own delay.
_DELAY_US = 300
_CANCEL_US = 10_000
# What may wait per stream while its client does not read: behaviour.md's promise.
_STALLED_KIB = 256


@dataclass(frozen=True)
class Target:
    """A value, and the bound that it must keep; `at_least` turns the bound around."""

    name: str
    unit: str
    measure: Callable[[Results], float | None]
    bound: Callable[[Results], float | None]
    aim: float | None = None
    at_least: bool = False

    def judge(self, results: Results) -> dict[str, Any]:
        """The verdict, as the JSON keeps it: reached, not reached, or not measured."""
        value, bound = self.measure(results), self.bound(results)
        if value is None or bound is None:
            state = "not measured"
        elif (value >= bound) if self.at_least else (value <= bound):
            state = "reached"
        else:
            state = "not reached"
        return {
            "name": self.name,
            "unit": self.unit,
            "value": None if value is None else round(value, 3),
            "bound": None if bound is None else round(bound, 3),
            "aim": self.aim,
            "at_least": self.at_least,
            "state": state,
        }


def _ratio(peer: str, to: str, scenario: str, figure: str) -> Callable[[Results], float | None]:
    return lambda results: results.ratio(peer, to, scenario, figure)


def _value(
    peer: str, scenario: str, figure: str, *, per: float = 1, plus: float = 0
) -> Callable[[Results], float | None]:
    def measure(results: Results) -> float | None:
        value = results.value(peer, scenario, figure)
        return None if value is None else (value + plus) / per

    return measure


def _fixed(bound: float) -> Callable[[Results], float | None]:
    return lambda _results: bound


def _delay(quantile: str, figure: str) -> Target:
    return Target(
        f"Added delay per event, paced, {quantile}, at most nginx's + 0.3 ms",
        "ms",
        _value("ours", "paced", figure, per=_US_PER_MS),
        _value("nginx", "paced", figure, per=_US_PER_MS, plus=_DELAY_US),
    )


TARGETS = (
    Target(
        "CPU per event, paced, against nginx",
        "×",
        _ratio("ours", "nginx", "paced", figures.CPU_PER_EVENT),
        _fixed(1.25),
        aim=1.0,
    ),
    Target(
        "CPU per request, against nginx + auth_request",
        "×",
        _ratio("ours", "nginx_auth", "request", figures.CPU_PER_REQUEST),
        _fixed(0.75),
        aim=0.5,
    ),
    Target(
        "Memory per held stream, at most nginx's",
        "KiB",
        _value("ours", "hold", figures.KIB_PER_STREAM),
        _value("nginx", "hold", figures.KIB_PER_STREAM),
    ),
    _delay("p50", figures.ADDED_P50),
    _delay("p99", figures.ADDED_P99),
    Target(
        "CPU per event, flat, against nginx",
        "×",
        _ratio("ours", "nginx", "flat", figures.CPU_PER_EVENT),
        _fixed(2.0),
    ),
    Target(
        "LiteLLM's CPU per event, paced, against ours",
        "×",
        _ratio("litellm", "ours", "paced", figures.CPU_PER_EVENT),
        _fixed(60),
        at_least=True,
    ),
    Target(
        "LiteLLM's CPU per request, against ours",
        "×",
        _ratio("litellm", "ours", "request", figures.CPU_PER_REQUEST),
        _fixed(100),
        at_least=True,
    ),
    Target(
        "Cancel: until the upstream sees it, p99",
        "ms",
        _value("ours", "cancel", figures.CANCEL_P99, per=_US_PER_MS),
        _fixed(_CANCEL_US / _US_PER_MS),
    ),
    Target(
        "Memory per stream whose reader stalls",
        "KiB",
        _value("ours", "slow", figures.KIB_PER_STREAM),
        _fixed(_STALLED_KIB),
    ),
)


def judge(results: Results) -> list[dict[str, Any]]:
    """Every target's verdict."""
    return [target.judge(results) for target in TARGETS]
