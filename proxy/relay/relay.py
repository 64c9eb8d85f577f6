"""From the head of an upstream's response to the client's, and to the end of its body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from proxy.dialects import DIALECTS
from proxy.model import Ending
from proxy.protocol.fields import to_client
from proxy.protocol.sse import EventStreamObserver, is_event_stream
from proxy.relay.event_source import ForEventSource, TypedForEventSource, readable_fields
from proxy.relay.passthrough import Passthrough
from proxy.relay.response import Framing, RelayResponse, text
from proxy.relay.timeouts import StreamTimeouts
from proxy.relay.transform import ending_of_whole
from proxy.relay.typed import TypedEvents, begin_translation, translated_fields

if TYPE_CHECKING:
    from proxy.clocks import Clocks
    from proxy.errors import Field
    from proxy.exchange import Exchange
    from proxy.metrics import Metrics
    from proxy.model import Route
    from proxy.upstream.answer import Answer

# What every relayed response says (contract §5): nobody on the way may buffer or change it.
_STREAM_FIELDS: Final[tuple[Field, ...]] = (
    (b"Cache-Control", b"no-cache, no-transform"),
    (b"X-Accel-Buffering", b"no"),
)


async def relay(
    request: web.Request,
    exchange: Exchange,
    route: Route,
    upstream: Answer,
    *,
    deadline_s: float | None,
    timers: Clocks,
    metrics: Metrics,
) -> web.StreamResponse:
    """Pass the upstream's response to the client until either side ends, and record in the exchange how it ended.

    Bytes go unchanged and in order; see `RelayResponse`. A response of which everything has come with its head is
    returned for aiohttp to write in one piece. Cancelling is the client leaving: the upstream's connection is closed
    before this returns.

    Args:
        deadline_s: When `total` runs out, in the loop's time; None for never.

    Raises:
        UpstreamProtocolError: the body would have to be read, and is compressed; the upstream's connection is closed.
    """
    transport = request.transport
    if transport is None or transport.is_closing():
        upstream.abort()
        exchange.ending = Ending.CLIENT_CLOSED
        return web.Response()
    timeouts = StreamTimeouts(
        route.timeouts.idle_s,
        exchange.rules.write_timeout_s,
        deadline_s,
        route.heartbeat_s if DIALECTS[route.dialect].heartbeat_allowed else None,
    )
    response = _make_response(request, exchange, route, upstream, timeouts, timers)
    if isinstance(response, web.Response):
        return response
    exchange.status = response.status
    exchange.drop_headers()
    upstream.drop_headers()
    exchange.response = response
    metrics.stream_began(route.upstream)
    try:
        await response.run(request, timers)
    finally:
        metrics.stream_ended(route.upstream)
        exchange.ending = response.ending
        exchange.bytes = response.sent
        exchange.events = response.events
        exchange.first_byte_s = response.first_byte_s
    return response


def _make_response(
    request: web.Request,
    exchange: Exchange,
    route: Route,
    upstream: Answer,
    timeouts: StreamTimeouts,
    timers: Clocks,
) -> RelayResponse | web.Response:
    """Choose how the body passes; a response that has come whole, and passes as it is, is only written."""
    framing: Framing = "chunked" if request.version >= (1, 1) else "close"
    status = upstream.status
    if exchange.is_in_band:
        return _for_event_source(exchange, route, upstream, framing, timeouts)
    translator = None if route.typed_names is None else begin_translation(route, upstream)
    if translator is not None:
        fields = [*translated_fields(upstream), *_STREAM_FIELDS]
        return RelayResponse(
            upstream, TypedEvents(translator), status=status, fields=fields, framing=framing, timeouts=timeouts
        )
    if upstream.framing in {"none", "length"}:
        framing = upstream.framing
    index = upstream.index
    is_watched = is_event_stream(index.single(b"content-type")) and b"content-encoding" not in index
    observer = EventStreamObserver() if is_watched else None
    fields = [*to_client(upstream.fields, index), *_STREAM_FIELDS]
    if upstream.is_complete and upstream.held and framing != "close" and b"content-type" in index:
        return _whole(exchange, upstream, observer, fields, framing, timers)
    dialect, target = DIALECTS[route.dialect], route.target
    transform = Passthrough(
        status=status,
        observer=observer,
        error_event=lambda code, message: dialect.error_event(code, message, target),
    )
    return RelayResponse(upstream, transform, status=status, fields=fields, framing=framing, timeouts=timeouts)


def _for_event_source(
    exchange: Exchange, route: Route, upstream: Answer, framing: Framing, timeouts: StreamTimeouts
) -> RelayResponse:
    """200 and an event stream, whatever the upstream's response is."""
    translator = begin_translation(route, upstream)
    transform: ForEventSource | TypedForEventSource
    if translator is not None:
        fields = translated_fields(upstream)
        transform = TypedForEventSource(TypedEvents(translator), id_=exchange.id, status=upstream.status)
    else:
        fields, is_stream = readable_fields(upstream)
        transform = ForEventSource(
            id_=exchange.id, status=upstream.status, shape=DIALECTS[route.dialect], is_event_stream=is_stream
        )
    return RelayResponse(
        upstream, transform, status=200, fields=[*fields, *_STREAM_FIELDS], framing=framing, timeouts=timeouts
    )


def _whole(
    exchange: Exchange,
    upstream: Answer,
    observer: EventStreamObserver | None,
    fields: list[Field],
    framing: Framing,
    timers: Clocks,
) -> web.Response:
    body = upstream.held
    exchange.status = upstream.status
    exchange.first_byte_s = timers.now()
    exchange.bytes = len(body)
    if observer is not None:
        observer.feed(body)
        exchange.events = observer.events
    exchange.ending = ending_of_whole(upstream.status)
    headers = [(name.decode("latin-1"), text(value)) for name, value in fields]
    response = web.Response(status=upstream.status, headers=headers, body=body)
    if framing == "chunked":
        response.enable_chunked_encoding()
    return response
