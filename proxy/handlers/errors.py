"""The one middleware: a `ProxyError` becomes its answer, in the dialect of the upstream asked for.

And the one hook of every response: the fields that each answer has besides its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web
from multidict import istr

from proxy.dialects import DIALECTS
from proxy.errors import (
    DrainingError,
    HeaderTooLargeError,
    InvalidRequestError,
    ProxyError,
    RequestTimeoutError,
    StoppedError,
    refusal,
    retry_after,
)
from proxy.exchange import EXCHANGE
from proxy.handlers.service import SERVICE
from proxy.limits import rate_limit_fields
from proxy.observability.logging import log_failure
from proxy.protocol.in_band import end_event
from proxy.protocol.sse_observer import encode_event
from proxy.protocol.typed_events import TypedEncoder
from proxy.relay import EARLY, RelayResponse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.errors import Field
    from proxy.exchange import Exchange

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_EVENT_STREAM: Final = "text/event-stream"
# aiohttp looks each name up in lower case, and has that of an `istr`.
_ID: Final = istr("X-Forward-Sse-Id")
_UPSTREAM: Final = istr("X-Forward-Sse-Upstream")
_ATTEMPTS: Final = istr("X-Forward-Sse-Attempts")
# After these no request follows on the connection.
_LAST: Final = (DrainingError, HeaderTooLargeError, RequestTimeoutError)
# The versions of HTTP that are spoken.
VERSIONS: Final = frozenset({(1, 0), (1, 1)})


@web.middleware
async def translate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with the error that a handler raises; what is no `ProxyError` is a defect of ours, and 500."""
    if request.version not in VERSIONS:
        return refuse_version(request)
    try:
        return await handler(request)
    except ProxyError as error:
        return respond(request, error)
    except web.HTTPException:
        if request.match_info.http_exception is None:
            # An embedder's middleware or handler answers so.
            raise
        # The router's: for a target that is no path, such as `*`.
        return respond(request, InvalidRequestError("The request target is malformed."))
    except Exception:  # noqa: BLE001 - a defect of ours: the client is told that, the log where, neither what of
        if EXCHANGE not in request:
            log_failure("")
        return respond(request, ProxyError())


def respond(request: web.Request, error: ProxyError) -> web.StreamResponse:
    """The response of an error; an exchange that never began is settled here, so that it has its log line."""
    exchange = request.get(EXCHANGE)
    early = request.get(EARLY)
    if exchange is not None and early is not None and exchange.early_target is not None:
        return _end_early(early, exchange, error)
    if exchange is None:
        service = request.config_dict[SERVICE]
        exchange = service.exchanges.refuse(service.rules, error, request)
    if exchange.is_in_band:
        response = web.Response(body=_in_band(exchange, error), headers={"Content-Type": _EVENT_STREAM})
        response.headers["X-Forward-Sse-Code"] = error.code
    else:
        answer = refusal(error, DIALECTS[exchange.dialect])
        response = web.Response(status=answer.status, body=answer.body, headers=as_headers(answer.fields))
    is_body_broken = not request.content.is_eof() or getattr(request.protocol, "is_malformed", False)
    if exchange.head is None or is_body_broken or isinstance(error, _LAST):
        # A head that is malformed, or a body that is still arriving: where the next request begins is not known.
        response.force_close()
    return response


def refuse_version(request: web.Request) -> web.StreamResponse:
    """Refuse another version of HTTP and close the connection, on which nobody can tell what would follow."""
    refuse = getattr(request.protocol, "refuse", None)
    if refuse is None:
        request.protocol.force_close()
    else:
        refuse(InvalidRequestError("Only HTTP/1.0 and HTTP/1.1 are spoken here."))
    return web.Response(status=400)


def as_headers(fields: tuple[Field, ...]) -> list[tuple[str, str]]:
    """Our own fields, which are ASCII, as aiohttp takes them."""
    return [(name.decode(), value.decode()) for name, value in fields]


async def add_own_fields(request: web.Request, response: web.StreamResponse) -> None:
    """Add to a response what every one says: its id, the user's limits, and who may read it in a browser."""
    headers, exchange = response.headers, request.get(EXCHANGE)
    headers.pop(hdrs.SERVER, None)
    # A relayed response has its own.
    headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
    # Of a `RelayResponse`; to ask whether it is one takes long, as of every class that `abc` makes.
    if not getattr(response, "has_content_type", True):
        headers.pop(hdrs.CONTENT_TYPE, None)
    if exchange is None:
        origins = request.headers.getall("Origin", ())
        origin = origins[0].encode("latin-1", "replace") if len(origins) == 1 else None
        headers.extend(as_headers(request.config_dict[SERVICE].rules.cors.answer_fields(origin)))
        return
    fields: list[tuple[str, str]] = [(_ID, exchange.id)]
    if exchange.is_answered and exchange.code is None:
        fields += ((_UPSTREAM, exchange.upstream or ""), (_ATTEMPTS, str(len(exchange.attempts))))
    if exchange.standing is not None:
        fields += rate_limit_fields(exchange.standing)
    elif exchange.principal is not None:
        fields += rate_limit_fields(exchange.rules.store.standing(exchange.principal))
    if not exchange.is_preflight:
        cors = exchange.rules.cors.answer_fields(exchange.origin)
        if cors:
            fields += as_headers(cors)
    headers.extend(fields)


def _end_early(response: RelayResponse, exchange: Exchange, error: ProxyError) -> RelayResponse:
    """Tell an error in a response that has begun: its status and fields have left."""
    if exchange.is_in_band:
        response.conclude(_in_band(exchange, error), is_clean=True)
    elif exchange.typed_names is not None:
        encoder = TypedEncoder(exchange.typed_names)
        # As a running stream that is stopped.
        is_stopped = isinstance(error, StoppedError)
        last = encoder.cancelled() if is_stopped else encoder.error(error.code, error.message)
        response.conclude(last, is_clean=True)
    else:
        event = DIALECTS[exchange.dialect].error_event(error.code, error.message, exchange.early_target or b"")
        response.conclude(event or b"", is_clean=False)
    if isinstance(error, DrainingError):
        response.force_close()
    return response


def _in_band(exchange: Exchange, error: ProxyError) -> bytes:
    """A refusal as an `EventSource` can read it: in events."""
    ending = exchange.ending
    if exchange.typed_names is None:
        said = encode_event(DIALECTS[exchange.dialect].error_body(error))
    elif isinstance(error, StoppedError):
        said = TypedEncoder(exchange.typed_names).cancelled()
    else:
        said = TypedEncoder(exchange.typed_names).error(error.code, error.message)
    if ending is None:
        return said
    return said + end_event(
        exchange.id,
        ending,
        error.status,
        code=error.code,
        retry_after_s=retry_after(error),
        usage=exchange.reckoning.told(ending),
    )
