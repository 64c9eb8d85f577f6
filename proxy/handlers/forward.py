"""Every way to an upstream: `POST /forward-sse`, `ANY /{upstream}/{path}`, and the short paths of the vendors' SDKs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from proxy.errors import DrainingError, ProxyError
from proxy.exchange.authenticate import PRINCIPAL, authenticate, authenticate_body
from proxy.exchange.body import check_length, read_body
from proxy.exchange.connect import connect
from proxy.exchange.head import check_head
from proxy.handlers.service import SERVICE
from proxy.relay import EarlyResponse, early_interval_s, relay

if TYPE_CHECKING:
    from proxy.exchange import Exchange
    from proxy.handlers.service import Service


async def forward(request: web.Request) -> web.StreamResponse:
    """Serve one request, from its head to its settlement. Cancelling it is the client leaving."""
    service = request.app[SERVICE]
    with service.exchanges.begin(request, service.rules) as exchange:
        check_head(request, exchange, prefix=service.prefix)  # 400 431 501
        if service.must_refuse(request):
            raise DrainingError  # 503
        await resolve(request, exchange, service)  # 400 401 403 404 405 408 413 415 429 503
        return await send(request, exchange, service)  # 502 503 504, then the stream


async def resolve(request: web.Request, exchange: Exchange, service: Service) -> None:
    """Authenticate, charge the limits, read the body, decide the route.

    Raises:
        ProxyError: whatever the steps refuse. What is refused after the charge is refunded.
    """
    rules, head = exchange.rules, exchange.checked_head
    destination, principal = await authenticate(exchange, head, request.get(PRINCIPAL))
    check_length(head, max_bytes=rules.max_body_bytes)
    if principal is not None:
        exchange.admit(await rules.store.admit(principal))
    try:
        body = await read_body(
            request, head, max_bytes=rules.max_body_bytes, timeout_s=rules.body_timeout_s, timers=service.timers
        )
        members = None
        if principal is None:
            members = await service.turns.run(rules.router.read_envelope(head, body))
            principal = authenticate_body(exchange, members)
            exchange.admit(await rules.store.admit(principal))
        exchange.route = await service.turns.run(rules.router.by_body(destination, head, body, principal, members))
    except ProxyError:
        exchange.refund()
        raise


async def send(request: web.Request, exchange: Exchange, service: Service) -> web.StreamResponse:
    """Send the request to its upstream, and relay the response.

    Raises:
        ProxyError: the upstream cannot be reached, is late, or its response is invalid; the client's response may have
            begun by then, where heartbeats begin early.
    """
    early = await _connect(request, exchange, service)
    if early.upstream is None:
        return early.response or web.Response()
    return await relay(request, exchange, early, timers=service.timers, metrics=service.metrics)


async def _connect(request: web.Request, exchange: Exchange, service: Service) -> EarlyResponse:
    """Connect to the upstream and await its response, with heartbeats to the client where they begin early."""
    route = exchange.checked_route
    exchange.upstream, exchange.dialect = route.upstream, route.dialect
    total_s = route.timeouts.total_s
    deadline_s = None if total_s is None else service.timers.now() + total_s
    connecting = connect(
        route, pool=service.pool, resolve=exchange.rules.resolve, clocks=service.timers, deadline_s=deadline_s
    )
    interval_s = None
    if exchange.is_in_band or exchange.rules.early_heartbeat:
        interval_s = await service.turns.run(early_interval_s(request, exchange, route))
    early = EarlyResponse(request, exchange, interval_s=interval_s, deadline_s=deadline_s)
    await early.reach(connecting)
    return early
