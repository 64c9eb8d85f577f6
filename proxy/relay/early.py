"""The early response: 200 and heartbeats while a vendor is silent, and what then becomes of the vendor's response.

Reasoning models think for minutes before they send a head, and what stands between cuts silent connections after one.
The price is the vendor's status and fields: they come too late to be passed on, so whatever goes wrong from here on is
told in the stream. Only for requests whose response is an event stream, and only where the operator asks for it, except
for tickets, whose responses are always 200.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web

from proxy.dialects import DIALECTS
from proxy.dialects.typed.reader import UNKNOWN_CODE, Failure, UnreadableError
from proxy.errors import UpstreamProtocolError, UpstreamTimeoutError
from proxy.model import Ending
from proxy.protocol.header_fields import STREAM_FIELDS, is_encoded
from proxy.protocol.sse_observer import BYTE_ORDER_MARK, is_event_stream
from proxy.protocol.typed_events import TypedEncoder
from proxy.relay.response import RelayResponse
from proxy.relay.without_usage import ResponseWithoutUsage

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from proxy.errors import ProxyError
    from proxy.exchange import Exchange
    from proxy.model import Route
    from proxy.protocol.json_text import Steps
    from proxy.upstream import UpstreamResponse

# For tickets where no heartbeat is configured: below the 60 s after which common balancers cut.
TICKET_INTERVAL_S: Final = 15.0
# How much of a vendor's error is read to be told in the stream, and for how long.
MAX_ERROR_BYTES: Final = 16 * 1024
_ERROR_S: Final = 5.0

# The early response of a request, for whoever has to end it.
EARLY: Final = web.RequestKey("early", RelayResponse)


def early_interval_s(request: web.Request, exchange: Exchange, route: Route) -> Steps[float | None]:
    """After how much silence the response begins without the vendor's, and is kept alive; None for never.

    Yields after each piece of a large body.
    """
    if not (exchange.is_in_band or (exchange.rules.early_heartbeat and route.heartbeat_s is not None)):
        return None
    # A client of HTTP/1.0 could not be told that a response breaks off.
    dialect = DIALECTS[route.dialect]
    if request.version < (1, 1) or not dialect.heartbeat_allowed:
        return None
    if exchange.is_in_band:
        return route.heartbeat_s or TICKET_INTERVAL_S
    asks = yield from dialect.asks_for_stream(route.method, route.fields, route.body)
    return route.heartbeat_s if asks else None


class EarlyResponse:
    """Waits for the vendor's response, and begins the client's before it where that is wanted.

    Attributes:
        response: The client's, once its head has left.
    """

    def __init__(
        self, request: web.Request, exchange: Exchange, *, interval_s: float, deadline_s: float | None
    ) -> None:
        """`interval_s` is how long a silence may be, `deadline_s` when `total` runs out; None for never."""
        self.response: RelayResponse | None = None
        self._deadline_s = deadline_s
        self._request = request
        self._exchange = exchange
        self._interval_s = interval_s

    async def reach(self, connecting: Coroutine[Any, Any, UpstreamResponse]) -> UpstreamResponse | None:
        """Await the vendor's response, and keep the client's alive meanwhile.

        Where the vendor is in time, its response is as if nobody had waited. Where it is not, and its response is no
        event stream, the client is told what it is, and the result is None. Cancelling closes the upstream's connection
        before it is passed on.

        Raises:
            ProxyError: as `connect` does; the early response may have begun.
            UpstreamProtocolError: a stream that was to follow heartbeats is compressed.
            UpstreamTimeoutError: the body did not begin before `idle` or `total` was over.
        """
        task = asyncio.get_running_loop().create_task(connecting)
        try:
            await self._wait(task, self._interval_s)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is None:
                task.result().abort()
            raise
        upstream = task.result()
        try:
            if self.response is not None and _is_stream(upstream):
                await self._await_first_bytes(upstream, self._interval_s)
            elif self.response is not None and not self._exchange.is_in_band:
                await self._tell(upstream, self.response)
                return None
        except BaseException:
            upstream.abort()
            raise
        return upstream

    async def _wait(self, waited: asyncio.Future[Any], interval_s: float, *, ends_s: float | None = None) -> None:
        """Wait for a future, for ever or until `ends_s`, with a heartbeat at each interval."""
        now = asyncio.get_running_loop().time
        while not waited.done():
            left_s = interval_s if ends_s is None else min(interval_s, ends_s - now())
            if left_s <= 0:
                return
            done, _ = await asyncio.wait([waited], timeout=left_s)
            if not done and (ends_s is None or now() < ends_s):
                await self._beat()

    async def _beat(self) -> None:
        """Begin the response, or keep it alive; not for a client that is behind, nor for one that is gone."""
        exchange = self._exchange
        response = self.response
        if response is None:
            route = exchange.checked_route
            response = self.response = (ResponseWithoutUsage if route.asks_usage else RelayResponse)(
                status=200, headers=[("Content-Type", "text/event-stream"), *STREAM_FIELDS], framing="chunked"
            )
            exchange.early_target, exchange.typed_names = route.target, route.typed_names
            exchange.status = 200
            self._request[EARLY] = response
            await response.begin(self._request)
        response.ping()

    async def _await_first_bytes(self, upstream: UpstreamResponse, interval_s: float) -> None:
        """Wait for the stream's first bytes, and take a byte order mark off: it may stand at the very beginning only.

        Raises:
            UpstreamProtocolError: they are compressed: heartbeats are not.
            UpstreamTimeoutError: they did not come before `idle` or `total` was over.
        """
        if is_encoded(upstream.index):
            raise UpstreamProtocolError("The upstream compressed its stream, which has begun uncompressed.")
        loop = asyncio.get_running_loop()
        begin = _Body(upstream, enough=len(BYTE_ORDER_MARK))
        idle_s, deadline_s = self._exchange.checked_route.timeouts.idle_s, self._deadline_s
        ends = [] if idle_s is None else [(loop.time() + idle_s, "idle")]
        ends_s, clock = min(ends if deadline_s is None else [*ends, (deadline_s, "total")], default=(None, "idle"))
        await self._wait(begin.done, interval_s, ends_s=ends_s)
        if not begin.done.done():
            raise UpstreamTimeoutError("idle" if clock == "idle" else "total")
        upstream.sink = None
        upstream.held = bytes(begin.data).removeprefix(BYTE_ORDER_MARK)

    async def _tell(self, upstream: UpstreamResponse, response: RelayResponse) -> None:
        """Tell in the stream what the vendor has answered instead of one, in its own words where they can be read.

        Raises:
            UpstreamProtocolError: it is no error either.
        """
        if upstream.status < 400:  # noqa: PLR2004 - RFC 9110 §15: the error classes
            raise UpstreamProtocolError("The upstream's answer is no event stream.")
        value: object = None
        if not is_encoded(upstream.index):
            body = _Body(upstream, enough=MAX_ERROR_BYTES)
            await asyncio.wait([body.done], timeout=_ERROR_S)
            with contextlib.suppress(orjson.JSONDecodeError):
                value = orjson.loads(body.data) if len(body.data) <= MAX_ERROR_BYTES else None
        upstream.abort()
        exchange, route = self._exchange, self._exchange.checked_route
        exchange.ending = Ending.UPSTREAM_ERROR
        dialect = DIALECTS[route.dialect]
        failure = Failure(UNKNOWN_CODE, f"The upstream answered with status {upstream.status}.")
        event: bytes | None = None
        if isinstance(value, dict):
            failure = _failure(route, value) or failure
            event = dialect.vendor_error_event(upstream.status, value)
        if exchange.typed_names is not None:
            response.conclude(TypedEncoder(exchange.typed_names).error(*failure), is_clean=True)
        else:
            event = event or dialect.error_event(*failure, route.target)
            response.conclude(event or b"", is_clean=False)


def _is_stream(upstream: UpstreamResponse) -> bool:
    is_success = 200 <= upstream.status < 300  # noqa: PLR2004 - RFC 9110 §15.3
    return is_success and upstream.framing != "none" and is_event_stream(upstream.index.get(b"content-type"))


def _failure(route: Route, value: dict[str, Any]) -> Failure | None:
    """What the vendor's error says, as the dialect's reader would understand it in a stream."""
    reader = DIALECTS[route.dialect].reader(b"")
    if reader is None:
        return None
    try:
        reader.read(b"error", value)
    except UnreadableError:
        return None
    return reader.failure


class _Body:
    """Takes a response's body until it has enough of it, or all; then the upstream is not read.

    `done` is set then, and where the body breaks off.
    """

    allows_fast_path = False

    def __init__(self, upstream: UpstreamResponse, *, enough: int) -> None:
        self.data = bytearray()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._upstream = upstream
        self._enough = enough
        upstream.attach(self)
        if self.done.done():
            # `attach` lets the upstream be read, after it has given what was held.
            upstream.pause()

    def event(self, data: bytes, payload_bytes: int) -> None:
        """Never called: `allows_fast_path` is False."""

    def body(self, data: bytes, *, is_last: bool = False) -> None:
        """Take one read."""
        self.data += data
        if is_last or len(self.data) >= self._enough:
            self._upstream.pause()
            self._finish()

    def failed(self, error: ProxyError) -> None:  # noqa: ARG002 - the response keeps it for whoever takes the rest
        """The body broke off."""
        self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
