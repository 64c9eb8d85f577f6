"""The server's side of a client's connection: aiohttp's, with what it lacks for the open internet.

aiohttp parses requests and keeps their connections. Here are: one task a connection, a clock for the request's
head and one for the answer that nobody takes, the end of a client that half-closes, quiet and JSON answers to what
cannot be parsed, and the relay's back pressure.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.http_parser import HttpRequestParser
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from proxy.errors import InvalidRequestError, RequestTimeoutError
from proxy.exchange import Ending
from proxy.logs import log_failure
from proxy.phases.accept import Incoming
from proxy.sockets import has_left, hold_little, notice_vanishing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.streams import StreamReader

    from proxy.clocks import Clocks
    from proxy.errors import ProxyError
    from proxy.phases.accept import ClientConnection as AnyConnection
    from proxy.phases.accept import Relay
    from proxy.phases.answer import Settled

# Above this much unsent the upstream is paused. One read of the upstream is up to 256,000 bytes, over TLS 256 KiB: only
# with nothing else waiting do they stay within the promised 256 KiB. uvloop then writes at once, too, not in the next
# turn of its loop.
HIGH_WATER_BYTES = 0
# How long what a refused client still sends is read away, so that it sees the answer instead of a reset.
LINGER_S = 2.0
# How long the end of a broken answer is held back after an event that says why. Chromium drops what the page has not
# read of a body that breaks: with the end right behind it, such an event is lost about as often as not.
LAST_WORDS_S = 0.1
_MAX_LINE_BYTES = 8190
_MAX_FIELDS = 100
# What may come between two bytes of a body: chunk sizes, extensions, trailers. The parser does not bound extensions.
_MAX_OVERHEAD_BYTES = 64 * 1024


class ClientClocks:
    """What a client may take its time for, in seconds; None is off."""

    __slots__ = ("header_s", "keep_alive_s", "write_s")

    def __init__(self, *, header_s: float | None, keep_alive_s: float | None, write_s: float | None) -> None:
        self.header_s = header_s
        self.keep_alive_s = keep_alive_s
        self.write_s = write_s


class Listener(web.Server):
    """Makes a `ClientConnection` for each client."""

    def __init__(
        self,
        handle: Callable[[Incoming], Awaitable[Settled]],
        refuse_head: Callable[[AnyConnection, ProxyError], Settled],
        *,
        clocks: Clocks,
        client_clocks: ClientClocks,
    ) -> None:
        # aiohttp's own handler is never called: connections call `handle`.
        super().__init__(cast("Any", handle), handler_cancellation=True)
        self.handle = handle
        self.refuse_head = refuse_head
        self.clocks = clocks
        self.client_clocks = client_clocks
        self.open: set[ClientConnection] = set()
        self._emptied: asyncio.Event | None = None

    def __call__(self) -> RequestHandler:
        """A new connection's protocol."""
        return ClientConnection(self, asyncio.get_running_loop())

    def hang_up(self) -> None:
        """Close every connection once what was written to it has left."""
        for connection in list(self.open):
            connection.force_close()

    def cut(self) -> None:
        """Close every connection that is left, whatever waits in it."""
        for connection in list(self.open):
            connection.cut()

    async def empty(self) -> None:
        """Wait until no connection is left."""
        while self.open:
            self._emptied = asyncio.Event()
            await self._emptied.wait()

    def opened(self, connection: ClientConnection) -> None:
        """Called by a connection that was made."""
        self.open.add(connection)

    def closed(self, connection: ClientConnection) -> None:
        """Called by a connection that was lost."""
        self.open.discard(connection)
        if not self.open and self._emptied is not None:
            self._emptied.set()


class ClientConnection(RequestHandler):
    """One client's connection."""

    __slots__ = (
        "_arrived",
        "_arriving",
        "_deadline_s",
        "_has_begun",
        "_is_broken",
        "_is_last",
        "_listener",
        "_overhead",
        "_socket_transport",
        "_unsent",
        "has_answered",
        "relay",
    )

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            listener,
            loop=loop,
            # None of aiohttp's: ours, in `check`, knows of heads too.
            keepalive_timeout=0,
            tcp_keepalive=False,
            logger=logging.getLogger("proxy.listener"),
            access_log=cast("Any", None),
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
            max_headers=_MAX_FIELDS,
            lingering_time=LINGER_S,
            auto_decompress=False,
        )
        self.relay: Relay | None = None
        self.has_answered = False
        self._listener = listener
        self._socket_transport: asyncio.Transport | None = None
        self._has_begun = False
        self._is_last = False
        # The body of the request that was parsed last, whether or not it is served yet.
        self._arriving: StreamReader | None = None
        self._arrived = 0
        self._overhead = 0
        self._is_broken = False
        # What waited for the client when the clock was last set.
        self._unsent = 0
        self._deadline_s: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The head's clock runs from the accept, so that a silent client is gone as soon as a slow one."""
        super().connection_made(transport)
        self._listener.opened(self)
        self._socket_transport = cast("asyncio.Transport", transport)
        self._socket_transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        sock = transport.get_extra_info("socket")
        notice_vanishing(sock)
        hold_little(sock)
        self._expect(self._listener.client_clocks.header_s)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone; aiohttp cancels the handler.

        A running answer ends here and now: until the handler's task runs the upstream may be read once more, and a
        transport of uvloop's that is gone raises when it is written to.
        """
        if self.relay is not None:
            self.relay.finish(Ending.CLIENT_CLOSED)
        self._listener.clocks.forget(self)
        self._listener.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request: after an idle pause the head's clock begins with the first of them.

        aiohttp queues a parser's error behind the request whose body broke, and leaves that request waiting for the
        rest of it. Here the body itself is told, and nothing that follows is looked at.
        """
        if self._is_broken:
            return
        # Called without data by aiohttp itself, to parse on; and while answers wait to be taken no head is waited for.
        if data and not self._request_in_progress and not self._has_begun and not self._paused:
            self._has_begun = True
            if self._deadline_s is None or self._request_count:
                self._expect(self._listener.client_clocks.header_s)
        count = len(self._messages)
        super().data_received(data)
        if self.transport is not None and not self.transport.is_reading():
            # It sent more than is held for it. Its leaving is behind that, and is looked for by `check`.
            self._listener.clocks.watch(self)
        if len(self._messages) > count:
            self._look_at(*self._messages[-1])
        elif self._arriving is not None and not self._arriving.is_eof():
            self._bound_overhead(self._arriving, len(data))

    def eof_received(self) -> None:
        """A client that closes its sending half has left, as for aiohttp; what runs for it ends at once."""
        if self._request_in_progress and self.transport is not None:
            if self.relay is not None:
                self.relay.finish(Ending.CLIENT_CLOSED)
            # Not a close, which would first wait for the client to take what is buffered.
            self.transport.abort()

    def pause_writing(self) -> None:
        """The client does not keep up."""
        super().pause_writing()
        if self.relay is not None:
            self.relay.pause()

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        if self.relay is not None:
            self.relay.resume()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT002 - aiohttp's signature
        """Read on, if reading was paused: aiohttp asks for it after every piece of a body, and would parse nothing."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def check(self, now_s: float) -> None:
        """Asked by the clocks while no request is being served, and while nothing more is read from the client."""
        transport = self._socket_transport
        if transport is None:
            return
        if not transport.is_closing() and not transport.is_reading():
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
        self.force_close()

    def cut(self) -> None:
        """Close at once."""
        if self._socket_transport is not None:
            self._socket_transport.abort()

    def cancel(self) -> None:
        """Cancel the task in which the connection's requests are served."""
        if self._task_handler is not None:
            self._task_handler.cancel()

    def discard_rest(self, *, linger: bool) -> None:
        """The answer just written is the last: end our sending half, and read away for a moment what still comes."""
        self._is_last = True
        if not linger:
            self._lingering_time = 0.0

    async def start(self) -> None:
        """Serve the connection's requests one after another, all in this task.

        aiohttp's own makes a task for each request, and keeps the parsed head while it is served; streams are held by
        the thousand, and neither is needed.
        """
        while not self._force_close:
            if not self._messages:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            if not await self._serve_next() or self._close:
                break
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _serve_next(self) -> bool:
        """Serve the request that came first, and say whether another may follow."""
        request = self._take()
        if self.transport is None or self.transport.is_reading():
            self._listener.clocks.forget(self)
        self._deadline_s = None
        self._has_begun = False
        self._request_in_progress = True
        try:
            if request is None:
                settled = self._listener.refuse_head(self, InvalidRequestError())
            else:
                settled = await self._listener.handle(request)
        except asyncio.CancelledError:
            self.force_close()
            raise
        except Exception:  # noqa: BLE001 - what the pipeline did not catch it cannot answer either
            log_failure("")
            self.force_close()
            return False
        finally:
            self._request_in_progress = False
            self.has_answered = True
        await self._part(None if request is None else request.content)
        if self._upgraded and not self._messages and self._parser is not None:
            # It asked for another protocol and did not get it: what follows is a request like any other.
            self._parser.set_upgraded(False)
            self._upgraded = False
            tail, self._message_tail = self._message_tail, b""
            if tail:
                self.data_received(tail)
        if settled.ended_in_words:
            await asyncio.sleep(LAST_WORDS_S)
        return settled.keep_alive

    def _take(self) -> Incoming | None:
        """The request that came first, None where the parser failed; lets the parser go on."""
        message, payload = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        if isinstance(message, _ErrInfo):
            return None
        return Incoming.of(message, payload, self)

    async def _part(self, body: StreamReader | None) -> None:
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
            with contextlib.suppress(ConnectionError):
                await self._drain_helper()
            self._unsent = transport.get_write_buffer_size()
        self._expect(clocks.write_s if self._unsent else clocks.keep_alive_s)
        if body is not None and not body.is_eof():
            with contextlib.suppress(TimeoutError, InvalidRequestError, RequestPayloadError):
                async with asyncio.timeout(self._lingering_time):
                    while not body.is_eof():
                        await body.readany()
            if not body.is_eof():
                self.close()

    def _look_at(self, message: object, payload: StreamReader) -> None:
        """Remember the body of a request that was just parsed, or tell the last one that the parser gave up."""
        if not isinstance(message, _ErrInfo):
            self._arriving = payload
            self._arrived = self._overhead = 0
            return
        self._is_broken = True
        body = self._arriving
        if body is not None and not body.is_eof() and self._waiter is None:
            self._messages.pop()
            self._break_off(body)

    def _bound_overhead(self, body: StreamReader, size: int) -> None:
        if body.total_bytes != self._arrived:
            self._arrived = body.total_bytes
            self._overhead = 0
            return
        self._overhead += size
        if self._overhead > _MAX_OVERHEAD_BYTES:
            self._break_off(body)

    def _break_off(self, body: StreamReader) -> None:
        """Nothing more of `body` can be read: whoever reads it is told, now or when its turn comes."""
        self._is_broken = True
        self._lingering_time = 0.0
        if self._is_last and not self._request_in_progress:
            # Answered already, and only read away: that ends.
            body.feed_eof()
        else:
            body.set_exception(InvalidRequestError())

    def _expect(self, within_s: float | None) -> None:
        if within_s is None:
            self._deadline_s = None
            self._listener.clocks.forget(self)
        else:
            self._deadline_s = self._listener.clocks.now() + within_s
            self._listener.clocks.watch(self)


def assert_compiled_parser() -> None:
    """Refuse to start on aiohttp's parser in Python, which is slower and has had holes of its own.

    Raises:
        RuntimeError: the compiled one is missing or was switched off.
    """
    if HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise RuntimeError("aiohttp's compiled HTTP parser is required; unset AIOHTTP_NO_EXTENSIONS")
