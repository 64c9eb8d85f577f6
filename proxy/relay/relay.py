"""From the head of an upstream's response to the client's, and to the end of its body."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from proxy.dialects import DIALECTS
from proxy.model import Ending
from proxy.protocol.header_fields import rebase_location, stream_fields, to_client
from proxy.protocol.http_head import field_text
from proxy.protocol.sse_observer import EventStreamObserver, is_event_stream
from proxy.relay.event_source import ForEventSource, TypedForEventSource, readable_fields
from proxy.relay.passthrough import Passthrough
from proxy.relay.response import Framing, RelayResponse
from proxy.relay.timeouts import StreamTimeouts
from proxy.relay.typed import TypedEvents, begin_translation, translated_fields

if TYPE_CHECKING:
    from proxy.errors import Field
    from proxy.exchange import Exchange
    from proxy.model import Route
    from proxy.observability.metrics import Metrics
    from proxy.relay.early import EarlyResponse
    from proxy.relay.transform import Transform
    from proxy.timers import DeadlineTimer
    from proxy.upstream import UpstreamResponse


async def relay(
    request: web.Request, exchange: Exchange, early: EarlyResponse, *, timers: DeadlineTimer, metrics: Metrics
) -> web.StreamResponse:
    """Pass the upstream's response to the client until either side ends, and record in the exchange how it ended.

    Bytes go unchanged and in order; see `RelayResponse`. A response of which everything has come with its head is
    returned for aiohttp to write in one piece. Cancelling is the client leaving: the upstream's connection is closed
    before this returns. `early` has the upstream's response, and the client's where its head has left already.

    Raises:
        UpstreamProtocolError: the body would have to be read, and is compressed; the upstream's connection is closed.
    """
    upstream, transport = early.upstream, request.transport
    if upstream is None or transport is None or transport.is_closing():
        if upstream is not None:
            upstream.abort()
        exchange.ending = Ending.CLIENT_CLOSED
        return early.response or web.Response()
    response, transform, timeouts = _make_response(request, exchange, upstream, early)
    if isinstance(response, web.Response):
        return response
    exchange.status = response.status
    upstream_name = exchange.upstream or ""
    exchange.drop_request()
    upstream.drop_headers()
    exchange.response = response
    metrics.stream_began(upstream_name)
    try:
        await response.run(request, upstream, transform, timeouts=timeouts, timers=timers)
    finally:
        metrics.stream_ended(upstream_name)
        exchange.ending = response.ending
        exchange.reason = response.failure_reason
        exchange.bytes = response.sent
        exchange.events = response.events
        exchange.first_byte_s = response.first_byte_s
    return response


def _make_response(
    request: web.Request, exchange: Exchange, upstream: UpstreamResponse, early: EarlyResponse
) -> tuple[RelayResponse | web.Response, Transform, StreamTimeouts]:
    """The client's response, how the body passes, and what it may take its time for."""
    route = exchange.checked_route
    timeouts = StreamTimeouts(
        route.timeouts.idle_s,
        exchange.rules.write_timeout_s,
        early.deadline_s,
        route.heartbeat_s if DIALECTS[route.dialect].heartbeat_allowed else None,
    )
    fields, transform, framing = _choose(request, exchange, route, upstream)
    if early.response is not None:
        return early.response, transform, timeouts
    is_whole = upstream.is_complete and bool(upstream.held) and b"content-type" in upstream.index
    if is_whole and isinstance(transform, Passthrough) and framing != "close":
        return _whole(exchange, upstream, transform, fields, framing), transform, timeouts
    status = 200 if exchange.is_in_band else upstream.status
    response = RelayResponse(status=status, fields=fields, framing=framing, length=upstream.length)
    return response, transform, timeouts


def _choose(
    request: web.Request, exchange: Exchange, route: Route, upstream: UpstreamResponse
) -> tuple[list[Field], Transform, Framing]:
    """The client's fields, how the body passes, and how its end is marked."""
    framing: Framing = "chunked" if request.version >= (1, 1) else "close"
    status, index = upstream.status, upstream.index
    translator = begin_translation(route, upstream)
    if translator is not None:
        typed = TypedEvents(translator)
        fields = [*translated_fields(upstream), *stream_fields()]
        if exchange.is_in_band:
            return fields, TypedForEventSource(typed, id_=exchange.id, status=status), framing
        return fields, typed, framing
    dialect, target = DIALECTS[route.dialect], route.target
    if exchange.is_in_band:
        fields, is_stream = readable_fields(upstream)
        for_event_source = ForEventSource(id_=exchange.id, status=status, shape=dialect, is_event_stream=is_stream)
        return [*fields, *stream_fields()], for_event_source, framing
    if upstream.framing in {"none", "length"} and exchange.early_target is None:
        framing = upstream.framing
    is_watched = is_event_stream(index.get(b"content-type")) and b"content-encoding" not in index
    transform = Passthrough(
        status=status,
        observer=EventStreamObserver() if is_watched else None,
        error_event=lambda code, message: dialect.error_event(code, message, target),
    )
    fields = to_client(upstream.fields, index)
    if b"location" in index:
        fields = _with_rebased_location(exchange, route, fields)
    return [*fields, *stream_fields()], transform, framing


def _with_rebased_location(exchange: Exchange, route: Route, fields: list[Field]) -> list[Field]:
    """The fields with a `Location` below the upstream's url as the client has to ask for it, below `/{upstream}`."""
    client_base = b"/" + route.upstream.encode()
    path = b"" if exchange.head is None else exchange.head.path
    upstream_path, below = route.target.partition(b"?")[0], path.removeprefix(client_base)
    if not path.startswith(client_base + b"/") or not upstream_path.endswith(below):
        return fields
    upstream_base = upstream_path.removesuffix(below)
    client_base = exchange.prefix + client_base
    return [
        (
            name,
            rebase_location(value, origin=route.origin, upstream_base=upstream_base, client_base=client_base)
            if name.lower() == b"location"
            else value,
        )
        for name, value in fields
    ]


def _whole(
    exchange: Exchange,
    upstream: UpstreamResponse,
    transform: Passthrough,
    fields: list[Field],
    framing: Framing,
) -> web.Response:
    body = transform.transform(upstream.held)
    exchange.status = upstream.status
    exchange.first_byte_s = asyncio.get_running_loop().time()
    exchange.bytes = len(body)
    exchange.events = transform.events
    exchange.ending = transform.complete().ending
    headers = [(name.decode("latin-1"), field_text(value)) for name, value in fields]
    response = web.Response(status=upstream.status, headers=headers, body=body)
    if framing == "chunked":
        response.enable_chunked_encoding()
    return response
