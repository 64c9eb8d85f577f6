"""`GET /forward-sse/echo`: a timed stream of our own, by which `forward-sse doctor` judges what stands in between."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from aiohttp import web

from proxy.errors import InvalidRequestError
from proxy.handlers.own_reads import begin_own_read
from proxy.handlers.service import SERVICE
from proxy.model import Ending
from proxy.protocol.header_fields import STREAM_FIELDS
from proxy.protocol.paths import is_query, query_members
from proxy.relay import stream_echo
from proxy.relay.echo import EchoSchedule

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_S: Final = 300
# An event is small, but each costs a write: as many as ten a second are of the longest stream, and some.
MAX_EVENTS: Final = 10_000
# Beyond the longest schedule, so that a client that takes everything in time gets its last event.
_GRACE_S: Final = 5.0
_NUMBER: Final = re.compile(rb"[0-9]{1,9}")
_EVENTS, _INTERVAL_MS, _SILENCE_MS = 10, 100, 0


async def echo(request: web.Request) -> web.StreamResponse:
    """Stream events that carry the time at which they leave; charged as a request, and with a lease as one.

    Raises:
        ProxyError: as any request is refused; `InvalidRequestError` for a stream of more than five minutes.
    """
    service = request.app[SERVICE]
    with service.exchanges.begin(request, service.rules) as exchange:
        head, principal = await begin_own_read(request, exchange, service)
        schedule = read_schedule(head.query)
        exchange.admit(await exchange.rules.store.admit(principal))
        if head.method == "HEAD":
            exchange.status, exchange.ending = 200, Ending.COMPLETE
            return web.Response(headers=[("Content-Type", "text/event-stream"), *STREAM_FIELDS])
        del head
        return await stream_echo(request, exchange, schedule, total_s=MAX_S + _GRACE_S, timers=service.timers)


def read_schedule(query: bytes | None) -> EchoSchedule:
    """Read how the stream is to be from the query; members of other names are ignored.

    Raises:
        InvalidRequestError: a value is no number, stands there twice, or makes the stream too long.
    """
    if query is not None and not is_query(query):
        raise InvalidRequestError("The query is malformed.")
    members = query_members(query)
    events = next(_numbers(members, b"events"), _EVENTS)
    interval_ms = next(_numbers(members, b"interval_ms"), _INTERVAL_MS)
    silence_ms = next(_numbers(members, b"silence_ms"), _SILENCE_MS)
    if not 1 <= events <= MAX_EVENTS:
        raise InvalidRequestError(f"events must be between 1 and {MAX_EVENTS}.")
    if (events - 1) * interval_ms + silence_ms > MAX_S * 1000:
        raise InvalidRequestError(f"An echo lasts at most {MAX_S} seconds.")
    return EchoSchedule(events, interval_ms / 1000, silence_ms / 1000)


def _numbers(members: list[tuple[bytes, bytes]], name: bytes) -> Iterator[int]:
    """Yield the one value of a member, if it is there."""
    values = [value for member, value in members if member == name]
    if len(values) > 1 or (values and _NUMBER.fullmatch(values[0]) is None):
        raise InvalidRequestError(f"{name.decode()} must be one whole number.")
    yield from map(int, values)
