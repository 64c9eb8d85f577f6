"""One HTTP/1.1 client connection to an upstream: one request at a time, the response is parsed in `data_received`.

Responsible for the state of the connection: request writing, the answer's head and its strict checks, body framing,
whether it can be used again. It leaves dialling and keeping to `pool`, and what happens to body bytes to the
sink that is attached to the answer.

Departures from RFC 9112: an answer that a lenient client would repair (spaces before colons, bare LF, obs-fold,
several lengths, unknown transfer codings) is refused, because two readers of such an answer may disagree.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Any, cast

import httptools

from proxy.errors import ProxyError, UpstreamProtocolError, UpstreamUnreachableError
from proxy.model import FieldIndex
from proxy.protocol.http_head import join_identical
from proxy.protocol.keep_alive import keep_alive_s
from proxy.upstream.reasons import reason_of_head, reason_of_loss
from proxy.upstream.response import UpstreamResponse
from proxy.upstream.whole_event import missing_of_chunk, whole_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.errors import Field
    from proxy.upstream.response import Framing, Sink

# An answer's head, its trailers or its chunk extensions may not be longer than this; vendors send about 2 KiB.
MAX_OVERHEAD_BYTES = 64 * 1024
MAX_FIELDS = 200
# How nearly all answers begin.
_HTTP_1_1 = b"HTTP/1.1 "
# A head and a body up to this size leave in one write, where the copy is cheaper than a second system call.
_ONE_WRITE_BYTES = 64 * 1024


class Connection(asyncio.Protocol):
    """One connection to an upstream. `Pool` creates and keeps it; `on_idle` and `on_closed` notify the pool."""

    __slots__ = (
        "_answer",
        "_asked",
        "_fields",
        "_fragments",
        "_head_waiter",
        "_is_fast",
        "_is_head_request",
        "_is_http_1_1",
        "_may_keep",
        "_missing",
        "_overhead",
        "_parser",
        "_paused",
        "_peek",
        "_sink",
        "_transport",
        "is_closed",
        "keep_s",
        "kept_until_s",
        "key",
        "on_body",
        "on_closed",
        "on_idle",
        "on_message_begin",
        "retire_s",
        "upstream",
        "vendor_keep_s",
    )

    def __init__(
        self,
        *,
        upstream: str,
        key: Any,
        on_idle: Callable[[Connection], None],
        on_closed: Callable[[Connection], None],
    ) -> None:
        self.upstream = upstream
        self.key = key
        self.on_idle = on_idle
        self.on_closed = on_closed
        # How long it may be kept unused: by the upstream's settings, and by the vendor's `Keep-Alive` if there is one.
        self.keep_s = 0.0
        self.vendor_keep_s: int | None = None
        self.kept_until_s = self.retire_s = 0.0
        self.is_closed = False
        # None before the connection is made and after it is closed.
        self._transport: asyncio.Transport | None = None
        # Asks the kernel whether anything waits to be read, an end included; gives what does.
        self._peek: Callable[[int], object] = _nothing
        self._answer: UpstreamResponse | None = None
        self._head_waiter: asyncio.Future[UpstreamResponse] | None = None
        self._fields: list[Field] = []
        # The body's pieces in one read. The parser appends to it itself: no Python runs for each chunk.
        self._fragments: list[bytes] = []
        self.on_body: Callable[[bytes], object] = self._fragments.append
        # One for each message that may begin. The parser takes it itself, and stops where there is none: anything that
        # begins after the answer's end was not asked for.
        self._asked: list[None] = []
        self.on_message_begin: Callable[[], None] = self._asked.pop
        # Who takes the body while there is nothing to be told of it but its bytes.
        self._sink: Sink | None = None
        # Whether a whole event may pass the parser by: it stands between two chunks, and the sink between two events.
        self._is_fast = False
        # What is missing of the chunk under way; None where nobody counts.
        self._missing: int | None = None
        self._is_head_request = False
        # Whether the answer's head is known to be of HTTP/1.1, so that the parser need not be asked.
        self._is_http_1_1 = False
        self._may_keep = False
        self._overhead = 0
        self._paused = False
        # One for all answers. Like the transport only while the connection stands: it holds our callbacks.
        self._parser: httptools.HttpResponseParser | None = None

    # Use, from the connect phase and the relay.

    def is_usable(self) -> bool:
        """Check that the connection is open, and that nothing has arrived since its last response.

        The kernel is asked, because the loop may not have got round to reading an end or stray bytes that are already
        there; whatever an upstream says unasked would become the next user's answer.
        """
        transport = self._transport
        return transport is not None and not transport.is_closing() and not self._peek(0)

    def send(self, head: bytes, body: bytes | bytearray, *, is_head_request: bool) -> asyncio.Future[UpstreamResponse]:
        """Write a request and return a future of its response.

        The future fails with `UpstreamUnreachableError` or `UpstreamProtocolError`. Cancelling it does not close the
        connection: the caller aborts.
        """
        transport = self._transport
        waiter = self._head_waiter = asyncio.get_running_loop().create_future()
        if transport is None or transport.is_closing():
            waiter.set_exception(UpstreamUnreachableError(reason="closed"))
            return waiter
        self._overhead = 0
        self._missing = None
        self._asked.append(None)
        if is_head_request:
            # What follows the answer is no body (RFC 9112 §6.3), and would be the next answer. llhttp cannot be told
            # that: the connection is not used again.
            self._is_head_request = True
            self.on_body = _ignore
            self._parser = httptools.HttpResponseParser(self)
        if len(body) <= _ONE_WRITE_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        return waiter

    def pause_reading(self) -> None:
        """Stop reading; idempotent. A closed connection stays as it is: uvloop's transports raise when touched then."""
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Resume reading; idempotent."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def stream_to(self, sink: Sink) -> None:
        """Resume reading, and pass the body to `sink` from now on."""
        self._sink = sink
        self._is_fast = self._missing == 0 and sink.allows_fast_path
        self.resume_reading()

    def abort(self) -> None:
        """Close at once: nothing more is written, nothing more is delivered. Idempotent."""
        self._answer = None
        self._drop()

    # asyncio's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport, and a poll object for its socket."""
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpResponseParser(self)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            poll = select.poll()
            poll.register(sock.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
            self._peek = poll.poll

    def data_received(self, data: bytes) -> None:
        """Parse one read, unless it is one whole event; its body bytes leave in one call."""
        if self._is_fast:
            payload_bytes = whole_event(data)
            if payload_bytes and self._sink is not None:
                self._sink.event(data, payload_bytes)
                return
        parser = self._parser
        if parser is None:
            return
        if self._answer is None:
            self._is_http_1_1 = self._overhead == 0 and data.startswith(_HTTP_1_1)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._break_off(parser, data)
            return
        if self._missing is not None:
            self._missing = missing_of_chunk(data, 0, self._missing)
        sink = self._sink
        fragments = self._fragments
        if sink is None or not fragments:
            self._look_closer(data)
            return
        self._overhead = 0
        if len(fragments) == 1:
            sink.body(fragments.pop())
        else:
            body = b"".join(fragments)
            fragments.clear()
            sink.body(body)
        self._is_fast = self._missing == 0 and self._sink is sink and sink.allows_fast_path

    def _look_closer(self, data: bytes) -> None:
        """Handle a read that was not only body: a head, the end of a response, or unexpected bytes."""
        answer = self._answer
        waiter = self._head_waiter
        if answer is None and waiter is None:
            # Bytes on a connection that owes us nothing.
            self._drop()
            return
        is_first_read = self._overhead == 0
        fragments = self._fragments
        if fragments:
            body = fragments.pop() if len(fragments) == 1 else b"".join(fragments)
            fragments.clear()
            self._overhead = 0
        else:
            body = b""
            self._overhead += len(data)
            if self._overhead > MAX_OVERHEAD_BYTES:
                self._break(UpstreamProtocolError(reason="head_invalid" if answer is None else "body_invalid"))
                return
        if answer is None:
            return
        self._head_waiter = None
        is_complete = answer.is_complete
        if is_complete:
            self._finish()
        if waiter is None:
            if body or is_complete:
                answer.deliver(body)
            return
        answer.held = body
        if not waiter.done():
            waiter.set_result(answer)
        if not is_complete:
            self.pause_reading()
            if is_first_read and answer.framing == "chunked":
                # The head has come in one read: its end is where the first chunk begins.
                self._missing = missing_of_chunk(data, data.find(b"\r\n\r\n") + 4, 0)

    def eof_received(self) -> bool:
        """End the body where only the connection's end marks it (RFC 9112 §6.3); otherwise the response is broken."""
        answer = self._answer
        if answer is not None and answer.framing == "close" and not answer.is_complete:
            self._answer = None
            answer.is_complete = True
            answer.source = None
            answer.deliver(b"")
            self._drop()
        else:
            self._break(UpstreamUnreachableError(reason="closed"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the response that is awaited or streaming, and notify the pool. The log has the reason."""
        self._break(UpstreamUnreachableError(reason=reason_of_loss(exc)))

    # httptools' callbacks. What they raise stops the parser, and is the fault that `data_received` acts upon.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header field; fields after the head are trailers and are dropped (RFC 9110 §6.5.1)."""
        if self._answer is None:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Check the head, and create the response; an interim (1xx) response is dropped (RFC 9110 §15.2)."""
        parser = self._parser
        assert parser is not None
        fields, self._fields = self._fields, []
        status = parser.get_status_code()
        if status < 200:  # noqa: PLR2004 - the 1xx class
            if status < 100 or status == 101:  # noqa: PLR2004 - Switching Protocols, which we never ask for
                raise UpstreamProtocolError
            # The next head does not begin where the read began.
            self._is_http_1_1 = False
            return
        index = FieldIndex(fields)
        if index.repeated:
            joined = join_identical(fields, index)
            if joined is None:
                raise UpstreamProtocolError
            fields, index = joined
        coding = index.get(b"transfer-encoding")
        # The parser knows it as two numbers, of which it has to make a text.
        version = "1.1" if self._is_http_1_1 else parser.get_http_version()
        if (
            status > 599  # noqa: PLR2004 - RFC 9110 §15
            or len(fields) > MAX_FIELDS
            or (version != "1.1" and (version != "1.0" or coding is not None))
            or (coding is not None and coding.lower() != b"chunked")
        ):
            raise UpstreamProtocolError
        if b"keep-alive" in index:
            self.vendor_keep_s = keep_alive_s(index.every(b"keep-alive"))
        length: int | None = None
        framing: Framing = "chunked"
        if coding is None:
            given = index.get(b"content-length")
            framing = "close" if given is None else "length"
            length = None if given is None else int(given)
        if self._is_head_request or status in {204, 304}:
            framing = "none"
        source = None if self._is_head_request else self
        self._answer = UpstreamResponse(source, status, fields, index, framing, length)

    def on_message_complete(self) -> None:
        """Mark the response as complete; after an interim one, allow another."""
        answer = self._answer
        if answer is None:
            self._asked.append(None)
            return
        answer.is_complete = True
        answer.source = None
        self._sink = None
        self._may_keep = self._parser is not None and self._parser.should_keep_alive()

    # Inside.

    def _break_off(self, parser: httptools.HttpResponseParser, data: bytes) -> None:
        """End a response at a parsing error; the body bytes before it are still delivered.

        Junk after a complete answer costs the connection, not the answer.
        """
        answer = self._answer
        if answer is not None and answer.is_complete:
            self._may_keep = False
            self._look_closer(b"")
        elif answer is not None and self._fragments and answer.sink is not None:
            answer.deliver(b"".join(self._fragments))
        reason = "body_invalid"
        if answer is None:
            reason = reason_of_head(parser.get_http_version(), data if self._overhead == 0 else None)
        self._break(UpstreamProtocolError(reason=reason))

    def _finish(self) -> None:
        """Return the connection to the pool after a complete response, or close it."""
        self._answer = self._sink = None
        self._is_fast = False
        transport = self._transport
        is_written = transport is not None and transport.get_write_buffer_size() == 0
        if self._may_keep and not self._is_head_request and is_written:
            if self._paused:
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
        elif answer is not None:
            answer.fail(error)
        self._drop()

    def _drop(self) -> None:
        self._parser = self._sink = None
        self._is_fast = False
        if not self.is_closed:
            self.is_closed = True
            transport, self._transport = self._transport, None
            if transport is not None:
                # Not a graceful close: nothing is left to say, and the vendor stops billing when it sees the end.
                transport.abort()
            self.on_closed(self)


def _nothing(_timeout_ms: int) -> None:
    """Report no event: for transports without a socket."""


def _ignore(_data: bytes) -> None:
    """Discard data."""
