"""What is known of one user: how far each rate is used, and which admissions are live.

Used by the store that keeps everything here, and by the one that only remembers what another server told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from proxy.limits import gcra
from proxy.limits.quotas import NO_QUOTAS, quotas_of
from proxy.limits.token_account import TokenAccount
from proxy.limits.token_limits import token_limits_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.limits.gcra import Limit
    from proxy.limits.quotas import Quotas
    from proxy.limits.token_limits import TokenLimits
    from proxy.model import Plan


_Live = TypeVar("_Live")


class Account(Generic[_Live]):
    """What is known of one user.

    `quotas` are those of the plan seen last, `tats` the state of each. `others` is the state of the rates of plans seen
    before that are not paid off yet: a user with tokens of two plans, or a reload there and back, must not find a used
    rate fresh. `token_limits` are those of the plan seen last, `tokens` what is known of any plan's; None for users who
    never had any. `live` keeps the admissions that hold a lease, oldest first. `is_queued` says whether the account
    waits in the store's heap.
    """

    __slots__ = ("is_queued", "key", "live", "others", "plan", "quotas", "tats", "token_limits", "tokens")

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.plan: Plan | None = None
        self.quotas: Quotas = NO_QUOTAS
        self.tats: tuple[int, ...] = ()
        self.others: dict[Limit, int] = {}
        self.live: dict[_Live, None] = {}
        self.token_limits: TokenLimits | None = None
        self.tokens: TokenAccount | None = None
        self.is_queued = False

    def adopt(self, plan: Plan, now: int) -> None:
        """Measure by the rates of `plan` from now on, with what is already used of those that it shares."""
        known = self.known()
        self.plan, self.quotas = plan, quotas_of(plan.rates)
        self.tats = tuple([known.pop(limit, 0) for limit in self.quotas.limits])
        self.others = {limit: tat for limit, tat in known.items() if gcra.paid_at(limit, tat) > now}
        self.token_limits = token_limits_of(plan)
        if self.tokens is not None:
            self.tokens.forget_paid(now)
        elif self.token_limits is not None:
            self.tokens = TokenAccount()

    def known(self) -> dict[Limit, int]:
        """Give the state of every rate, whatever plan it is of."""
        return dict(zip(self.quotas.limits, self.tats, strict=True)) | self.others

    def update(self, quotas: Quotas, tats: tuple[int, ...]) -> None:
        """Replace the state of some rates; the plan that they are of may have been left since."""
        if quotas is self.quotas:
            self.tats = tats
        else:
            told = dict(zip(quotas.limits, tats, strict=True))
            self._replace({limit: told.get(limit, tat) for limit, tat in self.known().items()})

    def subtract(self, given: Mapping[Limit, int]) -> None:
        """Take charges, or what is left of them, out of the state of some rates."""
        self._replace({limit: tat - given.get(limit, 0) for limit, tat in self.known().items()})

    def paid_at(self, now: int, now_s: float) -> int:
        """Give the tick from which on this account, without leases, is equal to none; `now_s` is `now` in Unix time."""
        due = max((gcra.paid_at(limit, tat) for limit, tat in self.known().items()), default=0)
        return due if self.tokens is None else max(due, self.tokens.paid_at(now, now_s))

    def _replace(self, known: dict[Limit, int]) -> None:
        self.tats = tuple([known.pop(limit) for limit in self.quotas.limits])
        self.others = known
