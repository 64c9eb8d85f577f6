"""The life of a request, top to bottom: accept, authenticate, resolve, limit, receive, connect, relay, settle.

Each phase takes values and gives values; this is the one place that knows their order. What is refused is refused as
early as what has arrived allows: nothing is read, charged or forwarded for somebody who does not belong.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from proxy.auth.credentials import find_credential
from proxy.dialects import DIALECTS
from proxy.errors import (
    BodyTooLargeError,
    DrainingError,
    InvalidRequestError,
    MissingTokenError,
    ProxyError,
    RequestTimeoutError,
    UnknownUpstreamError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
    refusal,
)
from proxy.exchange import Ending, Exchange
from proxy.limits.fields import rate_limit_fields
from proxy.logs import log_failure
from proxy.phases.accept import accept, exchange_id
from proxy.phases.answer import Settled, date, write_answer
from proxy.phases.connect import connect
from proxy.phases.receive import receive
from proxy.phases.relay import Relay
from proxy.phases.settle import settle
from proxy.protocol import cors
from proxy.protocol.fields import single, to_client
from proxy.protocol.heads import render_response
from proxy.protocol.sse import EventStreamObserver, is_event_stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aiohttp.web import BaseRequest

    from proxy.auth.authenticator import Authenticator
    from proxy.clocks import Clocks
    from proxy.errors import Field
    from proxy.exchange import Principal, RequestHead, Route
    from proxy.limits.store import Admission, Standing, Store
    from proxy.metrics import Metrics
    from proxy.phases.receive import BodyReader
    from proxy.phases.relay import Framing
    from proxy.phases.resolve import Destination, Router
    from proxy.protocol.cors import CorsPolicy
    from proxy.upstream.addresses import Address
    from proxy.upstream.connection import Answer
    from proxy.upstream.pool import Pool

_STREAM_FIELDS: tuple[Field, ...] = (
    (b"Cache-Control", b"no-cache, no-transform"),
    (b"X-Accel-Buffering", b"no"),
)
_HEALTH_PATHS = ("/healthz", "/readyz")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientConnection(Protocol):
    """What the pipeline needs of the server's connection to a client."""

    transport: asyncio.Transport | None
    relay: Relay | None

    def discard_rest(self, *, linger: bool) -> None:
        """Read no further request: the answer is the last. With `linger` what the client still sends is read away."""
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """What one configuration says; a reload replaces the whole, and running exchanges keep theirs."""

    authenticator: Authenticator | None
    anonymous: Principal
    query_token: bool
    envelope_passcode: bool
    store: Store
    router: Router
    cors: CorsPolicy
    resolve: Callable[[Route], Awaitable[Sequence[Address]]]
    max_body_bytes: int
    body_timeout_s: float | None
    write_timeout_s: float | None


@dataclass(slots=True, eq=False)
class _Call:
    """One request on its way; what the phases have found so far."""

    rules: Rules
    request: BaseRequest | None
    client: ClientConnection
    exchange: Exchange
    task: asyncio.Task[object] | None
    is_last: bool
    is_old: bool = False
    head: RequestHead | None = None
    origin: bytes | None = None
    admission: Admission | None = None
    standing: Standing | None = None
    has_body: bool = False

    @property
    def is_body_arriving(self) -> bool:
        """Whether more of the body may come: then this answer is the connection's last."""
        return self.has_body and self.request is not None and not self.request.content.is_eof()

    def interrupt(self, ending: Ending) -> None:
        """End it from outside: a drain that is over, or somebody who stops it."""
        if self.client.relay is not None and self.client.relay.ending is None:
            self.client.relay.finish(ending)
        elif self.exchange.interrupted_as is None and self.exchange.ending is None:
            self.exchange.interrupted_as = ending
            if self.task is not None:
                self.task.cancel()


class Pipeline:
    """Serves requests by the rules of the moment. One a worker."""

    def __init__(self, rules: Rules, *, pool: Pool, clocks: Clocks, metrics: Metrics) -> None:
        self.rules = rules
        self.is_draining = False
        self.health: Callable[[str], tuple[int, bytes, bytes] | None] = lambda _path: None
        self._pool = pool
        self._clocks = clocks
        self._metrics = metrics
        self._calls: set[_Call] = set()
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

    async def handle(self, request: BaseRequest) -> Settled:
        """Serve one request, from its head to its settlement.

        Cancelling it is the client leaving: the upstream's connection is closed before this returns.
        """
        if request._message.path.startswith(_HEALTH_PATHS):  # noqa: SLF001 - as below
            settled = self._health(request)
            if settled is not None:
                return settled
        message = request._message  # noqa: SLF001 - the raw head, which the public properties decode and re-quote
        task = cast("asyncio.Task[object]", asyncio.current_task())
        exchange = Exchange(exchange_id(message.raw_headers), self._clocks.now(), message.method)
        client = cast("ClientConnection", request.protocol)
        call = _Call(
            self.rules, request, client, exchange, task, message.should_close, is_old=message.version.minor == 0
        )
        self._calls.add(call)
        self._is_idle.clear()
        try:
            return await self._serve(call)
        except ProxyError as error:
            return self._refuse(call, error)
        except asyncio.CancelledError:
            if exchange.interrupted_as is None or task.uncancel() > 0:
                exchange.ending = exchange.ending or Ending.CLIENT_CLOSED
                raise
            return self._interrupted(call, exchange.interrupted_as)
        except Exception:
            # Ours to mend: the client is told that, the log where it was, neither what was being handled.
            log_failure(exchange.id)
            return self._refuse(call, ProxyError())
        finally:
            if call.admission is not None:
                call.admission.lease.release()
            self._calls.discard(call)
            if not self._calls:
                self._is_idle.set()
            settle(exchange, now_s=self._clocks.now(), metrics=self._metrics)

    def refuse_head(self, client: ClientConnection, error: ProxyError) -> Settled:
        """Refuse what never became a request: it could not be parsed, or did not arrive in time. None of it is repeated."""
        exchange = Exchange(exchange_id(()), self._clocks.now())
        settled = self._refuse(_Call(self.rules, None, client, exchange, None, is_last=True), error)
        settle(exchange, now_s=self._clocks.now(), metrics=self._metrics)
        return settled

    def _health(self, request: BaseRequest) -> Settled | None:
        message = request._message  # noqa: SLF001 - as above
        reply = self.health(message.path.partition("?")[0])
        if reply is None or message.method not in {"GET", "HEAD"}:
            return None
        status, content_type, body = reply
        origin = cors.request_origin(message.raw_headers)
        return write_answer(
            cast("ClientConnection", request.protocol).transport,
            status,
            ((b"Content-Type", content_type), *self.rules.cors.answer_fields(origin)),
            body,
            keep_alive=not message.should_close and request.content.is_eof(),
            is_head_request=message.method == "HEAD",
        )

    async def _serve(self, call: _Call) -> Settled:
        rules, request, exchange = call.rules, call.request, call.exchange
        assert request is not None
        message = request._message  # noqa: SLF001 - as above

        # Accept. A page may read the refusal of its malformed head, too.
        call.origin = cors.request_origin(message.raw_headers)
        exchange.path = message.path.partition("?")[0].encode("utf-8", "surrogateescape").decode("latin-1")
        head, framing, length = accept(
            message.method,
            message.path.encode("utf-8", "surrogateescape"),
            (message.version.major, message.version.minor),
            message.raw_headers,
        )
        call.head = head
        call.has_body = framing != "none"
        exchange.path = head.path.decode("latin-1")
        if cors.is_preflight(head.method, head.fields):
            return self._preflight(call)
        if self.is_draining:
            raise DrainingError
        expects_continue = _expects_continue(head)

        # Authenticate. Which upstreams exist is nobody's business who has not.
        fault: ProxyError | None = None
        destination: Destination | None = None
        try:
            destination = rules.router.by_head(head)
            exchange.dialect = destination.dialect_name
            exchange.upstream = None if destination.upstream is None else destination.upstream.name
        except (UnknownUpstreamError, InvalidRequestError) as error:
            fault = error
        dialect = DIALECTS[exchange.dialect]
        token = find_credential(head, gemini=dialect.query_credential, query_token=rules.query_token)
        if token is not None:
            _hide(exchange, token)
        principal = await _authenticate(rules, token)
        is_passcode_due = principal is None
        if is_passcode_due and not (
            rules.envelope_passcode and destination is not None and destination.may_be_envelope
        ):
            raise MissingTokenError
        if principal is not None:
            exchange.principal = principal
        if fault is not None:
            raise fault
        assert destination is not None
        rules.router.check_head(destination, head)
        if principal is not None:
            rules.router.check_plan(destination, principal)
        if length is not None and length > rules.max_body_bytes:
            raise BodyTooLargeError

        # Limit, before the body where who asks is known.
        if principal is not None:
            await self._limit(call, principal)

        # Receive.
        if expects_continue and framing != "none" and call.client.transport is not None:
            call.client.transport.write(_CONTINUE)
        body = await receive(
            cast("BodyReader", request.content),
            framing,
            length,
            max_bytes=rules.max_body_bytes,
            timeout_s=rules.body_timeout_s,
            clocks=self._clocks,
        )
        if principal is None:
            assert rules.authenticator is not None
            principal = rules.authenticator.authenticate_api_key(rules.router.passcode(body))
            exchange.principal = principal
            await self._limit(call, principal)

        # Resolve.
        try:
            route = rules.router.by_body(destination, head, body, principal)
        except ProxyError:
            # Our own judgement of the body: nothing was forwarded, so nothing is charged.
            assert call.admission is not None
            call.admission.refund()
            call.standing = None
            raise
        exchange.upstream = route.upstream
        exchange.dialect = route.dialect

        # Connect.
        total_s = route.timeouts.total_s
        deadline_s = None if total_s is None else self._clocks.now() + total_s
        answer = await connect(
            route, pool=self._pool, resolve=rules.resolve, clocks=self._clocks, deadline_s=deadline_s
        )

        # Relay.
        return await self._relay(call, route, answer, deadline_s)

    async def _limit(self, call: _Call, principal: Principal) -> None:
        call.admission = await call.rules.store.admit(principal)
        call.standing = call.admission.standing

    async def _relay(self, call: _Call, route: Route, answer: Answer, deadline_s: float | None) -> Settled:
        rules, exchange, client = call.rules, call.exchange, call.client
        transport = client.transport
        if transport is None or transport.is_closing():
            answer.abort()
            exchange.ending = Ending.CLIENT_CLOSED
            return Settled(keep_alive=False)
        framing = _client_framing(answer, call)
        fields = to_client(answer.fields)
        content_type = single(fields, b"content-type")
        fields += self._own_fields(call)
        fields += _STREAM_FIELDS
        if single(fields, b"date") is None:
            fields.append((b"Date", date()))
        if framing == "chunked":
            fields.append((b"Transfer-Encoding", b"chunked"))
        elif answer.length is not None and answer.status != 204:  # noqa: PLR2004 - RFC 9110 §8.6: none on 204
            fields.append((b"Content-Length", b"%d" % answer.length))
        is_watched = is_event_stream(content_type) and single(fields, b"content-encoding") is None
        dialect = DIALECTS[route.dialect]
        relay = Relay(
            answer,
            transport,
            framing=framing,
            observer=EventStreamObserver() if is_watched else None,
            error_event=lambda code, message: dialect.error_event(code, message, route.target),
            now_s=self._clocks.now(),
            idle_s=route.timeouts.idle_s,
            write_s=rules.write_timeout_s,
            deadline_s=deadline_s,
            heartbeat_s=route.heartbeat_s if dialect.heartbeat_allowed else None,
        )
        exchange.status = answer.status
        transport.write(render_response(answer.status, fields))
        client.relay = relay
        self._metrics.stream_began(route.upstream)
        self._clocks.watch(relay)
        try:
            answer.attach(relay)
            ending = await relay.done
        except asyncio.CancelledError:
            relay.finish(Ending.CLIENT_CLOSED)
            # The client left, but the answer may have ended, by itself or by us, in the very same moment.
            exchange.ending = relay.ending
            raise
        finally:
            client.relay = None
            self._clocks.forget(relay)
            self._metrics.stream_ended(route.upstream)
            exchange.bytes = relay.bytes
            exchange.events = relay.events
            exchange.first_byte_s = relay.first_byte_s
        if ending is Ending.COMPLETE and answer.status >= 400:  # noqa: PLR2004 - RFC 9110 §15: the error classes
            ending = Ending.UPSTREAM_ERROR
        exchange.ending = ending
        is_whole = ending in {Ending.COMPLETE, Ending.UPSTREAM_ERROR}
        return Settled(keep_alive=is_whole and framing != "close" and not call.is_last)

    def _preflight(self, call: _Call) -> Settled:
        assert call.head is not None
        fields = call.rules.cors.preflight_fields(
            call.origin,
            single(call.head.fields, b"access-control-request-method") or b"",
            single(call.head.fields, b"access-control-request-headers"),
        )
        call.exchange.ending = Ending.COMPLETE
        return self._write(call, 204, fields, b"")

    def _refuse(self, call: _Call, error: ProxyError) -> Settled:
        exchange = call.exchange
        exchange.code = error.code
        exchange.ending = _ending_of(error)
        if isinstance(error, RequestTimeoutError):
            call.client.discard_rest(linger=False)
        answer = refusal(error, DIALECTS[exchange.dialect])
        must_close = call.head is None or call.is_body_arriving or isinstance(error, DrainingError)
        fields = answer.fields + tuple(self._own_fields(call))
        return self._write(call, answer.status, fields, answer.body, must_close=must_close)

    def _interrupted(self, call: _Call, ending: Ending) -> Settled:
        settled = self._refuse(call, DrainingError()) if ending is Ending.DRAINED else Settled(keep_alive=False)
        if ending is not Ending.DRAINED and call.client.transport is not None:
            call.client.transport.abort()
        call.exchange.ending = ending
        return settled

    def _own_fields(self, call: _Call) -> list[Field]:
        fields: list[Field] = [(b"X-Forward-Sse-Id", call.exchange.id.encode())]
        principal = call.exchange.principal
        if principal is not None:
            fields += rate_limit_fields(call.rules.store.standing(principal) if call.standing is None else call.standing)
        fields += call.rules.cors.answer_fields(call.origin)
        return fields

    def _write(
        self, call: _Call, status: int, fields: Sequence[Field], body: bytes, *, must_close: bool = False
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


def _hide(exchange: Exchange, token: str) -> None:
    # The log line repeats these two of what the client sent; its token may stand in either.
    if token in exchange.path:
        exchange.path = exchange.path.replace(token, "[redacted]")
    if token in exchange.id:
        exchange.id = exchange_id(())


def _expects_continue(head: RequestHead) -> bool:
    expect = single(head.fields, b"expect")
    if expect is None:
        return False
    if expect.lower() != b"100-continue":
        raise InvalidRequestError("The only expectation understood here is 100-continue.")
    return True


def _client_framing(answer: Answer, call: _Call) -> Framing:
    if answer.framing in {"none", "length"}:
        return "none" if answer.framing == "none" else "length"
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
