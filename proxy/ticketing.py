"""Ticketing: the two requests of a ticket, the POST that makes it and the GET that uses it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from proxy.errors import BodyTooLargeError, DrainingError, MethodNotAllowedError, NotFoundError, ProxyError
from proxy.identity import hide, identify, identify_by_body
from proxy.intake import begin_body, give_back, read_body, take_in
from proxy.limits.store import Spent
from proxy.phases.ticket import FRONT, Makers, asks_for_typed, make_ticket, ticket_in, use_ticket
from proxy.replies import JSON, succeed

if TYPE_CHECKING:
    from proxy.call import Call
    from proxy.clocks import Clocks
    from proxy.exchange import RequestHead, Route
    from proxy.phases.answer import Settled
    from proxy.protocol.heads import Framing
    from proxy.turns import Turns


class Ticketing:
    """Makes and uses tickets. One a worker."""

    def __init__(self, clocks: Clocks, turns: Turns) -> None:
        self._clocks = clocks
        self._turns = turns
        self._makers = Makers()

    async def make(self, call: Call, head: RequestHead, framing: Framing, length: int | None) -> Settled:
        """Set the request aside for the `EventSource` that will ask for it; what can be refused is refused now."""
        if head.method != "POST":
            raise MethodNotAllowedError("POST")
        asked = replace(head, path=FRONT)
        destination, principal = await identify(call, asked)
        rules, exchange = call.rules, call.exchange
        if length is not None and length > rules.max_body_bytes:
            raise BodyTooLargeError
        with self._makers.one_more(principal):
            body = begin_body(call, head, framing, length)
            if body is None:
                body = await read_body(call, length, self._clocks)
            router, members = rules.router.rehearsal(), None
            if principal is None:
                members = await self._turns.run(router.read_envelope(asked, body))
                principal = identify_by_body(call, members)
            route = await self._turns.run(router.by_body(destination, asked, body, principal, members))
            exchange.upstream, exchange.dialect = route.upstream, route.dialect
            made = await make_ticket(rules.store, asked, body, principal, self._turns)
        return succeed(call, 201, (JSON,), made)

    async def use(self, call: Call, head: RequestHead, *, is_draining: bool) -> Route | Settled:
        """Walk a request that was set aside through the phases up to its route, as if it came now; but once only."""
        ticket = ticket_in(head)
        hide(call.exchange, ticket.text)
        call.is_in_band = True
        if is_draining:
            raise DrainingError
        try:
            taken = await use_ticket(call.rules.store, ticket, head, self._turns)
        except NotFoundError:
            call.is_in_band = False
            raise
        if isinstance(taken, Spent):
            # Browsers come back after every end; 204 tells them to stay away.
            return succeed(call, 204)
        asked, body = taken
        router = call.rules.router
        call.typed_names = router.typed_names(asked) if asks_for_typed(asked) else None
        destination, principal = await identify(call, asked)
        members = None
        if principal is None:
            members = await self._turns.run(router.read_envelope(asked, body))
            principal = identify_by_body(call, members)
        take_in(call, await call.rules.store.admit(principal))
        try:
            route = await self._turns.run(router.by_body(destination, asked, body, principal, members))
        except ProxyError:
            give_back(call)
            raise
        call.typed_names = route.typed_names
        return route
