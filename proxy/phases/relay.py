"""The relay: an upstream's body to a client's transport, inside the upstream connection's own callback.

Between the two sockets there is no task, queue or timer: one read of the upstream is one write to the client. This
module owns what may be written once an answer has begun, and how each of its ends looks on the wire.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

from proxy.clocks import LONG_S
from proxy.exchange import Ending
from proxy.protocol.sse import PING
from proxy.upstream.lane import Lane

if TYPE_CHECKING:
    from proxy.errors import ProxyError
    from proxy.protocol.sse import EventStreamObserver
    from proxy.upstream.answer import Answer

# How the client learns where the body ends: `none` has no body, `close` is for HTTP/1.0.
Framing = Literal["none", "length", "chunked", "close"]

# RFC 9110 §15: the error classes.
_FIRST_ERROR = 400

# From this size on a chunk's data costs more to copy between its line and its end than three buffers cost to write.
_COPIED_BYTES = 16_384

LAST_CHUNK = b"0\r\n\r\n"
_END_AND_LAST = b"\r\n" + LAST_CHUNK


class ErrorEvent(Protocol):
    """Words an error as an event of the upstream's dialect; None where the dialect has no such thing."""

    def __call__(self, code: str, message: str) -> bytes | None:
        """Give the event's bytes."""
        ...


# What the error event says, where an end has one (contract §6: codes).
BROKEN = {
    Ending.UPSTREAM_CLOSED: ("upstream_unreachable", "The upstream closed the stream before its end."),
    Ending.TIMEOUT_IDLE: ("upstream_timeout", "The upstream fell silent (clock: idle)."),
    Ending.TIMEOUT_TOTAL: ("upstream_timeout", "The stream took too long (clock: total)."),
    Ending.DRAINED: ("draining", "The proxy is shutting down."),
    Ending.STOPPED: ("stopped", "The stream was stopped."),
}


class StreamClocks(NamedTuple):
    """What a stream may take its time for, in seconds; None is off.

    `now_s` and `deadline_s`, when `total` runs out, are the loop's time; the others last.
    """

    now_s: float
    idle_s: float | None
    write_s: float | None
    deadline_s: float | None
    heartbeat_s: float | None


def write_whole(transport: asyncio.Transport, head: bytes, body: bytes, framing: Framing) -> None:
    """Write an answer of which everything is there, with its body's end, in one piece."""
    if framing == "chunked":
        transport.write(b"".join((head, b"%x\r\n" % len(body), body, _END_AND_LAST)))
    else:
        transport.write(head + body)


def ending_of_whole(status: int) -> Ending:
    """How an exchange ended whose answer the client has been given whole (contract §7)."""
    return Ending.COMPLETE if status < _FIRST_ERROR else Ending.UPSTREAM_ERROR


class Relay:
    """One running answer. Its `ending` comes once; after that nothing is written.

    Bytes go unchanged and in order. While more than the mark waits in the client's write buffer the upstream is not
    read. The clocks ask `check` a few times a second. Neither network failures nor slow peers raise: they are endings,
    because the answer has already started. Cancelling the waiting task is safe: the caller then calls `finish`.
    """

    __slots__ = (
        "_answer",
        "_beat_s",
        "_bytes",
        "_deadline_s",
        "_done",
        "_error_event",
        "_head",
        "_heartbeat_s",
        "_idle_s",
        "_is_chunked",
        "_lane",
        "_noted",
        "_observer",
        "_paused",
        "_quiet_since_s",
        "_touched",
        "_transport",
        "_unsent",
        "_write_s",
        "ended_in_words",
        "ending",
        "first_byte_s",
        "framing",
        "reason",
    )

    # Whether the first write of body takes the head along.
    joins_head: ClassVar[bool] = True
    # Whether what passes is the upstream's own, so that it need not pass here.
    may_be_passed_by: ClassVar[bool] = True

    def __init__(
        self,
        answer: Answer,
        transport: asyncio.Transport,
        head: bytes,
        *,
        framing: Framing,
        observer: EventStreamObserver | None,
        error_event: ErrorEvent,
        clocks: StreamClocks,
    ) -> None:
        self._answer = answer
        self._transport = transport
        self._head = head
        self.framing = framing
        self._is_chunked = framing == "chunked"
        self._observer = observer
        self._error_event = error_event
        now_s, self._idle_s, self._write_s, self._deadline_s, heartbeat_s = clocks
        # A heartbeat is a chunk of ours among the upstream's: only where chunks are, and events whose borders we know.
        self._heartbeat_s = heartbeat_s if self._is_chunked and observer is not None else None
        self._quiet_since_s = now_s
        self._beat_s = now_s
        self._touched = False
        # How many bytes had passed when the idle clock was last looked at.
        self._noted = 0
        self._paused = False
        self._unsent = 0
        self._bytes = 0
        self._lane: Lane | None = None
        self.first_byte_s: float | None = None
        self.ending: Ending | None = None
        # Why the upstream broke off, where it did.
        self.reason: str | None = None
        # Whether the client was told why the answer breaks off: then its connection is closed a moment later.
        self.ended_in_words = False
        self._done: asyncio.Future[Ending] | None = None

    def start(self) -> None:
        """Write the head, and take the body: what has arrived of it now, in the same write, the rest as it comes."""
        self._answer.let_head_go()
        if not (self.joins_head and self._answer.has_body_waiting):
            self._transport.write(self._head)
            self._head = b""
        self._answer.attach(self)
        if self._paused:
            # By the very first write, after which `attach` has let the upstream be read.
            self._answer.pause()

    async def wait(self) -> Ending:
        """Wait for the end; once at most. Cancelling ends nothing."""
        if self.ending is None:
            self._done = asyncio.get_running_loop().create_future()
            return await self._done
        return self.ending

    # The upstream's side: `Sink`.

    @property
    def lane(self) -> Lane | None:
        """Where whole events pass by: after the first byte, between two events, where both codings are chunks."""
        observer = self._observer
        if not (self._is_chunked and self._bytes and observer is not None and observer.at_boundary):
            return None
        if self._lane is None and self.may_be_passed_by:
            self._lane = Lane(self._transport.write)
        return self._lane

    @property
    def sent(self) -> int:
        """How much of the body the client was given."""
        return self._bytes if self._lane is None else self._bytes + self._lane.bytes

    def body(self, data: bytes, *, is_last: bool = False) -> None:
        """Write one read's worth of body as one chunk: with the first the head, with the last what ends the body."""
        if self.ending is not None:
            return
        size = len(data)
        if self._is_chunked and size:
            end = _END_AND_LAST if is_last else b"\r\n"
            if size < _COPIED_BYTES:
                self._transport.write(b"".join((self._head, b"%x\r\n" % size, data, end)))
            else:
                self._transport.writelines((self._head + b"%x\r\n" % size, data, end))
        else:
            framed = self._head + (LAST_CHUNK if self._is_chunked and is_last else data)
            if framed:
                self._transport.write(framed)
        self._head = b""
        if size:
            if not self._bytes:
                self.first_byte_s = asyncio.get_running_loop().time()
            self._bytes += size
            if self._observer is not None:
                self._observer.feed(data)
        if is_last:
            self._end(Ending.COMPLETE)

    def failed(self, error: ProxyError) -> None:
        """The upstream broke off: to the client every such break looks alike, the log has the reason."""
        if self.ending is None:
            self.reason = error.reason
        self.finish(Ending.UPSTREAM_CLOSED)

    # The client's side.

    def pause(self) -> None:
        """The client's write buffer is above its mark: stop reading the upstream, start the write clock."""
        self._paused = True
        self._unsent = -1
        self._answer.pause()

    def resume(self) -> None:
        """The client's write buffer has drained: read on, and let the idle clock begin anew."""
        self._paused = False
        self._touched = True
        self._answer.resume()

    # The clocks' side.

    @property
    def has_long_clocks(self) -> bool:
        """Whether none of its clocks is shorter than `clocks.LONG_S`."""
        total_s = None if self._deadline_s is None else self._deadline_s - self._quiet_since_s
        durations_s = (self._idle_s, self._write_s, self._heartbeat_s, total_s)
        return all(duration_s is None or duration_s >= LONG_S for duration_s in durations_s)

    def check(self, now_s: float) -> None:
        """End what ran out of time; ask for a heartbeat where one is due."""
        if self.ending is not None:
            return
        # `sent`, spelt out: thousands are asked, and a property is a call of its own.
        sent = self._bytes if self._lane is None else self._bytes + self._lane.bytes
        if self._deadline_s is not None and now_s >= self._deadline_s:
            self.finish(Ending.TIMEOUT_TOTAL)
        elif self._touched or sent != self._noted:
            self._touched = False
            self._noted = sent
            self._quiet_since_s = now_s
        elif self._paused:
            # Any byte that the client's socket took is progress (as nginx' send_timeout).
            unsent = self._transport.get_write_buffer_size()
            if unsent != self._unsent:
                self._unsent = unsent
                self._quiet_since_s = now_s
            elif self._write_s is not None and now_s - self._quiet_since_s >= self._write_s:
                self.finish(Ending.TIMEOUT_WRITE)
        elif self._idle_s is not None and now_s - self._quiet_since_s >= self._idle_s:
            self.finish(Ending.TIMEOUT_IDLE)
        elif self._heartbeat_s is not None:
            self._beat(now_s)

    def finish(self, ending: Ending) -> None:
        """End a running answer before its end, visibly; idempotent.

        At an event boundary one error event says why. In every case the body's end is missing: the chunk that ends it,
        or the rest of its length; where neither marks the end (HTTP/1.0), the connection is reset. A client that left
        or did not read for too long is not written to; to one that is slow, what it is owed still goes.
        """
        if self.ending is not None:
            return
        self._end(ending)
        self._answer.abort()
        words = BROKEN.get(ending)
        if words is None or self._transport.is_closing():
            self._transport.abort()
            return
        if self.framing == "close":
            # An orderly end would look like the body's.
            _reset_on_close(self._transport)
            self._transport.abort()
            return
        if self._is_chunked and self._observer is not None and self._observer.at_boundary:
            event = self._error_event(*words)
            if event is not None:
                self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
                self.ended_in_words = True
                return
        self._transport.close()

    @property
    def is_whole(self) -> bool:
        """Whether the client has been given a body that ends as it should."""
        return self.ending is Ending.COMPLETE

    @property
    def events(self) -> int:
        """How many events have passed."""
        events = 0 if self._observer is None else self._observer.events
        return events if self._lane is None else events + self._lane.events

    def _end(self, ending: Ending) -> None:
        self.ending = ending
        # Cancelling the task that waits has cancelled the future with it.
        if self._done is not None and not self._done.done():
            self._done.set_result(ending)

    def _beat(self, now_s: float) -> None:
        # Only after the upstream's first byte (a BOM may come first), at a boundary, to a client that keeps up.
        observer = self._observer
        if (
            observer is not None
            and self._heartbeat_s is not None
            and self._bytes
            and observer.at_boundary
            and now_s - max(self._quiet_since_s, self._beat_s) >= self._heartbeat_s
            and self._transport.get_write_buffer_size() == 0
        ):
            self._beat_s = now_s
            self._transport.write(b"%x\r\n%b\r\n" % (len(PING), PING))


def _reset_on_close(transport: asyncio.Transport) -> None:
    # uvloop's `abort` ends a connection in order when nothing waits to be sent; without lingering the system resets it.
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
