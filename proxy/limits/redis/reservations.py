"""Reservations of tokens and money at the server: one question more for each exchange of a plan that limits them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from proxy.limits.messages import no_room
from proxy.limits.redis import token_commands
from proxy.limits.redis.channel import ignore
from proxy.limits.redis.errors import ConnectionLostError, StoreError
from proxy.limits.redis.token_commands import Question
from proxy.limits.states import limit_states
from proxy.limits.store import LimitState, RateStatus
from proxy.limits.token_limits import NO_TOKEN_LIMITS
from proxy.limits.token_status import amount

if TYPE_CHECKING:
    from proxy.limits.openings import Openings
    from proxy.limits.periods import Calendar
    from proxy.limits.redis.accounts import UserAccount
    from proxy.limits.redis.admission import RedisAdmission
    from proxy.limits.redis.channel import Answer, Channel
    from proxy.limits.redis.leases import Leases
    from proxy.limits.redis.links import Links
    from proxy.limits.redis.scripts import Scripts
    from proxy.limits.token_limits import TokenLimits
    from proxy.limits.token_status import TokenStatus
    from proxy.model import Amounts

# What `reserve.lua` gives first.
_RESERVED, _ASK_LEDGER = 0, 2


class Reservations:
    """Asks the servers, and the ledger where a period is not opened yet."""

    def __init__(self, scripts: Scripts, links: Links, leases: Leases, calendar: Calendar, openings: Openings) -> None:
        self._scripts = scripts
        self._links = links
        self._leases = leases
        self._calendar = calendar
        self._openings = openings

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
        outcome, status = await self._ask(admission, question, estimate, channel, openings, may_ask=may_ask)
        if outcome == _ASK_LEDGER:
            for index, (budget, period) in enumerate(zip(limits.budgets, question.periods, strict=True)):
                used = await self._openings.used(account.key, period)
                if used is not None:
                    openings[index] = amount(token_commands.bounded(used), budget)
            channel_now = self._links.at(account.slot).channel
            if channel_now is None:
                raise ConnectionLostError("the connection was lost")
            outcome, status = await self._ask(admission, question, estimate, channel_now, openings, may_ask=False)
        before, is_made = admission.standing, outcome == _RESERVED
        link = self._links.at(account.slot)
        link.succeeded()
        link.local = None
        link.clock.update(status.at)
        if account.tokens is not None:
            account.tokens.update(status)
            if is_made and admission in account.live:
                account.tokens.reserve(estimate)
                status = status._replace(held=account.tokens.held)
        admission.standing = RateStatus(before.quotas, before.tats, before.at, status)
        if not is_made:
            raise no_room(status.misfit(estimate))

    def free(self, admission: RedisAdmission) -> None:
        """Free what an admission has reserved, or may have, and keep its lease; never waits.

        A server that is away is not told: what is not renewed lapses.
        """
        channel = self._links.at(admission.account.slot).channel
        if channel is not None and admission.member is not None:
            life = self._leases.life
            command = token_commands.free(self._scripts, admission.account, b"", admission.member, life=life)
            channel.send(command, ignore)
        admission.held, admission.is_confirmed = None, False

    async def stand(self, account: UserAccount, channel: Channel) -> tuple[LimitState, ...]:
        """Ask how a user stands in every limit of the plan; the ledger too, where it was not asked yet.

        Raises:
            StoreError: no answer, or none that is understood.
        """
        quotas, limits = account.quotas, account.token_limits or NO_TOKEN_LIMITS
        question = self._question(account, limits)
        answer = await channel.ask(*token_commands.stand(self._scripts, question, life=self._leases.life))
        after_rates = 3 + 2 * len(quotas.limits)
        status = question.read_answer([*answer[:3], *answer[after_rates:]], 0) if isinstance(answer, list) else None
        if status is None or not isinstance(answer, list):
            raise StoreError("the server's answer is not understood")
        pairs = zip(answer[3:after_rates:2], answer[4:after_rates:2], strict=True)
        tats = [ticks * limit.quota + parts for limit, (ticks, parts) in zip(quotas.limits, pairs, strict=True)]
        spent = list(status.spent)
        are_opened = answer[after_rates + 2 * len(limits.rates) + 1 :: 2]
        for index, (budget, period) in enumerate(zip(limits.budgets, question.periods, strict=True)):
            used = None if are_opened[index] else await self._openings.used(account.key, period)
            if used is not None:
                spent[index] = max(spent[index], amount(used, budget))
        status = status._replace(spent=tuple(spent))
        return limit_states(RateStatus(quotas, tuple(tats), status.at, status), status.at_s)

    def _question(self, account: UserAccount, limits: TokenLimits) -> Question:
        return Question.at(account, limits, self._links.at(account.slot).clock.now_s(), self._calendar)

    async def _ask(
        self,
        admission: RedisAdmission,
        question: Question,
        estimate: Amounts,
        channel: Channel,
        openings: list[int],
        *,
        may_ask: bool,
    ) -> tuple[int, TokenStatus]:
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        # Held from now on, for all that is known: whoever releases it frees it. A renewal would make it, unasked.
        admission.held = estimate
        command = token_commands.reserve(
            self._scripts,
            question,
            admission.member or b"",
            estimate,
            life=self._leases.life,
            may_ask=may_ask,
            openings=openings,
        )
        channel.send(command, partial(self._answered, admission, admission.member, answered))
        answer = await answered
        if isinstance(answer, StoreError):
            raise answer
        status = question.read_answer(answer, 1)
        if status is None or not isinstance(answer, list):
            raise StoreError("the server's answer is not understood")
        if answer[0] != _RESERVED:
            admission.held = None
        admission.is_confirmed = answer[0] == _RESERVED
        return answer[0], status

    def _answered(
        self, admission: RedisAdmission, member: bytes | None, answered: asyncio.Future[Answer], answer: Answer
    ) -> None:
        is_made = isinstance(answer, list) and answer[:1] == [_RESERVED]
        if is_made and admission not in admission.account.live:
            # Released while another node was asked: when that was told, there was nothing to free yet.
            self._leases.remove(admission.account, admission.id, member)
        if not answered.done():
            answered.set_result(answer)
