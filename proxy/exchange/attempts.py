"""Asks vendors for the one response that is relayed: one attempt, and where one is enough.

All attempts of an exchange are one after the other: each is over before the next begins. What moves a request on from
one to the next is `exchange.moves`' to know.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

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
from proxy.exchange.moves import Moves
from proxy.exchange.preamble import can_be_held, hold
from proxy.failover.keys import LIMITED, REFUSALS
from proxy.failover.policy import OK, Outcome, outcome_of
from proxy.model import Ending
from proxy.protocol.retry_after import rest_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from proxy.exchange.exchange import Exchange
    from proxy.exchange.preamble import Deadline
    from proxy.failover import Key, UpstreamState
    from proxy.model import RetryRules, Route
    from proxy.observability.metrics import Metrics
    from proxy.routing import Turns
    from proxy.timers import DeadlineTimer
    from proxy.upstream import Pool, UpstreamResponse


class Attempts:
    """Makes the attempts of all exchanges of a worker. What is known of one is kept in its exchange, nothing here."""

    def __init__(self, *, pool: Pool, clocks: DeadlineTimer, turns: Turns, metrics: Metrics) -> None:
        self.turns = turns
        self.clocks = clocks
        self._pool = pool
        self.metrics = metrics

    def reach(self, exchange: Exchange, deadline_s: float | None) -> Coroutine[None, None, UpstreamResponse]:
        """Send the request to its upstream, and where that fails to others, until there is an answer for the client.

        Notes in the exchange whose answer it is. Whatever goes wrong, cancellation included, every connection is
        closed at once. `deadline_s` is when `total` runs out, in the loop's time: one clock for all attempts.

        Raises:
            ProxyError: as `connect` does, where no vendor gave an answer that the client may have.
            UpstreamTimeoutError: `first_output` or `idle` ran out before the first event with output.
        """
        route = exchange.checked_route
        state = exchange.rules.states.get(route.upstream)
        if route.choices is not None or (state is not None and route.has_operators_key and state.keys.is_choice):
            return Moves(self, exchange, deadline_s).reach(route)
        # As nearly always. What comes of the one attempt is what the client is given.
        return self.ask(exchange, route, state, None, deadline_s)

    async def ask(
        self,
        exchange: Exchange,
        route: Route,
        state: UpstreamState | None,
        key: Key | None,
        deadline_s: float | None,
        *,
        is_held: bool = False,
    ) -> UpstreamResponse:
        """Send one request, and judge what comes of it: `outcome` of the exchange's last attempt.

        An answer is returned whatever its status. `state` is the upstream's, where it has one; `key` is which of its
        several keys is among the fields of `route`. Where `is_held`, a stream's beginning is read before it is called
        an answer.

        Raises:
            ProxyError: there is no answer that a client may have.
        """
        if not route.has_operators_key:
            # Whoever chose the target of an envelope, it says nothing of the operator's upstream.
            state = None if route.is_pinned else state
        elif key is None and state is not None:
            key = state.keys.only
        attempt = Attempt(route.upstream, None if key is None else key.name, self.clocks.now())
        exchange.attempts.append(attempt)
        lease = exchange.lease = None if state is None else state.begin(key)
        answer: UpstreamResponse | None = None
        retry = None if route.choices is None else route.choices.retry
        telemetry = exchange.registry.telemetry
        try:
            assert exchange.meter is not None  # made before the first attempt
            answer = await connect(
                route if telemetry is None else await telemetry.send_on(exchange, route, attempt, self.turns),
                meter=exchange.meter,
                pool=self._pool,
                resolve=exchange.rules.resolve,
                clocks=self.clocks,
                deadline_s=deadline_s,
                attempt=attempt,
                first_output_s=None if retry is None else retry.first_output_s,
            )
            attempt.status = answer.status
            outcome = outcome_of(answer.status, has_operators_key=route.has_operators_key)
            if is_held and outcome is OK and can_be_held(answer):
                outcome = await hold(
                    answer,
                    DIALECTS[route.dialect],
                    deadlines=_deadlines(attempt, retry, deadline_s),
                    idle_s=route.timeouts.idle_s,
                )
        except ProxyError as exc:
            if answer is not None:
                answer.abort()
            attempt.outcome = _outcome_of(exc, attempt)
            self._note_failure(exchange, state, key, None, exc)
            raise
        except BaseException:
            if answer is not None:
                answer.abort()
            self.metrics.attempt_ended(route.upstream, attempt.outcome)
            raise
        attempt.outcome = outcome
        if outcome is not OK:
            self._note_failure(exchange, state, key, answer, None)
        else:
            self.metrics.attempt_ended(route.upstream, OK)
            if lease is not None:
                lease.judge(OK)
        exchange.is_answered = True
        return answer

    def _note_failure(
        self,
        exchange: Exchange,
        state: UpstreamState | None,
        key: Key | None,
        answer: UpstreamResponse | None,
        error: ProxyError | None,
    ) -> None:
        """Note an attempt that is over without a success, in its upstream and its key."""
        attempt, now_s = exchange.attempts[-1], self.clocks.now()
        lease, exchange.lease = exchange.lease, None
        if lease is not None:
            lease.judge(attempt.outcome)
            lease.release()
        if state is not None and key is not None and attempt.status in REFUSALS:
            limited = answer if attempt.status == LIMITED else None
            state.key_refused(key, attempt.status, None if limited is None else rest_of(limited.index, time.time()))
        self.metrics.attempt_ended(attempt.upstream, attempt.outcome)
        if error is None:
            attempt.end(Ending.UPSTREAM_ERROR, None, now_s)
        else:
            attempt.end(ending_of(error), error.reason, now_s)


def _deadlines(attempt: Attempt, retry: RetryRules | None, deadline_s: float | None) -> list[Deadline]:
    deadlines: list[Deadline] = []
    if retry is not None and retry.first_output_s is not None and attempt.sent_s is not None:
        deadlines.append((attempt.sent_s + retry.first_output_s, "first_output"))
    if deadline_s is not None:
        deadlines.append((deadline_s, "total"))
    return deadlines


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
