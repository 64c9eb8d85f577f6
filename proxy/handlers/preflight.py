"""`OPTIONS`: a browser that asks for permission is answered before authentication, and nothing is forwarded."""

from __future__ import annotations

from aiohttp import web

from proxy.exchange.head import check_head
from proxy.handlers.errors import as_headers
from proxy.handlers.forward import forward
from proxy.handlers.service import SERVICE
from proxy.model import Ending


async def preflight(request: web.Request) -> web.StreamResponse:
    """Answer a preflight (WHATWG Fetch §3.3.2); any other `OPTIONS` is a request like all."""
    if "Origin" not in request.headers or "Access-Control-Request-Method" not in request.headers:
        return await forward(request)
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
