"""The response of a stream: aiohttp writes its head, the upstream connection's own callback its body.

Between the two sockets there is no task, queue or copy: one read of the upstream is one write to the client, and the
handler's task sleeps until the client falls behind or the body ends. This module owns what may be written once a
response has begun, and how each of its endings looks on the wire.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from aiohttp import hdrs, web

from proxy.model import Ending
from proxy.protocol.sse_observer import PING
from proxy.relay.passthrough import NOTHING_PASSES
from proxy.relay.reset import reset
from proxy.relay.timeouts import NO_TIMEOUTS, Progress, StreamTimeouts
from proxy.relay.transform import ERROR_FOR_ENDING
from proxy.upstream import NOTHING

if TYPE_CHECKING:
    from proxy.errors import ProxyError
    from proxy.relay.transform import StreamError, Transform
    from proxy.timers import DeadlineTimer
    from proxy.upstream import UpstreamResponse
    from proxy.usage import Meter

# How the client learns where the body ends: `none` has no body, `close` is for HTTP/1.0.
Framing = Literal["none", "length", "chunked", "close"]
TextFields: TypeAlias = "list[tuple[str, str]]"

# From this size on a chunk's data costs more to copy between its line and its end than three buffers cost to write.
_COPIED_BYTES: Final = 16_384
# How long the end of a broken body is held back after an event that says why. Chromium drops what the page has not
# read of a body that breaks: with the end right behind it, such an event is lost about as often as not.
_LAST_WORDS_S: Final = 0.1
_NO_CONTENT: Final = 204
# Of every eight events the meter reads all at once: the bits that the last of them has not.
_EIGHTH: Final = 7


class RelayResponse(web.StreamResponse):
    """One running response. Its `ending` comes once; after that nothing of the upstream's is written.

    Bytes go unchanged and in order. While anything waits in the client's write buffer the upstream is not read, so at
    most one read of it (256 KiB) waits. The timers call `check` a few times a second. Neither network failures nor slow
    peers raise: they are endings, because the response has already started.
    """

    __slots__ = (
        "_draining",
        "_eof_begun",
        "_framing",
        "_is_chunked",
        "_is_paused",
        "_is_seldom",
        "_passed_bytes",
        "_passed_events",
        "_progress",
        "_protocol",
        "_received",
        "_sent_error_event",
        "_tail",
        "_timers",
        "_transform",
        "_transport",
        "_upstream",
        "_wake",
        "_written",
        "ending",
        "failure_reason",
        "first_byte_s",
        "has_content_type",
        "meter",
    )

    def __init__(self, *, status: int, headers: TextFields, framing: Framing, length: int | None = None) -> None:
        """`headers` are without framing; those of every response are added by the application."""
        super().__init__(status=status, headers=headers)
        self._upstream: UpstreamResponse = NOTHING
        self._transform: Transform = NOTHING_PASSES
        self._framing = framing
        self._is_chunked = framing == "chunked"
        self._progress = Progress(NO_TIMEOUTS, 0.0)
        self._transport: asyncio.Transport | None = None
        self._protocol: web.RequestHandler | None = None
        self._timers: DeadlineTimer | None = None
        self._wake: asyncio.Future[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        # Of the body. What passes as whole events is counted once, and is both received and written.
        self._received = self._written = self._passed_bytes = self._passed_events = 0
        self._is_paused = self._is_seldom = self._eof_begun = self._sent_error_event = False
        # What is written when the body ends in order; None where it breaks off.
        self._tail: bytes | None = None
        self.meter: Meter | None = None
        self.first_byte_s: float | None = None
        self.ending: Ending | None = None
        self.failure_reason: str | None = None
        # aiohttp adds a type where there is none; the application takes it away again.
        self.has_content_type = hdrs.CONTENT_TYPE in self.headers
        if framing in {"length", "none"} and status != _NO_CONTENT:
            # RFC 9110 §8.6: of a response to HEAD, or of 304, it is that of the 200; 204 has none.
            self.content_length = length

    # The handler's side.

    async def begin(self, request: web.Request) -> None:
        """Write the head.

        Raises:
            ConnectionError: the client is gone.
        """
        transport = request.transport
        if transport is not None:
            self._transport, self._protocol = transport, request.protocol
            # Anything unsent pauses the upstream. uvloop then writes at once, too, not in the next turn of its loop.
            # The transports of TLS pause at their mark, not above it.
            transport.set_write_buffer_limits(high=0 if transport.get_extra_info("sslcontext") is None else 1)
        if hdrs.UPGRADE in request.headers:
            # aiohttp loses what stands behind such a request in the same read: the client is to send it again.
            self.force_close()
        await self.prepare(request)

    async def run(
        self,
        request: web.Request,
        upstream: UpstreamResponse,
        transform: Transform,
        *,
        timeouts: StreamTimeouts,
        timers: DeadlineTimer,
    ) -> None:
        """Write the head, relay the body, and return once it has ended or broken off; `write_eof` writes its end.

        Cancelling is the client leaving: the upstream's connection is closed before this returns.
        """
        loop = asyncio.get_running_loop()
        self._upstream, self._transform = upstream, transform
        now_s = loop.time()
        self._progress = Progress(timeouts, now_s)
        self._timers, self._is_seldom = timers, timeouts.are_long(now_s)
        (timers.add_seldom if self._is_seldom else timers.add)(self)
        try:
            await self.begin(request)
            # They have left; streams are held by the thousand.
            self.headers.clear()
            if self._protocol is not None and self._protocol.writing_paused:
                # What was written before there was an upstream to pause.
                self._pause()
            upstream.attach(self)
            if self._is_paused:
                # `attach` has let the upstream be read.
                upstream.pause()
            while self.ending is None:
                self._wake = loop.create_future()
                if not self._is_paused:
                    await self._wake
                    continue
                await asyncio.wait((self._drained(request), self._wake), return_when=asyncio.FIRST_COMPLETED)
                if not self._wake.done():
                    self._resume()
        except (ConnectionError, asyncio.CancelledError) as exc:
            # The client left, but the body may have ended, by itself or by us, in the very same moment.
            self.finish(Ending.CLIENT_CLOSED)
            self._forget()
            if isinstance(exc, asyncio.CancelledError):
                raise

    async def write_eof(self, data: bytes = b"") -> None:
        """Write the body's end where it ends in order; called by aiohttp once the handler has returned.

        Returns when the client has taken everything, or the write timeout has closed its connection.
        """
        if self._transport is None or self._eof_begun:
            return
        self._eof_begun = True
        try:
            if self._tail is not None:
                await super().write_eof(self._tail + data)
                return
            if self._sent_error_event:
                await asyncio.sleep(_LAST_WORDS_S)
            if self._draining is not None:
                await asyncio.wait((self._draining,))
        finally:
            self._forget()

    def _drained(self, request: web.Request) -> asyncio.Task[None]:
        """Waits until the client has taken what was written. Never cancelled: aiohttp's waiter is shared."""
        if self._draining is None or self._draining.done():
            self._draining = asyncio.get_running_loop().create_task(request.writer.drain())
            self._draining.add_done_callback(_retrieve)
        return self._draining

    def _forget(self) -> None:
        if self._timers is not None:
            (self._timers.discard_seldom if self._is_seldom else self._timers.discard)(self)
        self._protocol = self._timers = None

    # The upstream's side: `Sink`.

    @property
    def allows_fast_path(self) -> bool:
        """Whether a whole event may be written as it came: after the first byte, between two events, both chunked."""
        return (
            self._is_chunked
            and self._written > 0
            and self.ending is None
            and self._transform.allows_fast_path
            and self._transform.at_boundary
        )

    def event(self, data: bytes, payload_bytes: int) -> None:
        """Write one whole event in one whole chunk as it came: the hot path, paid for each event."""
        transport = self._transport
        if transport is None or transport.is_closing():
            self.finish(Ending.CLIENT_CLOSED)
            return
        transport.write(data)
        self._passed_bytes += payload_bytes
        self._passed_events = passed_events = self._passed_events + 1
        if (meter := self.meter) is not None:
            meter.passed.append(data)
            if not passed_events & _EIGHTH:
                meter.read_passed()
        if transport.get_write_buffer_size():
            self._pause()

    def body(self, data: bytes, *, is_last: bool = False) -> None:
        """Write one read's worth of body as one chunk; the last one goes with the body's end."""
        if self.ending is not None:
            return
        self._received += len(data)
        if self.meter is not None:
            self.meter.feed(data)
        out = self._transform.transform(data)
        if is_last or self._transform.has_failed:
            ending, rest, added, self.failure_reason = self._transform.complete()
            out += rest
            if added and out:
                # What is added is a chunk of its own, and not counted as the upstream's.
                self._write(out)
                out = b""
            self._count(out)
            self.ending = ending
            if not is_last:
                self._upstream.abort()
            self._end_in_order(out + added)
            self._wake_up()
        elif out:
            self._write(out)

    def failed(self, error: ProxyError) -> None:
        """The upstream broke off: to the client every such break looks alike, the log has the reason."""
        if self.ending is None:
            self.failure_reason = error.reason
        self.finish(Ending.UPSTREAM_CLOSED)

    # Endings.

    def finish(self, ending: Ending, error: StreamError | None = None) -> None:
        """End a running response before its end, visibly; idempotent.

        At an event boundary one error event says why: `error`, else that of the ending. The body lacks its end: the
        chunk that ends it, or the rest of its length; where neither marks the end (HTTP/1.0), the connection is reset.
        Typed events end in order, with an error as the last. A client that left or did not read for too long is not
        written to.
        """
        if self.ending is not None:
            return
        self.ending = ending
        self._upstream.abort()
        self._wake_up()
        transport = self._transport
        if transport is None:
            return
        words = error or ERROR_FOR_ENDING.get(ending)
        if words is None or transport.is_closing() or not self.prepared:
            transport.abort()
            return
        last, is_clean = self._transform.epilogue(ending, words, is_behind=self._is_paused)
        if is_clean:
            self._count(last)
        self.conclude(last, is_clean=is_clean)

    def conclude(self, last: bytes, *, is_clean: bool) -> None:
        """End the body in order, or without its end, behind an event that says why; the upstream is done with."""
        if is_clean:
            self._end_in_order(last)
            return
        self.force_close()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._framing == "close":
            # An orderly end would look like the body's.
            reset(transport)
        elif last and self._is_chunked:
            transport.write(b"%x\r\n%b\r\n" % (len(last), last))
            self._sent_error_event = True

    def ping(self) -> None:
        """Write a heartbeat to a client that is there and keeps up."""
        transport = self._transport
        if transport is not None and not transport.is_closing() and transport.get_write_buffer_size() == 0:
            transport.write(b"%x\r\n%b\r\n" % (len(PING), PING))

    @property
    def sent(self) -> int:
        """How much of the body the client was given."""
        return self._written + self._passed_bytes

    @property
    def events(self) -> int:
        """How many events the client was given."""
        return self._passed_events + self._transform.events

    @property
    def is_whole(self) -> bool:
        """Whether the client has been given a body that ends as it should."""
        return self._tail is not None

    # The timers' side.

    def check(self, now_s: float) -> None:
        """End what ran out of time; write a heartbeat where one is due."""
        transport, progress = self._transport, self._progress
        if transport is None:
            return
        if transport.is_closing():
            # Where the runner does not cancel the handler, this is how a silent stream's client is seen to have left.
            self.finish(Ending.CLIENT_CLOSED)
        elif self._is_paused or self.ending is not None:
            if progress.is_stuck(now_s, transport.get_write_buffer_size()):
                self.finish(Ending.TIMEOUT_WRITE)
                transport.abort()
            elif self.ending is None and progress.is_over(now_s):
                self.finish(Ending.TIMEOUT_TOTAL)
        elif (ending := progress.overdue(now_s, self._received + self._passed_bytes, self.sent)) is not None:
            self.finish(ending)
        elif progress.wants_heartbeat(now_s) and self._is_chunked and self._transform.allows_ping:
            # A chunk of ours among the upstream's: only where chunks are, and at a boundary.
            progress.wrote(now_s)
            self.ping()

    # Inside.

    def _end_in_order(self, last: bytes) -> None:
        self._tail = last
        if self._framing == "close":
            self.force_close()

    def _count(self, data: bytes) -> None:
        if data and not self._written:
            self.first_byte_s = asyncio.get_running_loop().time()
        self._written += len(data)

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            self.finish(Ending.CLIENT_CLOSED)
            return
        size = len(data)
        if not self._is_chunked:
            transport.write(data)
        elif size < _COPIED_BYTES:
            transport.write(b"%x\r\n%b\r\n" % (size, data))
        else:
            transport.writelines((b"%x\r\n" % size, data, b"\r\n"))
        self._count(data)
        if transport.get_write_buffer_size():
            self._pause()

    def _pause(self) -> None:
        """The client does not keep up: stop reading the upstream, and let the handler's task wait for the client."""
        if not self._is_paused:
            self._is_paused = True
            self._progress.paused()
            self._upstream.pause()
            self._wake_up()

    def _resume(self) -> None:
        """The client has caught up: read on, and let the idle timeout begin anew."""
        self._is_paused = False
        self._progress.resumed()
        if self.ending is None:
            self._upstream.resume()

    def _wake_up(self) -> None:
        # Cancelling the handler's task has cancelled the future with it.
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


def _retrieve(draining: asyncio.Task[None]) -> None:
    """Take note of a failure, which the transport tells of anyway."""
    if not draining.cancelled():
        draining.exception()
