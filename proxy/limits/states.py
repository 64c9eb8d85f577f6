"""How a user stands in every limit of the plan, as whoever asks for their own usage is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.limits import gcra
from proxy.limits.quotas import TICKS_PER_S
from proxy.limits.store import LimitState
from proxy.limits.token_status import amount

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.limits.store import RateStatus
    from proxy.limits.token_status import TokenStatus


def limit_states(standing: RateStatus, at_s: float) -> tuple[LimitState, ...]:
    """Give the state of each rate of requests, token rate and budget; `at_s` is the standing's moment in Unix time."""
    states = []
    for limit, name, tat in zip(standing.quotas.limits, standing.quotas.names, standing.tats, strict=True):
        left, reset = gcra.standing(limit, tat, standing.at)
        states.append(LimitState("requests", name, limit.quota, limit.quota - left, 0, at_s + reset / TICKS_PER_S))
    if standing.tokens is not None:
        states += _token_states(standing.tokens)
    return tuple(states)


def _token_states(status: TokenStatus) -> Iterator[LimitState]:
    limits, held = status.limits, status.held
    for limit, name, tat, used in zip(limits.rates, limits.rate_names, status.tats, status.used(), strict=True):
        reset = max(0, -(-(tat - status.at * limit.quota) // limit.quota))
        reserved = min(held.tokens, limit.quota)
        yield LimitState("tokens", name, limit.quota, used, reserved, status.at_s + reset / TICKS_PER_S)
    for budget, name, period, spent in zip(
        limits.budgets, limits.budget_names, status.periods, status.spent, strict=True
    ):
        reserved = min(amount(held, budget), budget.limit)
        yield LimitState(budget.unit, name, budget.limit, spent, reserved, float(period.end_s))
