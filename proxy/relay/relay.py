"""From the head of an upstream's response to the client's, and to the end of its body."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from proxy.dialects import DIALECTS
from proxy.model import Ending
from proxy.protocol.header_fields import STREAM_FIELDS, is_encoded, rebase_location, relayed, to_client
from proxy.protocol.sse_observer import EventStreamObserver, is_event_stream
from proxy.relay.echo import EchoBody
from proxy.relay.event_source import ForEventSource, TypedForEventSource, readable_fields
from proxy.relay.passthrough import Passthrough
from proxy.relay.response import Framing, RelayResponse
from proxy.relay.timeouts import StreamTimeouts
from proxy.relay.transform import ending_of_whole
from proxy.relay.typed import TypedEvents, begin_translation, translated_fields
from proxy.relay.without_usage import ResponseWithoutUsage, WithoutUsage, fields_without_usage

if TYPE_CHECKING:
    from proxy.errors import Field
    from proxy.exchange import Exchange
    from proxy.model import Route
    from proxy.observability.metrics import Metrics
    from proxy.relay.echo import EchoSchedule
    from proxy.relay.overrun import Overruns
    from proxy.relay.transform import Transform
    from proxy.timers import DeadlineTimer
    from proxy.upstream import UpstreamResponse


async def relay(
    request: web.Request,
    exchange: Exchange,
    upstream: UpstreamResponse,
    *,
    begun: RelayResponse | None,
    deadline_s: float | None,
    timers: DeadlineTimer,
    overruns: Overruns,
    metrics: Metrics,
) -> web.StreamResponse:
    """Pass the upstream's response to the client until either side ends, and record in the exchange how it ended.

    Bytes go unchanged and in order; see `RelayResponse`. A response of which everything has come with its head is
    returned for aiohttp to write in one piece. Cancelling is the client leaving: the upstream's connection is closed
    before this returns. `begun` is the client's response where its head has left already, `deadline_s` is when `total`
    runs out.

    Raises:
        UpstreamProtocolError: the body would have to be read, and is compressed; the upstream's connection is closed.
    """
    transport = request.transport
    if transport is None or transport.is_closing():
        upstream.abort()
        exchange.ending = Ending.CLIENT_CLOSED
        return begun or web.Response()
    route = exchange.checked_route
    is_stream = _is_read(upstream)
    if exchange.meter is not None:
        exchange.meter.begin(upstream.status, is_stream=is_stream)
    fields, transform, framing = _choose(request, exchange, route, upstream, is_stream=is_stream is True)
    is_whole = upstream.is_complete and bool(upstream.held) and begun is None
    if is_whole and isinstance(transform, Passthrough) and framing != "close" and b"content-type" in upstream.index:
        return _whole(exchange, upstream, transform, fields, framing, timers.now())
    kind = ResponseWithoutUsage if isinstance(transform, WithoutUsage) else RelayResponse
    response = begun or kind(
        status=200 if exchange.is_in_band else upstream.status,
        headers=relayed(fields),
        framing=framing,
        length=upstream.length,
    )
    timeouts = StreamTimeouts(
        route.timeouts.idle_s,
        exchange.rules.write_timeout_s,
        deadline_s,
        route.heartbeat_s if DIALECTS[route.dialect].heartbeat_allowed else None,
    )
    exchange.status = response.status
    upstream_name = exchange.upstream or ""
    exchange.drop_request()
    del route, fields
    upstream.drop_headers()
    exchange.response, response.meter = response, exchange.meter
    overrun = overruns.watch(exchange, response, transform)
    metrics.stream_began(upstream_name)
    try:
        await response.run(request, upstream, transform, timeouts=timeouts, timers=timers)
    finally:
        overruns.discard(overrun)
        metrics.stream_ended(upstream_name)
        _record(exchange, response)
    return response


async def stream_echo(
    request: web.Request, exchange: Exchange, schedule: EchoSchedule, *, total_s: float, timers: DeadlineTimer
) -> RelayResponse:
    """Stream events of our own as a relayed stream is: same fields, back pressure, write timeout and endings.

    Never longer than `total_s`. Cancelling is the client leaving.
    """
    dialect, target = DIALECTS[exchange.dialect], exchange.checked_head.path
    transform = Passthrough(
        status=200,
        observer=EventStreamObserver(),
        error_event=lambda code, message: dialect.error_event(code, message, target),
    )
    response = RelayResponse(
        status=200,
        headers=[("Content-Type", "text/event-stream"), *STREAM_FIELDS],
        framing="chunked" if request.version >= (1, 1) else "close",
    )
    # No idle timeout and no heartbeat: a silence is what is asked for.
    timeouts = StreamTimeouts(None, exchange.rules.write_timeout_s, timers.now() + total_s, None)
    exchange.status = response.status
    exchange.drop_request()
    exchange.response = response
    try:
        await response.run(request, EchoBody(schedule), transform, timeouts=timeouts, timers=timers)
    finally:
        _record(exchange, response)
    return response


def _record(exchange: Exchange, response: RelayResponse) -> None:
    """Note in the exchange what the client was given, and how that ended."""
    exchange.ending = response.ending
    exchange.reason = response.failure_reason
    exchange.bytes = response.sent
    exchange.events = response.events
    exchange.first_byte_s = response.first_byte_s


def _is_read(upstream: UpstreamResponse) -> bool | None:
    """Whether usage is looked for in a stream's events or in a JSON answer; None where it can be in neither."""
    index = upstream.index
    if is_encoded(index) or upstream.framing == "none":
        return None
    content_type = index.get(b"content-type")
    if is_event_stream(content_type):
        return True
    return False if content_type is not None and b"json" in content_type.lower() else None


def _choose(
    request: web.Request, exchange: Exchange, route: Route, upstream: UpstreamResponse, *, is_stream: bool
) -> tuple[list[Field], Transform, Framing]:
    """The client's fields, how the body passes, and how its end is marked; `is_stream` is a body of readable events."""
    framing: Framing = "chunked" if request.version >= (1, 1) else "close"
    status, index = upstream.status, upstream.index
    translator = (
        None if route.typed_names is None else begin_translation(route, upstream, exchange.reckoning.told_at_end)
    )
    if translator is not None:
        typed = TypedEvents(translator)
        fields = translated_fields(upstream)
        if exchange.is_in_band:
            return (
                fields,
                TypedForEventSource(typed, id_=exchange.id, status=status, told=exchange.reckoning.told),
                framing,
            )
        return fields, typed, framing
    dialect, target = DIALECTS[route.dialect], route.target
    is_cut = route.asks_usage and is_stream and 200 <= status < 300  # noqa: PLR2004 - RFC 9110 §15.3
    if exchange.is_in_band:
        fields, is_readable = readable_fields(upstream)
        for_event_source = ForEventSource(
            id_=exchange.id, status=status, shape=dialect, is_event_stream=is_readable, told=exchange.reckoning.told
        )
        return fields, WithoutUsage(for_event_source) if is_cut else for_event_source, framing
    if upstream.framing in {"none", "length"} and exchange.early_target is None and not is_cut:
        framing = upstream.framing
    transform: Transform = Passthrough(
        status=status,
        observer=EventStreamObserver() if is_stream else None,
        error_event=lambda code, message: dialect.error_event(code, message, target),
    )
    fields = to_client(upstream.fields, index)
    if is_cut:
        fields, transform = fields_without_usage(fields), WithoutUsage(transform)
    if b"location" in index:
        fields = _with_rebased_location(exchange, route, fields)
    return fields, transform, framing


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
    now_s: float,
) -> web.Response:
    """The response to a body that came with its head: aiohttp writes both at once."""
    body = transform.transform(upstream.held)
    if exchange.meter is not None:
        exchange.meter.feed(body)
    exchange.status = upstream.status
    exchange.first_byte_s = now_s
    exchange.bytes = len(body)
    exchange.events = transform.events
    exchange.ending = ending_of_whole(upstream.status)
    response = web.Response(status=upstream.status, headers=relayed(fields), body=body)
    if framing == "chunked":
        response.enable_chunked_encoding()
    return response
