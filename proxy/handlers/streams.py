"""`DELETE /forward-sse/streams/{id}`: a user stops a stream of their own."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from proxy.errors import MethodNotAllowedError, NotFoundError
from proxy.exchange.authenticate import authenticate_head
from proxy.exchange.head import check_head
from proxy.handlers.service import SERVICE
from proxy.model import Ending

_STREAMS: Final = b"/forward-sse/streams/"


async def stop(request: web.Request) -> web.StreamResponse:
    """End a running stream for the user whose it is; to anybody else it does not exist. Served while draining, too.

    Raises:
        NotFoundError: no such stream of the user's is running.
    """
    service = request.app[SERVICE]
    with service.exchanges.begin(request, service.rules) as exchange:
        head = check_head(request, exchange, prefix=service.prefix)
        if head.method != "DELETE":
            raise MethodNotAllowedError("DELETE")
        principal = await authenticate_head(exchange, head)
        id_ = head.path.removeprefix(_STREAMS).decode("latin-1")
        is_found = service.exchanges.stop_own(id_, principal.issuer, principal.user, asking=exchange) > 0
        if service.stop_elsewhere is not None:
            is_found |= await service.stop_elsewhere(id_, principal.issuer, principal.user)
        if not is_found:
            raise NotFoundError("No such stream of yours is running.")
        exchange.status, exchange.ending = 204, Ending.COMPLETE
        return web.Response(status=204)
