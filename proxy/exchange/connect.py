"""Connect: from a route to the head of the upstream's answer.

Nothing is sent twice here. Whether a request may go to another vendor is the attempts' to decide: these are paid POSTs
(RFC 9110 §9.2.2), so they have to know whether any byte of it may have been written.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from proxy.errors import UpstreamCredentialsError, UpstreamTimeoutError
from proxy.protocol.http_head import render_request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from proxy.exchange.attempt import Attempt, Clock
    from proxy.model import Route
    from proxy.timers import DeadlineTimer
    from proxy.upstream import Address, Connection, Pool, UpstreamResponse
    from proxy.usage import Meter

# Their requests say how long the body is even where it is empty (RFC 9110 §8.6).
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})

_NOT_AUTHORIZED = frozenset({401, 403})


async def connect(
    route: Route,
    *,
    meter: Meter,
    pool: Pool,
    resolve: Callable[[Route], Awaitable[Sequence[Address]]],
    clocks: DeadlineTimer,
    deadline_s: float | None,
    attempt: Attempt,
    first_output_s: float | None = None,
) -> UpstreamResponse:
    """Send the request to its upstream and wait for the answer's head; notes in `attempt` when it was sent.

    A kept connection is used where one is fit; a pinned target always gets a new one, to an address that was checked.
    Whatever goes wrong, cancellation included, the connection is closed at once. The meter is told when the request is
    sent. `deadline_s` is when `total` runs out, in the loop's time; `first_output_s` runs from the request's last byte,
    as `first_byte` does.

    Raises:
        UpstreamUnreachableError: no connection, or it was lost before the answer's head.
        EgressRefusedError: the egress proxy did not connect to the upstream.
        OverloadedError: this machine lacks what a connection takes.
        UpstreamProtocolError: the answer's head is not valid HTTP/1.1.
        UpstreamTimeoutError: `connect`, `first_byte`, `first_output` or `total` ran out.
        UpstreamCredentialsError: the answer is 401 or 403, to a key of the operator's.
        TargetNotAllowedError: a pinned target's addresses are not allowed.
    """
    connection = None
    if not route.is_pinned:
        connection = pool.take((route.origin, route.way), route.upstream, keep_s=route.timeouts.keep_alive_s)
    if connection is None:
        connection = await _dial(route, pool, resolve, deadline_s, clocks.now())
    method, body = route.method, route.body
    head = render_request(
        method,
        route.target,
        route.host,
        route.fields,
        len(body) if body or method in _WITH_BODY else None,
    )
    meter.is_sent = True
    waiter = connection.send(head, body, is_head_request=method == "HEAD")
    now_s = clocks.now()
    if not waiter.done():
        attempt.sent_s = now_s
    clock, ends_s = _sooner("first_byte", route.timeouts.first_byte_s, deadline_s, now_s)
    if first_output_s is not None and (ends_s is None or now_s + first_output_s < ends_s):
        clock, ends_s = "first_output", now_s + first_output_s
    if ends_s is not None:
        attempt.expect(waiter, clock, ends_s)
        clocks.add(attempt)
    try:
        answer = await waiter
    except BaseException:
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            # Cancelled as it came. A connection whose answer is complete may be another exchange's by now.
            waiter.result().abort()
        else:
            connection.abort()
        raise
    finally:
        if ends_s is not None:
            clocks.discard(attempt)
            attempt.waiter = None
    if answer.status in _NOT_AUTHORIZED and route.has_operators_key:
        # To the user it would look as if their own token were bad, and the vendor's words may hold half of the key.
        answer.abort()
        raise UpstreamCredentialsError(answer.status)
    return answer


async def _dial(
    route: Route,
    pool: Pool,
    resolve: Callable[[Route], Awaitable[Sequence[Address]]],
    deadline_s: float | None,
    now_s: float,
) -> Connection:
    clock, ends_s = _sooner("connect", route.timeouts.connect_s, deadline_s, now_s)
    try:
        async with asyncio.timeout_at(ends_s):
            addresses = await resolve(route)
            return await pool.dial(
                (route.origin, route.way), route.upstream, addresses, keep_s=route.timeouts.keep_alive_s
            )
    except TimeoutError as exc:
        raise UpstreamTimeoutError(clock) from exc


def _sooner(
    clock: Literal["connect", "first_byte"], timeout_s: float | None, deadline_s: float | None, now_s: float
) -> tuple[Clock, float | None]:
    """Which clock runs out first, this one or `total`, and when: in the loop's time, None for never."""
    ends_s = None if timeout_s is None else now_s + timeout_s
    if deadline_s is not None and (ends_s is None or deadline_s < ends_s):
        return "total", deadline_s
    return clock, ends_s
