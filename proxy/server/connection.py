"""What aiohttp's `RequestHandler` lacks on the open internet: a deadline for heads, our page for what is no request.

Everything else (parsing, the body, keep-alive, lingering) is aiohttp's. Private names of aiohttp that are looked at
here, each watched by `tests/server/test_connection.py`:

1. `_waiter`: pending exactly while no request is whole. Nothing public tells that from a request being served.
2. `_messages`: the requests that wait; with a body incomplete, anything in it is the parser's error: aiohttp does not
   tell the body's reader of a chunk that breaks after the head. That can go when `HttpParser` sets its exception.
"""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final

from aiohttp import hdrs, http_exceptions, web

from proxy.dialects import DEFAULT_DIALECT, DIALECTS
from proxy.errors import HeaderTooLargeError, InvalidRequestError, ProxyError, RequestTimeoutError, refusal
from proxy.handlers.errors import as_headers
from proxy.protocol.http_head import render_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import StreamReader

    from proxy.errors import Field
    from proxy.timers import DeadlineTimer

    # Settles what never became an exchange, and gives the fields that its answer has besides the error's own.
    Refuse = Callable[[ProxyError], list[Field]]

# RFC 9113 §3.4: what an HTTP/2 client sends first. It cannot read an answer of HTTP/1.
_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0"
# What chunk lines, extensions and trailers of one body may take up beyond its bytes.
_MAX_OVERHEAD_BYTES: Final = 64 * 1024
_MIN_CHUNK_OVERHEAD: Final = 64
# So much is parsed in one turn of the loop: a read of 256 KiB in chunks of one byte takes some 40 ms.
_SLICE_BYTES: Final = 16 * 1024
# What a head may be at the least, and of how many of its longest lines.
_MIN_HEAD_BYTES: Final = 64 * 1024
_LINES_OF_A_HEAD: Final = 4
# The longest name of a field that a refusal may repeat, and more.
_NAME_BYTES: Final = 64


class ClientTimeouts:
    """What a client may take its time for, in seconds; None is off. Shared by all connections, changed by a reload."""

    __slots__ = ("header_s", "write_s")

    def __init__(self, *, header_s: float | None, write_s: float | None) -> None:
        self.header_s = header_s
        self.write_s = write_s


class ClientConnection(web.RequestHandler):
    """One client's connection.

    Attributes:
        has_answered: Whether it has been used for a request before.
        is_malformed: Whether the body that is being read broke off in a chunk that cannot be parsed.
    """

    __slots__ = (
        "_body",
        "_body_bytes",
        "_deadline_s",
        "_has_partial_head",
        "_head_bytes",
        "_is_first_read",
        "_is_paused",
        "_is_watched",
        "_is_writing",
        "_line_begin",
        "_long_line_begin",
        "_may_hold",
        "_refuse",
        "_timeouts",
        "_timers",
        "_turn",
        "_unread",
        "_unsent",
        "has_answered",
        "is_malformed",
    )

    def __init__(
        self,
        manager: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        timers: DeadlineTimer,
        timeouts: ClientTimeouts,
        refuse: Refuse,
        **options: Any,
    ) -> None:
        super().__init__(manager, loop=loop, **options)
        self._timers = timers
        self._timeouts = timeouts
        self._refuse = refuse
        self._body: StreamReader | None = None
        self._body_bytes = 0
        self._deadline_s: float | None = None
        self._has_partial_head = False
        # Of a head that comes in several reads: how much of it is here, and how its last line begins.
        self._head_bytes = 0
        self._line_begin = self._long_line_begin = b""
        self._is_first_read = True
        # Of a long read: what is left of it, and the turn of the loop in which it goes on.
        self._unread = b""
        self._turn: asyncio.Handle | None = None
        self._is_paused = False  # whether aiohttp holds reading back
        # Whether aiohttp's parser may hold something back, now or later: it does not tell, nor when that is over.
        self._may_hold = False
        # Of a response that aiohttp writes: whether it is being written, and whether its client has made that wait.
        self._is_writing = self._is_watched = False
        self._unsent = -1
        self.has_answered = False
        self.is_malformed = False

    # asyncio's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The head's deadline runs from the accept, so that a silent client is gone as soon as a slow one."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone."""
        self._timers.discard(self)
        self._body = None
        self._unread = b""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of requests, of which a slice is parsed at a time; aiohttp calls it with none to go on parsing."""
        if len(data) <= _SLICE_BYTES and not (data and self._unread):
            self._parse(data)
            return
        self._unread += data
        if self._turn is None and not self._is_paused:
            self._parse_unread()
        else:
            self._hold()

    def pause_reading(self) -> None:
        """Hold reading back: nothing that is here is parsed, either."""
        self._is_paused = self._may_hold = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT002 - aiohttp's signature
        """Read on, once all that is here has been parsed."""
        # aiohttp asks for it after each body that was read. On most connections there is nothing to resume.
        if self._may_hold:
            self._is_paused = False
            super().resume_reading(resume_parser)
        if self._unread:
            self._go_on()

    def pause_writing(self) -> None:
        """The client does not keep up: only where its response waits for that, its deadline runs."""
        super().pause_writing()
        if self._is_writing and not self._is_watched:
            self._watch_progress()

    def eof_received(self) -> None:
        """A client that closes its sending half has left; what runs for it ends at once."""
        if self.transport is not None and not self._is_idle():
            # Not a close, which would first wait for the client to take what is buffered.
            self.transport.abort()

    # The handlers' side.

    def watch_body(self, body: StreamReader) -> None:
        """Look after a body that is still arriving: end it where it cannot be parsed, or is nearly all overhead."""
        self._body = body
        self._body_bytes = 0
        self._check_body(body, 0)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write the response, within the write timeout; a stream has been written by now, within its own."""
        self._body = None
        if not resp.prepared:
            if hdrs.UPGRADE in request.headers:
                # aiohttp loses what stands behind such a request in the same read.
                resp.force_close()
            self._is_writing = True
            if self.writing_paused:
                self._watch_progress()
        try:
            answered = await super().finish_response(request, resp, start_time)
            if self._messages:
                # From Python 3.12 on handlers start at once: no turn of the loop would end between requests.
                await asyncio.sleep(0)
            return answered
        finally:
            self.has_answered = True
            self._is_writing = False
            if self._is_watched:
                self._is_watched = False
                self._timers.discard(self)
                self._deadline_s = None
            if self._has_partial_head:
                self._expect_head()
            if self._unread:
                self._go_on()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it repeats what the client sent
    ) -> web.StreamResponse:
        """Answer what cannot be parsed, repeating nothing of it; the connection closes.

        Raises:
            ConnectionError: a response has begun already, as aiohttp's own does.
        """
        if request.writer.output_size > 0:
            raise ConnectionError("a response has begun already")
        error = self._refusal_of(status, exc)
        if error.status < 500:  # noqa: PLR2004 - RFC 9110 §15.5
            # No version was read; and no application would take away `Server`, which tells what runs here.
            self.refuse(error, version=b"HTTP/1.0")
            return web.Response(status=error.status)
        answer = refusal(error, DIALECTS[DEFAULT_DIALECT])
        fields = as_headers((*answer.fields, *self._refuse(error)))
        response = web.Response(status=answer.status, body=answer.body, headers=fields)
        response.force_close()
        return response

    def refuse(self, error: ProxyError, *, version: bytes = b"HTTP/1.1") -> None:
        """Answer what never became a request, and close: aiohttp answers in the version asked for."""
        # It has its line in the log, whether or not the client is still there.
        fields = self._refuse(error)
        if self.transport is not None:
            answer = refusal(error, DIALECTS[DEFAULT_DIALECT])
            lines = [*answer.fields, *fields, (b"Content-Length", b"%d" % len(answer.body))]
            lines += [(b"Connection", b"close"), (b"Date", formatdate(usegmt=True).encode())]
            self.transport.write(render_response(answer.status, lines).replace(b"HTTP/1.1", version, 1) + answer.body)
        self.force_close()

    # The timers' side.

    def check(self, now_s: float) -> None:
        """Close a connection whose head is late, or whose client does not take an answer."""
        transport = self.transport
        if transport is None:
            self._timers.discard(self)
        elif not self._is_idle():
            self._check_progress(transport, now_s)
        elif self._deadline_s is not None and now_s >= self._deadline_s:
            if self._has_partial_head:
                self.refuse(RequestTimeoutError())
            # A client that said nothing is told nothing.
            self.force_close()

    def _check_progress(self, transport: asyncio.Transport, now_s: float) -> None:
        """Any byte that the client's socket took is progress."""
        unsent = transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent = unsent
            write_s = self._timeouts.write_s
            self._deadline_s = None if write_s is None else now_s + write_s
        elif unsent and self._deadline_s is not None and now_s >= self._deadline_s:
            transport.abort()

    # Inside.

    def _parse(self, data: bytes) -> None:
        if not data and self._body is None:
            super().data_received(data)
            return
        if self._is_first_read and data:
            self._is_first_read = False
            if data.startswith(_HTTP2_PREFACE):
                self.force_close()
                return
        waiting = len(self._messages)
        begin, self._line_begin = self._line_begin, b""
        # Where a line is too long the parser forgets which: it is one of these, or the one that is under way.
        is_long = len(data) + len(begin) > self.max_line_size
        self._long_line_begin = (_long_line(begin + data, self.max_line_size) if is_long else b"") or begin
        super().data_received(data)
        if len(self._messages) > 1:
            # Its parser stops at some number of them, by a count of its own that can be ahead of this one.
            self._may_hold = True
        if self._body is not None:
            self._check_body(self._body, len(data))
        elif data and len(self._messages) == waiting:
            self._continue_head(begin, data)
        elif data:
            self._has_partial_head = False
            self._head_bytes = 0
        if self._deadline_s is not None and not self._is_watched and not self._is_idle():
            # The head's; what comes behind a request does not end the deadline of its response.
            self._deadline_s = None
            self._timers.discard(self)

    def _parse_unread(self) -> None:
        self._turn = None
        if self._messages:
            # Requests wait for their turn: what stands behind them waits, too, until a response has been written.
            self._hold()
            return
        data, self._unread = self._unread[:_SLICE_BYTES], self._unread[_SLICE_BYTES:]
        self._parse(data)
        if self._unread and self._messages and self._messages[-1][1].is_eof():
            # A whole request, or what is none: answered before what stands behind it is looked at.
            self._hold()
        elif self._unread:
            self._go_on()
        elif not self._is_paused:
            super().resume_reading(resume_parser=False)

    def _go_on(self) -> None:
        self._hold()
        if self._turn is None and not self._is_paused:
            self._turn = asyncio.get_running_loop().call_soon(self._parse_unread)

    def _hold(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def _watch_progress(self) -> None:
        self._is_watched = True
        self._unsent = -1
        self._timers.add(self)

    def _is_idle(self) -> bool:
        """Whether no whole request is here."""
        return self._waiter is not None and not self._waiter.done()

    def _expect_head(self) -> None:
        header_s = self._timeouts.header_s
        self._deadline_s = None if header_s is None else self._timers.now() + header_s
        self._timers.add(self)

    def _continue_head(self, begin: bytes, data: bytes) -> None:
        """Part of a head has come: begin its deadline, and bound it."""
        self._has_partial_head = True
        last = data.rfind(b"\n")
        self._line_begin = (begin + data if last < 0 else data[last + 1 :])[:_NAME_BYTES]
        self._head_bytes += len(data)
        if not self._is_idle():
            return
        if self._deadline_s is None:
            self._expect_head()
        max_bytes = max(_MIN_HEAD_BYTES, _LINES_OF_A_HEAD * self.max_line_size)
        if self._head_bytes > max_bytes:
            self.refuse(HeaderTooLargeError.of_head(max_bytes))

    def _refusal_of(self, status: int, exc: BaseException | None) -> ProxyError:
        if isinstance(exc, http_exceptions.LineTooLong):
            max_bytes = self.max_line_size
            # The two limits differ, so the one that was exceeded tells which line it was.
            if exc.args[1:2] == (max_bytes,):
                return HeaderTooLargeError.of_request_line(max_bytes)
            return HeaderTooLargeError.of_field(self._long_line_begin.partition(b":")[0].strip(), max_bytes)
        return InvalidRequestError() if status < 500 else ProxyError()  # noqa: PLR2004 - RFC 9110 §15.6

    def _check_body(self, body: StreamReader, size: int) -> None:
        if body.is_eof():
            self._body = None
            return
        self._body_bytes += size
        overhead = self._body_bytes - body.total_bytes
        if self._messages or overhead > _MAX_OVERHEAD_BYTES + body.total_bytes * _MIN_CHUNK_OVERHEAD:
            self.is_malformed = True
            self._body = None
            body.feed_eof()


def _long_line(data: bytes, max_bytes: int) -> bytes:
    """How the first line of a head begins that is longer than `max_bytes`; empty where none is."""
    begin = 0
    while begin < len(data):
        end = data.find(b"\n", begin)
        end = len(data) if end < 0 else end
        if end - begin > max_bytes:
            return data[begin : begin + _NAME_BYTES]
        if end - begin <= 1:
            # The blank line: what follows is a body.
            break
        begin = end + 1
    return b""
