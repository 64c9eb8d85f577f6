"""The limits store of a single process: exact, in memory, nothing to wait for.

Responsible for the state of every user (the TAT of each rate, the live leases) and for its bound. The arithmetic is
`gcra`'s, tickets are kept by `tickets`. Several processes would each count alone; they need a shared store.
"""

from __future__ import annotations

import time
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from proxy.errors import LimitsUnavailableError
from proxy.limits import gcra
from proxy.limits.memory.accounts import Account
from proxy.limits.memory.tickets import TicketStore
from proxy.limits.messages import no_room, rate_limit_exceeded, too_many_streams
from proxy.limits.openings import Openings
from proxy.limits.periods import Calendar
from proxy.limits.quotas import TICKS_PER_S
from proxy.limits.store import RateStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from proxy.limits.gcra import Limit
    from proxy.limits.store import Admission, LimitState, Spent
    from proxy.limits.token_account import TokenAccount
    from proxy.limits.token_limits import TokenLimits
    from proxy.limits.token_status import TokenStatus
    from proxy.model import Amounts, Principal

# How many accounts one new user may make us look at, about half a millisecond's work: after a quiet time all of them
# may be due at once, and nobody's stream shall wait for that. It is many for one, so what is due does not pile up.
_MAX_LOOKED_AT = 256


class _Admission:
    """A charge, and at the same time its lease: one object a request; see `store.Admission`.

    `ends` are the TATs of its rates after the charge, None once it was given back. `limits` are the token limits of its
    plan, `held` what it has reserved of them.
    """

    __slots__ = ("_store", "account", "ends", "held", "limits", "standing")

    fallback = None  # always counted

    def __init__(self, store: MemoryStore, account: Account[_Admission], standing: RateStatus) -> None:
        self._store = store
        self.account = account
        self.standing = standing
        self.ends: tuple[int, ...] | None = standing.tats
        self.limits: TokenLimits | None = account.token_limits
        self.held: Amounts | None = None

    def release(self) -> None:
        """Give the slot back; see `store.Admission.release`."""
        account = self.account
        live = account.live
        if self in live:
            del live[self]
            self.free()
            if not live and not account.is_queued:
                self._store.enqueue(account)

    def settle(self, took: Amounts) -> None:
        """Charge what was taken, and release; see `store.Admission.settle`."""
        if self.limits is not None and self in self.account.live:
            self._store.charge(self.account, self.limits, took)
        self.release()

    def refund(self) -> None:
        """Give back what is left of the charge; see `store.Admission.refund`."""
        self.free()
        self._store.refund(self)

    def free(self) -> None:
        """Free what is reserved, if anything is."""
        held, self.held = self.held, None
        if held is not None and self.account.tokens is not None:
            self.account.tokens.free(held)


class MemoryStore:
    """Holds users to their plans by numbers kept in this process.

    Nothing here waits: `admit` runs without a suspension point, so decisions are atomic and a cancelled caller holds
    nothing. An admission costs some microseconds whatever the number of users. At most `max_users` accounts are kept.
    One is dropped only once it is equal to no account (everything paid off, no lease, nothing spent of a running
    period), so dropping it changes no decision; while every account is in use a further user is refused rather than an
    earlier one forgotten, for else inventing users would be the way around a limit.

    Args:
        now: A monotonic clock in seconds.
        max_users: Bound on accounts; one takes about 1 KiB, with token limits 2 KiB.
        calendar: Tells the periods of budgets.
        openings: Asks the ledger what was used of them before this store knew.
        wall: The clock of the calendar, in Unix time.
    """

    is_serving = True

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        max_users: int = 100_000,
        *,
        calendar: Calendar | None = None,
        openings: Openings | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._calendar = calendar or Calendar()
        self._openings = openings or Openings()
        self._wall = wall
        self._max_users = max_users
        self._accounts: dict[tuple[str, str], Account[_Admission]] = {}
        # Accounts without a lease by when they looked paid off. That may have moved on: it is looked up again when an
        # account's turn comes, so an admission does not have to touch the heap.
        self._queue: list[tuple[int, tuple[str, str]]] = []
        self._tickets = TicketStore(now)

    async def open(self) -> None:
        """Nothing to get ready."""

    async def close(self) -> None:
        """Ask the ledger no more."""
        self._openings.close()

    def problem(self) -> str | None:
        """Memory always answers."""
        return None

    def fallback(self, _principal: Principal) -> None:
        """There is no need for any."""

    @property
    def leases_held(self) -> int:
        """How many leases are held, over all users; counted when asked for."""
        return sum(len(account.live) for account in self._accounts.values())

    @property
    def users_kept(self) -> int:
        """How many accounts are in memory; at most `max_users`."""
        return len(self._accounts)

    def active(self, principal: Principal) -> int:
        """Give how many leases the user holds."""
        account = self._accounts.get((principal.issuer, principal.user))
        return 0 if account is None else len(account.live)

    async def admit(self, principal: Principal) -> _Admission:
        """Charge one request to every rate of the user's plan and take a lease, or refuse and change nothing.

        Raises:
            RateLimitExceededError: A rate is used up; `retry_after_s` is when a request will fit all of them.
            TooManyStreamsError: The rates have room, but all of the plan's streams are in use.
            LimitsUnavailableError: `max_users` others are in use.
        """
        now = int(self._now() * TICKS_PER_S + 0.5)
        plan = principal.plan
        account = self._accounts.get((principal.issuer, principal.user))
        if account is None:
            account = self._open_account((principal.issuer, principal.user), now)
        # Identity, not equality: plans live as long as their configuration, and comparing rates would cost more.
        if account.plan is not plan:
            account.adopt(plan, now)
        quotas = account.quotas
        ends = gcra.charge(quotas.limits, account.tats, now)
        if ends is None:
            raise rate_limit_exceeded(quotas.limits, account.tats, now)
        # After the rates: a user who has run into both learns the time before which it is of no use to come back.
        if plan.concurrent_streams is not None and len(account.live) >= plan.concurrent_streams:
            raise too_many_streams(plan)
        account.tats = ends
        limits = account.token_limits
        tokens = None if limits is None else self._token_status(account, limits, now)
        admission = _Admission(self, account, RateStatus(quotas, ends, now, tokens))
        account.live[admission] = None
        return admission

    def standing(self, principal: Principal) -> RateStatus:
        """Say how the user stands without charging anything."""
        return self._standing(self._known(principal))

    async def reserve(self, admission: Admission, estimate: Amounts) -> None:
        """Reserve tokens and money; see `store.Store.reserve`.

        Waits only for the ledger, the first time in a period that it can tell of.
        """
        assert isinstance(admission, _Admission)  # this store's own
        account, limits = admission.account, admission.limits
        if limits is None or account.tokens is None or admission.held is not None:
            return
        await self._openings.open(account.key, account.tokens, limits, self._wall(), self._calendar)
        before = admission.standing
        status = account.tokens.status(limits, round(self._now() * TICKS_PER_S), self._wall(), self._calendar)
        misfit = status.misfit(estimate)
        if misfit is not None:
            admission.standing = RateStatus(before.quotas, before.tats, before.at, status)
            raise no_room(misfit)
        if admission in account.live:
            account.tokens.reserve(estimate)
            admission.held = estimate
            status = status._replace(held=account.tokens.held)
        admission.standing = RateStatus(before.quotas, before.tats, before.at, status)

    async def limits(self, principal: Principal) -> tuple[LimitState, ...]:
        """Say how the user stands in each limit; see `store.Store.limits`."""
        account = self._known(principal)
        if account.token_limits is not None and account.tokens is not None:
            await self._openings.open(account.key, account.tokens, account.token_limits, self._wall(), self._calendar)
        return self._standing(account).limit_states(self._wall())

    def charge_dead(self, principal: Principal, took: Amounts, name: str) -> None:
        """Do nothing: the figures died with the process, and its row is among those that the ledger tells of."""

    async def put_ticket(self, name: str, sealed: bytes, ttl_s: float, owner: Principal) -> None:
        """Keep a sealed request; see `store.Store.put_ticket`."""
        self._tickets.put(name, sealed, ttl_s, (owner.issuer, owner.user))

    async def take_ticket(self, name: str) -> bytes | Spent | None:
        """Give it to the first who asks; see `store.Store.take_ticket`."""
        return self._tickets.take(name)

    def assume(
        self,
        principal: Principal,
        tats: Mapping[Limit, int],
        holds: Sequence[Amounts | None],
        tokens: TokenAccount | None = None,
    ) -> list[Admission]:
        """Go on from what another store knew of a user: how far its rates and token limits are used, and its leases.

        There is an admission for each of `holds`, which is what the lease has reserved of token limits. Of a user who
        is known here already the rates stay as they are.

        Raises:
            LimitsUnavailableError: `max_users` others are in use.
        """
        now = round(self._now() * TICKS_PER_S)
        account = self._accounts.get((principal.issuer, principal.user))
        if account is None:
            account = self._open_account((principal.issuer, principal.user), now)
            account.adopt(principal.plan, now)
            limits = account.quotas.limits
            # The other's clock may have been another.
            account.tats = tuple([min(tats.get(limit, 0), now * limit.quota + limit.capacity) for limit in limits])
            account.tokens = tokens or account.tokens
        held = [_Admission(self, account, RateStatus()) for _ in holds]
        for admission, hold in zip(held, holds, strict=True):
            admission.ends = None
            account.live[admission] = None
            if hold is not None and account.tokens is not None:
                account.tokens.reserve(hold)
                admission.held = hold
        return list(held)

    def refund(self, admission: _Admission) -> None:
        """Take what is left of a live admission's charge out of its rates; `Admission.refund` is the public way.

        The charges behind it move forward by as much (`gcra.unpaid` says why). Only those that are live can still be
        refunded, and they are walked from the newest back to this one.
        """
        account, now = admission.account, round(self._now() * TICKS_PER_S)
        ends, admission.ends = admission.ends, None
        if ends is None or admission not in account.live:
            return
        charges = zip(admission.standing.quotas.limits, ends, strict=True)
        given = {limit: gcra.unpaid(limit, end, now) for limit, end in charges}
        account.subtract(given)
        for later in reversed(account.live):
            if later is admission:
                break
            if later.ends is not None:
                charges = zip(later.standing.quotas.limits, later.ends, strict=True)
                later.ends = tuple([end - given.get(limit, 0) for limit, end in charges])

    def charge(self, account: Account[_Admission], limits: TokenLimits, took: Amounts) -> None:
        """Charge what an exchange took to token limits; `Admission.settle` is the public way."""
        if account.tokens is not None:
            account.tokens.charge(limits, took, round(self._now() * TICKS_PER_S), self._wall(), self._calendar)

    def enqueue(self, account: Account[_Admission]) -> None:
        """Have an account without leases looked at when it is paid off; for the admission that held the last one."""
        account.is_queued = True
        moment = (0, 0.0) if account.tokens is None else (round(self._now() * TICKS_PER_S), self._wall())
        heappush(self._queue, (account.paid_at(*moment), account.key))

    def _token_status(self, account: Account[_Admission], limits: TokenLimits | None, now: int) -> TokenStatus | None:
        if limits is None or account.tokens is None:
            return None
        return account.tokens.status(limits, now, self._wall(), self._calendar)

    def _known(self, principal: Principal) -> Account[_Admission]:
        """The user's account, or of one who is not known one that nobody keeps, by the principal's plan."""
        key = (principal.issuer, principal.user)
        account = self._accounts.get(key) or Account(key)
        if account.plan is not principal.plan:
            account.adopt(principal.plan, round(self._now() * TICKS_PER_S))
        return account

    def _standing(self, account: Account[_Admission]) -> RateStatus:
        now = round(self._now() * TICKS_PER_S)
        return RateStatus(account.quotas, account.tats, now, self._token_status(account, account.token_limits, now))

    def _open_account(self, key: tuple[str, str], now: int) -> Account[_Admission]:
        self._drop_paid(now)
        if len(self._accounts) >= self._max_users:
            raise LimitsUnavailableError
        account = self._accounts[key] = Account(key)
        self.enqueue(account)
        return account

    def _drop_paid(self, now: int) -> None:
        """Drop accounts that are equal to none, looking at some of those that are due.

        An account whose turn comes too early was used since it was queued, and is queued again: so the work is in
        proportion to the requests admitted, and each call makes progress.
        """
        queue = self._queue
        for _ in range(_MAX_LOOKED_AT):
            if not queue or queue[0][0] > now:
                break
            account = self._accounts[heappop(queue)[1]]
            account.is_queued = False
            if account.live:
                continue  # queued again when its last lease is released
            if account.paid_at(now, self._wall()) > now:
                self.enqueue(account)
            else:
                del self._accounts[account.key]
