"""Ends a running stream whose user has used up a budget, where the plan wants that (`budget_overrun: cut`).

What it has taken is looked at a few times a second, never for an event. So a stream ends some events late, and what it
took beyond its budget is debt, as ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.model import Ending
from proxy.relay.transform import BUDGET_USED_UP

if TYPE_CHECKING:
    from proxy.exchange import Exchange
    from proxy.relay.response import RelayResponse
    from proxy.relay.transform import Transform


class OverrunWatch:
    """Compares what a stream has taken so far with what was left for it. For the timer of deadlines, at every tick."""

    __slots__ = ("_exchange", "_response", "_transform")

    def __init__(self, exchange: Exchange, response: RelayResponse, transform: Transform) -> None:
        self._exchange = exchange
        self._response = response
        self._transform = transform

    def check(self, now_s: float) -> None:  # noqa: ARG002 - time plays no part
        """End the stream if it has taken more than was left, and is between two events; else the next check may."""
        response = self._response
        if response.ending is None and self._transform.at_boundary and self._is_over():
            self._exchange.code = BUDGET_USED_UP.code
            response.finish(Ending.STOPPED, BUDGET_USED_UP)

    def _is_over(self) -> bool:
        """Whether the figures of now, which settling would charge, are more than what a budget has left."""
        exchange = self._exchange
        left = None if exchange.admission is None else exchange.admission.left
        if left is None or exchange.meter is None:
            return False
        figures = exchange.registry.estimates.so_far(exchange.meter, exchange.upstream or "")
        if figures.input + figures.output > left.tokens:
            return True
        cost = exchange.rules.prices.cost(figures.model, figures.tokens)
        return cost is not None and cost > left.nano_usd


def watches_overrun(exchange: Exchange) -> bool:
    """Whether a stream of this exchange is ended where its budget is."""
    principal = exchange.principal
    return principal is not None and principal.plan.cuts_overrun and bool(principal.plan.budgets)
