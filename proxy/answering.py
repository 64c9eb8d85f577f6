"""Answering: from the head of an upstream's answer to the client's, and to the relay that takes the body.

There are three relays: the bytes as they are, typed events made of them, and either of them for an `EventSource`, which
is told in the stream what it cannot see. An answer that is there whole, with its head, needs none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.dialects import DIALECTS
from proxy.exchange import Ending
from proxy.phases.answer import Settled, date
from proxy.phases.relay import Relay, StreamClocks, ending_of_whole, write_whole
from proxy.phases.typed_relay import TypedRelay, begin_translation, translated_fields
from proxy.protocol.fields import to_client
from proxy.protocol.heads import render_response
from proxy.protocol.sse import EventStreamObserver, is_event_stream
from proxy.replies import own_fields
from proxy.ticket_relay import TicketRelay, TypedTicketRelay, readable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from proxy.call import Call
    from proxy.errors import Field
    from proxy.exchange import Route
    from proxy.phases.relay import Framing
    from proxy.upstream.answer import Answer

# What every answer says that is passed on, behind its own fields.
_STREAM_LINES = b"Cache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\n"
_END = _STREAM_LINES + b"\r\n"
_END_CHUNKED = _STREAM_LINES + b"Transfer-Encoding: chunked\r\n\r\n"
_END_LENGTH = _STREAM_LINES + b"Content-Length: %d\r\n\r\n"
_EARLY_FIELDS: Sequence[Field] = ((b"Content-Type", b"text/event-stream"),)
_NO_CONTENT = 204


def answer(call: Call, route: Route, given: Answer, *, now_s: float, deadline_s: float | None) -> Relay | Settled:
    """Make the client's head and the relay, which is not started: nothing is written yet.

    An answer that has come whole, and is passed as it is, needs no relay: it is written here, and settled.

    Raises:
        UpstreamProtocolError: the body would have to be read, and is compressed; the upstream's connection is closed.
    """
    transport = call.client.transport
    if transport is None or transport.is_closing():
        given.abort()
        call.exchange.ending = Ending.CLIENT_CLOSED
        return Settled(keep_alive=False)
    framing: Framing = "close" if call.is_old else "chunked"
    if call.is_in_band:
        return _answer_ticket(call, route, given, transport, framing, _clocks(call, route, now_s, deadline_s))
    status = given.status
    is_early = call.early_target is not None
    if not is_early:
        call.exchange.status = status
    translator = None if route.typed_names is None else begin_translation(route, given)
    if translator is not None:
        head = _head(call, status, translated_fields(given), given, framing)
        clocks = _clocks(call, route, now_s, deadline_s)
        return TypedRelay(translator, given, transport, head, framing=framing, clocks=clocks)
    if given.framing in {"none", "length"} and not is_early:
        framing = given.framing
    index = given.index
    is_watched = is_event_stream(index.single(b"content-type")) and b"content-encoding" not in index
    observer = EventStreamObserver() if is_watched else None
    head = _head(call, status, to_client(given.fields, index), given, framing)
    if given.is_complete and given.held:
        whole = given.held
        write_whole(transport, head, whole, framing)
        exchange = call.exchange
        exchange.first_byte_s = now_s
        exchange.bytes = len(whole)
        if observer is not None:
            observer.feed(whole)
            exchange.events = observer.events
        exchange.ending = ending_of_whole(status)
        return Settled(keep_alive=framing != "close" and not call.is_last)
    dialect, target = DIALECTS[route.dialect], route.target
    return Relay(
        given,
        transport,
        head,
        framing=framing,
        observer=observer,
        error_event=lambda code, message: dialect.error_event(code, message, target),
        clocks=_clocks(call, route, now_s, deadline_s),
    )


def _answer_ticket(
    call: Call, route: Route, given: Answer, transport: asyncio.Transport, framing: Framing, clocks: StreamClocks
) -> Relay:
    """200 and an event stream, whatever the upstream's answer is."""
    id_, status = call.exchange.id, given.status
    translator = begin_translation(route, given)
    if translator is not None:
        head = _head(call, 200, translated_fields(given), given, framing)
        call.exchange.status = 200
        return TypedTicketRelay(
            translator, given, transport, head, framing=framing, clocks=clocks, id_=id_, status=status
        )
    fields, is_stream = readable(given)
    head = _head(call, 200, fields, given, framing)
    call.exchange.status = 200
    return TicketRelay(
        given,
        transport,
        head,
        framing=framing,
        clocks=clocks,
        status=status,
        is_event_stream=is_stream,
        shape=DIALECTS[route.dialect],
        id_=id_,
    )


def _clocks(call: Call, route: Route, now_s: float, deadline_s: float | None) -> StreamClocks:
    heartbeat_s = route.heartbeat_s if DIALECTS[route.dialect].heartbeat_allowed else None
    return StreamClocks(now_s, route.timeouts.idle_s, call.rules.write_timeout_s, deadline_s, heartbeat_s)


def early_head(call: Call) -> bytes:
    """The head of an answer that begins before the vendor's: an event stream, with nothing of the vendor's."""
    return render_response(200, [*_EARLY_FIELDS, (b"Date", date()), *own_fields(call)], _END_CHUNKED)


def _head(call: Call, status: int, fields: list[Field], given: Answer, framing: Framing) -> bytes:
    if call.early_target is not None:
        # It has left already.
        return b""
    if b"date" not in given.index:
        fields.append((b"Date", date()))
    fields += own_fields(call)
    if framing == "chunked":
        end = _END_CHUNKED
    elif framing != "close" and given.length is not None and status != _NO_CONTENT:
        # RFC 9110 §8.6: none on 204.
        end = _END_LENGTH % given.length
    else:
        end = _END
    return render_response(status, fields, end)
