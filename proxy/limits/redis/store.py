"""The limits store that workers and machines share: a Redis server decides, by its own clock.

Every admission is one script, so every rate of the plan and the lease are taken together or not at all; where tokens or
money are limited, a reservation and a settlement are one more each (`tokens`). Nobody waits long: one connection with
many questions on their way (`channel`), a tenth of a second for each, no second try, and no try at all while the server
is known to be away (`links`). What then happens is the operator's choice, `on_store_error`. In a Cluster each user has
one server (`links`), and all of this is so for each of them.

What the server alone cannot promise: a server that comes back empty is told by each worker what it holds and remembers
before anything is admitted; a step of the server's clock moves what the rates and leases are measured by.
"""

from __future__ import annotations

import asyncio
import secrets
import weakref
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from proxy.errors import LimitsUnavailableError
from proxy.limits import gcra
from proxy.limits.memory.store import MemoryStore
from proxy.limits.messages import rate_limit_exceeded, too_many_streams
from proxy.limits.openings import Openings
from proxy.limits.periods import Calendar
from proxy.limits.quotas import TICKS_PER_S
from proxy.limits.redis.accounts import UserAccounts
from proxy.limits.redis.address import TIMEOUT_S, Dialler
from proxy.limits.redis.admission import RedisAdmission
from proxy.limits.redis.cluster import ClusterLinks
from proxy.limits.redis.commands import Commands, bounded, is_decision, read_tats
from proxy.limits.redis.errors import ConnectionLostError, StoreError
from proxy.limits.redis.greeting import Greeting
from proxy.limits.redis.leases import LIFE_S, Leases
from proxy.limits.redis.links import Links
from proxy.limits.redis.scripts import Scripts
from proxy.limits.redis.tickets import RedisTickets
from proxy.limits.redis.tokens import Tokens
from proxy.limits.store import RateStatus
from proxy.model import Principal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.limits.quotas import Quotas
    from proxy.limits.redis.accounts import UserAccount
    from proxy.limits.redis.address import RedisAddress
    from proxy.limits.redis.channel import Answer
    from proxy.limits.redis.links import Link
    from proxy.limits.store import Admission, Fallback, LimitState, Spent
    from proxy.model import Amounts

OnStoreError = Literal["deny", "local", "allow"]

# A server that comes back empty: how long a worker that remembers its former self leaves the others to tell what they
# hold. Longer than the longest pause between two attempts, so that they have all come back.
SETTLE_S = 1.5


class RedisStore:
    """Holds users to their plans by numbers kept on a server. See `store.Store` for what each method promises.

    Args:
        address: The server, or servers.
        on_store_error: What to do without it: refuse, count alone in this worker, or let everything in.
        on_failure: Told of every failed call.
        on_change: Told why when the server is lost, and None when it is back. What it raises goes to
            the loop's exception handler.
        timeout_s: How long an answer may take.
        life_s: How long a lease outlives its worker.
        calendar: Tells the periods of budgets.
        openings: Asks the ledger what was used of them before the server knew.
        settle_s: See `SETTLE_S`.
        scripts: Other than the product's own only in tests.

    Raises:
        OSError: the authority file cannot be read.
    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        on_store_error: OnStoreError = "deny",
        on_failure: Callable[[], None] = lambda: None,
        on_change: Callable[[str | None], None] = lambda _problem: None,
        timeout_s: float = TIMEOUT_S,
        life_s: float = LIFE_S,
        settle_s: float = SETTLE_S,
        scripts: Scripts | None = None,
        calendar: Calendar | None = None,
        openings: Openings | None = None,
    ) -> None:
        self._on_store_error = on_store_error
        self._on_change = on_change
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        scripts = scripts or Scripts()
        self._commands = Commands(scripts, round(life_s * TICKS_PER_S))
        dialler = Dialler(address, timeout_s=timeout_s)
        links = ClusterLinks if address.kind == "cluster" else Links
        self._links = links(dialler, scripts, on_failure, self._change)
        self._calendar = calendar or Calendar()
        self._openings = openings or Openings()
        self._accounts = UserAccounts(self._commands, self._links.at)
        self._leases = Leases(self._commands, self._links.at)
        self._tokens = Tokens(self._commands, self._links, self._leases, self._calendar, self._openings)
        self._leases.on_period = self._tokens.tell_all
        self._links.greeting = Greeting(
            self._commands, self._links, self._accounts, self._leases, self._tokens, settle_s=settle_s
        )
        self._tickets = RedisTickets(self._links, scripts, timeout_s=timeout_s)
        # Why a server is away, as it was told last.
        self._told: str | None = None
        # Ids must differ over all workers that ever were.
        self._name = secrets.token_hex(5).encode()
        self._count = 0

    async def open(self) -> None:
        """Try to reach the server; where it cannot be, go on trying in the background."""
        await self._links.open()
        self._leases.open()

    async def close(self) -> None:
        """Wait until the server was told what was released and taken, and leave it."""
        self._openings.close()
        await self._leases.close()
        for link in self._links:
            if link.channel is not None:
                # Answers come in order: when this one is there, so are theirs.
                with suppress(StoreError):
                    await link.channel.ask("PING")
        await self._links.close()

    def problem(self) -> str | None:
        """Why the server, or one of them, is not asked; None while all are."""
        return self._links.problem

    @property
    def is_serving(self) -> bool:
        """Whether requests are served: some server is asked, or `on_store_error` lets them in."""
        return self._on_store_error != "deny" or self._links.is_serving

    def fallback(self, principal: Principal) -> Fallback | None:
        """What happens instead of asking the user's server, or None."""
        if self._on_store_error == "deny" or self._links.problem is None:
            return None
        return None if self._link(self._accounts.get(principal)).problem is None else self._on_store_error

    @property
    def leases_held(self) -> int:
        """How many leases this worker holds, over all users."""
        return self._leases.held

    async def admit(self, principal: Principal) -> RedisAdmission:
        """Charge one request to every rate of the user's plan and take a lease, or refuse and change nothing.

        Answered within about twice `timeout_s`, also where the server is not. Cancelled, it leaves a question behind
        whose answer is undone when it comes.
        """
        account = self._accounts.get(principal)
        link = self._links.at(account.slot)
        channel, asked_s = link.channel, None
        if channel is None:
            asked_s = self._loop.time()
            channel = await link.connected(self._timeout_s)
            if channel is None:
                return await self._admit_alone(principal, account)
        quotas, answered = account.quotas, self._loop.create_future()
        admission = RedisAdmission(self, account, self._new_id(), quotas, account.token_limits)
        on_answer = partial(self._answered, admission, answered)
        channel.send((*account.admit_command, admission.id), on_answer, asked_s=asked_s)
        try:
            answer = await answered
        except asyncio.CancelledError:
            # Between the answer and its being read; what is still to come undoes itself.
            if not answered.cancelled():
                self._undo(admission, answered.result())
            raise
        if not is_decision(answer, quotas):
            self._record_failure(admission, answer)
            return await self._admit_alone(principal, account)
        # Another node of a Cluster may have answered.
        link = self._links.at(account.slot)
        link.succeeded()
        link.local = None
        link.clock.update(answer[1])
        tats = read_tats(quotas.limits, answer, 2)
        account.update(quotas, tats)
        if answer[0] == 1:
            raise rate_limit_exceeded(quotas.limits, tats, answer[1])
        if answer[0] == 2:  # noqa: PLR2004 - as `admit.lua` says
            raise too_many_streams(principal.plan)
        admission.standing = RateStatus(quotas, tats, answer[1], account.token_status(answer[1], self._calendar))
        admission.answer, admission.is_registered = answer, True
        self._leases.hold(admission)
        return admission

    def standing(self, principal: Principal) -> RateStatus:
        """Say how the user stands by what this worker heard last, of a user it does not know as if never seen."""
        account = self._accounts.get(principal)
        link = self._link(account)
        if link.local is not None and account.is_counted_in(link.local):
            return link.local.standing(principal)
        now = link.clock.now()
        return RateStatus(account.quotas, account.tats, now, account.token_status(now, self._calendar))

    async def reserve(self, admission: Admission, estimate: Amounts) -> None:
        """Reserve tokens and money; see `store.Store.reserve`.

        Answered within about twice `timeout_s`, and where the ledger must be asked that and a fifth of a second again.
        """
        assert isinstance(admission, RedisAdmission)  # this store's own
        account, limits = admission.account, admission.limits
        if limits is None or account.tokens is None or admission.is_confirmed or admission not in account.live:
            return
        estimate = bounded(estimate)
        channel = await self._link(account).connected(self._timeout_s)
        if channel is None:
            await self._reserve_alone(admission, estimate)
            return
        try:
            await self._tokens.reserve(admission, limits, estimate, channel)
        except StoreError as error:
            self._link(account).failed(error)
            await self._reserve_alone(admission, estimate)

    async def limits(self, principal: Principal) -> tuple[LimitState, ...]:
        """Say how the user stands in each limit, as the server knows it; see `store.Store.limits`."""
        account = self._accounts.get(principal)
        channel = await self._link(account).connected(self._timeout_s)
        if channel is None:
            raise LimitsUnavailableError
        try:
            return await self._tokens.stand(account, channel)
        except StoreError as error:
            self._link(account).failed(error)
            raise LimitsUnavailableError from error

    def settle(self, admission: RedisAdmission, took: Amounts) -> None:
        """Charge what an exchange took, and free its slot and hold; `Admission.settle` is the public way."""
        account, limits = admission.account, admission.limits
        if limits is None or not any(took) or admission not in account.live:
            self.release(admission)
            return
        if admission.shadow is not None:
            admission.shadow.settle(took)
        self._leases.drop(admission)
        self._tokens.settle(account, limits, admission.id, admission.member, took)

    def charge_dead(self, principal: Principal, took: Amounts, name: str) -> None:
        """Charge what an exchange of a dead worker took; see `store.Store.charge_dead`."""
        account = self._accounts.get(principal)
        if account.token_limits is not None and any(took):
            self._tokens.settle(account, account.token_limits, name.encode(), None, took)

    async def put_ticket(self, name: str, sealed: bytes, ttl_s: float, owner: Principal) -> None:
        """Keep a sealed request; see `store.Store.put_ticket`."""
        await self._tickets.put(name, sealed, ttl_s, owner)

    async def take_ticket(self, name: str) -> bytes | Spent | None:
        """Give it to the first who asks, once in all workers; see `store.Store.take_ticket`."""
        return await self._tickets.take(name)

    def release(self, admission: RedisAdmission) -> None:
        """Free an admission's slot if it holds one; `Admission.release` is the public way."""
        if self._leases.release(admission) and admission.shadow is not None:
            admission.shadow.release()

    def refund(self, admission: RedisAdmission) -> None:
        """Give back what is left of a live admission's charge; `Admission.refund` is the public way."""
        if admission.is_refunded or admission not in admission.account.live:
            return
        admission.is_refunded = True
        if admission.member is not None:
            self._tokens.free(admission)
        if admission.shadow is not None:
            admission.shadow.refund()
        if admission.answer is not None:
            self._send_refund(admission.account, admission.quotas, admission.answer)

    def _answered(self, admission: RedisAdmission, answered: asyncio.Future[Answer], answer: Answer) -> None:
        # Whoever asked may have been cancelled; nobody else would undo it.
        if answered.cancelled():
            self._undo(admission, answer)
        else:
            answered.set_result(answer)

    def _undo(self, admission: RedisAdmission, answer: Answer) -> None:
        """Take back what was given to somebody who has left."""
        account, quotas = admission.account, admission.quotas
        if not is_decision(answer, quotas):
            self._record_failure(admission, answer)
        elif answer[0] == 0:
            self._send_refund(account, quotas, answer)
            self._leases.remove(account, admission.id)

    def _send_refund(self, account: UserAccount, quotas: Quotas, answer: Sequence[int]) -> None:
        """Give back what is left of the charge that the server answered; one that is away keeps it."""
        limits, link = quotas.limits, self._link(account)
        if not limits:
            return
        now, tats = link.clock.now(), read_tats(quotas.limits, answer, 2)
        # About right at once, for the answer that this one's client gets; the server says exactly how it is.
        account.subtract({limit: gcra.unpaid(limit, tat, now) for limit, tat in zip(limits, tats, strict=True)})

        def on_answer(told: Answer) -> None:
            if isinstance(told, list):
                # With its clock: by an older one, what is unused would look used.
                link.clock.update(told[0])
                account.update(quotas, read_tats(limits, told, 1))

        if link.channel is not None:
            link.channel.send(self._commands.refund(account, limits, answer), on_answer)

    def _record_failure(self, admission: RedisAdmission, answer: Answer) -> None:
        if not isinstance(answer, StoreError):
            answer = StoreError("the server's answer is not understood")
        if isinstance(answer, ConnectionLostError):
            self._leases.release_unconfirmed(admission.account, admission.id)
        self._link(admission.account).failed(answer)

    async def _admit_alone(self, principal: Principal, account: UserAccount) -> RedisAdmission:
        """Decide without the server; does not wait."""
        policy, shadow = self._on_store_error, None
        if policy == "deny":
            raise LimitsUnavailableError
        if policy == "local":
            shadow = await self._local_store(principal, account).admit(principal)
        standing = self.standing(principal) if shadow is None else shadow.standing
        admission = RedisAdmission(self, account, self._new_id(), account.quotas, account.token_limits, standing)
        admission.fallback, admission.shadow = policy, shadow
        self._leases.hold(admission)
        return admission

    async def _reserve_alone(self, admission: RedisAdmission, estimate: Amounts) -> None:
        """Reserve without the server; waits for the ledger at most."""
        policy, account = self._on_store_error, admission.account
        if policy == "deny" or account.plan is None:
            raise LimitsUnavailableError
        admission.fallback = policy
        if policy == "allow":
            return
        # Counted there by itself. What the server may hold for a question that it did not answer lapses.
        admission.held = None
        local = self._local_store(Principal(*account.key, account.plan), account)
        shadow = admission.shadow
        if shadow is None:  # of each that is live there is one
            raise LimitsUnavailableError
        try:
            await local.reserve(shadow, estimate)
        finally:
            admission.standing = replace(admission.standing, tokens=shadow.standing.tokens)
        # So the server is told of it when it is back, by the renewals.
        admission.held, admission.is_confirmed = estimate, True

    def _local_store(self, principal: Principal, account: UserAccount) -> MemoryStore:
        """This worker's own count, which goes on from what it knows of the user: usage so far, and its own streams."""
        link = self._link(account)
        if link.local is None:
            clock = link.clock.now_s
            link.local = MemoryStore(clock, calendar=self._calendar, openings=self._openings, wall=clock)
        if not account.is_counted_in(link.local):
            known = account.known_tokens(link.clock.now(), self._calendar)
            tokens = None if known is None else known.copy(is_held=False)
            holds = [admission.held for admission in account.live]
            shadows = link.local.assume(principal, account.known(), holds, tokens)
            account.local = weakref.ref(link.local)
            for admission, shadow in zip(account.live, shadows, strict=True):
                admission.shadow = shadow
        return link.local

    def _link(self, account: UserAccount) -> Link:
        return self._links.at(account.slot)

    def _new_id(self) -> bytes:
        self._count += 1
        return b"%b%010x" % (self._name, self._count)

    def _change(self) -> None:
        """Tell when the first server is lost, and when all are back."""
        told, self._told = self._told, self._links.problem
        if (told is None) != (self._told is None):
            try:
                self._on_change(self._told)
            except Exception as error:  # noqa: BLE001 - whatever fails in telling: the link must go on
                message = "a change of the limits server could not be told"
                self._loop.call_exception_handler({"message": message, "exception": error})
