"""One HTTP/1.1 connection to an upstream: requests go out one at a time, answers come back through one callback.

Responsible for the state of the connection: request writing, the answer's head and its strict checks, body framing,
whether it can be used again. It leaves dialling and keeping to `pool`, and what happens to body bytes to the
sink that is attached to the answer.

Departures from RFC 9112: an answer that a lenient client would repair (spaces before colons, bare LF, obs-fold,
several lengths, unknown transfer codings) is refused, because two readers of such an answer may disagree.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, cast

import httptools

from proxy.errors import ProxyError, UpstreamProtocolError, UpstreamUnreachableError
from proxy.protocol.chunks import follow
from proxy.upstream.answer import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.errors import Field
    from proxy.upstream.answer import Sink
    from proxy.upstream.lane import Lane

# An answer's head, its trailers or its chunk extensions may not be longer than this; vendors send about 2 KiB.
MAX_OVERHEAD_BYTES = 64 * 1024
MAX_FIELDS = 200
# A head and a body up to this size leave in one write, where the copy is cheaper than a second system call.
_ONE_WRITE_BYTES = 64 * 1024

# Fields of which a second one would leave the reader to choose (RFC 9110 §5.3).
_SINGLETONS = frozenset({b"content-type", b"content-length", b"content-encoding", b"location", b"retry-after"})


class Connection(asyncio.Protocol):
    """One connection to an upstream. Built by `dial`, kept by `pool`; `on_idle` and `on_closed` tell the pool."""

    __slots__ = (
        "_answer",
        "_fault",
        "_fields",
        "_fragments",
        "_head_waiter",
        "_is_fresh",
        "_is_head_request",
        "_lane",
        "_may_keep",
        "_missing",
        "_overhead",
        "_owed",
        "_parser",
        "_paused",
        "_peek",
        "_sink",
        "_transport",
        "idle_since_s",
        "is_closed",
        "key",
        "on_body",
        "on_closed",
        "on_idle",
        "upstream",
    )

    def __init__(
        self,
        *,
        upstream: str,
        key: object,
        on_idle: Callable[[Connection], None],
        on_closed: Callable[[Connection], None],
    ) -> None:
        self.upstream = upstream
        self.key = key
        self.on_idle = on_idle
        self.on_closed = on_closed
        self.idle_since_s = 0.0
        self.is_closed = False
        self._transport: asyncio.Transport | None = None
        self._peek: select.poll | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._answer: Answer | None = None
        self._head_waiter: asyncio.Future[Answer] | None = None
        self._fields: list[Field] = []
        # The body's pieces in one read. The parser appends to it itself: no Python runs for each chunk.
        self._fragments: list[bytes] = []
        self.on_body: Callable[[bytes], object] = self._fragments.append
        # Who takes the body while there is nothing to be told of it but its bytes.
        self._sink: Sink | None = None
        # What stands in for us while the parser stands between two chunks.
        self._lane: Lane | None = None
        # What is missing of the chunk under way; None where nobody counts.
        self._missing: int | None = None
        self._is_fresh = True
        self._fault: str | None = None
        self._is_head_request = False
        self._may_keep = False
        self._overhead = 0
        self._owed: int | None = None
        self._paused = False

    # Use, from the connect phase and the relay.

    def is_usable(self) -> bool:
        """Whether a request may be written: open, and silent since its last answer.

        The kernel is asked, because the loop may not have got round to reading an end or stray bytes that are already
        there; whatever an upstream says unasked would become the next user's answer.
        """
        if self.is_closed or self._transport is None or self._transport.is_closing():
            return False
        return self._peek is None or not self._peek.poll(0)

    def send(self, head: bytes, body: bytes, *, is_head_request: bool) -> asyncio.Future[Answer]:
        """Write a request and give the future of its answer's head.

        The future fails with `UpstreamUnreachableError` or `UpstreamProtocolError`. Cancelling it does not close the
        connection: the caller aborts.
        """
        assert self._transport is not None
        assert self._parser is None
        self._head_waiter = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            self._head_waiter.set_exception(UpstreamUnreachableError())
            return self._head_waiter
        self._answer = Answer(self)
        self._fields = []
        self._overhead = 0
        self._may_keep = False
        self._missing = None
        self._is_fresh = True
        self._is_head_request = is_head_request
        # What follows the answer to a HEAD is no body (RFC 9112 §6.3), and would be the next answer.
        self.on_body = _ignore if is_head_request else self._fragments.append
        self._parser = httptools.HttpResponseParser(self)
        if len(body) <= _ONE_WRITE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        return self._head_waiter

    def pause_reading(self) -> None:
        """Stop reading; idempotent. A closed connection stays as it is: uvloop's transports raise when touched then."""
        if not self._paused and not self.is_closed and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on; idempotent."""
        if self._paused and not self.is_closed and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def stream_to(self, sink: Sink) -> None:
        """Read on; the body goes straight to `sink` from now on."""
        self._sink = sink
        self._change_lanes(sink.lane if self._missing == 0 else None)
        self.resume_reading()

    def abort(self) -> None:
        """Close at once: nothing more is written, nothing more is delivered. Idempotent."""
        self._answer = None
        self._drop()

    # asyncio's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport, and how to ask the kernel whether anything waits to be read."""
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self._peek = select.poll()
            self._peek.register(sock.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)

    def data_received(self, data: bytes) -> None:
        """Parse one read; its body bytes leave in one call."""
        parser = self._parser
        if parser is None:
            # Bytes on a connection that owes us nothing.
            self._drop()
            return
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._note("malformed")
        fragments = self._fragments
        sink = self._sink
        if self._missing is not None:
            self._missing = follow(data, 0, self._missing)
        if sink is not None and fragments:
            self._overhead = 0
            if len(fragments) == 1:
                sink.body(fragments.pop())
            else:
                body = b"".join(fragments)
                fragments.clear()
                sink.body(body)
            self._change_lanes(sink.lane if self._missing == 0 and self._sink is sink else None)
            return
        self._look_closer(data)

    def _look_closer(self, data: bytes) -> None:
        """What a read brought, where it was not just body."""
        answer = self._answer
        if answer is None:
            self._drop()
            return
        if self._fault is not None:
            self._deliver_before_fault(answer)
            self._break(UpstreamProtocolError())
            return
        if self._fragments:
            self._overhead = 0
        else:
            self._overhead += len(data)
            if self._overhead > MAX_OVERHEAD_BYTES:
                self._break(UpstreamProtocolError())
                return
        if self._is_fresh and answer.framing == "chunked" and not answer.is_complete:
            # The head has come in one read: its end is where the first chunk begins.
            self._missing = follow(data, data.find(b"\r\n\r\n") + 4, 0)
        self._is_fresh = False
        self._deliver(answer)

    def eof_received(self) -> bool:
        """The upstream's end is the body's end only where nothing else marks it (RFC 9112 §6.3)."""
        answer = self._answer
        if answer is not None and answer.status and answer.framing == "close" and not answer.is_complete:
            self._answer = None
            answer.deliver(b"", is_last=True)
            self._drop()
        else:
            self._break(UpstreamUnreachableError())
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - every loss is the same to the answer
        """Tell whoever waits, and the pool."""
        self._break(UpstreamUnreachableError())

    # httptools' callbacks. They only note; `data_received` acts, because an exception must not cross the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field; those after the head are trailers and are dropped (RFC 9110 §6.5.1)."""
        assert self._answer is not None
        if self._answer.status == 0:
            self._fields.append((name, value))
            if len(self._fields) > MAX_FIELDS:
                self._note("too many fields")

    def on_headers_complete(self) -> None:
        """Judge the head."""
        parser, answer = self._parser, self._answer
        if parser is None or answer is None or answer.status:
            self._note("second answer")
            return
        status = parser.get_status_code()
        if 100 <= status < 200:  # noqa: PLR2004 - the 1xx class
            if status == 101:  # noqa: PLR2004 - Switching Protocols, which we never ask for
                self._note("unasked upgrade")
            return
        self._judge(answer, status, parser.get_http_version())

    def on_message_complete(self) -> None:
        """The end of the answer, or of an interim one, which is discarded (RFC 9110 §15.2)."""
        answer = self._answer
        if answer is None:
            return
        if answer.status == 0:
            self._fields = []
        else:
            answer.is_complete = True
            self._sink = None
            assert self._parser is not None
            self._may_keep = self._parser.should_keep_alive()

    def on_message_begin(self) -> None:
        """Anything that begins after the end was not asked for."""
        if self._answer is not None and self._answer.is_complete:
            self._note("unasked answer")
            self._owed = len(self._fragments)

    # Inside.

    def _change_lanes(self, lane: Lane | None) -> None:
        """Let a stream pass in its lane, or come back from it."""
        if lane is not self._lane:
            self._lane = lane
            if lane is not None:
                lane.open(self)
            if not self.is_closed and self._transport is not None:
                self._transport.set_protocol(lane or self)

    def _note(self, fault: str) -> None:
        self._fault = self._fault or fault
        self._sink = None

    def _judge(self, answer: Answer, status: int, version: str) -> None:
        names: set[bytes] = set()
        is_chunked = False
        for name, value in self._fields:
            lowered = name.lower()
            if lowered in _SINGLETONS and lowered in names:
                self._note("repeated field")
            if lowered == b"transfer-encoding":
                if is_chunked or value.lower() != b"chunked":
                    self._note("unknown transfer coding")
                is_chunked = True
            elif lowered == b"content-length":
                answer.length = int(value)
            names.add(lowered)
        if version not in {"1.1", "1.0"} or (is_chunked and version == "1.0") or not 200 <= status <= 599:  # noqa: PLR2004 - RFC 9110 §15
            self._note("unknown version or status")
        if self._fault is not None:
            return
        answer.status = status
        answer.fields, self._fields = self._fields, []
        if self._is_head_request or status in {204, 304}:
            answer.framing = "none"
        elif is_chunked:
            answer.framing = "chunked"
        else:
            answer.framing = "close" if answer.length is None else "length"
        if self._is_head_request:
            # llhttp cannot be told that no body follows; the connection is not used again.
            answer.is_complete = True

    def _deliver(self, answer: Answer) -> None:
        if answer.status == 0:
            return
        body = self._take_body()
        is_complete = answer.is_complete
        if is_complete:
            self._finish(answer)
        if body or is_complete:
            answer.deliver(body, is_last=is_complete)
        waiter = self._head_waiter
        if waiter is not None:
            self._head_waiter = None
            if not is_complete:
                self.pause_reading()
            if not waiter.done():
                waiter.set_result(answer)

    def _deliver_before_fault(self, answer: Answer) -> None:
        # What came before the fault was good, and the client has a right to it; junk after a complete answer costs the
        # connection, not the answer.
        if self._owed is not None:
            del self._fragments[self._owed :]
        if self._fragments and answer.sink is not None and self._head_waiter is None and not answer.is_complete:
            answer.deliver(self._take_body(), is_last=False)
        elif answer.is_complete and answer.status:
            self._deliver(answer)
        self._fragments.clear()

    def _take_body(self) -> bytes:
        body = b"".join(self._fragments)
        self._fragments.clear()
        return body

    def _finish(self, answer: Answer) -> None:
        self._parser = self._answer = self._sink = None
        assert self._transport is not None
        is_reusable = (
            self._fault is None
            and answer.framing != "close"
            and not self._is_head_request
            and self._may_keep
            and self._transport.get_write_buffer_size() == 0
        )
        self._change_lanes(None)
        if is_reusable:
            self.resume_reading()
            self.on_idle(self)
        else:
            self._drop()

    def _break(self, error: ProxyError) -> None:
        answer, self._answer = self._answer, None
        waiter, self._head_waiter = self._head_waiter, None
        if waiter is not None:
            if not waiter.done():
                waiter.set_exception(error)
        elif answer is not None and not answer.is_complete:
            answer.fail(error)
        self._drop()

    def _drop(self) -> None:
        self._parser = self._sink = None
        if not self.is_closed:
            self.is_closed = True
            self._peek = None
            if self._transport is not None:
                # Not a graceful close: nothing is left to say, and the vendor stops billing when it sees the end.
                self._transport.abort()
            self.on_closed(self)


def _ignore(_data: bytes) -> None:
    """Take what is not wanted."""
