"""How the proxy's own paths that users GET begin: checked, and authenticated by the head alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.errors import DrainingError, MethodNotAllowedError
from proxy.exchange.authenticate import authenticate_head
from proxy.exchange.head import check_head

if TYPE_CHECKING:
    from aiohttp import web

    from proxy.exchange import Exchange
    from proxy.handlers.service import Service
    from proxy.model import Principal, RequestHead


async def begin_own_read(request: web.Request, exchange: Exchange, service: Service) -> tuple[RequestHead, Principal]:
    """Check the head of a GET or HEAD, and authenticate it.

    Raises:
        DrainingError: the process is about to end.
        MethodNotAllowedError: it is neither GET nor HEAD.
        ProxyError: the head is refused, or the credential.
    """
    head = check_head(request, exchange, prefix=service.prefix)
    if service.must_refuse(request):
        raise DrainingError
    if head.method not in {"GET", "HEAD"}:
        raise MethodNotAllowedError("GET, HEAD")
    return head, await authenticate_head(exchange, head)
