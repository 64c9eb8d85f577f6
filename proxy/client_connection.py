"""A client's connection: HTTP/1.1 as RFC 9112 has it, one request at a time.

`request_parser` parses. Here are: the one task in which the connection's requests are served, the clocks for a head and
for an answer that nobody takes, the bound on what waits, the end of a client that half-closes, and the relay's back
pressure. What is sent is written by others, to `transport`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Protocol, cast

from proxy.errors import HeaderTooLargeError, InvalidRequestError, ProxyError, RequestTimeoutError
from proxy.exchange import Ending
from proxy.logs import log_failure
from proxy.request_parser import RequestParser
from proxy.sockets import has_left

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.clocks import Clocks
    from proxy.phases.accept import ClientConnection as AnyConnection
    from proxy.phases.accept import Incoming, Relay
    from proxy.phases.answer import Settled
    from proxy.request_body import RequestBody

# Above this much unsent the upstream is paused. One read of the upstream is up to 256,000 bytes, over TLS 256 KiB: only
# with nothing else waiting do they stay within the promised 256 KiB. uvloop then writes at once, too, not in the next
# turn of its loop.
HIGH_WATER_BYTES = 0
# How long what a refused client still sends is read away, so that it sees the answer instead of a reset.
LINGER_S = 2.0
# How long the end of a broken answer is held back after an event that says why. Chromium drops what the page has not
# read of a body that breaks: with the end right behind it, such an event is lost about as often as not.
LAST_WORDS_S = 0.1
# How many requests may wait while one is served. The parser stops between two slices only, and the smallest requests
# have a few dozen bytes.
MAX_WAITING = 16
_SLICE_BYTES = 16 * 1024


class ClientClocks:
    """What a client may take its time for, in seconds; None is off."""

    __slots__ = ("header_s", "keep_alive_s", "write_s")

    def __init__(self, *, header_s: float | None, keep_alive_s: float | None, write_s: float | None) -> None:
        self.header_s = header_s
        self.keep_alive_s = keep_alive_s
        self.write_s = write_s


class Server(Protocol):
    """What a connection needs of its listener."""

    handle: Callable[[Incoming], Awaitable[Settled]]
    refuse_head: Callable[[AnyConnection, ProxyError], Settled]
    clocks: Clocks
    client_clocks: ClientClocks
    # Of one line of a head.
    max_header_bytes: int

    def opened(self, connection: ClientConnection) -> None:
        """It was made."""
        ...

    def closed(self, connection: ClientConnection) -> None:
        """It was lost."""
        ...


class ClientConnection(asyncio.Protocol):
    """One client's connection.

    Holds at most `MAX_WAITING` requests and what one slice brings, `RequestBody`'s bound of a body, and one read.

    Attributes:
        transport: Where answers are written; None once nothing more is to be.
        relay: The answer that is running.
        has_answered: Whether it has been used for a request before.
    """

    __slots__ = (
        "_deadline_s",
        "_drained",
        "_has_begun",
        "_is_broken",
        "_is_held",
        "_is_last",
        "_is_serving",
        "_linger_s",
        "_listener",
        "_loop",
        "_parser",
        "_paused",
        "_requests",
        "_rest",
        "_socket_transport",
        "_task",
        "_unsent",
        "_waiter",
        "has_answered",
        "relay",
        "transport",
    )

    def __init__(self, listener: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.transport: asyncio.Transport | None = None
        self.relay: Relay | None = None
        self.has_answered = False
        self._listener = listener
        self._loop = loop
        # The transport to its very end, when `transport` is None already.
        self._socket_transport: asyncio.Transport | None = None
        self._parser: RequestParser | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        # Those that came and are not served yet; an error where the parser gave up.
        self._requests: deque[Incoming | ProxyError] = deque()
        # What came behind more requests than may wait, not parsed yet.
        self._rest = b""
        self._is_broken = False
        # Whether part of a head is waited for.
        self._has_begun = False
        self._is_serving = False
        self._is_last = False
        self._is_held = False
        self._paused = False
        self._drained: asyncio.Future[None] | None = None
        self._linger_s = LINGER_S
        # What waited for the client when the clock was last set.
        self._unsent = 0
        self._deadline_s: float | None = None

    # asyncio's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The head's clock runs from the accept, so that a silent client is gone as soon as a slow one."""
        # uvloop's transports are none of asyncio's classes.
        self.transport = self._socket_transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._parser = RequestParser(self, self._listener.max_header_bytes)
        self._listener.opened(self)
        self._expect(self._listener.client_clocks.header_s)
        self._task = self._loop.create_task(self._serve())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - every loss is the same
        """The client is gone, and with it the task.

        A running answer ends here and now: until the task runs the upstream may be read once more, and a transport of
        uvloop's that is gone raises when it is written to.
        """
        if self.relay is not None:
            self.relay.finish(Ending.CLIENT_CLOSED)
        self.transport = self._socket_transport = None
        if self._parser is not None:
            self._parser.close()
            self._parser = None
        self._rest = b""
        self._listener.clocks.forget(self)
        self._listener.closed(self)
        self.cancel()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests. Nothing is looked at that follows what could not be parsed."""
        if self._is_broken or self._parser is None:
            return
        if self._rest:
            self._rest += data
        elif len(data) <= _SLICE_BYTES:
            self._parse(data)
        else:
            self._parse_slices(data)
        if (
            not self._has_begun
            and not self._is_serving
            and not self._requests
            # While answers wait to be taken no head is waited for.
            and not self._paused
        ):
            # After an idle pause the head's clock begins with its first byte.
            self._has_begun = True
            if self._deadline_s is None or self.has_answered:
                self._expect(self._listener.client_clocks.header_s)

    def eof_received(self) -> bool:
        """A client that closes its sending half has left; what runs for it ends at once."""
        if (self._is_serving or self._requests) and self._socket_transport is not None:
            if self.relay is not None:
                self.relay.finish(Ending.CLIENT_CLOSED)
            # Not a close, which would first wait for the client to take what is buffered.
            self._socket_transport.abort()
        return False

    def pause_writing(self) -> None:
        """The client does not keep up."""
        self._paused = True
        if self.relay is not None:
            self.relay.pause()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self.relay is not None:
            self.relay.resume()

    # The parser's side.

    def arrived(self, request: Incoming | ProxyError) -> None:
        """A request's head is there: it can be served while its body arrives. An error where the parser gave up."""
        self._requests.append(request)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # The clocks' side.

    def check(self, now_s: float) -> None:
        """Asked by the clocks while no request is being served, and while nothing more is read from the client."""
        transport = self._socket_transport
        if transport is None:
            return
        if self._is_held and not transport.is_closing():
            # Its leaving is behind what it sent.
            if has_left(transport.get_extra_info("socket")):
                transport.abort()
                return
        elif self._deadline_s is None:
            self._listener.clocks.forget(self)
        if self._deadline_s is None or now_s < self._deadline_s:
            return
        unsent = transport.get_write_buffer_size()
        if not transport.is_closing() and unsent < self._unsent:
            # Slow, but it takes what it is sent.
            self._unsent = unsent
            clocks = self._listener.client_clocks
            self._expect(clocks.write_s if unsent else clocks.keep_alive_s)
            return
        if transport.is_closing() or unsent:
            transport.abort()
            return
        if self._has_begun:
            # Part of a head: say why, and go. A client that said nothing is told nothing.
            self._listener.refuse_head(self, RequestTimeoutError())
        self.close()

    # The body's side.

    def hold(self) -> None:
        """Read no more of the client."""
        if not self._is_held and self._socket_transport is not None and not self._socket_transport.is_closing():
            self._is_held = True
            self._socket_transport.pause_reading()
            self._listener.clocks.watch(self)

    def read_on(self) -> None:
        """Parse what is held, and read on, unless requests or a body stand against it."""
        while self._rest and not self._is_too_much():
            data, self._rest = self._rest, b""
            self._parse_slices(data)
        if self._is_held and not self._is_too_much() and self._socket_transport is not None:
            self._is_held = False
            if not self._socket_transport.is_closing():
                self._socket_transport.resume_reading()

    # The listener's and the pipeline's side.

    def cut(self) -> None:
        """Close at once."""
        if self._socket_transport is not None:
            self._socket_transport.abort()

    def close(self) -> None:
        """Close once what was written has left; nothing more is written. Idempotent."""
        self._is_broken = True
        transport, self.transport = self.transport, None
        if transport is not None:
            transport.close()

    def cancel(self) -> None:
        """Cancel the task in which the connection's requests are served."""
        if self._task is not None:
            self._task.cancel()

    def discard_rest(self, *, linger: bool) -> None:
        """The answer just written is the last: end our sending half, and read away for a moment what still comes."""
        self._is_last = True
        if not linger:
            self._linger_s = 0.0

    # Inside: serving.

    async def _serve(self) -> None:  # noqa: PLR0912 - the order of a request's life, in one place and one frame
        """Serve the requests one after another, all in this task: streams are held by the thousand."""
        while self.transport is not None:
            if not self._requests:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            request = self._requests.popleft()
            self._deadline_s = None
            self._has_begun = False
            self._is_serving = True
            if self._is_held:
                self.read_on()
            try:
                if isinstance(request, ProxyError):
                    settled = self._listener.refuse_head(self, request)
                else:
                    settled = await self._listener.handle(request)
            except asyncio.CancelledError:
                self.close()
                raise
            except Exception:  # noqa: BLE001 - what the pipeline did not catch it cannot answer either
                log_failure("")
                break
            finally:
                self._is_serving = False
                self.has_answered = True
            body = None if isinstance(request, ProxyError) else request.content
            if self._paused or self._is_last or (body is not None and not body.is_complete):
                await self._part(body)
            else:
                self._expect(self._listener.client_clocks.keep_alive_s)
            if settled.ended_in_words:
                await asyncio.sleep(LAST_WORDS_S)
            if not settled.keep_alive:
                break
            if self._requests:
                # Refusals wait for nothing: thousands that came in one read would be served in one turn of the loop.
                await asyncio.sleep(0)
        self.close()

    async def _part(self, body: RequestBody | None) -> None:
        """After an answer: let the client take it, and read away what is left of its request."""
        transport = self.transport
        if transport is None:
            return
        if self._is_last and transport.can_write_eof():
            transport.write_eof()
        clocks = self._listener.client_clocks
        self._unsent = transport.get_write_buffer_size()
        if self._paused:
            # The next request has to wait: who asks and asks but takes no answer would fill the memory with them.
            self._expect(clocks.write_s)
            await self._drain()
            self._unsent = transport.get_write_buffer_size()
        self._expect(clocks.write_s if self._unsent else clocks.keep_alive_s)
        if body is not None and not body.is_complete:
            with contextlib.suppress(TimeoutError, InvalidRequestError):
                async with asyncio.timeout(self._linger_s):
                    while not body.is_complete:
                        await body.read()
            if not body.is_complete:
                self.close()

    async def _drain(self) -> None:
        while self._paused:
            self._drained = self._loop.create_future()
            await self._drained

    def _expect(self, within_s: float | None) -> None:
        if within_s is None:
            self._deadline_s = None
        else:
            clocks = self._listener.clocks
            self._deadline_s = clocks.now() + within_s
            clocks.watch(self)

    # Inside: parsing.

    def _parse_slices(self, data: bytes) -> None:
        view = memoryview(data)
        for begin in range(0, len(data), _SLICE_BYTES):
            if self._is_broken or self._parser is None:
                return
            if self._is_too_much():
                self._rest = data[begin:]
                self.hold()
                return
            self._parse(view[begin : begin + _SLICE_BYTES])

    def _parse(self, data: bytes | memoryview) -> None:
        assert self._parser is not None
        try:
            self._parser.feed(data)
        except (InvalidRequestError, HeaderTooLargeError) as error:
            self._break(error)
        else:
            if len(self._requests) > MAX_WAITING:
                self.hold()

    def _is_too_much(self) -> bool:
        body = None if self._parser is None else self._parser.body
        return len(self._requests) > MAX_WAITING or (body is not None and body.is_full)

    def _break(self, error: ProxyError) -> None:
        """Nothing more can be parsed: the request whose body it was is told, or the next answer says so."""
        self._is_broken = True
        body = None if self._parser is None else self._parser.body
        if body is None:
            self.arrived(error)
            return
        self._linger_s = 0.0
        if self._is_last and not self._is_serving:
            # Answered already, and only read away: that ends.
            body.end()
        else:
            body.fail(error)
