"""Ends running streams whose user has used up a budget, where the plan wants that (`budget_overrun: cut`).

A budget is used up when what was charged to it and what the user's running streams have taken so far exceed it; what is
only reserved does not count. That is looked at twice a second, never for an event, so a stream ends some events late,
and what it took beyond its budget is debt, as ever.

Of several workers each knows its own streams, and what was charged as far as it has heard.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.model import Amounts, Ending
from proxy.relay.transform import BUDGET_USED_UP

if TYPE_CHECKING:
    from proxy.exchange import Exchange
    from proxy.model import Principal
    from proxy.relay.response import RelayResponse
    from proxy.relay.transform import Transform
    from proxy.timers import DeadlineTimer

# A look costs as much as relaying an event, and ticks may be far shorter.
_INTERVAL_S: Final = 0.5


class _UserTaken:
    """What the running streams of one user have taken so far, all together; `key` is issuer and user."""

    __slots__ = ("key", "nano_usd", "streams", "tokens")

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.streams = self.tokens = self.nano_usd = 0


class OverrunWatch:
    """Looks at one stream. For the timer of deadlines, at every tick."""

    __slots__ = ("_exchange", "_is_over", "_look_s", "_principal", "_response", "_taken", "_transform", "user_taken")

    def __init__(
        self,
        exchange: Exchange,
        principal: Principal,
        response: RelayResponse,
        transform: Transform,
        user_taken: _UserTaken,
    ) -> None:
        self._exchange = exchange
        self._principal = principal
        self._response = response
        self._transform = transform
        self._is_over = False
        self._look_s = 0.0
        self._taken = Amounts()
        self.user_taken = user_taken

    def check(self, now_s: float) -> None:
        """End the stream where a budget is used up and it stands between two events; else the next tick may."""
        if not self._is_over and now_s >= self._look_s:
            self._look_s = now_s + _INTERVAL_S
            self.update(self._taken_so_far())
            self._is_over = self._is_used_up()
        if self._is_over and self._response.ending is None and self._transform.at_boundary:
            self._exchange.code = BUDGET_USED_UP.code
            self._exchange.limit = "overrun"
            self._response.finish(Ending.STOPPED, BUDGET_USED_UP)

    def update(self, taken: Amounts) -> None:
        """Count so much for this stream from now on."""
        self.user_taken.tokens += taken.tokens - self._taken.tokens
        self.user_taken.nano_usd += taken.nano_usd - self._taken.nano_usd
        self._taken = taken

    def _taken_so_far(self) -> Amounts:
        """What settling would charge now."""
        exchange = self._exchange
        if exchange.meter is None:
            return Amounts()
        figures = exchange.registry.estimates.so_far(exchange.meter, exchange.upstream or "")
        cost = exchange.rules.prices.cost(figures.model, figures)
        return Amounts(figures.input + figures.output, cost or 0)

    def _is_used_up(self) -> bool:
        status = self._exchange.rules.store.standing(self._principal).tokens
        if status is None:
            # Nobody counts: the store is away, and lets everything in.
            return False
        taken = self.user_taken
        return any(
            spent + (taken.tokens if budget.unit == "tokens" else taken.nano_usd) > budget.limit
            for budget, spent in zip(status.limits.budgets, status.spent, strict=True)
        )


class Overruns:
    """The streams of one worker that end where their users' budgets do."""

    def __init__(self, timers: DeadlineTimer) -> None:
        self._timers = timers
        # Of those with such a stream.
        self._users: dict[tuple[str, str], _UserTaken] = {}

    def watch(self, exchange: Exchange, response: RelayResponse, transform: Transform) -> OverrunWatch | None:
        """Look at a stream until it is discarded; None where nothing is to be looked at."""
        principal = exchange.principal
        if principal is None or not principal.plan.cuts_overrun or not principal.plan.budgets:
            return None
        key = (principal.issuer, principal.user)
        user_taken = self._users.setdefault(key, _UserTaken(key))
        user_taken.streams += 1
        watch = OverrunWatch(exchange, principal, response, transform, user_taken)
        self._timers.add(watch)
        return watch

    def discard(self, watch: OverrunWatch | None) -> None:
        """Look at a stream no more: it is about to be settled."""
        if watch is None:
            return
        self._timers.discard(watch)
        watch.update(Amounts())
        watch.user_taken.streams -= 1
        if not watch.user_taken.streams:
            del self._users[watch.user_taken.key]
