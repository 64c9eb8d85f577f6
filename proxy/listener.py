"""The server's side of a client's connection: aiohttp's, with what it lacks for the open internet.

aiohttp parses requests, keeps connections and runs one handler at a time on each. Added here: a clock for the request's
head and one for the answer that nobody takes, the end of a client that half-closes, quiet and JSON answers to what
cannot be parsed, and the relay's back pressure.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.http_parser import HttpRequestParser
from aiohttp.web_protocol import RequestHandler

from proxy.errors import InvalidRequestError, RequestTimeoutError
from proxy.exchange import Ending

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.web import BaseRequest

    from proxy.clocks import Clocks
    from proxy.errors import ProxyError
    from proxy.phases.answer import Settled
    from proxy.phases.relay import Relay

# Above this much unsent the upstream is paused; with one read of the upstream (64 KiB) it stays below 256 KiB.
HIGH_WATER_BYTES = 64 * 1024
# How long what a refused client still sends is read away, so that it sees the answer instead of a reset.
LINGER_S = 2.0
# A client that vanished without a word is noticed within a minute (Linux; elsewhere the system's keep-alive applies).
_VANISHED_S = 60
_MAX_LINE_BYTES = 8190
_MAX_FIELDS = 100


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
        handler: Callable[[BaseRequest], Awaitable[Settled]],
        refuse_head: Callable[[ClientConnection, ProxyError], Settled],
        *,
        clocks: Clocks,
        client_clocks: ClientClocks,
    ) -> None:
        # aiohttp asks of a result only what `Settled` has.
        super().__init__(cast("Any", handler), handler_cancellation=True)
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

    __slots__ = ("_deadline_s", "_has_begun", "_is_last", "_listener", "_socket_transport", "relay")

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            listener,
            loop=loop,
            # Ours, in `check`, knows of heads too; see `_process_keepalive`.
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
        self._listener = listener
        self._socket_transport: asyncio.Transport | None = None
        self._has_begun = False
        self._is_last = False
        self._deadline_s: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The head's clock runs from the accept, so that a silent client is gone as soon as a slow one."""
        super().connection_made(transport)
        self._listener.opened(self)
        self._socket_transport = cast("asyncio.Transport", transport)
        self._socket_transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        _notice_vanishing(transport.get_extra_info("socket"))
        self._expect(self._listener.client_clocks.header_s)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone: its stream ends in this very call, its handler is cancelled by aiohttp."""
        if self.relay is not None:
            self.relay.finish(Ending.CLIENT_CLOSED)
        self._listener.clocks.forget(self)
        self._listener.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request: after an idle pause the head's clock begins with the first of them."""
        if not self._request_in_progress and not self._has_begun:
            self._has_begun = True
            if self._deadline_s is None or self._request_count:
                self._expect(self._listener.client_clocks.header_s)
        super().data_received(data)

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

    def check(self, now_s: float) -> None:
        """Asked by the clocks while no request is being served."""
        transport = self._socket_transport
        if transport is None or self._deadline_s is None or now_s < self._deadline_s:
            return
        if transport.is_closing() or transport.get_write_buffer_size():
            transport.abort()
            return
        if self._has_begun:
            # Part of a head: say why, and go. A client that said nothing is told nothing.
            self._listener.refuse_head(self, RequestTimeoutError())
        self.force_close()

    def discard_rest(self, *, linger: bool) -> None:
        """The answer just written is the last: end our sending half, and read away for a moment what still comes."""
        self._is_last = True
        if not linger:
            self._lingering_time = 0.0

    async def _handle_request(
        self, request: BaseRequest, start_time: float | None, request_handler: Any
    ) -> tuple[web.StreamResponse, bool]:
        self._listener.clocks.forget(self)
        self._deadline_s = None
        self._has_begun = False
        result = await super()._handle_request(request, start_time, request_handler)
        transport = self.transport
        if transport is not None:
            if self._is_last and transport.can_write_eof():
                transport.write_eof()
            if transport.get_write_buffer_size():
                self._expect(self._listener.client_clocks.write_s)
            else:
                self._expect(self._listener.client_clocks.keep_alive_s)
        return result

    def _process_keepalive(self) -> None:
        """Do nothing: aiohttp's keep-alive timer, which fires once after the first answer."""

    def _make_error_handler(self, err_info: Any) -> Any:  # noqa: ARG002 - its text repeats what the client sent
        async def refuse(request: BaseRequest) -> Settled:  # noqa: ARG001 - a placeholder of aiohttp's
            return self._listener.refuse_head(self, InvalidRequestError())

        return refuse

    def handle_error(
        self,
        request: BaseRequest,  # noqa: ARG002 - nothing of it is repeated
        status: int = 500,  # noqa: ARG002 - as above
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - as above
    ) -> web.StreamResponse:
        """What the pipeline did not catch cannot be answered by it either: the connection is closed."""
        self.log_exception("unhandled", exc_info=exc)
        self.force_close()
        return web.Response(status=500)

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


def _notice_vanishing(sock: socket.socket | None) -> None:
    if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _VANISHED_S // 2),
        ("TCP_KEEPINTVL", _VANISHED_S // 6),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", _VANISHED_S * 1000),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
