"""One worker's listeners: opens the two applications, takes connections, drains, closes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiohttp import web

from proxy.app import BUILDER, connection_options, make_admin_app, make_app, reload
from proxy.auth.operators import SECRET_BYTES, Operators
from proxy.errors import InvalidRequestError
from proxy.handlers import SERVICE
from proxy.handlers.admin_app import ADMIN_FIELDS
from proxy.handlers.console import FEED
from proxy.model import Ending
from proxy.server.configuration import ConfigurationStatus
from proxy.server.connection import ClientConnection, ClientTimeouts
from proxy.server.sockets import BACKLOG, enable_keepalive, limit_unsent, listening
from proxy.server.worker_status import WorkerStatus
from proxy.server.workers.all_workers import AllWorkers
from proxy.settings.build import build_admin_rules
from proxy.settings.listener_tls import make_server_context

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from proxy.errors import Field, ProxyError
    from proxy.handlers import Service
    from proxy.observability.logging import Redactor
    from proxy.server.connection import Refuse
    from proxy.settings import Address, Settings

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# Where heads have no deadline: how long a TLS handshake may take.
_HANDSHAKE_S: Final = 60.0
# More segments than any client's path has. aiohttp's router copies the path once for each of them.
_MAX_SEGMENTS: Final = 1024
# After the listener closed: time for the requests of connections that were accepted last.
_ARRIVING_S: Final = 1.0
# After the last stream was ended: time for its last bytes to leave.
_PARTING_S: Final = 1.0
# The label of a worker that is alone, whose log lines name none.
_ALONE: Final = "1"


@dataclass(frozen=True, slots=True)
class Place:
    """A worker's place among several: its name, where they meet, and what they share.

    That is the listening sockets, of which the server closes its own copies, and what seals the console's sessions.
    """

    name: str
    directory: Path
    listen: Sequence[socket.socket]
    admin_listen: Sequence[socket.socket]
    secret: bytes = field(repr=False)


class Server:
    """One worker: the public application and the operator's, each behind its listener.

    `open` listens and returns; `drain` stops taking requests and waits for those that run; `close` ends what is left.
    The addresses say where it really listens, also where the settings said port 0.
    """

    def __init__(self, settings: Settings, redactor: Redactor, place: Place | None = None) -> None:
        """`place` is None for a worker that is alone."""
        self._settings = settings
        self._place = place
        self._redact = redactor.redact
        self.app = make_app(settings, redactor=redactor)
        self.configuration = ConfigurationStatus(redactor, None if place is None else place.directory)
        self.operators = Operators(
            build_admin_rules(settings, settings.admin_listen),
            secret=os.urandom(SECRET_BYTES) if place is None else place.secret,
        )
        self._runner = web.AppRunner(self.app)
        self._one: WorkerStatus | None = None
        self._admin_app: web.Application | None = None
        self._admin_runner: web.AppRunner | None = None
        self._public: list[asyncio.Server] = []
        self._admin: list[asyncio.Server] = []
        self._whole: AllWorkers | None = None
        self._timeouts = _client_timeouts(settings)
        self._options = _options(settings)
        self._tls: ssl.SSLContext | None = None
        self._connection: Callable[[], ClientConnection]
        # Where it really listens: of a name or a list every address, in their order.
        self.listens: list[tuple[str, int]] = []
        self.admin_listen: tuple[str, int] | None = None

    @property
    def service(self) -> Service:
        """What the handlers share; there once the server is open."""
        return self.app[SERVICE]

    @property
    def listen(self) -> tuple[str, int] | None:
        """The first of the addresses where it really listens for clients."""
        return self.listens[0] if self.listens else None

    @property
    def connections(self) -> list[web.RequestHandler]:
        """The clients' connections that are open."""
        return [] if self._runner.server is None else self._runner.server.connections

    async def open(self) -> None:
        """Start the applications and listen.

        Raises:
            OSError: an address cannot be listened on, or an authority file or the playground's cannot be read.
        """
        settings, place = self._settings, self._place
        await self._runner.setup()
        _bound_segments(self._runner)
        service = self.service
        name = _ALONE if place is None else place.name
        service.metrics.watch_process(name, workers=settings.workers, is_alone=place is None)
        one = WorkerStatus(service, lambda: self.configuration.report(self.app[BUILDER].settings))
        if place is not None:
            self._whole = AllWorkers(place.directory, place.name, one=one, service=service)
            service.stop_elsewhere = self._whole.stop_elsewhere
            await self._whole.open()
        self._one, self._admin_app = one, make_admin_app(self._whole or one, self.operators, redact=self._redact)
        self._admin_runner = web.AppRunner(self._admin_app)
        await self._admin_runner.setup()
        _bound_segments(self._admin_runner)
        self._tls = _make_tls(settings)
        self.listens = await self._serve(
            self._runner, self._public, self._refuse_public, settings.listen, () if place is None else place.listen
        )
        own_admin = () if place is not None or settings.admin_listen is None else (settings.admin_listen,)
        admin_listens = await self._serve(
            self._admin_runner, self._admin, _refuse_admin, own_admin, () if place is None else place.admin_listen
        )
        self.admin_listen = admin_listens[0] if admin_listens else None
        self.app[BUILDER].own_listeners.extend([*self.listens, *admin_listens])

    async def reload(self, settings: Settings) -> None:
        """Replace the rules at once; running exchanges keep theirs.

        Raises:
            OSError: a file of certificates or authorities cannot be used; nothing has changed.
        """
        tls = _make_tls(settings)
        needs_restart = await reload(self.app, settings)
        self.operators.rules = build_admin_rules(settings, self._settings.admin_listen)
        self.configuration.loaded(needs_restart)
        await self._replace_tls(tls)
        new = _client_timeouts(settings)
        self._timeouts.header_s, self._timeouts.write_s = new.header_s, new.write_s
        self._options = _options(settings)

    async def drain(self, timeout_s: float | None = None) -> None:
        """Take no new connection, refuse new requests, and wait for the running ones; after the timeout end them.

        Without a timeout the settings' own, and before it their delay, in which only readiness is withdrawn.
        """
        service, settings = self.service, self.app[BUILDER].settings
        service.is_leaving = True
        if timeout_s is None:
            timeout_s = settings.drain_timeout_s
            if settings.drain_delay_s is not None:
                structlog.get_logger().info("drain.announced", delay_s=settings.drain_delay_s)
                await asyncio.sleep(settings.drain_delay_s)
        service.is_draining = True
        if self._admin_app is not None:
            # They come back, to a worker that stays where there is one.
            self._admin_app[FEED].end()
        for server in self._public:
            server.close()
        structlog.get_logger().info("drain.started", streams=len(service.exchanges.live()), timeout_s=timeout_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._serve_accepted()
                await service.exchanges.idle()
        ended = service.exchanges.interrupt(Ending.DRAINED)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PARTING_S):
                await service.exchanges.idle()
        structlog.get_logger().info("drain.finished", streams_ended=ended)

    async def _serve_accepted(self) -> None:
        """Give the first requests of connections that were accepted before the drain the time to arrive.

        A load balancer cannot retry them on another node. Bounded, because some never send any.
        """
        until_s = self.service.timers.now() + _ARRIVING_S
        while self.service.timers.now() < until_s:
            # First of all: the loop makes a connection of what it accepted a little later.
            await asyncio.sleep(_ARRIVING_S / 20)
            # Asked, not told: this is once in a worker's life, and telling would cost every answer.
            if all(getattr(connection, "has_answered", True) for connection in self.connections):
                return

    async def close(self) -> None:
        """End everything that is left: connections, key set fetches, the store."""
        for server in (*self._public, *self._admin):
            server.close()
        if self._whole is not None:
            await self._whole.close()
        for runner in (self._admin_runner, self._runner):
            if runner is not None:
                await runner.cleanup()
        if self._one is not None:
            await self._one.close()

    def _refuse_public(self, error: ProxyError) -> list[Field]:
        service = self.service
        exchange = service.exchanges.refuse(service.rules, error)
        return [
            (b"X-Forward-Sse-Id", exchange.id.encode()),
            (b"Cache-Control", b"no-store"),
            *service.rules.cors.answer_fields(None),
        ]

    async def _serve(
        self,
        runner: web.AppRunner,
        servers: list[asyncio.Server],
        refuse: Refuse,
        addresses: Sequence[Address],
        shared: Sequence[socket.socket],
    ) -> list[tuple[str, int]]:
        """Listen on the shared sockets; without any, on the addresses. Adds to `servers`, and returns where."""
        loop = asyncio.get_running_loop()
        manager, timers = runner.server, self.service.timers

        def connection() -> ClientConnection:
            assert manager is not None
            return ClientConnection(
                manager, loop=loop, timers=timers, timeouts=self._timeouts, refuse=refuse, **self._options
            )

        if servers is self._public:
            self._connection = connection
        sockets = list(shared)
        try:
            if not shared:
                for address in addresses:
                    sockets += listening(address.host, address.port)
            names = [sock.getsockname()[:2] for sock in sockets]
            while sockets:
                tls = self._tls if servers is self._public else None
                servers.append(await self._listen_on(sockets[0], connection, tls))
                # Every connection has them from the socket that it was accepted on.
                enable_keepalive(sockets[0])
                limit_unsent(sockets[0])
                sockets.pop(0)
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        return names

    async def _listen_on(
        self, sock: socket.socket, connection: Callable[[], ClientConnection], tls: ssl.SSLContext | None
    ) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        if tls is None:
            return await loop.create_server(connection, sock=sock, backlog=BACKLOG)
        header_s = self._timeouts.header_s
        return await loop.create_server(
            connection, sock=sock, backlog=BACKLOG, ssl=tls, ssl_handshake_timeout=header_s or _HANDSHAKE_S
        )

    async def _replace_tls(self, tls: ssl.SSLContext | None) -> None:
        """Take new connections with another context; nobody who connects meanwhile is refused."""
        if self._tls is None and tls is None:
            return
        self._tls = tls
        old, self._public[:] = list(self._public), []
        for server in old:
            for sock in server.sockets:
                self._public.append(await self._listen_on(sock.dup(), self._connection, tls))
            server.close()


def _make_tls(settings: Settings) -> ssl.SSLContext | None:
    """The context of the clients' listener, with the files as they are now.

    Raises:
        OSError: one of them cannot be used.
    """
    tls = settings.tls
    if tls is None:
        return None
    try:
        return make_server_context(tls.certificate, tls.key, tls.client_ca)
    except OSError as exc:
        raise OSError("tls: the certificate, its key or the authorities cannot be used") from exc


def _bound_segments(runner: web.AppRunner) -> None:
    assert runner.server is not None
    runner.server.request_handler = _bound_handler(runner.server.request_handler)


def _bound_handler(handler: Handler) -> Handler:
    """Wrap an application's handler so that a path of very many segments does not reach its router.

    The router takes time as the path's length times its segments: 256 KiB of slashes would hold the loop for seconds.
    """

    def handle(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        path = request.raw_path
        # Nearly every path is shorter than it may have segments.
        if len(path) > _MAX_SEGMENTS and path.partition("?")[0].count("/") > _MAX_SEGMENTS:
            return _refuse_path(request)
        return handler(request)

    return handle


async def _refuse_path(request: web.BaseRequest) -> web.StreamResponse:
    if isinstance(request.protocol, ClientConnection):
        request.protocol.refuse(InvalidRequestError(f"The path has more than {_MAX_SEGMENTS} segments."))
    return web.Response(status=400)


def _refuse_admin(_error: ProxyError) -> list[Field]:
    """The operator's listener has no exchanges."""
    return [(name.encode(), value.encode()) for name, value in ADMIN_FIELDS]


def _client_timeouts(settings: Settings) -> ClientTimeouts:
    timeouts = settings.client_timeouts
    return ClientTimeouts(header_s=timeouts.header_s, write_s=timeouts.write_s)


def _options(settings: Settings) -> dict[str, Any]:
    """What connections are told; `handler_cancellation` is not theirs: the runner has it from `make_app`."""
    options = connection_options(settings)
    del options["handler_cancellation"]
    return options
