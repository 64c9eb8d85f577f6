"""From one attempt to the next: keys, and the other targets of an operator's route.

A request moves on only while nothing has reached the client, and only where nothing can be lost or paid twice, unless
the operator allows that (`retry_paid`); `failover.policy` has the rule. The last answer that a vendor gave is kept
meanwhile, for the case that nobody has a better one.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.errors import ProxyError, UpstreamCredentialsError
from proxy.exchange.kept import KeptAnswer
from proxy.exchange.reserve import meter_of
from proxy.failover.keys import REFUSALS
from proxy.failover.policy import OK, Outcome, ends_at_once, moves_on
from proxy.model import RetryRules

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from proxy.exchange.attempts import Attempts
    from proxy.exchange.exchange import Exchange
    from proxy.failover import Key, UpstreamState
    from proxy.model import Choices, Route
    from proxy.upstream import UpstreamResponse

# Before the second attempt at most so long, and twice as long before each further one: by chance, so that the requests
# that an outage has hit do not arrive at the next upstream all at once.
FIRST_BACKOFF_S: Final = 0.05
LONGEST_BACKOFF_S: Final = 1.0
# Of a route without `retry`, which only a refused key moves on.
_NO_RETRY: Final = RetryRules()


class _Failure(NamedTuple):
    """How an attempt came out that did not succeed: the answer that the client could be given, or the error."""

    outcome: Outcome
    route: Route
    answer: UpstreamResponse | None
    error: ProxyError | None


class Moves:
    """The attempts of one exchange that has several keys or several targets."""

    def __init__(self, attempts: Attempts, exchange: Exchange, deadline_s: float | None) -> None:
        """`deadline_s` is when `total` runs out, in the loop's time: one clock for all attempts."""
        self._attempts = attempts
        self._exchange = exchange
        self._deadline_s = deadline_s
        # The last answer of a vendor that the request has moved on from.
        self._kept: KeptAnswer | None = None

    async def reach(self, route: Route) -> UpstreamResponse:
        """Ask one target after the other, until one answers or nothing moves the request on any more.

        Raises as `Attempts.reach` does.
        """
        choices = route.choices
        retry = None if choices is None else choices.retry
        rules = retry or _NO_RETRY
        begin_before_s = self._attempts.clocks.now() + rules.within_s
        number = 1
        try:
            while True:
                has_next = choices is not None and choices.has_more and number < rules.attempts
                is_held = retry is not None and (
                    retry.first_output_s is not None or (has_next and "error_event" in retry.on)
                )
                answer, error = None, None
                try:
                    answer = await self._ask_upstream(route, is_held=is_held)
                except ProxyError as exc:
                    error = exc
                outcome = self._exchange.attempts[-1].outcome
                if answer is not None and outcome is OK:
                    self._drop_kept()
                    return answer
                failure = _Failure(outcome, route, answer, error)
                following = None
                if choices is not None and has_next:
                    following = await self._following(failure, choices, number, begin_before_s)
                if following is None:
                    return await self._choose(failure)
                self._attempts.metrics.retried(route.upstream)
                route = following
                await self._turn_to(route)
                number += 1
        except BaseException:
            self._drop_kept()
            raise

    async def _following(self, failure: _Failure, choices: Choices, number: int, begin_before_s: float) -> Route | None:
        """Wait for the next target's turn; None where the failure of this number does not move the request on."""
        backoff_s = random.uniform(0, min(FIRST_BACKOFF_S * 2 ** (number - 1), LONGEST_BACKOFF_S))  # noqa: S311 - spreads load
        if (
            not moves_on(failure.outcome, choices.retry)
            or self._attempts.clocks.now() + backoff_s >= begin_before_s
            or not (self._is_as_left_out(failure) or choices.may_retry())
        ):
            return None
        self._keep(failure.answer, failure.route)
        await asyncio.sleep(backoff_s)
        return await self._attempts.turns.run(choices.take())

    def _is_as_left_out(self, failure: _Failure) -> bool:
        """Whether the upstream would not have been asked, had the request come now: nothing was sent, and it is out.

        So that a burst which finds an upstream dead is no storm of retries: each of them costs one vendor one request.
        """
        state = self._exchange.rules.states.get(failure.route.upstream)
        return failure.outcome is Outcome.CONNECT and state is not None and state.breaker.is_out

    def _ask_upstream(self, route: Route, *, is_held: bool) -> Coroutine[None, None, UpstreamResponse]:
        """Ask one upstream, with the next of its keys where one is refused."""
        state = self._exchange.rules.states.get(route.upstream)
        if state is None or not state.keys.is_choice or not route.has_operators_key:
            return self._attempts.ask(self._exchange, route, state, None, self._deadline_s, is_held=is_held)
        return self._ask_with_keys(route, state, is_held=is_held)

    async def _ask_with_keys(self, route: Route, state: UpstreamState, *, is_held: bool) -> UpstreamResponse:
        """Ask with one key, and with the next where one is refused."""
        key = state.keys.pick()
        assert key is not None  # there are several
        tried: list[Key] = []
        while True:
            tried.append(key)
            answer = None
            try:
                answer = await self._attempts.ask(
                    self._exchange, _with_key(route, key), state, key, self._deadline_s, is_held=is_held
                )
            except UpstreamCredentialsError:
                following = self._next_key(state, tried)
                if following is None:
                    raise
            else:
                following = self._next_key(state, tried)
                if following is None:
                    return answer
            self._keep(answer, route)
            self._attempts.metrics.retried(route.upstream)
            key = following

    def _next_key(self, state: UpstreamState, tried: list[Key]) -> Key | None:
        """Choose the key to go on with; None for none, or where the last was not refused."""
        status = self._exchange.attempts[-1].status
        return state.keys.next_after(tried, status) if status in REFUSALS else None

    async def _choose(self, last: _Failure) -> UpstreamResponse:
        """Return the answer that the client is given where all have failed: the last that a vendor gave.

        Raises:
            ProxyError: there is none, or the request may have been run and is not to be paid twice.
        """
        kept, answer = self._kept, last.answer
        if answer is not None and (kept is None or kept.answer is not answer):
            self._drop_kept()
            return answer
        choices = last.route.choices
        retry = None if choices is None else choices.retry
        if kept is not None and kept.answer.failure is None and not ends_at_once(last.outcome, retry):
            if kept.route is not last.route:
                await self._turn_to(kept.route)
            # From here on the caller's; before, cancellation closes it.
            self._kept = None
            self._exchange.is_answered = True
            return kept.give_back()
        # Of an answer that broke off meanwhile nothing is told: half of an error is none.
        error = last.error if answer is None else answer.failure
        assert error is not None  # the attempt's, where it has no answer
        raise error

    def _keep(self, answer: UpstreamResponse | None, route: Route) -> None:
        """Move on, and keep the answer in place of the one that was kept; an error of ours takes no place."""
        self._exchange.is_answered = False
        if answer is not None:
            self._drop_kept()
            self._kept = KeptAnswer(answer, route)

    def _drop_kept(self) -> None:
        if self._kept is not None:
            self._kept.answer.abort()
            self._kept = None

    async def _turn_to(self, route: Route) -> None:
        """Note in the exchange to which upstream it goes now."""
        exchange = self._exchange
        exchange.route, exchange.upstream, exchange.dialect = route, route.upstream, route.dialect
        exchange.meter = await meter_of(route, self._attempts.turns)
        if exchange.early_target is not None:
            exchange.early_target = route.target
        if exchange.early_target is not None or exchange.is_in_band:
            exchange.typed_names = route.typed_names


def _with_key(route: Route, key: Key) -> Route:
    """The route with this key in the place of the first, by name: no field of the client's has the key's name."""
    name = key.field[0]
    return route._replace(fields=tuple(key.field if field[0] == name else field for field in route.fields))
