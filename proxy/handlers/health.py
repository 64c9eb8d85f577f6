"""`/healthz` and `/readyz`: alive, and able to serve a request that arrives now. To GET no exchange, so no log line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from proxy.errors import MethodNotAllowedError
from proxy.exchange.head import check_head
from proxy.handlers.service import SERVICE

if TYPE_CHECKING:
    from proxy.handlers.service import Problems


async def alive(request: web.Request) -> web.Response:
    """200 as long as the process answers."""
    check_head(request)
    return web.Response(body=b'{"status":"ok"}', content_type="application/json")


async def ready(request: web.Request) -> web.Response:
    """200, or 503 with the reasons; this worker's own."""
    check_head(request)
    return readiness(request.app[SERVICE].problems())


async def otherwise(request: web.Request) -> web.StreamResponse:
    """Refuse other methods on these paths, as an exchange."""
    service = request.app[SERVICE]
    with service.exchanges.begin(request, service.rules) as exchange:
        check_head(request, exchange, prefix=service.prefix)
        raise MethodNotAllowedError("GET, HEAD")


def readiness(problems: Problems) -> web.Response:
    """The answer to whether a request that arrives now can be served."""
    is_ready = not problems["reasons"]
    body = orjson.dumps({"status": "ready" if is_ready else "unready", **problems})
    return web.Response(status=200 if is_ready else 503, body=body, content_type="application/json")
