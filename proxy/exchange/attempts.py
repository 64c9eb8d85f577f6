"""From a route to the one response that is relayed: keys, and the other targets of an operator's route.

A request moves on only while nothing has reached the client, and only where nothing can be lost or paid twice, unless
the operator allows that (`retry_paid`); `failover.policy` has the rule. All attempts of an exchange are one after the
other: each is over before the next begins. The last answer that a vendor gave is kept meanwhile, for the case that
nobody has a better one.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.dialects import DIALECTS
from proxy.errors import (
    ProxyError,
    UpstreamCredentialsError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
)
from proxy.exchange.attempt import Attempt
from proxy.exchange.connect import connect
from proxy.exchange.exchange import ending_of
from proxy.exchange.kept import KeptAnswer
from proxy.exchange.preamble import can_be_held, hold
from proxy.exchange.reserve import meter_of
from proxy.failover.keys import LIMITED, REFUSALS
from proxy.failover.policy import OK, Outcome, ends_at_once, moves_on, outcome_of
from proxy.model import Ending, RetryRules
from proxy.protocol.retry_after import rest_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from proxy.exchange.exchange import Exchange
    from proxy.exchange.preamble import Deadline
    from proxy.failover import Key, UpstreamState
    from proxy.model import Choices, Route
    from proxy.observability.metrics import Metrics
    from proxy.routing import Turns
    from proxy.timers import DeadlineTimer
    from proxy.upstream import Pool, UpstreamResponse

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


class Attempts:
    """The attempts of one exchange."""

    def __init__(
        self,
        exchange: Exchange,
        *,
        pool: Pool,
        clocks: DeadlineTimer,
        turns: Turns,
        metrics: Metrics,
        deadline_s: float | None,
    ) -> None:
        """`deadline_s` is when `total` runs out, in the loop's time: one clock for all attempts."""
        self._exchange = exchange
        self._pool = pool
        self._clocks = clocks
        self._turns = turns
        self._metrics = metrics
        self._deadline_s = deadline_s
        # How the last attempt came out.
        self._outcome = OK
        # The last answer of a vendor that the request has moved on from.
        self._kept: KeptAnswer | None = None

    def reach(self) -> Coroutine[None, None, UpstreamResponse]:
        """Send the request to its upstream, and where that fails to others, until there is an answer for the client.

        Notes in the exchange whose answer it is. Whatever goes wrong, cancellation included, every connection is
        closed at once.

        Raises:
            ProxyError: as `connect` does, where no vendor gave an answer that the client may have.
            UpstreamTimeoutError: `first_output` or `idle` ran out before the first event with output.
        """
        route = self._exchange.checked_route
        state = self._exchange.rules.states.get(route.upstream)
        if route.choices is None and (state is None or state.keys.has_no_choice or not route.has_operators_key):
            # As nearly always. What comes of the one attempt is what the client is given.
            return self._ask_upstream(route, state, is_held=False)
        return self._reach_in_turn(route)

    async def _reach_in_turn(self, route: Route) -> UpstreamResponse:
        """Ask one target after the other, until one answers or nothing moves the request on any more."""
        choices = route.choices
        retry = None if choices is None else choices.retry
        rules = retry or _NO_RETRY
        begin_before_s = self._clocks.now() + rules.within_s
        number = 1
        try:
            while True:
                has_next = choices is not None and choices.has_more and number < rules.attempts
                is_held = retry is not None and (
                    retry.first_output_s is not None or (has_next and "error_event" in retry.on)
                )
                answer, error = None, None
                try:
                    state = self._exchange.rules.states.get(route.upstream)
                    answer = await self._ask_upstream(route, state, is_held=is_held)
                except ProxyError as exc:
                    error = exc
                if answer is not None and self._outcome is OK:
                    self._drop_kept()
                    return answer
                failure = _Failure(self._outcome, route, answer, error)
                following = None
                if choices is not None and has_next:
                    following = await self._following(failure, choices, number, begin_before_s)
                if following is None:
                    return await self._choose(failure)
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
            or self._clocks.now() + backoff_s >= begin_before_s
            or not (self._is_as_left_out(failure) or choices.may_retry())
        ):
            return None
        self._keep(failure.answer, failure.route)
        await asyncio.sleep(backoff_s)
        return await self._turns.run(choices.take())

    def _is_as_left_out(self, failure: _Failure) -> bool:
        """Whether the upstream would not have been asked, had the request come now: nothing was sent, and it is out.

        So that a burst which finds an upstream dead is no storm of retries: each of them costs one vendor one request.
        """
        state = self._exchange.rules.states.get(failure.route.upstream)
        return failure.outcome is Outcome.CONNECT and state is not None and state.breaker.is_out

    def _ask_upstream(
        self, route: Route, state: UpstreamState | None, *, is_held: bool
    ) -> Coroutine[None, None, UpstreamResponse]:
        """Ask one upstream, with the next of its keys where one is refused."""
        if not route.has_operators_key:
            return self._ask(route, None if route.is_pinned else state, None, is_held=is_held)
        key = None if state is None else state.keys.pick()
        if state is None or key is None or state.keys.has_no_choice:
            return self._ask(route, state, key, is_held=is_held)
        return self._ask_with_keys(route, state, key, is_held=is_held)

    async def _ask_with_keys(self, route: Route, state: UpstreamState, key: Key, *, is_held: bool) -> UpstreamResponse:
        """Ask with this key, and with the next where one is refused."""
        tried: list[Key] = []
        while True:
            tried.append(key)
            answer = None
            try:
                answer = await self._ask(_with_key(route, key), state, key, is_held=is_held)
            except UpstreamCredentialsError:
                following = self._next_key(state, tried)
                if following is None:
                    raise
            else:
                following = self._next_key(state, tried)
                if following is None:
                    return answer
            self._keep(answer, route)
            key = following

    def _next_key(self, state: UpstreamState, tried: list[Key]) -> Key | None:
        """Choose the key to go on with; None for none, or where the last was not refused."""
        status = self._exchange.attempts[-1].status
        return state.keys.next_after(tried, status) if status in REFUSALS else None

    async def _ask(
        self, route: Route, state: UpstreamState | None, key: Key | None, *, is_held: bool
    ) -> UpstreamResponse:
        """Send one request, and judge what comes of it, which `_outcome` is then. An answer may be a failure, too.

        Raises:
            ProxyError: there is no answer that a client may have.
        """
        exchange = self._exchange
        attempt = Attempt(route.upstream, None if key is None else key.name, self._clocks.now())
        exchange.attempts.append(attempt)
        lease = exchange.lease = None if state is None else state.begin(key)
        answer: UpstreamResponse | None = None
        retry = None if route.choices is None else route.choices.retry
        telemetry = exchange.registry.telemetry
        try:
            assert exchange.meter is not None  # made before the first attempt
            answer = await connect(
                route if telemetry is None else await telemetry.send_on(exchange, route, attempt, self._turns),
                meter=exchange.meter,
                pool=self._pool,
                resolve=exchange.rules.resolve,
                clocks=self._clocks,
                deadline_s=self._deadline_s,
                attempt=attempt,
                first_output_s=None if retry is None else retry.first_output_s,
            )
            attempt.status = answer.status
            outcome = outcome_of(answer.status, has_operators_key=route.has_operators_key)
            if is_held and outcome is OK and can_be_held(answer):
                outcome = await hold(
                    answer,
                    DIALECTS[route.dialect],
                    deadlines=self._deadlines(attempt, retry),
                    idle_s=route.timeouts.idle_s,
                )
        except ProxyError as exc:
            if answer is not None:
                answer.abort()
            self._outcome = _outcome_of(exc, attempt)
            self._note_failure(attempt, state, key, None, exc)
            raise
        except BaseException:
            if answer is not None:
                answer.abort()
            self._metrics.attempt_ended(route.upstream, Outcome.CANCELLED)
            raise
        self._outcome = outcome
        if outcome is not OK:
            self._note_failure(attempt, state, key, answer, None)
        else:
            self._metrics.attempt_ended(route.upstream, OK)
            if lease is not None:
                lease.judge(OK)
        exchange.is_answered = True
        return answer

    def _note_failure(
        self,
        attempt: Attempt,
        state: UpstreamState | None,
        key: Key | None,
        answer: UpstreamResponse | None,
        error: ProxyError | None,
    ) -> None:
        """Note an attempt that is over without a success: where it counts, and in its key."""
        exchange, now_s = self._exchange, self._clocks.now()
        lease, exchange.lease = exchange.lease, None
        if lease is not None:
            lease.judge(self._outcome)
            lease.release()
        if state is not None and key is not None and attempt.status in REFUSALS:
            limited = answer if attempt.status == LIMITED else None
            state.key_refused(key, attempt.status, None if limited is None else rest_of(limited.index, time.time()))
        self._metrics.attempt_ended(attempt.upstream, self._outcome)
        if error is None:
            attempt.end(Ending.UPSTREAM_ERROR, None, now_s)
        else:
            attempt.end(ending_of(error), error.reason, now_s)

    def _deadlines(self, attempt: Attempt, retry: RetryRules | None) -> list[Deadline]:
        deadlines: list[Deadline] = []
        if retry is not None and retry.first_output_s is not None and attempt.sent_s is not None:
            deadlines.append((attempt.sent_s + retry.first_output_s, "first_output"))
        if self._deadline_s is not None:
            deadlines.append((self._deadline_s, "total"))
        return deadlines

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
        exchange.meter = await meter_of(route, self._turns)
        if exchange.early_target is not None:
            exchange.early_target = route.target
        if exchange.early_target is not None or exchange.is_in_band:
            exchange.typed_names = route.typed_names


def _with_key(route: Route, key: Key) -> Route:
    """The route with this key in the place of the first, by name: no field of the client's has the key's name."""
    name = key.field[0]
    return route._replace(fields=tuple(key.field if field[0] == name else field for field in route.fields))


def _outcome_of(error: ProxyError, attempt: Attempt) -> Outcome:
    """What an attempt's error makes of it: the vendor may have run what was sent."""
    if isinstance(error, UpstreamCredentialsError):
        attempt.status = error.upstream_status
        return Outcome.CREDENTIALS
    if isinstance(error, UpstreamTimeoutError):
        if error.clock == "total":
            return Outcome.REFUSED
        return Outcome.CONNECT if attempt.sent_s is None else Outcome.TIMEOUT
    if isinstance(error, UpstreamUnreachableError | UpstreamProtocolError):
        return Outcome.CONNECT if attempt.sent_s is None else Outcome.LOST
    return Outcome.REFUSED
