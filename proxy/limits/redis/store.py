"""The limits store that workers and machines share: a Redis server decides, by its own clock.

Every admission is one script, so every rate of the plan and the lease are taken together or not at all. Nobody waits
long: one connection with many questions on their way, a tenth of a second for each, no second try, and no try at all
while the server is known to be away (`link`). What then happens is the operator's choice, `on_store_error`.

What the server alone cannot promise: a server that comes back empty is told by each worker what it holds and remembers
before anything is admitted; a step of the server's clock moves what the rates and leases are measured by.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Literal

from proxy.errors import LimitsUnavailableError
from proxy.limits import gcra
from proxy.limits.memory.leases import LIFE_S, Leases, run_all
from proxy.limits.memory.store import MemoryStore
from proxy.limits.messages import rate_limit_exceeded, too_many_streams
from proxy.limits.redis.accounts import ID_BYTES, PREFIX, ServerClock, UserAccounts, read_tats
from proxy.limits.redis.admission import PendingAdmission, RedisAdmission
from proxy.limits.redis.dial import Dialler
from proxy.limits.redis.link import Link
from proxy.limits.redis.resp import TIMEOUT_S, Answer, ConnectionLostError, StoreError
from proxy.limits.redis.scripts import Scripts
from proxy.limits.redis.tickets import RedisTickets
from proxy.limits.store import RateStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.limits.gcra import Limit
    from proxy.limits.quotas import Quotas
    from proxy.limits.redis.accounts import UserAccount
    from proxy.limits.redis.dial import RedisAddress
    from proxy.limits.redis.resp import Connection
    from proxy.limits.store import Fallback, Spent
    from proxy.model import Principal

OnStoreError = Literal["deny", "local", "allow"]

# A server that comes back empty: how long a worker that remembers its former self leaves the others to tell what they
# hold. Longer than the longest pause between two attempts, so that they have all come back.
SETTLE_S = 1.5
# How many users are restored in one batch; see `leases`.
_BATCH = 128


class RedisStore:
    """Holds users to their plans by numbers kept on a server. See `store.Store` for what each method promises.

    Args:
        address: The server.
        on_store_error: What to do without it: refuse, count alone in this worker, or let everything in.
        on_failure: Told of every failed call.
        on_change: Told why when the server is lost, and None when it is back.
        timeout_s: How long an answer may take.
        life_s: How long a lease outlives its worker.
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
    ) -> None:
        self._on_store_error = on_store_error
        self._on_change = on_change
        self._timeout_s = timeout_s
        self._settle_s = settle_s
        self._loop = asyncio.get_running_loop()
        self._scripts = scripts or Scripts()
        self._clock = ServerClock()
        dialler = Dialler(address, timeout_s=timeout_s)
        self._link = Link(dialler.dial, self._greet, on_failure=on_failure, on_change=self._change)
        self._leases = Leases(self._scripts, lambda: self._link.connection, on_failure=self._link.failed, life_s=life_s)
        self._accounts = UserAccounts(self._scripts, self._clock, life=self._leases.life)
        self._tickets = RedisTickets(dialler, self._link, self._scripts)
        self._local: MemoryStore | None = None
        # Ids must differ over all workers that ever were.
        self._name = secrets.token_hex(ID_BYTES // 4).encode()
        self._count = 0
        # The name of the server's memory; another one means that it lost everything.
        self._memory: bytes | None = None

    async def open(self) -> None:
        """Try to reach the server; where it cannot be, go on trying in the background."""
        await self._link.open()
        self._leases.open()

    async def close(self) -> None:
        """Tell the server what was released, and leave it."""
        await self._leases.close()
        await self._link.close()

    def problem(self) -> str | None:
        """Why the server is not asked, or None."""
        return self._link.problem

    @property
    def fallback(self) -> Fallback | None:
        """What happens instead of asking the server, or None."""
        return None if self._link.problem is None or self._on_store_error == "deny" else self._on_store_error

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
        connection = self._link.connection
        if connection is None:
            connection = await self._link.connected(self._timeout_s)
            if connection is None:
                return await self._admit_alone(principal, account)
        question = PendingAdmission(self, account, self._new_id(), self._loop.create_future())
        question.send(connection, self._scripts)
        try:
            answer = await question.answered
        except asyncio.CancelledError:
            # Between the answer and its being read; what is still to come undoes itself.
            if not question.answered.cancelled():
                self.undo(question, question.answered.result())
            raise
        if not isinstance(answer, list):
            self._record_failure(question, answer)
            return await self._admit_alone(principal, account)
        self._link.succeeded()
        self._local = None
        self._clock.update(answer[1])
        quotas = question.quotas
        tats = read_tats(quotas.limits, answer, 2)
        account.update(quotas, tats)
        if answer[0] == 1:
            raise rate_limit_exceeded(quotas.limits, tats, answer[1])
        if answer[0] == 2:  # noqa: PLR2004 - as `admit.lua` says
            raise too_many_streams(principal.plan)
        admission = RedisAdmission(self, account, question.id, RateStatus(quotas, tats, answer[1]), answer=answer)
        self._leases.hold(admission)
        return admission

    def standing(self, principal: Principal) -> RateStatus:
        """Say how the user stands by what this worker heard last, of a user it does not know as if never seen."""
        account = self._accounts.get(principal)
        if self._local is not None and account.local is self._local:
            return self._local.standing(principal)
        return RateStatus(account.quotas, account.tats, self._clock.now())

    async def put_ticket(self, name: str, sealed: bytes, ttl_s: float, owner: Principal) -> None:
        """Keep a sealed request; see `store.Store.put_ticket`."""
        await self._tickets.put(name, sealed, ttl_s, owner)

    async def take_ticket(self, name: str) -> bytes | Spent | None:
        """Give it to the first who asks, once in all workers; see `store.Store.take_ticket`."""
        return await self._tickets.take(name)

    def release(self, admission: RedisAdmission) -> None:
        """Free an admission's slot if it holds one; `Lease.release` is the public way."""
        if self._leases.release(admission) and admission.shadow is not None:
            admission.shadow.release()

    def refund(self, admission: RedisAdmission) -> None:
        """Give back what is left of a live admission's charge; `Admission.refund` is the public way."""
        if admission.is_refunded or admission not in admission.account.live:
            return
        admission.is_refunded = True
        if admission.inner is not None:
            admission.inner.refund()
        elif admission.answer is not None:
            self._send_refund(admission.account, admission.standing.quotas, admission.answer)

    def undo(self, question: PendingAdmission, answer: Answer) -> None:
        """Take back what was given to somebody who has left."""
        if not isinstance(answer, list):
            self._record_failure(question, answer)
        elif answer[0] == 0:
            self._send_refund(question.account, question.quotas, answer)
            self._leases.remove(question.account, question.id)

    def _record_failure(self, question: PendingAdmission, answer: Answer) -> None:
        assert isinstance(answer, StoreError)
        if isinstance(answer, ConnectionLostError):
            self._leases.release_unconfirmed(question.account, question.id)
        self._link.failed(answer)

    def _send_refund(self, account: UserAccount, quotas: Quotas, answer: Sequence[int]) -> None:
        limits = quotas.limits
        if not limits:
            return
        now = self._clock.now()
        keys: list[bytes] = []
        arguments: list[int] = []
        given: dict[Limit, int] = {}
        for index, (limit, tat) in enumerate(zip(limits, read_tats(limits, answer, 2), strict=True)):
            key = account.rate_key(limit)
            keys += [key, key + b":given"]
            arguments += [limit.quota, limit.window, *divmod(limit.window, limit.quota)]
            arguments += answer[2 + 3 * index : 5 + 3 * index]
            given[limit] = gcra.unpaid(limit, tat, now)
        # About right at once, for the answer that this one's client gets; the server says exactly how it is.
        account.subtract(given)

        def on_answer(told: Answer) -> None:
            if isinstance(told, list):
                # With its clock: by an older one, what is unused would look used.
                self._clock.update(told[0])
                account.update(quotas, read_tats(limits, told, 1))

        connection = self._link.connection
        if connection is not None:
            refund = self._scripts.refund
            refund.run(connection, refund.command(keys, arguments), on_answer)

    async def _admit_alone(self, principal: Principal, account: UserAccount) -> RedisAdmission:
        """Decide without the server; does not wait."""
        policy = self._on_store_error
        if policy == "deny":
            raise LimitsUnavailableError
        if policy == "local":
            inner = await self._local_store(principal, account).admit(principal)
            standing = inner.standing
        else:
            inner, standing = None, RateStatus(account.quotas, account.tats, self._clock.now())
        admission = RedisAdmission(self, account, self._new_id(), standing, fallback=policy, inner=inner)
        self._leases.hold(admission)
        return admission

    def _local_store(self, principal: Principal, account: UserAccount) -> MemoryStore:
        """This worker's own count, which goes on from what it knows of the user: usage so far, and its own streams."""
        if self._local is None:
            self._local = MemoryStore(self._clock.now_s)
        if account.local is not self._local:
            shadows = self._local.assume(principal, account.known(), len(account.live))
            account.local = self._local
            for admission, shadow in zip(account.live, shadows, strict=True):
                admission.shadow = shadow
        return self._local

    def _new_id(self) -> bytes:
        self._count += 1
        return b"%b%010x" % (self._name, self._count)

    def _change(self, problem: str | None) -> None:
        if problem is None:
            self._local = None
        self._on_change(problem)

    async def _greet(self, connection: Connection) -> None:
        """Make sure that the server can do all that is asked of it, and knows all that this worker knows."""
        answer = await self._scripts.greet.ask(connection, [PREFIX + b"memory"], [secrets.token_hex(8)])
        if not isinstance(answer, list):
            raise StoreError("the server's answer is not understood")
        now, memory = answer
        self._clock.update(now)
        is_empty = self._memory is not None and memory != self._memory
        if is_empty:
            self._link.suspend("the server came back empty, and is being told what was counted")
            await self._restore(connection)
        await self._leases.register(connection)
        await self._probe(connection)
        if is_empty:
            await asyncio.sleep(self._settle_s)
        self._memory = memory

    async def _probe(self, connection: Connection) -> None:
        """Do what a request would: only that tells whether one would be served. Nobody has this name.

        The server knows the scripts from here on. One that it must first be told runs behind what was sent meanwhile:
        a refund behind its user's next charge, a renewal behind the release, which would be forgotten.
        """
        probe = PREFIX + b"{probe}:"
        life = self._leases.life
        arguments: list[bytes | int] = [life, -1, 1_000_000, 1_000_000, 1, 0, b"probe"]
        await self._scripts.admit.ask(connection, [probe + b"leases", probe + b"rate"], arguments)
        await self._scripts.renew.ask(connection, [probe + b"leases"], [life])
        await self._scripts.refund.ask(connection, [], [])

    async def _restore(self, connection: Connection) -> None:
        """Tell an empty server how far the rates are used of every user that this worker has seen."""
        now = self._clock.now()
        script, commands = self._scripts.restore, []
        for account in self._accounts:
            keys: list[bytes] = []
            arguments: list[int] = []
            for limit, tat in zip(account.quotas.limits, account.tats, strict=True):
                if gcra.paid_at(limit, tat) > now:
                    keys.append(account.rate_key(limit))
                    arguments += [limit.window, *divmod(tat, limit.quota)]
            if keys:
                commands.append(script.command(keys, arguments))
        for first in range(0, len(commands), _BATCH):
            await run_all(connection, script, commands[first : first + _BATCH])
