"""Replies: what the proxy itself answers to a call, refusals above all. Nothing here waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.dialects import DIALECTS
from proxy.errors import (
    DrainingError,
    ProxyError,
    RequestTimeoutError,
    StoppedError,
    UpstreamCredentialsError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
    refusal,
    retry_after,
)
from proxy.exchange import Ending
from proxy.identity import hide
from proxy.limits.fields import rate_limit_fields
from proxy.logs import log_credentials_refused
from proxy.phases.answer import Settled, write_answer
from proxy.phases.relay import LAST_CHUNK
from proxy.protocol.chunks import one_chunk
from proxy.protocol.fields import CREDENTIALS
from proxy.protocol.in_band import end_event
from proxy.protocol.sse import encode_event
from proxy.protocol.typed import TypedEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.call import Call
    from proxy.errors import Field
    from proxy.exchange import RequestHead

JSON: Field = (b"Content-Type", b"application/json")
_EVENT_STREAM: Field = (b"Content-Type", b"text/event-stream")


def own_fields(call: Call) -> list[Field]:
    """What every answer says besides the upstream's fields: its id, how the user stands, who may read it."""
    fields: list[Field] = [(b"X-Forward-Sse-Id", call.exchange.id.encode())]
    if call.standing is not None:
        fields += rate_limit_fields(call.standing)
    elif call.exchange.principal is not None:
        fields += rate_limit_fields(call.rules.store.standing(call.exchange.principal))
    fields += call.rules.cors.answer_fields(call.origin)
    return fields


def reply(call: Call, status: int, fields: Sequence[Field], body: bytes, *, must_close: bool = False) -> Settled:
    """Write an answer; with `must_close` it is the connection's last."""
    call.exchange.status = status
    settled = write_answer(
        call.client.transport,
        status,
        fields,
        body,
        keep_alive=not (must_close or call.is_last),
        is_head_request=call.exchange.method == "HEAD",
    )
    if must_close:
        call.client.discard_rest(linger=call.is_body_arriving)
    return settled


def succeed(call: Call, status: int, fields: Sequence[Field] = (), body: bytes = b"") -> Settled:
    """Answer what the proxy serves by itself."""
    call.exchange.ending = Ending.COMPLETE
    return reply(call, status, (*fields, *own_fields(call)), body, must_close=call.is_body_arriving)


def allow(call: Call, head: RequestHead) -> Settled:
    """Answer a browser that asks for permission."""
    fields = call.rules.cors.preflight_fields(
        call.origin,
        head.index.single(b"access-control-request-method") or b"",
        head.index.single(b"access-control-request-headers"),
    )
    call.exchange.ending = Ending.COMPLETE
    return reply(call, 204, fields, b"")


def refuse(call: Call, error: ProxyError) -> Settled:
    """Answer with an error, in the dialect of the upstream asked for."""
    exchange = call.exchange
    if call.is_accepted and call.request is not None:
        # Refused before the credential was found, perhaps because there are several.
        for name, value in call.request.fields:
            if name.lower() in CREDENTIALS:
                hide(exchange, value.decode("latin-1").rpartition(" ")[2])
    exchange.code = error.code
    exchange.reason = error.reason
    exchange.ending = _ending_of(error)
    if isinstance(error, UpstreamCredentialsError):
        log_credentials_refused(exchange.id, exchange.upstream or "", error.upstream_status)
    if call.early_target is not None:
        return _refuse_early(call, error, call.early_target)
    if isinstance(error, RequestTimeoutError):
        call.client.discard_rest(linger=False)
    must_close = not call.is_accepted or call.is_body_arriving or isinstance(error, DrainingError)
    if call.is_in_band:
        fields = (_EVENT_STREAM, (b"X-Forward-Sse-Code", error.code.encode()), *own_fields(call))
        return reply(call, 200, fields, _in_band(call, error), must_close=must_close)
    answer = refusal(error, DIALECTS[exchange.dialect])
    return reply(call, answer.status, (*answer.fields, *own_fields(call)), answer.body, must_close=must_close)


def break_off(call: Call, code: str, message: str, *, event: bytes | None) -> Settled:
    """End an early answer with an error: a typed stream in order, any other with the event, and without its end."""
    transport = call.client.transport
    if transport is None or transport.is_closing():
        return Settled(keep_alive=False)
    if call.typed_names is not None:
        encoder = TypedEncoder(call.typed_names)
        # As a running stream that is stopped.
        last = encoder.cancelled() if code == StoppedError.code else encoder.error(code, message)
        transport.write(one_chunk(last) + LAST_CHUNK)
        return Settled(keep_alive=not call.is_last)
    if event is not None:
        transport.write(one_chunk(event))
    return Settled(keep_alive=False, ended_in_words=event is not None)


def part(call: Call, ending: Ending) -> Settled:
    """End a call from outside before the vendor's answer began."""
    if ending is Ending.DRAINED:
        settled = refuse(call, DrainingError())
    elif call.early_target is not None:
        settled = refuse(call, StoppedError())
    else:
        settled = Settled(keep_alive=False)
        if call.client.transport is not None:
            call.client.transport.abort()
    call.exchange.ending = ending
    return settled


def _refuse_early(call: Call, error: ProxyError, target: bytes) -> Settled:
    """Tell an error in an answer that has begun: its status and fields have left."""
    transport = call.client.transport
    if not call.is_in_band:
        event = DIALECTS[call.exchange.dialect].error_event(error.code, error.message, target)
        settled = break_off(call, error.code, error.message, event=event)
    elif transport is None or transport.is_closing():
        return Settled(keep_alive=False)
    else:
        transport.write(one_chunk(_in_band(call, error)) + LAST_CHUNK)
        settled = Settled(keep_alive=not call.is_last)
    return settled._replace(keep_alive=False) if isinstance(error, DrainingError) else settled


def _in_band(call: Call, error: ProxyError) -> bytes:
    """A refusal as an `EventSource` can read it: in events."""
    exchange = call.exchange
    ending = exchange.interrupted_as or exchange.ending
    assert ending is not None
    if call.typed_names is None:
        said = encode_event(DIALECTS[exchange.dialect].error_body(error))
    elif isinstance(error, StoppedError):
        said = TypedEncoder(call.typed_names).cancelled()
    else:
        said = TypedEncoder(call.typed_names).error(error.code, error.message)
    return said + end_event(exchange.id, ending, error.status, code=error.code, retry_after_s=retry_after(error))


def _ending_of(error: ProxyError) -> Ending:
    if isinstance(error, UpstreamTimeoutError):
        return {
            "connect": Ending.TIMEOUT_CONNECT,
            "first_byte": Ending.TIMEOUT_FIRST_BYTE,
            "idle": Ending.TIMEOUT_IDLE,
            "total": Ending.TIMEOUT_TOTAL,
        }[error.clock]
    if isinstance(error, UpstreamUnreachableError | UpstreamProtocolError | UpstreamCredentialsError):
        return Ending.UPSTREAM_ERROR
    return Ending.REFUSED
