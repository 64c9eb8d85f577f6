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


class _Result(NamedTuple):
    """How an attempt came out: the answer that the client could be given, or the error in its place."""

    outcome: Outcome
    route: Route
    status: int | None
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
        # The last answer of a vendor that the request has moved on from.
        self._kept: KeptAnswer | None = None

    async def reach(self) -> UpstreamResponse:
        """Send the request to its upstream, and where that fails to others, until there is an answer for the client.

        Notes in the exchange whose answer it is. Whatever goes wrong, cancellation included, every connection is
        closed at once.

        Raises:
            ProxyError: as `connect` does, where no vendor gave an answer that the client may have.
            UpstreamTimeoutError: `first_output` or `idle` ran out before the first event with output.
        """
        exchange = self._exchange
        route = exchange.checked_route
        choices = route.choices
        try:
            if choices is None:
                result = await self._ask_upstream(route, is_held=False)
            else:
                result = await self._ask_targets(route, choices)
            if result.answer is not None and self._kept is None:
                answer = result.answer
            else:
                answer = await self._choose(result)
        except BaseException:
            self._drop_kept()
            raise
        exchange.is_answered = True
        return answer

    async def _ask_targets(self, route: Route, choices: Choices) -> _Result:
        """Ask one target after the other, until one answers or nothing moves the request on any more."""
        retry = choices.retry
        rules = retry or _NO_RETRY
        begin_before_s = self._clocks.now() + rules.within_s
        attempt = 1
        while True:
            has_next = choices.has_more and attempt < rules.attempts
            is_held = retry is not None and (
                retry.first_output_s is not None or (has_next and "error_event" in retry.on)
            )
            result = await self._ask_upstream(route, is_held=is_held)
            backoff_s = random.uniform(0, min(FIRST_BACKOFF_S * 2 ** (attempt - 1), LONGEST_BACKOFF_S))  # noqa: S311 - spreads load
            if (
                not has_next
                or not moves_on(result.outcome, retry)
                or self._clocks.now() + backoff_s >= begin_before_s
                or not (self._is_as_left_out(result) or choices.may_retry())
            ):
                return result
            self._keep(result)
            await asyncio.sleep(backoff_s)
            following = await self._turns.run(choices.take())
            if following is None:
                return result
            route = following
            await self._turn_to(route)
            attempt += 1

    def _is_as_left_out(self, result: _Result) -> bool:
        """Whether the upstream would not have been asked, had the request come now: nothing was sent, and it is out.

        So that a burst which finds an upstream dead is no storm of retries: each of them costs one vendor one request.
        """
        state = self._exchange.rules.states.get(result.route.upstream)
        return result.outcome is Outcome.CONNECT and state is not None and state.breaker.is_out

    def _ask_upstream(self, route: Route, *, is_held: bool) -> Coroutine[None, None, _Result]:
        """Ask one upstream, with the next of its keys where one is refused."""
        state = self._exchange.rules.states.get(route.upstream)
        if not route.has_operators_key:
            return self._ask(route, None if route.is_pinned else state, None, is_held=is_held)
        key = None if state is None else state.keys.pick()
        if state is None or key is None or state.keys.is_single:
            return self._ask(route, state, key, is_held=is_held)
        return self._ask_with_keys(route, state, key, is_held=is_held)

    async def _ask_with_keys(self, route: Route, state: UpstreamState, key: Key, *, is_held: bool) -> _Result:
        """Ask with this key, and with the next where one is refused."""
        result = await self._ask(route, state, key, is_held=is_held)
        tried = [key]
        while result.status in REFUSALS and (following := state.keys.next_after(tried, result.status)) is not None:
            tried.append(following)
            self._keep(result)
            result = await self._ask(route, state, following, is_held=is_held)
        return result

    async def _ask(self, route: Route, state: UpstreamState | None, key: Key | None, *, is_held: bool) -> _Result:
        """Send one request, and judge what comes of it. Never raises what another target may mend."""
        exchange, now = self._exchange, self._clocks.now
        attempt = Attempt(route.upstream, None if key is None else key.name, now())
        exchange.attempts.append(attempt)
        lease = exchange.lease = None if state is None else state.begin(key)
        answer: UpstreamResponse | None = None
        error: ProxyError | None = None
        retry = None if route.choices is None else route.choices.retry
        telemetry = exchange.registry.telemetry
        try:
            assert exchange.meter is not None  # made before the first attempt
            sent = route if state is None or key is None or state.keys.is_single else _with_key(route, key)
            answer = await connect(
                sent if telemetry is None else await telemetry.send_on(exchange, sent, attempt, self._turns),
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
            answer, error, outcome = None, exc, _outcome_of(exc, attempt)
        except BaseException:
            if answer is not None:
                answer.abort()
            self._metrics.attempt_ended(route.upstream, Outcome.CANCELLED)
            raise
        if lease is not None:
            lease.judge(outcome)
        if state is not None and key is not None and attempt.status in REFUSALS:
            limited = answer if attempt.status == LIMITED else None
            state.key_refused(key, attempt.status, None if limited is None else rest_of(limited.index, time.time()))
        self._metrics.attempt_ended(route.upstream, outcome)
        if outcome is not OK:
            if error is None:
                attempt.end(Ending.UPSTREAM_ERROR, None, now())
            else:
                attempt.end(ending_of(error), error.reason, now())
            if lease is not None:
                lease.release()
                exchange.lease = None
        return _Result(outcome, route, attempt.status, answer, error)

    def _deadlines(self, attempt: Attempt, retry: RetryRules | None) -> list[Deadline]:
        deadlines: list[Deadline] = []
        if retry is not None and retry.first_output_s is not None and attempt.sent_s is not None:
            deadlines.append((attempt.sent_s + retry.first_output_s, "first_output"))
        if self._deadline_s is not None:
            deadlines.append((self._deadline_s, "total"))
        return deadlines

    async def _choose(self, result: _Result) -> UpstreamResponse:
        """Return the answer that the client is given: the last one, or the last that a vendor gave.

        Raises:
            ProxyError: there is none, or the request may have been run and is not to be paid twice.
        """
        kept, answer = self._kept, result.answer
        if answer is not None and (kept is None or kept.answer is not answer):
            self._drop_kept()
            return answer
        choices = result.route.choices
        retry = None if choices is None else choices.retry
        if kept is not None and kept.answer.failure is None and not ends_at_once(result.outcome, retry):
            if kept.route is not result.route:
                await self._turn_to(kept.route)
            # From here on the caller's; before, cancellation closes it.
            self._kept = None
            return kept.give_back()
        # Of an answer that broke off meanwhile nothing is told: half of an error is none.
        error = result.error if answer is None else answer.failure
        assert error is not None  # the attempt's, where it has no answer
        raise error

    def _keep(self, result: _Result) -> None:
        """Keep an answer in place of the one that was kept; an error of ours takes no place."""
        if result.answer is not None:
            self._drop_kept()
            self._kept = KeptAnswer(result.answer, result.route)

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
