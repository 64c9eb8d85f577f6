"""The life of a request, top to bottom: accept, authenticate, resolve, limit, receive, connect, relay, settle.

Each phase takes values and gives values; this is the one place that knows their order. What is refused is refused as
early as what has arrived allows: nothing is read, charged or forwarded for somebody who does not belong.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

from proxy.auth.credentials import find_credential
from proxy.call import Call, Rules
from proxy.dialects import DIALECTS
from proxy.errors import (
    BodyTooLargeError,
    DrainingError,
    InvalidRequestError,
    MethodNotAllowedError,
    MissingTokenError,
    NotFoundError,
    PathNotAllowedError,
    ProxyError,
    RequestTimeoutError,
    UnknownUpstreamError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
    refusal,
    retry_after,
)
from proxy.exchange import Ending, Exchange
from proxy.limits.fields import rate_limit_fields
from proxy.limits.store import Spent
from proxy.logs import exchange_logger, log_failure
from proxy.phases.accept import Ids, Incoming, accept
from proxy.phases.answer import Settled, date, write_answer
from proxy.phases.connect import connect
from proxy.phases.receive import receive
from proxy.phases.relay import Relay
from proxy.phases.settle import settle
from proxy.phases.ticket import FRONT, TICKETS, Makers, has_ticket, make_ticket, ticket_in, use_ticket
from proxy.phases.typed_relay import TypedRelay, begin_translation, translated_fields
from proxy.protocol import cors
from proxy.protocol.fields import CREDENTIALS, single, to_client
from proxy.protocol.heads import render_response
from proxy.protocol.in_band import end_event
from proxy.protocol.sse import EventStreamObserver, encode_event, is_event_stream
from proxy.ticket_relay import TicketRelay, readable
from proxy.web import playground

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from proxy.clocks import Clocks
    from proxy.errors import Field
    from proxy.exchange import Principal, RequestHead, Route
    from proxy.metrics import Metrics
    from proxy.phases.accept import ClientConnection
    from proxy.phases.relay import Framing
    from proxy.phases.resolve import Destination
    from proxy.protocol.heads import Framing as BodyFraming
    from proxy.upstream.answer import Answer
    from proxy.upstream.pool import Pool

_STREAM_FIELDS: tuple[Field, ...] = (
    (b"Cache-Control", b"no-cache, no-transform"),
    (b"X-Accel-Buffering", b"no"),
)
_EVENT_STREAM: Field = (b"Content-Type", b"text/event-stream")
# RFC 9110 §15: the error classes.
_FIRST_ERROR = 400
# What is no exchange: health, and the playground's page.
_ASIDE = (b"/healthz", b"/readyz", b"/playground")
# Below it, a stream by its id.
_STREAMS = b"/forward-sse/streams/"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


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
        self._makers = Makers()
        self._ids = Ids()
        self._log = exchange_logger()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def live(self) -> list[tuple[Exchange, int, int]]:
        """The exchanges that are running, with the bytes and events that have passed so far."""
        return [
            (call.exchange, 0, 0)
            if call.client.relay is None
            else (call.exchange, call.client.relay.bytes, call.client.relay.events)
            for call in self._calls
        ]

    async def idle(self) -> None:
        """Wait until nothing is running."""
        await self._is_idle.wait()

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
        task = cast("asyncio.Task[object]", asyncio.current_task())
        exchange = Exchange(self._ids.of(request.index), self._clocks.now(), request.method)
        is_old = request.version == (1, 0)
        call = Call(self.rules, request, request.client, exchange, task, request.is_last, is_old=is_old)
        self._calls.add(call)
        self._is_idle.clear()
        try:
            # What the phases before the relay needed is let go before it begins: streams are held by the thousand.
            relay = await self._begin(call)
            return relay if isinstance(relay, Settled) else await self._relay(call, relay)
        except ProxyError as error:
            return self._refuse(call, error)
        except asyncio.CancelledError:
            if exchange.interrupted_as is None or task.uncancel() > 0:
                exchange.ending = exchange.ending or Ending.CLIENT_CLOSED
                raise
            return self._interrupted(call, exchange.interrupted_as)
        except Exception:  # noqa: BLE001 - a defect of ours: the client is told that, the log where, neither what of
            log_failure(exchange.id)
            return self._refuse(call, ProxyError())
        finally:
            if call.admission is not None:
                call.admission.lease.release()
            self._calls.discard(call)
            if not self._calls:
                self._is_idle.set()
            exchange.limits = exchange.limits or call.rules.store.fallback
            settle(exchange, now_s=self._clocks.now(), metrics=self._metrics, log=self._log)

    def refuse_head(self, client: ClientConnection, error: ProxyError) -> Settled:
        """Refuse what never became a request, unreadable or too late; none of it is repeated."""
        exchange = Exchange(self._ids.new(), self._clocks.now())
        settled = self._refuse(Call(self.rules, None, client, exchange, None, is_last=True), error)
        settle(exchange, now_s=self._clocks.now(), metrics=self._metrics, log=self._log)
        return settled

    def _health(self, request: Incoming) -> Settled | None:
        reply = self.health(request.target.partition(b"?")[0].decode("latin-1"))
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
            keep_alive=not request.is_last and request.content.is_eof(),
            is_head_request=request.method == "HEAD",
        )

    async def _begin(self, call: Call) -> Relay | Settled:
        """Walk the phases up to the answer's head; what they raise is the refusal."""
        exchange = call.exchange
        head, framing, length = self._accept(call)
        if cors.is_preflight(head.method, head.index):
            return self._preflight(call, head)
        if head.path.startswith(_STREAMS):
            return await self._stop(call, head)
        if head.method == "GET" and head.path == FRONT and has_ticket(head.query):
            taken = await self._use_ticket(call, head)
            if isinstance(taken, Settled):
                return taken
            route = taken
        # Who came in before the listener closed is served: it could not know, and a balancer cannot try elsewhere.
        elif self.is_draining and call.client.has_answered:
            raise DrainingError
        elif head.path in playground.PATHS:
            return await self._playground(call, head)
        elif head.path == TICKETS:
            return await self._make_ticket(call, head, framing, length)
        else:
            destination, principal = await self._identify(call, head)
            if length is not None and length > call.rules.max_body_bytes:
                raise BodyTooLargeError
            if principal is not None:
                await self._limit(call, principal)
            route = await self._receive(call, head, destination, principal, framing, length)
        exchange.upstream = route.upstream
        exchange.dialect = route.dialect

        total_s = route.timeouts.total_s
        deadline_s = None if total_s is None else self._clocks.now() + total_s
        answer = await connect(
            route, pool=self._pool, resolve=call.rules.resolve, clocks=self._clocks, deadline_s=deadline_s
        )
        if call.is_in_band:
            return self._answer_in_band(call, route, answer, deadline_s)
        return self._answer(call, route, answer, deadline_s)

    def _accept(self, call: Call) -> tuple[RequestHead, BodyFraming, int | None]:
        assert call.request is not None
        request = call.request
        # A page may read the refusal of its malformed head, too.
        call.origin = cors.request_origin(request.index)
        # The log learns the path only now: where a target should be may stand anything, a credential even.
        head, framing, length = accept(request.method, request.target, request.version, request.fields, request.index)
        call.is_accepted = True
        call.has_body = framing != "none"
        call.exchange.path = head.path.decode("latin-1")
        return head, framing, length

    async def _identify(self, call: Call, head: RequestHead) -> tuple[Destination, Principal | None]:
        """Who asks, and what the head says about where to; no principal where an envelope's passcode may still say.

        Which upstreams and paths exist is told only to those who have authenticated.
        """
        rules, exchange = call.rules, call.exchange
        exchange.dialect = rules.router.dialect_name(head)
        fault: ProxyError | None = None
        destination: Destination | None = None
        try:
            destination = rules.router.by_head(head, exchange.dialect)
        except (UnknownUpstreamError, PathNotAllowedError, InvalidRequestError) as error:
            fault = error
        token = find_credential(head, gemini=DIALECTS[exchange.dialect].query_credential, query_token=rules.query_token)
        if token is not None:
            _hide(exchange, token)
        principal = await _authenticate(rules, token)
        if principal is None and not (
            rules.envelope_passcode and destination is not None and destination.may_be_envelope
        ):
            raise MissingTokenError
        exchange.principal = principal
        if fault is not None:
            raise fault
        assert destination is not None
        if destination.upstream is not None:
            exchange.upstream = destination.upstream.name
        if principal is not None:
            rules.router.check_plan(destination, principal)
        return destination, principal

    async def _stop(self, call: Call, head: RequestHead) -> Settled:
        """End a running stream for the user whose it is; to anybody else it does not exist."""
        if head.method != "DELETE":
            raise MethodNotAllowedError("DELETE")
        principal = await self._authenticated(call, head)
        id_ = head.path.removeprefix(_STREAMS).decode("latin-1")
        is_found = self.stop_own(id_, principal.issuer, principal.user, asking=call) > 0
        if self.stop_elsewhere is not None:
            is_found |= await self.stop_elsewhere(id_, principal.issuer, principal.user)
        if not is_found:
            raise NotFoundError("No such stream of yours is running.")
        call.exchange.ending = Ending.COMPLETE
        return self._write(call, 204, self._own_fields(call), b"", must_close=call.is_body_arriving)

    async def _playground(self, call: Call, head: RequestHead) -> Settled:
        """Tell a user of the playground which upstreams are theirs; its page was served aside. Charges nothing."""
        if call.rules.playground is None:
            raise NotFoundError
        if head.path != playground.UPSTREAMS or head.method not in {"GET", "HEAD"}:
            raise MethodNotAllowedError("GET, HEAD")
        body = call.rules.playground.upstreams(await self._authenticated(call, head))
        call.exchange.ending = Ending.COMPLETE
        fields = [(b"Content-Type", b"application/json"), *self._own_fields(call)]
        return self._write(call, 200, fields, body, must_close=call.is_body_arriving)

    async def _authenticated(self, call: Call, head: RequestHead) -> Principal:
        """Who asks, where nothing but the head can say so."""
        token = find_credential(head, gemini=False, query_token=call.rules.query_token)
        if token is not None:
            _hide(call.exchange, token)
        principal = await _authenticate(call.rules, token)
        if principal is None:
            raise MissingTokenError
        call.exchange.principal = principal
        return principal

    async def _receive(
        self,
        call: Call,
        head: RequestHead,
        destination: Destination,
        principal: Principal | None,
        framing: BodyFraming,
        length: int | None,
    ) -> Route:
        """Read the body, and resolve what only it can tell. Our own judgement of it charges nothing."""
        try:
            body = await self._read(call, head, framing, length)
            if principal is None:
                principal = _by_passcode(call, body)
                await self._limit(call, principal)
            return call.rules.router.by_body(destination, head, body, principal)
        except ProxyError:
            _give_back(call)
            raise

    def _read(
        self, call: Call, head: RequestHead, framing: BodyFraming, length: int | None
    ) -> Coroutine[None, None, bytes]:
        # Not a coroutine of its own: every request of every stream comes through here.
        rules, transport = call.rules, call.client.transport
        assert call.request is not None
        # RFC 9110 §15.2: no interim answer to HTTP/1.0.
        if _expects_continue(head) and framing != "none" and not call.is_old and transport is not None:
            transport.write(_CONTINUE)
        return receive(
            call.request.content,
            framing,
            length,
            max_bytes=rules.max_body_bytes,
            timeout_s=rules.body_timeout_s,
            clocks=self._clocks,
        )

    async def _make_ticket(self, call: Call, head: RequestHead, framing: BodyFraming, length: int | None) -> Settled:
        """Set the request aside for the `EventSource` that will ask for it; what can be refused is refused now."""
        if head.method != "POST":
            raise MethodNotAllowedError("POST")
        asked = replace(head, path=FRONT)
        destination, principal = await self._identify(call, asked)
        rules, exchange = call.rules, call.exchange
        if length is not None and length > rules.max_body_bytes:
            raise BodyTooLargeError
        with self._makers.one_more(principal):
            body = await self._read(call, head, framing, length)
            if principal is None:
                principal = _by_passcode(call, body)
            route = rules.router.rehearsal().by_body(destination, asked, body, principal)
            exchange.upstream, exchange.dialect = route.upstream, route.dialect
            made = await make_ticket(rules.store, asked, body, principal)
        exchange.ending = Ending.COMPLETE
        return self._write(call, 201, ((b"Content-Type", b"application/json"), *self._own_fields(call)), made)

    async def _use_ticket(self, call: Call, head: RequestHead) -> Route | Settled:
        """Walk a request that was set aside through the phases up to its route, as if it came now; but once only."""
        ticket = ticket_in(head)
        _hide(call.exchange, ticket.text)
        call.is_in_band = True
        if self.is_draining and call.client.has_answered:
            raise DrainingError
        try:
            taken = await use_ticket(call.rules.store, ticket, head)
        except NotFoundError:
            call.is_in_band = False
            raise
        if isinstance(taken, Spent):
            # Browsers come back after every end; 204 tells them to stay away.
            call.exchange.ending = Ending.COMPLETE
            return self._write(call, 204, self._own_fields(call), b"")
        asked, body = taken
        destination, principal = await self._identify(call, asked)
        if principal is None:
            principal = _by_passcode(call, body)
        await self._limit(call, principal)
        try:
            return call.rules.router.by_body(destination, asked, body, principal)
        except ProxyError:
            _give_back(call)
            raise

    async def _limit(self, call: Call, principal: Principal) -> None:
        call.admission = await call.rules.store.admit(principal)
        call.standing = call.admission.standing
        call.exchange.limits = call.admission.fallback

    def _answer(self, call: Call, route: Route, answer: Answer, deadline_s: float | None) -> Relay | Settled:
        """Write the answer's head and give the relay that its body will take."""
        exchange, transport = call.exchange, call.client.transport
        if transport is None or transport.is_closing():
            answer.abort()
            exchange.ending = Ending.CLIENT_CLOSED
            return Settled(keep_alive=False)
        translator = begin_translation(route, answer)
        framing = _client_framing(answer, call, is_translated=translator is not None)
        fields = to_client(answer.fields) if translator is None else translated_fields(answer.fields)
        is_watched = is_event_stream(single(fields, b"content-type")) and single(fields, b"content-encoding") is None
        if single(fields, b"date") is None:
            fields.append((b"Date", date()))
        fields += self._own_fields(call)
        fields += _STREAM_FIELDS
        if framing in {"none", "length"}:
            if answer.length is not None and answer.status != 204:  # noqa: PLR2004 - RFC 9110 §8.6: none on 204
                fields.append((b"Content-Length", b"%d" % answer.length))
        elif framing == "chunked":
            fields.append((b"Transfer-Encoding", b"chunked"))
        answer.fields = []
        dialect, target = DIALECTS[route.dialect], route.target
        exchange.status = answer.status
        relay = Relay if translator is None else partial(TypedRelay, translator)
        return relay(
            answer,
            transport,
            render_response(answer.status, fields),
            framing=framing,
            observer=EventStreamObserver() if is_watched else None,
            error_event=lambda code, message: dialect.error_event(code, message, target),
            now_s=self._clocks.now(),
            idle_s=route.timeouts.idle_s,
            write_s=call.rules.write_timeout_s,
            deadline_s=deadline_s,
            heartbeat_s=route.heartbeat_s if dialect.heartbeat_allowed else None,
        )

    def _answer_in_band(self, call: Call, route: Route, answer: Answer, deadline_s: float | None) -> Relay | Settled:
        """Begin a ticket's answer: 200 and an event stream, whatever the upstream's is."""
        exchange, transport = call.exchange, call.client.transport
        if transport is None or transport.is_closing():
            answer.abort()
            exchange.ending = Ending.CLIENT_CLOSED
            return Settled(keep_alive=False)
        fields, is_stream = readable(answer)
        if single(fields, b"date") is None:
            fields.append((b"Date", date()))
        fields += self._own_fields(call)
        fields += _STREAM_FIELDS
        if not call.is_old:
            fields.append((b"Transfer-Encoding", b"chunked"))
        exchange.status = 200
        return TicketRelay(
            answer,
            transport,
            render_response(200, fields),
            framing="close" if call.is_old else "chunked",
            status=answer.status,
            is_event_stream=is_stream,
            shape=DIALECTS[route.dialect],
            id_=exchange.id,
            now_s=self._clocks.now(),
            idle_s=route.timeouts.idle_s,
            write_s=call.rules.write_timeout_s,
            deadline_s=deadline_s,
            heartbeat_s=route.heartbeat_s if DIALECTS[route.dialect].heartbeat_allowed else None,
        )

    async def _relay(self, call: Call, relay: Relay) -> Settled:
        """Let the stream run, and wait for its end."""
        exchange, client = call.exchange, call.client
        assert call.request is not None
        call.request.fields = ()
        upstream = exchange.upstream or ""
        client.relay = relay
        self._metrics.stream_began(upstream)
        self._clocks.watch(relay)
        try:
            relay.start()
            ending = await relay.done
        except asyncio.CancelledError:
            relay.finish(Ending.CLIENT_CLOSED)
            # The client left, but the answer may have ended, by itself or by us, in the very same moment.
            exchange.ending = relay.ending
            raise
        finally:
            client.relay = None
            self._clocks.forget(relay)
            self._metrics.stream_ended(upstream)
            exchange.bytes = relay.bytes
            exchange.events = relay.events
            exchange.first_byte_s = relay.first_byte_s
        if ending is Ending.COMPLETE and (exchange.status or 0) >= _FIRST_ERROR:
            ending = Ending.UPSTREAM_ERROR
        exchange.ending = ending
        return Settled(keep_alive=relay.is_whole and relay.framing != "close" and not call.is_last)

    def _preflight(self, call: Call, head: RequestHead) -> Settled:
        fields = call.rules.cors.preflight_fields(
            call.origin,
            head.index.single(b"access-control-request-method") or b"",
            head.index.single(b"access-control-request-headers"),
        )
        call.exchange.ending = Ending.COMPLETE
        return self._write(call, 204, fields, b"")

    def _refuse(self, call: Call, error: ProxyError) -> Settled:
        exchange = call.exchange
        if call.is_accepted and call.request is not None:
            # Refused before the credential was found, perhaps because there are several.
            for name, value in call.request.fields:
                if name.lower() in CREDENTIALS:
                    _hide(exchange, value.decode("latin-1").rpartition(" ")[2])
        exchange.code = error.code
        exchange.ending = _ending_of(error)
        if isinstance(error, RequestTimeoutError):
            call.client.discard_rest(linger=False)
        if call.is_in_band:
            return self._refuse_in_band(call, error)
        answer = refusal(error, DIALECTS[exchange.dialect])
        must_close = not call.is_accepted or call.is_body_arriving or isinstance(error, DrainingError)
        fields = answer.fields + tuple(self._own_fields(call))
        return self._write(call, answer.status, fields, answer.body, must_close=must_close)

    def _refuse_in_band(self, call: Call, error: ProxyError) -> Settled:
        exchange = call.exchange
        ending = exchange.interrupted_as or exchange.ending
        assert ending is not None
        said = encode_event(DIALECTS[exchange.dialect].error_body(error)) + end_event(
            exchange.id, ending, error.status, code=error.code, retry_after_s=retry_after(error)
        )
        fields = (_EVENT_STREAM, (b"X-Forward-Sse-Code", error.code.encode()), *self._own_fields(call))
        return self._write(
            call, 200, fields, said, must_close=call.is_body_arriving or isinstance(error, DrainingError)
        )

    def _interrupted(self, call: Call, ending: Ending) -> Settled:
        settled = self._refuse(call, DrainingError()) if ending is Ending.DRAINED else Settled(keep_alive=False)
        if ending is not Ending.DRAINED and call.client.transport is not None:
            call.client.transport.abort()
        call.exchange.ending = ending
        return settled

    def _own_fields(self, call: Call) -> list[Field]:
        fields: list[Field] = [(b"X-Forward-Sse-Id", call.exchange.id.encode())]
        principal = call.exchange.principal
        if principal is not None:
            fields += rate_limit_fields(
                call.rules.store.standing(principal) if call.standing is None else call.standing
            )
        fields += call.rules.cors.answer_fields(call.origin)
        return fields

    def _write(
        self, call: Call, status: int, fields: Sequence[Field], body: bytes, *, must_close: bool = False
    ) -> Settled:
        call.exchange.status = status
        settled = write_answer(
            call.client.transport,
            status,
            fields,
            body,
            keep_alive=not (must_close or call.is_last),
            is_head_request=call.exchange.method == "HEAD",
        )
        if must_close:
            call.client.discard_rest(linger=call.is_body_arriving)
        return settled


async def _authenticate(rules: Rules, token: str | None) -> Principal | None:
    if rules.authenticator is None:
        return rules.anonymous
    if token is None:
        return None
    return rules.authenticator.recall(token) or await rules.authenticator.authenticate(token)


def _by_passcode(call: Call, body: bytes) -> Principal:
    """Who asks, where only an envelope says it."""
    rules = call.rules
    assert rules.authenticator is not None
    principal = rules.authenticator.authenticate_api_key(rules.router.passcode(body))
    call.exchange.principal = principal
    return principal


def _give_back(call: Call) -> None:
    """Our own judgement of a request charges nothing."""
    if call.admission is not None:
        call.admission.refund()
        call.standing = None


def _hide(exchange: Exchange, token: str) -> None:
    # The log line repeats these two of what the client sent; its token may stand in either.
    if not token:
        return
    if token in exchange.path:
        exchange.path = exchange.path.replace(token, "[redacted]")
    if token in exchange.id:
        exchange.id = os.urandom(12).hex()


def _expects_continue(head: RequestHead) -> bool:
    expect = head.index.single(b"expect")
    if expect is None:
        return False
    if expect.lower() != b"100-continue":
        raise InvalidRequestError("The only expectation understood here is 100-continue.")
    return True


def _client_framing(answer: Answer, call: Call, *, is_translated: bool) -> Framing:
    if answer.framing == "none":
        return "none"
    if answer.framing == "length" and not is_translated:
        return "length"
    return "close" if call.is_old else "chunked"


def _ending_of(error: ProxyError) -> Ending:
    if isinstance(error, UpstreamTimeoutError):
        return {
            "connect": Ending.TIMEOUT_CONNECT,
            "first_byte": Ending.TIMEOUT_FIRST_BYTE,
            "total": Ending.TIMEOUT_TOTAL,
        }[error.clock]
    if isinstance(error, UpstreamUnreachableError | UpstreamProtocolError):
        return Ending.UPSTREAM_ERROR
    return Ending.REFUSED
