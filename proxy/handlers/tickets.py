"""Tickets, for `EventSource`: the POST that makes one, and the GET that uses it."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING

from aiohttp import web

from proxy.errors import DrainingError, MethodNotAllowedError, NotFoundError, ProxyError
from proxy.exchange.authenticate import authenticate, authenticate_body
from proxy.exchange.body import check_length, read_body
from proxy.exchange.head import check_head
from proxy.handlers.forward import forward, send
from proxy.handlers.service import SERVICE
from proxy.limits import Spent
from proxy.model import Ending
from proxy.tickets import FRONT, asks_for_typed, has_ticket, make_ticket, ticket_in, use_ticket

if TYPE_CHECKING:
    from proxy.exchange import Exchange
    from proxy.model import RequestHead
    from proxy.routing import Turns


async def create(request: web.Request) -> web.StreamResponse:
    """Set the request aside for the `EventSource` that will ask for it; what can be refused is refused now.

    Raises:
        ProxyError: what `forward` would refuse of the same request, and `TooManyTicketsError`.
    """
    service = request.app[SERVICE]
    with service.exchanges.begin(request, service.rules) as exchange:
        head = check_head(request, exchange, prefix=service.prefix)
        if service.must_refuse(request):
            raise DrainingError
        if head.method != "POST":
            raise MethodNotAllowedError("POST")
        rules, asked = exchange.rules, replace(head, path=FRONT)
        destination, principal = await authenticate(exchange, asked)
        check_length(head, max_bytes=rules.max_body_bytes)
        with service.ticket_makers.one_more(principal):
            body = await read_body(
                request, head, max_bytes=rules.max_body_bytes, timeout_s=rules.body_timeout_s, timers=service.timers
            )
            router, members = rules.router, None
            if principal is None:
                members = await service.turns.run(router.read_envelope(asked, body))
                principal = authenticate_body(exchange, members)
            route = await service.turns.run(router.by_body(destination, asked, body, principal, members))
            exchange.upstream, exchange.dialect = route.upstream, route.dialect
            buffer = BytesIO(body)
            # The buffer alone has it: it is encrypted where it is, or a large body would be held twice.
            del body, route, members
            made = await make_ticket(rules.store, asked, buffer, principal, service.turns)
        exchange.status, exchange.ending = 201, Ending.COMPLETE
        return web.Response(status=201, body=made, content_type="application/json")


async def use(request: web.Request) -> web.StreamResponse:
    """Forward a request that was set aside, as if it came now, but once only: every later GET gets 204.

    Whatever goes wrong once a ticket was presented is told in the stream, where an `EventSource` can read it.

    Raises:
        NotFoundError: there is no such ticket, or it lapsed unused.
    """
    service = request.app[SERVICE]
    if not has_ticket(request.rel_url.raw_query_string.encode()):
        return await forward(request)
    with service.exchanges.begin(request, service.rules) as exchange:
        head = check_head(request, exchange, prefix=service.prefix)
        if head.method != "GET":
            raise MethodNotAllowedError("POST")
        if not await _take(exchange, head, service.turns, is_draining=service.must_refuse(request)):
            # Browsers come back after every end; 204 tells them to stay away.
            exchange.status, exchange.ending = 204, Ending.COMPLETE
            return web.Response(status=204)
        del head
        return await send(request, exchange, service)


async def _take(exchange: Exchange, head: RequestHead, turns: Turns, *, is_draining: bool) -> bool:
    """Decide the route of the request that was set aside; False where it was taken before."""
    rules = exchange.rules
    ticket = ticket_in(head)
    exchange.redact(ticket.text)
    exchange.is_in_band = True
    if is_draining:
        raise DrainingError
    try:
        taken = await use_ticket(rules.store, ticket, head, turns)
    except NotFoundError:
        exchange.is_in_band = False
        raise
    if isinstance(taken, Spent):
        return False
    asked, body = taken
    exchange.typed_names = rules.router.typed_names(asked) if asks_for_typed(asked) else None
    destination, principal = await authenticate(exchange, asked)
    members = None
    if principal is None:
        members = await turns.run(rules.router.read_envelope(asked, body))
        principal = authenticate_body(exchange, members)
    exchange.admit(await rules.store.admit(principal))
    try:
        route = await turns.run(rules.router.by_body(destination, asked, body, principal, members))
    except ProxyError:
        exchange.refund()
        raise
    exchange.route, exchange.typed_names = route, route.typed_names
    return True
