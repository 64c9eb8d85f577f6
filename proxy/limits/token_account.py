"""What is known of one user's tokens and money: how far each rate is used, what each period has spent, what is held.

Used by the store that keeps everything here, and by the one that only remembers what another server told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from proxy.limits import gcra
from proxy.limits.quotas import TICKS_PER_S
from proxy.limits.token_status import TokenStatus, amount
from proxy.model import Amounts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.limits.gcra import Limit
    from proxy.limits.periods import Calendar, Period
    from proxy.limits.token_limits import TokenLimits
    from proxy.model import Budget

# How long a period's figure is kept after its end: a clock that is set back over midnight opens no period anew.
KEPT_S: Final = 86_400

# Of a rate, in ticks: 35 years. A longer debt is no other, and its end would be no date.
MOST_DEBT: Final = 2**50

# Unit, kind of period, start: whatever the budget's limit is, so a reload with another one keeps what was spent.
_Key: TypeAlias = tuple[str, str, int]


@dataclass(slots=True)
class Spending:
    """What was spent of one unit in one period; `is_opened` where the ledger has told what it knows of it."""

    period: Period
    amount: int = 0
    is_opened: bool = False


class TokenAccount:
    """What is known of one user. At most one figure a rate and a running period, and what is held.

    Attributes:
        tats: The state of each token rate that is not paid off, whatever plan it is of.
        held: The sum of what running exchanges have reserved.
    """

    __slots__ = ("_spendings", "held", "tats")

    def __init__(self) -> None:
        self.tats: dict[Limit, int] = {}
        self.held = Amounts()
        self._spendings: dict[_Key, Spending] = {}

    def status(self, limits: TokenLimits, at: int, at_s: float, calendar: Calendar) -> TokenStatus:
        """Give how the user stands in the limits of a plan."""
        spendings = [self.spending(budget, at_s, calendar) for budget in limits.budgets]
        return TokenStatus(
            limits,
            at,
            at_s,
            tuple([self.tats.get(limit, 0) for limit in limits.rates]),
            tuple([spending.period for spending in spendings]),
            tuple([spending.amount for spending in spendings]),
            self.held,
        )

    def spending(self, budget: Budget, at_s: float, calendar: Calendar) -> Spending:
        """Give the figure of a budget's running period, which begins with 0; not to be kept."""
        return self._spending(budget, calendar.period(budget.every, at_s), at_s)

    def _spending(self, budget: Budget, period: Period, at_s: float) -> Spending:
        key = (budget.unit, budget.every, period.start_s)
        spending = self._spendings.get(key)
        if spending is None:
            self._spendings = {
                key: spending for key, spending in self._spendings.items() if spending.period.end_s + KEPT_S > at_s
            }
            spending = self._spendings[key] = Spending(period)
        return spending

    def unopened(self, limits: TokenLimits, at_s: float, calendar: Calendar) -> Iterator[tuple[Budget, Spending]]:
        """Yield the running periods of which the ledger has not told yet."""
        for budget in limits.budgets:
            spending = self.spending(budget, at_s, calendar)
            if not spending.is_opened:
                yield budget, spending

    def reserve(self, estimate: Amounts) -> None:
        """Hold an amount for an exchange."""
        self.held = Amounts(self.held.tokens + estimate.tokens, self.held.nano_usd + estimate.nano_usd)

    def free(self, estimate: Amounts) -> None:
        """Free what an exchange has held."""
        # Another store may have told sums without it.
        tokens, nano_usd = self.held.tokens - estimate.tokens, self.held.nano_usd - estimate.nano_usd
        self.held = Amounts(max(0, tokens), max(0, nano_usd))

    def charge(self, limits: TokenLimits, took: Amounts, at: int, at_s: float, calendar: Calendar) -> None:
        """Charge what an exchange took to every limit of a plan, be it beyond them."""
        for limit in limits.rates:
            tat = max(self.tats.get(limit, 0), at * limit.quota) + took.tokens * limit.window
            self.tats[limit] = min(tat, (at + MOST_DEBT) * limit.quota)
        for budget in limits.budgets:
            self.spending(budget, at_s, calendar).amount += amount(took, budget)

    def update(self, status: TokenStatus) -> None:
        """Replace the state of some limits by what another store told."""
        self.held = status.held
        self.tats.update(zip(status.limits.rates, status.tats, strict=True))
        for budget, period, spent in zip(status.limits.budgets, status.periods, status.spent, strict=True):
            self._spending(budget, period, status.at_s).amount = spent

    def spent(self, at_s: float) -> Iterator[tuple[str, str, Period, int]]:
        """Yield unit, kind of period, period and amount of what was spent in periods that have not ended."""
        for (unit, every, _), spending in self._spendings.items():
            if spending.amount and spending.period.end_s > at_s:
                yield unit, every, spending.period, spending.amount

    def copy(self, *, is_held: bool = True) -> TokenAccount:
        """Copy it, with what is held or without."""
        other = TokenAccount()
        other.held = self.held if is_held else Amounts()
        other.tats = dict(self.tats)
        other._spendings = {key: replace(spending) for key, spending in self._spendings.items()}
        return other

    def forget_paid(self, at: int) -> None:
        """Drop the states of rates that are paid off."""
        self.tats = {limit: tat for limit, tat in self.tats.items() if gcra.paid_at(limit, tat) > at}

    def paid_at(self, at: int, at_s: float) -> int:
        """Give the tick from which on this account, without holds, is equal to none."""
        ends_s = [spending.period.end_s for spending in self._spendings.values() if spending.amount]
        due = max((gcra.paid_at(limit, tat) for limit, tat in self.tats.items()), default=0)
        return max(due, at + round((max(ends_s) - at_s) * TICKS_PER_S)) if ends_s else due
