"""How a user stands in token rates and budgets, and whether one more reservation fits.

Pure. A limit has what is *used* (a rate's state, a budget's spent) and what is *held*: reserved by exchanges that run,
one sum over all of a user's. Holds become used only by what their exchange really took, which may be more: then a limit
is in debt, and nothing fits until time or a new period has paid it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from proxy.limits.quotas import TICKS_PER_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.limits.gcra import Limit
    from proxy.limits.periods import Period
    from proxy.limits.token_limits import TokenLimits
    from proxy.model import Amounts, Budget

# Where only what is reserved is in the way: nobody knows when one of those exchanges ends.
HELD_RETRY_AFTER_S: Final = 1.0


class Misfit(NamedTuple):
    """A limit that has no room for a reservation, when it will have, and why not now.

    `used`: it is used up, or what is left is too little of a rate; `large`: something is left of a budget, but too
    little for this one; `held`: only what is reserved is in the way.
    """

    rule: Limit | Budget
    wait_s: float
    cause: Literal["used", "large", "held"]


class Count(NamedTuple):
    """What is left of one limit: tokens, the ticks until all of it is there again, and those of use to a client."""

    remaining: int
    reset: int
    useful: int


class TokenStatus(NamedTuple):
    """How a user stands at a moment; `tats`, `periods` and `spent` go by the rates and budgets of `limits`.

    `at` is the tick of the clock that the rates are measured by, `at_s` the same moment in Unix time. `held` is
    reserved over all of the user's exchanges.
    """

    limits: TokenLimits
    at: int
    at_s: float
    tats: tuple[int, ...]
    periods: tuple[Period, ...]
    spent: tuple[int, ...]
    held: Amounts

    def misfit(self, estimate: Amounts) -> Misfit | None:
        """Give the limit without room for a reservation, of several the one with the longest wait; None if it fits.

        At most the whole of a limit is asked for, so that a full allowance admits one. Nothing at all fits wherever a
        limit is not used up: an exchange without a price runs beside those that have reserved dollars.
        """
        return max(self._misfits(estimate), key=lambda misfit: misfit.wait_s, default=None)

    def used(self) -> Iterator[int]:
        """Yield the tokens used of each rate, rounded up."""
        for limit, tat in zip(self.limits.rates, self.tats, strict=True):
            yield max(0, -(-(tat - self.at * limit.quota) // limit.window))

    def counts(self) -> list[Count]:
        """Give what is left of each limit that the fields tell of."""
        counts = []
        for limit, tat in zip(self.limits.rates, self.tats, strict=True):
            used = max(0, tat - self.at * limit.quota)
            left = max(0, (limit.capacity - used) // limit.window - self.held.tokens)
            reset = useful = -(-used // limit.quota)
            if not left:
                useful = max(TICKS_PER_S, -(-(used - limit.most_before) // limit.quota))
            counts.append(Count(left, reset, useful))
        for index in self.limits.told:
            left = max(0, self.limits.budgets[index].limit - self.spent[index] - self.held.tokens)
            reset = max(0, round((self.periods[index].end_s - self.at_s) * TICKS_PER_S))
            counts.append(Count(left, reset, reset))
        return counts

    def _misfits(self, estimate: Amounts) -> Iterator[Misfit]:
        for limit, tat in zip(self.limits.rates, self.tats, strict=True):
            misfit = self._misfit_of_rate(limit, max(0, tat - self.at * limit.quota), estimate.tokens)
            if misfit is not None:
                yield misfit
        for budget, period, spent in zip(self.limits.budgets, self.periods, self.spent, strict=True):
            misfit = self._misfit_of_budget(budget, period.end_s - self.at_s, spent, estimate)
            if misfit is not None:
                yield misfit

    def _misfit_of_budget(self, budget: Budget, wait_s: float, spent: int, estimate: Amounts) -> Misfit | None:
        most = budget.limit
        wanted = min(amount(estimate, budget), most)
        held = min(amount(self.held, budget), most) if wanted else 0
        if spent >= most:
            return Misfit(budget, wait_s, "used")
        if spent + wanted > most:
            return Misfit(budget, wait_s, "large")
        return Misfit(budget, wait_s, "held") if spent + held + wanted > most else None

    def _misfit_of_rate(self, limit: Limit, used: int, tokens: int) -> Misfit | None:
        wanted = min(tokens, limit.quota) * limit.window
        held = min(self.held.tokens, limit.quota) * limit.window if wanted else 0
        if used + held + wanted <= limit.capacity and (wanted or used < limit.capacity):
            return None
        if wanted and used + wanted <= limit.capacity:
            return Misfit(limit, HELD_RETRY_AFTER_S, "held")
        # True as long as no other exchange settles; what the others hold alone may leave too little, until they end.
        room = limit.capacity - (wanted or limit.window)
        is_held = held > room
        missing = used - (room if is_held else room - held)
        wait_s = -(-missing // limit.quota) / TICKS_PER_S
        return Misfit(limit, max(HELD_RETRY_AFTER_S, wait_s) if is_held else wait_s, "used")


def amount(of: Amounts, budget: Budget) -> int:
    """Give the amount in a budget's unit."""
    return of.tokens if budget.unit == "tokens" else of.nano_usd
