"""The playground: its page, to anybody, and what a user's upstreams are, to that user.

The page is no exchange, as health is none: no credential, no limit, no log line, and served while draining, too.
"""

from __future__ import annotations

from aiohttp import web

from proxy.errors import DrainingError, MethodNotAllowedError, NotFoundError
from proxy.exchange.authenticate import authenticate_head
from proxy.exchange.head import check_head
from proxy.handlers.pages import serve
from proxy.handlers.service import SERVICE
from proxy.model import Ending


async def page(request: web.Request) -> web.StreamResponse:
    """The page, or 304 where the browser has it."""
    playground = request.app[SERVICE].rules.playground
    if playground is None:
        return await _refuse(request)
    return serve(request, playground.page)


async def upstreams(request: web.Request) -> web.StreamResponse:
    """The upstreams of the user's plan. Charges nothing."""
    service = request.app[SERVICE]
    playground = service.rules.playground
    if playground is None:
        return await _refuse(request)
    with service.exchanges.begin(request, service.rules) as exchange:
        head = check_head(request, exchange, prefix=service.prefix)
        if service.must_refuse(request):
            raise DrainingError
        principal = await authenticate_head(exchange, head)
        exchange.status, exchange.ending = 200, Ending.COMPLETE
        return web.Response(body=playground.upstreams(principal), content_type="application/json")


async def otherwise(request: web.Request) -> web.StreamResponse:
    """Refuse other methods on the playground's paths."""
    return await _refuse(request)


async def _refuse(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    with service.exchanges.begin(request, service.rules) as exchange:
        check_head(request, exchange, prefix=service.prefix)
        if service.rules.playground is None:
            raise NotFoundError
        raise MethodNotAllowedError("GET, HEAD")
