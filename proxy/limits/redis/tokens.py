"""Token rates and budgets at the server: what exchanges reserve, what they took, and how a user stands.

A settlement is sent when its exchange has ended, and again where no answer came. The server knows for a while which
exchanges it has charged, so one that is sent twice charges once. While it is away, settlements wait here. Each worker
keeps at most `MOST_WAITING` of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from proxy.limits.messages import no_room
from proxy.limits.redis.channel import ignore, outcome, settle
from proxy.limits.redis.commands import REMEMBERED_S, Question, bounded, read_tats
from proxy.limits.redis.errors import ConnectionLostError, StoreError
from proxy.limits.redis.leases import BATCH
from proxy.limits.store import LimitState, RateStatus
from proxy.limits.token_limits import NO_TOKEN_LIMITS
from proxy.limits.token_status import amount

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.limits.openings import Openings
    from proxy.limits.periods import Calendar
    from proxy.limits.redis.accounts import UserAccount
    from proxy.limits.redis.admission import RedisAdmission
    from proxy.limits.redis.channel import Answer, Channel
    from proxy.limits.redis.commands import Commands
    from proxy.limits.redis.leases import Leases
    from proxy.limits.redis.links import Link, Links
    from proxy.limits.token_limits import TokenLimits
    from proxy.limits.token_status import TokenStatus
    from proxy.model import Amounts

# What `reserve.lua` gives first.
_RESERVED, _ASK_LEDGER = 0, 2
# Some 50 MiB. Beyond it the oldest are given up: what they took is then known to the ledger alone.
MOST_WAITING: Final = 100_000
# For how long one is tried: the server must not have forgotten meanwhile that it has charged it.
_TRY_S: Final = REMEMBERED_S - 60.0


@dataclass(slots=True, eq=False)
class Charge:
    """What one exchange took: `failed_s` is since when it was tried in vain, and perhaps charged all the same."""

    question: Question
    id: bytes
    member: bytes | None
    took: Amounts
    failed_s: float | None = None


class Tokens:
    """Asks the servers, the ledger where a period is not opened yet, and tells what was taken until it is charged."""

    def __init__(
        self, commands: Commands, links: Links, leases: Leases, calendar: Calendar, openings: Openings
    ) -> None:
        self._commands = commands
        self._links = links
        self._leases = leases
        self._calendar = calendar
        self._openings = openings
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Charge] = deque()

    async def reserve(
        self, admission: RedisAdmission, limits: TokenLimits, estimate: Amounts, channel: Channel
    ) -> None:
        """Reserve, or refuse. Cancelling is safe: what may have been reserved is freed with the admission's lease.

        Raises:
            RateLimitExceededError, InsufficientQuotaError: It does not fit.
            StoreError: no answer, or none that is understood.
        """
        account = admission.account
        question = self._question(account, limits)
        openings = [-1] * len(limits.budgets)
        may_ask = bool(limits.budgets) and self._openings.can_ask(account.key)
        made, status = await self._ask(admission, question, estimate, channel, openings, may_ask=may_ask)
        if made == _ASK_LEDGER:
            for index, (budget, period) in enumerate(zip(limits.budgets, question.periods, strict=True)):
                used = await self._openings.used(account.key, period)
                if used is not None:
                    openings[index] = amount(bounded(used), budget)
            channel_now = self._links.at(account.slot).channel
            if channel_now is None:
                raise ConnectionLostError("the connection was lost")
            made, status = await self._ask(admission, question, estimate, channel_now, openings, may_ask=False)
        link = self._links.at(account.slot)
        link.succeeded()
        link.local = None
        link.clock.update(status.at)
        if account.tokens is not None:
            account.tokens.update(status)
            if made == _RESERVED and admission in account.live:
                account.tokens.reserve(estimate)
                status = status._replace(held=account.tokens.held)
        admission.standing = replace(admission.standing, tokens=status)
        if made != _RESERVED:
            raise no_room(status.misfit(estimate))

    def free(self, admission: RedisAdmission) -> None:
        """Free what an admission has reserved, or may have, and keep its lease; never waits.

        A server that is away is not told: what is not renewed lapses.
        """
        channel = self._links.at(admission.account.slot).channel
        if channel is not None and admission.member is not None:
            channel.send(self._commands.free(admission.account, b"", admission.member), ignore)
        admission.free()
        admission.held, admission.is_confirmed = None, False

    async def stand(self, account: UserAccount, channel: Channel) -> tuple[LimitState, ...]:
        """Ask how a user stands in every limit of the plan; the ledger too, where it was not asked yet.

        Raises:
            StoreError: no answer, or none that is understood.
        """
        quotas, limits = account.quotas, account.token_limits or NO_TOKEN_LIMITS
        question = self._question(account, limits)
        answer = await channel.ask(*self._commands.stand(question))
        after_rates = 3 + 2 * len(quotas.limits)
        status = question.read_answer([*answer[:3], *answer[after_rates:]], 0) if isinstance(answer, list) else None
        if status is None or not isinstance(answer, list):
            raise StoreError("the server's answer is not understood")
        tats = read_tats(quotas.limits, answer, 3, step=2)
        spent = list(status.spent)
        are_opened = answer[after_rates + 2 * len(limits.rates) + 1 :: 2]
        for index, (budget, period) in enumerate(zip(limits.budgets, question.periods, strict=True)):
            used = None if are_opened[index] else await self._openings.used(account.key, period)
            if used is not None:
                spent[index] = max(spent[index], amount(used, budget))
        status = status._replace(spent=tuple(spent))
        return RateStatus(quotas, tats, status.at, status).limit_states(status.at_s)

    def settle(
        self, account: UserAccount, limits: TokenLimits, id_: bytes, member: bytes | None, took: Amounts
    ) -> None:
        """Charge what an exchange took, and free what it held, now or when its server is back; never waits."""
        charge = account.charges[id_] = Charge(self._question(account, limits), id_, member, bounded(took))
        channel = self._links.at(account.slot).channel
        if channel is None:
            self._wait(charge)
        else:
            self._send(channel, charge)

    async def register(self, link: Link, channel: Channel) -> None:
        """Tell a server that was away all that waits for it, some at a time.

        Raises:
            ConnectionLostError: it is away again.
        """
        # What it refuses waits again, for a while.
        for _ in range(len(self._waiting) // BATCH + 1):
            if not self.tell(link, channel):
                return
            # Behind those that were just sent.
            await channel.ask("PING")

    def tell(self, link: Link, channel: Channel) -> int:
        """Tell a server a batch of what waits for it, without waiting for its answers; give how many that were."""
        sent = 0
        for _ in range(len(self._waiting)):
            charge = self._waiting.popleft()
            if sent < BATCH and self._links.at(charge.question.account.slot) is link:
                sent += 1
                self._send(channel, charge)
            else:
                self._waiting.append(charge)
        return sent

    def tell_all(self) -> None:
        """Tell each server that is there a batch of what it has refused before."""
        if self._waiting:
            for link in self._links:
                if link.channel is not None:
                    self.tell(link, link.channel)

    def _question(self, account: UserAccount, limits: TokenLimits) -> Question:
        return Question.at(account, limits, self._links.at(account.slot).clock.now_s(), self._calendar)

    async def _ask(
        self,
        admission: RedisAdmission,
        question: Question,
        estimate: Amounts,
        channel: Channel,
        openings: Sequence[int],
        *,
        may_ask: bool,
    ) -> tuple[int, TokenStatus]:
        answered: asyncio.Future[Answer] = self._loop.create_future()
        # Held from now on, for all that is known: whoever releases it frees it. A renewal would make it, unasked.
        admission.held = estimate
        member = admission.member or b""
        command = self._commands.reserve(question, member, estimate, openings, may_ask=may_ask)
        channel.send(command, partial(self._reserved, admission, member, answered))
        answer = outcome(await answered)
        status = question.read_answer(answer, 1)
        if status is None or not isinstance(answer, list):
            raise StoreError("the server's answer is not understood")
        admission.is_confirmed = answer[0] == _RESERVED
        if not admission.is_confirmed:
            admission.held = None
        return answer[0], status

    def _reserved(
        self, admission: RedisAdmission, member: bytes, answered: asyncio.Future[Answer], answer: Answer
    ) -> None:
        is_made = isinstance(answer, list) and answer[:1] == [_RESERVED]
        if is_made and admission not in admission.account.live:
            # Released while another node was asked: when that was told, there was nothing to free yet.
            self._leases.remove(admission.account, admission.id, member)
        settle(answered, answer)

    def _wait(self, charge: Charge) -> None:
        if len(self._waiting) >= MOST_WAITING:
            _drop(self._waiting.popleft())
        self._waiting.append(charge)

    def _send(self, channel: Channel, charge: Charge) -> None:
        if charge.failed_s is not None and self._loop.time() > charge.failed_s + _TRY_S:
            _drop(charge)
        else:
            command = self._commands.settle(charge.question, charge.id, charge.member, charge.took)
            channel.send(command, partial(self._settled, charge))

    def _settled(self, charge: Charge, answer: Answer) -> None:
        account = charge.question.account
        link = self._links.at(account.slot)
        if isinstance(answer, StoreError):
            if charge.failed_s is None:
                charge.failed_s = self._loop.time()
            self._wait(charge)
            if not isinstance(answer, ConnectionLostError):
                # Nothing was done, as on a server without memory, which can free all the same.
                self._leases.remove(account, charge.id, charge.member)
                link.failed(answer)
            return
        _drop(charge)
        status = charge.question.read_answer(answer, 0)
        if status is not None and account.tokens is not None:
            link.clock.update(status.at)
            account.tokens.update(status)


def _drop(charge: Charge) -> None:
    charge.question.account.charges.pop(charge.id, None)
