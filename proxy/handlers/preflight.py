"""`OPTIONS`: a browser that asks for permission is answered before authentication, and nothing is forwarded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from proxy.exchange.head import check_head
from proxy.handlers.errors import as_headers
from proxy.handlers.forward import forward
from proxy.handlers.service import SERVICE
from proxy.model import Ending

if TYPE_CHECKING:
    from proxy.handlers.errors import Handler


def or_else(handler: Handler) -> Handler:
    """A handler that answers preflights, and leaves every other request to `handler`."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return await (_answer(request) if _is_preflight(request) else handler(request))

    return answer


async def preflight(request: web.Request) -> web.StreamResponse:
    """Answer a preflight (WHATWG Fetch §3.3.2); any other `OPTIONS` is a request like all."""
    return await (_answer(request) if _is_preflight(request) else forward(request))


def _is_preflight(request: web.Request) -> bool:
    return (
        request.method == "OPTIONS"
        and "Origin" in request.headers
        and "Access-Control-Request-Method" in request.headers
    )


async def _answer(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    with service.exchanges.begin(request, service.rules) as exchange:
        head = check_head(request, exchange, prefix=service.prefix)
        exchange.is_preflight = True
        exchange.status, exchange.ending = 204, Ending.COMPLETE
        fields = exchange.rules.cors.preflight_fields(
            exchange.origin,
            head.index.get(b"access-control-request-method") or b"",
            head.index.get(b"access-control-request-headers"),
        )
        return web.Response(status=204, headers=as_headers(fields))
