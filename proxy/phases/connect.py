"""Connect: from a route to the head of the upstream's answer.

A request of which any byte may have been written is never sent again (RFC 9110 §9.2.2): these are paid POSTs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from proxy.errors import UpstreamTimeoutError
from proxy.protocol.heads import render_request
from proxy.upstream.pool import Key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from proxy.clocks import Clocks
    from proxy.exchange import Route
    from proxy.upstream.addresses import Address
    from proxy.upstream.answer import Answer
    from proxy.upstream.pool import Pool


class _FirstByte:
    """The clock of the answer's head: runs from the last byte that we queued, and nothing restarts it."""

    __slots__ = ("clock", "deadline_s", "waiter")

    def __init__(
        self, waiter: asyncio.Future[Answer], clock: Literal["connect", "first_byte", "total"], deadline_s: float
    ) -> None:
        self.waiter = waiter
        self.clock = clock
        self.deadline_s = deadline_s

    def check(self, now_s: float) -> None:
        if now_s >= self.deadline_s and not self.waiter.done():
            self.waiter.set_exception(UpstreamTimeoutError(self.clock))


async def connect(
    route: Route,
    *,
    pool: Pool,
    resolve: Callable[[Route], Awaitable[Sequence[Address]]],
    clocks: Clocks,
    deadline_s: float | None,
) -> Answer:
    """Send the request to its upstream and wait for the answer's head.

    A kept connection is used where one is fit; a pinned target always gets a new one, to an address that was checked.
    Whatever goes wrong, cancellation included, the connection is closed at once. `deadline_s` is when `total` runs
    out, in the loop's time.

    Raises:
        UpstreamUnreachableError: no connection, or it was lost before the answer's head.
        OverloadedError: this machine lacks what a connection takes.
        UpstreamProtocolError: the answer's head is not valid HTTP/1.1.
        UpstreamTimeoutError: `connect`, `first_byte` or `total` ran out.
        TargetNotAllowedError: a pinned target's addresses are not allowed.
    """
    key = Key(route.origin, route.ca_file)
    connection = None if route.is_pinned else pool.take(key, route.upstream)
    if connection is None:
        timeout_s, clock = _sooner(route.timeouts.connect_s, deadline_s, clocks.now(), "connect")
        try:
            async with asyncio.timeout(timeout_s):
                addresses = await resolve(route)
                connection = await pool.dial(key, route.upstream, addresses)
        except TimeoutError as exc:
            raise UpstreamTimeoutError(clock) from exc
    has_body = bool(route.body) or route.method in {"POST", "PUT", "PATCH"}
    head = render_request(
        route.method,
        route.target,
        route.host,
        route.fields,
        len(route.body) if has_body else None,
    )
    waiter = connection.send(head, route.body, is_head_request=route.method == "HEAD")
    now_s = clocks.now()
    timeout_s, clock = _sooner(route.timeouts.first_byte_s, deadline_s, now_s, "first_byte")
    watch = None if timeout_s is None else _FirstByte(waiter, clock, now_s + timeout_s)
    if watch is not None:
        clocks.watch(watch)
    try:
        return await waiter
    except BaseException:
        connection.abort()
        raise
    finally:
        if watch is not None:
            clocks.forget(watch)


_Clock = Literal["connect", "first_byte"]


def _sooner(
    timeout_s: float | None, deadline_s: float | None, now_s: float, name: _Clock
) -> tuple[float | None, Literal["connect", "first_byte", "total"]]:
    if deadline_s is not None and (timeout_s is None or deadline_s - now_s < timeout_s):
        return max(0.0, deadline_s - now_s), "total"
    return timeout_s, name
