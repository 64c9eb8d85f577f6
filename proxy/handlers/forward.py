"""Every way to an upstream: `POST /forward-sse`, `ANY /{upstream}/{path}`, and the short paths of the vendors' SDKs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from proxy.errors import DrainingError, ProxyError
from proxy.exchange.authenticate import authenticate, authenticate_body
from proxy.exchange.body import check_length, read_body
from proxy.exchange.head import check_head
from proxy.exchange.reserve import meter_of, reserve
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
        return await send(request, exchange, service)  # 429 502 503 504, then the stream


async def resolve(request: web.Request, exchange: Exchange, service: Service) -> None:
    """Authenticate, charge the limits, read the body, decide the route.

    Raises:
        ProxyError: whatever the steps refuse. What is refused after the charge is refunded.
    """
    rules, head = exchange.rules, exchange.checked_head
    destination, principal = await authenticate(exchange, head)
    check_length(head, max_bytes=rules.max_body_bytes)
    if principal is not None:
        exchange.admit(await rules.store.admit(principal))
    try:
        body = await read_body(
            request, head, max_bytes=rules.max_body_bytes, timeout_s=rules.body_timeout_s, timers=service.timers
        )
        route, members = None, None
        if principal is None:
            members = await service.turns.run(rules.router.read_envelope(head, body))
            principal = authenticate_body(exchange, members)
            exchange.admit(await rules.store.admit(principal))
        else:
            route = rules.router.at_once(destination, head, body, principal)
        if route is None:
            route = await service.turns.run(rules.router.by_body(destination, head, body, principal, members))
        exchange.route = route
    except ProxyError:
        exchange.refund()
        raise


async def send(request: web.Request, exchange: Exchange, service: Service) -> web.StreamResponse:
    """Reserve what the request will take, send it to its upstream, or to those of its route, and relay the response.

    Raises:
        RateLimitExceededError, InsufficientQuotaError, LimitsUnavailableError: what `reserve` refuses; it is refunded.
        ProxyError: the upstream cannot be reached, is late, or its response is invalid; the client's response may have
            begun by then, where heartbeats begin early.
    """
    route = exchange.checked_route
    exchange.upstream, exchange.dialect = route.upstream, route.dialect
    meter = await meter_of(route, service.turns)
    if exchange.has_token_limits and meter.runs_model:
        await reserve(exchange, meter.model, service.turns)
    exchange.meter = meter
    timers, total_s = service.timers, route.timeouts.total_s
    deadline_s = None if total_s is None else timers.now() + total_s
    interval_s = None
    if exchange.is_in_band or exchange.rules.early_heartbeat:
        interval_s = await service.turns.run(early_interval_s(request, exchange, route))
    connecting = service.attempts.reach(exchange, deadline_s)
    # The exchange drops the request before a long stream; nothing here may keep its body.
    del route
    if interval_s is None:
        upstream, begun = await connecting, None
    else:
        early = EarlyResponse(request, exchange, interval_s=interval_s, deadline_s=deadline_s)
        reached = await early.reach(connecting)
        if reached is None:
            return early.response or web.Response()
        upstream, begun = reached, early.response
    return await relay(
        request,
        exchange,
        upstream,
        begun=begun,
        deadline_s=deadline_s,
        timers=timers,
        overruns=service.overruns,
        metrics=service.metrics,
    )
