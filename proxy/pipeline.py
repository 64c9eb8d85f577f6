"""The life of a request, top to bottom: accept, authenticate, resolve, limit, receive, connect, relay, settle.

Each phase takes values and gives values; this is the one place that knows their order. What is refused is refused as
early as what has arrived allows: nothing is read, charged or forwarded for somebody who does not belong.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.answering import answer
from proxy.call import Call, Rules
from proxy.early import early_interval_s, reach
from proxy.errors import (
    BodyTooLargeError,
    DrainingError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    ProxyError,
    UpgradeNotSupportedError,
)
from proxy.exchange import Ending, Exchange
from proxy.identity import identify, identify_by_body, identify_by_head
from proxy.intake import begin_body, give_back, read_body, take_in
from proxy.logs import exchange_logger, log_failure
from proxy.phases.accept import Ids, Incoming, accept
from proxy.phases.answer import Settled, write_answer
from proxy.phases.connect import connect
from proxy.phases.relay import ending_of_whole
from proxy.phases.settle import settle
from proxy.phases.ticket import FRONT, TICKETS, has_ticket
from proxy.protocol import cors
from proxy.protocol.heads import asks_for_websocket
from proxy.protocol.paths import own_path
from proxy.replies import JSON, allow, part, refuse, succeed
from proxy.ticketing import Ticketing
from proxy.turns import Turns
from proxy.web import playground

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.clocks import Clocks
    from proxy.exchange import RequestHead, Route
    from proxy.metrics import Metrics
    from proxy.phases.accept import ClientConnection
    from proxy.phases.relay import Relay
    from proxy.protocol.heads import Framing as BodyFraming
    from proxy.upstream.pool import Pool

# What is no exchange: health, and the playground's page.
_ASIDE = (b"/healthz", b"/readyz", b"/playground")
# What is no way to an upstream, but for the streams.
_OWN = frozenset({TICKETS, *playground.PATHS})
# Below it, a stream by its id.
_STREAMS = b"/forward-sse/streams/"


class Pipeline:
    """Serves requests by the rules of the moment. One a worker."""

    def __init__(self, rules: Rules, *, pool: Pool, clocks: Clocks, metrics: Metrics) -> None:
        self.rules = rules
        self.is_draining = False
        self.health: Callable[[str], tuple[int, bytes, bytes] | None] = lambda _path: None
        # Asked where a user's stream is not here; given where there are other workers.
        self.stop_elsewhere: Callable[[str, str, str], Awaitable[bool]] | None = None
        self._pool = pool
        self._clocks = clocks
        self._metrics = metrics
        self._calls: set[Call] = set()
        self._turns = Turns()
        self._ticketing = Ticketing(clocks, self._turns)
        self._ids = Ids()
        self._log = exchange_logger()
        self._idle_waiters: list[asyncio.Future[None]] = []

    def live(self) -> list[tuple[Exchange, int, int]]:
        """The exchanges that are running, with the bytes and events that have passed so far."""
        return [
            (call.exchange, 0, 0)
            if call.client.relay is None
            else (call.exchange, call.client.relay.sent, call.client.relay.events)
            for call in self._calls
        ]

    async def idle(self) -> None:
        """Wait until nothing is running."""
        while self._calls:
            waiter = asyncio.get_running_loop().create_future()
            self._idle_waiters.append(waiter)
            await waiter

    def interrupt(self, ending: Ending, id_: str | None = None) -> int:
        """End every running exchange, or those with the id, and say how many there were."""
        calls = [call for call in self._calls if id_ is None or call.exchange.id == id_]
        for call in calls:
            call.interrupt(ending)
        return len(calls)

    def stop_own(self, id_: str, issuer: str, user: str, *, asking: Call | None = None) -> int:
        """End a user's running exchanges of that id, but for the one that asks, and say how many there were."""
        own = [
            call
            for call in self._calls
            if call is not asking
            and call.exchange.id == id_
            and call.exchange.principal is not None
            and (call.exchange.principal.issuer, call.exchange.principal.user) == (issuer, user)
        ]
        for call in own:
            call.interrupt(Ending.STOPPED)
        return len(own)

    async def handle(self, request: Incoming) -> Settled:
        """Serve one request, from its head to its settlement.

        Cancelling it is the client leaving: the upstream's connection is closed before this returns.
        """
        if request.target.startswith(_ASIDE):
            settled = self._health(request)
            if settled is None and self.rules.playground is not None:
                settled = self.rules.playground.serve(request)
            if settled is not None:
                return settled
        exchange = Exchange(self._ids.of(request.index), self._clocks.now(), request.method)
        is_old = request.version == (1, 0)
        call = Call(self.rules, request, request.client, exchange, request.is_last, is_old=is_old)
        self._calls.add(call)
        try:
            # What the phases before the relay needed is let go before it begins: streams are held by the thousand.
            relay = await self._begin(call)
            return relay if isinstance(relay, Settled) else await self._relay(call, relay)
        except ProxyError as error:
            return refuse(call, error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if exchange.interrupted_as is None or task is None or task.uncancel() > 0:
                exchange.ending = exchange.ending or Ending.CLIENT_CLOSED
                raise
            return part(call, exchange.interrupted_as)
        except Exception:  # noqa: BLE001 - a defect of ours: the client is told that, the log where, neither what of
            log_failure(exchange.id)
            return refuse(call, ProxyError())
        finally:
            if call.admission is not None:
                call.admission.release()
            self._calls.discard(call)
            if self._idle_waiters and not self._calls:
                for waiter in self._idle_waiters:
                    if not waiter.done():
                        waiter.set_result(None)
                self._idle_waiters.clear()
            exchange.limits = exchange.limits or call.rules.store.fallback
            settle(exchange, now_s=self._clocks.now(), metrics=self._metrics, log=self._log)

    def refuse_head(self, client: ClientConnection, error: ProxyError) -> Settled:
        """Refuse what never became a request, unreadable or too late; none of it is repeated."""
        exchange = Exchange(self._ids.new(), self._clocks.now())
        settled = refuse(Call(self.rules, None, client, exchange, is_last=True), error)
        settle(exchange, now_s=self._clocks.now(), metrics=self._metrics, log=self._log)
        return settled

    def _health(self, request: Incoming) -> Settled | None:
        reply = self.health(own_path(request.target.partition(b"?")[0]).decode("latin-1"))
        if reply is None or request.method not in {"GET", "HEAD"}:
            return None
        try:
            accept(request.method, request.target, request.version, request.fields, request.index)
        except InvalidRequestError:
            # Refused, and logged, on the way of all requests.
            return None
        status, content_type, body = reply
        origin = cors.request_origin(request.index)
        return write_answer(
            request.client.transport,
            status,
            ((b"Content-Type", content_type), *self.rules.cors.answer_fields(origin)),
            body,
            keep_alive=not request.is_last and request.content.is_complete,
            is_head_request=request.method == "HEAD",
        )

    async def _begin(self, call: Call) -> Relay | Settled:
        """Walk the phases up to the answer's head; what they raise is the refusal."""
        exchange, request = call.exchange, call.request
        assert request is not None
        if b"origin" in request.index:
            # A page may read the refusal of its malformed head, too.
            call.origin = cors.request_origin(request.index)
        # The log learns the path only now: where a target should be may stand anything, a credential even.
        head, framing, length = accept(request.method, request.target, request.version, request.fields, request.index)
        call.is_accepted = True
        call.has_body = framing != "none"
        exchange.path = head.path.decode("latin-1")
        if (b"upgrade" in head.index or b"sec-websocket-key" in head.index) and asks_for_websocket(head.index):
            # Before anything is asked of a store or charged: no credential makes a difference.
            exchange.dialect = call.rules.router.dialect_name(head)
            raise UpgradeNotSupportedError
        if head.method == "OPTIONS" and cors.is_preflight(head.method, head.index):
            return allow(call, head)
        if head.path.startswith(_STREAMS):
            return await self._stop(call, head)
        # Who came in before the listener closed is served: it could not know, and a balancer cannot try elsewhere.
        is_draining = self.is_draining and call.client.has_answered
        if head.method == "GET" and head.path == FRONT and has_ticket(head.query):
            used = await self._ticketing.use(call, head, is_draining=is_draining)
            if isinstance(used, Settled):
                return used
            route = used
        elif is_draining:
            raise DrainingError
        elif head.path in _OWN:
            return await self._serve_own(call, head, framing, length)
        else:
            route = await self._resolve(call, head, framing, length)
        exchange.upstream = route.upstream
        exchange.dialect = route.dialect

        total_s = route.timeouts.total_s
        deadline_s = None if total_s is None else self._clocks.now() + total_s
        connecting = connect(
            route, pool=self._pool, resolve=call.rules.resolve, clocks=self._clocks, deadline_s=deadline_s
        )
        interval_s = await self._turns.run(early_interval_s(call, route))
        if interval_s is None:
            given = await connecting
        else:
            reached = await reach(call, route, connecting, interval_s=interval_s, deadline_s=deadline_s)
            if isinstance(reached, Settled):
                return reached
            given = reached
        return answer(call, route, given, now_s=self._clocks.now(), deadline_s=deadline_s)

    async def _serve_own(self, call: Call, head: RequestHead, framing: BodyFraming, length: int | None) -> Settled:
        """Serve what is no way to an upstream."""
        if head.path == TICKETS:
            return await self._ticketing.make(call, head, framing, length)
        return await self._playground(call, head)

    async def _resolve(self, call: Call, head: RequestHead, framing: BodyFraming, length: int | None) -> Route:
        """Authenticate, charge, receive and resolve. Our own judgement of the body charges nothing."""
        destination, principal = await identify(call, head)
        if length is not None and length > call.rules.max_body_bytes:
            raise BodyTooLargeError
        if principal is not None:
            take_in(call, await call.rules.store.admit(principal))
        try:
            body = begin_body(call, head, framing, length)
            if body is None:
                body = await read_body(call, length, self._clocks)
            router, members = call.rules.router, None
            if principal is None:
                members = await self._turns.run(router.read_envelope(head, body))
                principal = identify_by_body(call, members)
                take_in(call, await call.rules.store.admit(principal))
            return await self._turns.run(router.by_body(destination, head, body, principal, members))
        except ProxyError:
            give_back(call)
            raise

    async def _stop(self, call: Call, head: RequestHead) -> Settled:
        """End a running stream for the user whose it is; to anybody else it does not exist."""
        if head.method != "DELETE":
            raise MethodNotAllowedError("DELETE")
        principal = await identify_by_head(call, head)
        id_ = head.path.removeprefix(_STREAMS).decode("latin-1")
        is_found = self.stop_own(id_, principal.issuer, principal.user, asking=call) > 0
        if self.stop_elsewhere is not None:
            is_found |= await self.stop_elsewhere(id_, principal.issuer, principal.user)
        if not is_found:
            raise NotFoundError("No such stream of yours is running.")
        return succeed(call, 204)

    async def _playground(self, call: Call, head: RequestHead) -> Settled:
        """Tell a user of the playground which upstreams are theirs; its page was served aside. Charges nothing."""
        if call.rules.playground is None:
            raise NotFoundError
        if head.path != playground.UPSTREAMS or head.method not in {"GET", "HEAD"}:
            raise MethodNotAllowedError("GET, HEAD")
        return succeed(call, 200, (JSON,), call.rules.playground.upstreams(await identify_by_head(call, head)))

    async def _relay(self, call: Call, relay: Relay) -> Settled:
        """Let the stream run, and wait for its end."""
        exchange, client = call.exchange, call.client
        assert call.request is not None
        call.request.let_head_go()
        upstream = exchange.upstream or ""
        client.relay = relay
        self._metrics.stream_began(upstream)
        try:
            relay.start()
            if call.early_target is not None and client.transport and client.transport.get_write_buffer_size():
                # What the client has not taken was written before there was a relay to be told.
                relay.pause()
            if relay.ending is None:
                watch = self._clocks.watch_seldom if relay.has_long_clocks else self._clocks.watch
                watch(relay)
                await relay.wait()
            ending = relay.ending
        except asyncio.CancelledError:
            relay.finish(Ending.CLIENT_CLOSED)
            # The client left, but the answer may have ended, by itself or by us, in the very same moment.
            exchange.ending = relay.ending
            raise
        finally:
            client.relay = None
            self._clocks.forget(relay)
            self._clocks.forget_seldom(relay)
            self._metrics.stream_ended(upstream)
            exchange.bytes = relay.sent
            exchange.events = relay.events
            exchange.first_byte_s = relay.first_byte_s
            exchange.reason = relay.reason
        exchange.ending = ending_of_whole(exchange.status or 0) if ending is Ending.COMPLETE else ending
        return Settled(
            keep_alive=relay.is_whole and relay.framing != "close" and not call.is_last,
            ended_in_words=relay.ended_in_words,
        )
