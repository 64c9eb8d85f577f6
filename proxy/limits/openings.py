"""Opening balances: what the ledger knows that a user has used in a period of which the store knows nothing yet.

So neither a restart nor an emptied server begins a month anew. The ledger refuses nobody: it is given a fifth of a
second, and while it does not answer, users go on by what the store knows. Only while it starts is it waited for: what a
user had spent before is known to nobody else then.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from proxy.limits.token_status import amount

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.limits.periods import Calendar, Period
    from proxy.limits.store import Opening
    from proxy.limits.token_account import TokenAccount
    from proxy.limits.token_limits import TokenLimits
    from proxy.model import Amounts

_TIMEOUT_S: Final = 0.2
# After a failure its user does not ask for so long, and after that of another user, too, nobody does: else each would
# wait for a ledger that is away, or one of whom it has millions of rows would keep it from all the others.
_RETRY_S: Final = 5.0
_START_PAUSE_S: Final = 0.05


class Openings:
    """Asks the ledger, once for all requests of a user that wait at the same time.

    Args:
        ask: Gives what a user has used since a moment; None without a ledger.
        now: A monotonic clock in seconds.
        start_s: How long from now on a ledger that does not answer is asked again, until it first does.
    """

    def __init__(
        self, ask: Opening | None = None, *, now: Callable[[], float] = time.monotonic, start_s: float = 0.0
    ) -> None:
        self._ask = ask
        self._now = now
        self._started_at_s = now() + start_s if start_s else 0.0
        self._asking: dict[tuple[str, str, int], asyncio.Task[Amounts | None]] = {}
        self._again_s = 0.0
        self._failed_last: tuple[str, str] | None = None
        self._is_away = False

    async def open(
        self, user: tuple[str, str], account: TokenAccount, limits: TokenLimits, at_s: float, calendar: Calendar
    ) -> None:
        """Open the running periods of an account that are not, with what the ledger tells of them.

        Answered within a fifth of a second a period, or by the end of `start_s`. Cancelling is safe: others go on
        waiting for the same answer.
        """
        if self._ask is None:
            return
        for budget, spending in tuple(account.unopened(limits, at_s, calendar)):
            used = await self.used(user, spending.period)
            if used is None:
                return
            if not spending.is_opened:
                spending.is_opened = True
                spending.amount = max(spending.amount, amount(used, budget))

    def close(self) -> None:
        """Ask no more."""
        for asking in self._asking.values():
            asking.cancel()

    def can_ask(self, user: tuple[str, str]) -> bool:
        """Whether there is a ledger, and it did not just fail for this user, or for several."""
        if self._ask is None:
            return False
        return self._now() >= self._again_s or not (self._is_away or user == self._failed_last)

    async def used(self, user: tuple[str, str], period: Period) -> Amounts | None:
        """Ask the ledger, or wait with others who have; None where it does not answer."""
        key = (*user, period.start_s * 1000)
        asking = self._asking.get(key)
        if asking is None:
            if not self.can_ask(user):
                return None
            asking = self._asking[key] = asyncio.create_task(self._ask_in_time(*key), name="limits.opening")
            asking.add_done_callback(lambda _: self._asking.pop(key))
        # Whoever asked first may leave; the others need the answer.
        return await asyncio.shield(asking)

    async def _ask_in_time(self, issuer: str, user: str, since_ms: int) -> Amounts | None:
        assert self._ask is not None  # `open` has checked it
        while True:
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    used = await self._ask(issuer, user, since_ms)
            except Exception:  # noqa: BLE001 - whatever fails in the ledger, which tells of it itself: it refuses nobody
                if self._now() >= self._started_at_s:
                    self._failed(issuer, user)
                    return None
                await asyncio.sleep(_START_PAUSE_S)
            else:
                break
        self._started_at_s = 0.0
        self._is_away = False
        if self._failed_last == (issuer, user):
            self._failed_last = None
        return used

    def _failed(self, issuer: str, user: str) -> None:
        self._again_s = self._now() + _RETRY_S
        self._is_away = self._is_away or self._failed_last not in {None, (issuer, user)}
        self._failed_last = issuer, user
