"""The composition root: builds everything a worker needs from the settings, opens it, closes it, swaps its rules.

The only module below the commands that sees settings; everyone else is handed plain values.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from proxy.admin import Admin, Health
from proxy.client_connection import ClientClocks
from proxy.clocks import Clocks, tick_for
from proxy.exchange import Ending
from proxy.listener import Listener
from proxy.metrics import Metrics
from proxy.pipeline import Pipeline
from proxy.rereading import FileWatch
from proxy.rules import build_authenticator, build_rules, build_store, secrets_of
from proxy.sockets import BACKLOG, answer_no_more, hold_little, listening, notice_vanishing
from proxy.upstream.addresses import Resolver, check_addresses
from proxy.upstream.pool import Pool
from proxy.upstream.tls import TlsContexts
from proxy.view import OneWorker
from proxy.web.page import Page
from proxy.workers.whole import AllWorkers

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from proxy.auth.authenticator import Authenticator
    from proxy.call import Rules
    from proxy.exchange import Route
    from proxy.logs import Redactor
    from proxy.settings import Address as ListenAddress
    from proxy.settings import Settings
    from proxy.upstream.addresses import Address

# After the last stream was ended: time for its last bytes to leave.
_PARTING_S = 1.0
# Before the listener closes: time for handshakes that are under way, a round trip within a region.
_HANDSHAKE_S = 0.02
# After the listener closed: time for the requests of who came in last.
_ARRIVING_S = 1.0
# Read once, at start; a reload that changes one of them says so and leaves it.
FIXED_KEYS = ("listen", "admin_listen", "workers", "limits", "log")


@dataclass(frozen=True, slots=True)
class Place:
    """A worker's place among several: its name, where they meet, and the listening sockets that they share.

    The app closes its own copies of the sockets.
    """

    name: str
    directory: Path
    listen: Sequence[socket.socket]
    admin_listen: Sequence[socket.socket]


class App:
    """One worker: its listeners, the pipeline behind them, and what the pipeline uses.

    `open` listens and returns; `drain` stops taking requests and waits for those that run; `close` ends what is left.
    The addresses say where it really listens, also where the settings said port 0.
    """

    def __init__(self, settings: Settings, redactor: Redactor, place: Place | None = None) -> None:
        """`place` is None for a worker that is alone."""
        self._settings = settings
        self._redactor = redactor
        self._place = place
        self._servers: list[asyncio.Server] = []
        self._whole: AllWorkers | None = None
        # Where it really listens: of a name or a list every address, in their order.
        self.listens: list[tuple[str, int]] = []
        self.admin_listen: tuple[str, int] | None = None

    async def open(self) -> None:
        """Build everything and listen.

        Raises:
            OSError: an address cannot be listened on, or an authority file or the playground's cannot be read.
        """
        settings = self._settings
        loop = asyncio.get_running_loop()
        self.metrics = Metrics()
        self.clocks = Clocks(loop, tick_s=_tick(settings))
        self.pool = Pool(self.clocks, trust(settings))
        self.metrics.watch_connections(self.pool.counts)
        self.store = build_store(settings, on_failure=self.metrics.limits_store_failed, on_change=self._store_changed)
        await self.store.open()
        self._resolver = Resolver()
        self._own_listeners: list[tuple[str, int]] = []
        # Both at start: a reload may turn the playground on, or authentication off.
        self._guarded_page, self._open_page = Page.load(needs_token=True), Page.load(needs_token=False)
        rules = self._rules(settings, self._authenticator(settings, None))
        if rules.authenticator is not None:
            await rules.authenticator.open()
        self._redactor.learn(secrets_of(settings))
        self.pipeline = Pipeline(rules, pool=self.pool, clocks=self.clocks, metrics=self.metrics)
        health = Health(self._problems)
        self.pipeline.health = health.reply
        self._listener = Listener(
            self.pipeline.handle,
            self.pipeline.refuse_head,
            clocks=self.clocks,
            client_clocks=_client_clocks(settings),
            max_header_bytes=settings.max_header_bytes,
        )
        one = OneWorker(self.pipeline, self.metrics, self.clocks, self._problems)
        if self._place is not None:
            self._whole = AllWorkers(
                self._place.directory, self._place.name, one=one, pipeline=self.pipeline, metrics=self.metrics
            )
            self.pipeline.stop_elsewhere = self._whole.stop_elsewhere
            await self._whole.open()
        admin = Admin(self._whole or one, health)
        self._admin_listener = Listener(
            admin.handle,
            admin.refuse_head,
            clocks=self.clocks,
            client_clocks=_client_clocks(settings),
            max_header_bytes=settings.max_header_bytes,
        )
        place = self._place
        self.listens, self._public = await self._serve(
            self._listener, settings.listen, () if place is None else place.listen
        )
        own_admin = () if place is not None or settings.admin_listen is None else (settings.admin_listen,)
        admin_listens, _ = await self._serve(
            self._admin_listener, own_admin, () if place is None else place.admin_listen
        )
        self.admin_listen = admin_listens[0] if admin_listens else None
        self.files = FileWatch(settings, self._take_files)
        self._watching = asyncio.create_task(self.files.run())
        self._own_listeners += [*self.listens, *admin_listens]

    async def reload(self, settings: Settings) -> None:
        """Replace the rules at once; running exchanges keep theirs, users keep what they have used.

        Raises:
            OSError: an authority file cannot be read; nothing has changed.
        """
        tls = trust(settings)
        old = self.pipeline.rules
        rules = self._rules(settings, self._authenticator(settings, old.authenticator))
        if rules.authenticator is not None:
            await rules.authenticator.open()
        self._redactor.learn(secrets_of(settings))
        self.pipeline.rules = rules
        self.pool.tls = tls
        self._listener.client_clocks = self._admin_listener.client_clocks = _client_clocks(settings)
        self._listener.max_header_bytes = self._admin_listener.max_header_bytes = settings.max_header_bytes
        self.clocks.sharpen(_tick(settings))
        ignored = [key for key in FIXED_KEYS if getattr(settings, key) != getattr(self._settings, key)]
        self._settings = self.files.settings = settings
        if old.authenticator is not None:
            await old.authenticator.close()
        structlog.get_logger().info("configuration.reloaded", needs_restart=ignored)

    async def drain(self, timeout_s: float | None = None) -> None:
        """Take no new connection, refuse new requests, and wait for the running ones; after the timeout end them."""
        self.pipeline.is_draining = True
        await self._stop_listening()
        timeout_s = self._settings.drain_timeout_s if timeout_s is None else timeout_s
        structlog.get_logger().info("drain.started", streams=len(self.pipeline.live()), timeout_s=timeout_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._serve_the_last()
                await self.pipeline.idle()
        ended = self.pipeline.interrupt(Ending.DRAINED)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PARTING_S):
                await self.pipeline.idle()
        structlog.get_logger().info("drain.finished", streams_ended=ended)

    async def _stop_listening(self) -> None:
        """Close the listener, but take in first who has connected: to its client such a connection stands already."""
        arrived: list[socket.socket] = []
        with contextlib.ExitStack() as closing:
            listening = [closing.enter_context(sock.dup()) for server in self._public for sock in server.sockets]
            if self._place is None:
                # Among several workers that is for the arbiter to say, who knows whether others go on.
                for sock in listening:
                    answer_no_more(sock)
            await asyncio.sleep(_HANDSHAKE_S)
            for server in self._public:
                server.close()
            for sock in listening:
                sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
                # Nobody any more, or no descriptor for anybody.
                with contextlib.suppress(OSError):
                    while len(arrived) < BACKLOG:
                        arrived.append(sock.accept()[0])
        try:
            while arrived:
                with contextlib.suppress(OSError):
                    await asyncio.get_running_loop().connect_accepted_socket(self._listener, arrived.pop())
        finally:
            for sock in arrived:
                sock.close()
        # Whom the loop itself accepted last is known to the listener a turn later.
        await asyncio.sleep(0)

    async def _serve_the_last(self) -> None:
        """Give the requests of those that came in last the time to arrive; bounded, for some never send any."""
        until_s = self.clocks.now() + _ARRIVING_S
        # Asked, not told: this is once in a worker's life, and telling would cost every answer.
        while self.clocks.now() < until_s and not all(  # noqa: ASYNC110 - as said
            client.has_answered for client in self._listener.open
        ):
            await asyncio.sleep(_ARRIVING_S / 20)

    async def close(self) -> None:
        """End everything that is left: connections, key set fetches, the store."""
        self._watching.cancel()
        await asyncio.wait([self._watching])
        for server in self._servers:
            server.close()
        for listener in (self._listener, self._admin_listener):
            listener.hang_up()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PARTING_S):
                    await listener.empty()
            listener.cut()
        self.pool.close()
        self.clocks.close()
        await self._resolver.close()
        if self.pipeline.rules.authenticator is not None:
            await self.pipeline.rules.authenticator.close()
        await self.store.close()
        if self._whole is not None:
            await self._whole.close()

    @property
    def listen(self) -> tuple[str, int] | None:
        """The first of the addresses where it really listens for clients."""
        return self.listens[0] if self.listens else None

    @property
    def public_listener(self) -> Listener:
        """The clients' listener."""
        return self._listener

    def _authenticator(self, settings: Settings, old: Authenticator | None) -> Authenticator | None:
        return build_authenticator(
            settings, known={} if old is None else old.key_sources, on_refresh=self._keys_refreshed
        )

    def _rules(self, settings: Settings, authenticator: Authenticator | None) -> Rules:
        allow_private = () if settings.envelope is None else settings.envelope.allow_private

        async def resolve(route: Route) -> Sequence[Address]:
            addresses = await self._resolver.resolve(route.origin.host, route.origin.port)
            if route.is_pinned:
                check_addresses(addresses, allow_private=allow_private, own=self._own_listeners)
            return addresses

        page = self._open_page if settings.auth is None else self._guarded_page
        return build_rules(settings, authenticator=authenticator, store=self.store, resolve=resolve, page=page)

    def _take_files(self, settings: Settings, contexts: Mapping[str, ssl.SSLContext]) -> None:
        """Serve new requests with what has changed in files; running exchanges and kept connections keep theirs."""
        self._redactor.learn(secrets_of(settings))
        for ca_file, context in contexts.items():
            self.pool.tls.replace(ca_file, context)
        self._settings = settings
        self.pipeline.rules = self._rules(settings, self.pipeline.rules.authenticator)

    def _keys_refreshed(self, issuer: str, outcome: str, reason: str | None) -> None:
        self.metrics.jwks_refreshed(issuer, outcome)
        log = structlog.get_logger()
        if reason is None:
            log.info("keys.refreshed", issuer=issuer, outcome=outcome)
        else:
            # Each time: the attempts become seldom by themselves, and the reason may change.
            log.warning("keys.refreshed", issuer=issuer, outcome=outcome, reason=reason)

    def _store_changed(self, problem: str | None) -> None:
        if problem is None:
            structlog.get_logger().info("limits.store_regained")
        else:
            policy = self._settings.limits.on_store_error
            structlog.get_logger().warning("limits.store_lost", reason=problem, on_store_error=policy)

    async def _serve(
        self, listener: Listener, addresses: Sequence[ListenAddress], shared: Sequence[socket.socket]
    ) -> tuple[list[tuple[str, int]], list[asyncio.Server]]:
        """Listen on the shared sockets; without any, on the addresses. Says where."""
        loop = asyncio.get_running_loop()
        sockets = list(shared)
        servers: list[asyncio.Server] = []
        try:
            if not shared:
                for address in addresses:
                    sockets += listening(address.host, address.port)
            names = [sock.getsockname()[:2] for sock in sockets]
            while sockets:
                servers.append(await loop.create_server(listener, sock=sockets[0], backlog=BACKLOG))
                sockets.pop(0)
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        finally:
            self._servers += servers
        for server in servers:
            for sock in server.sockets:
                # Every connection has them from the socket that it was accepted on.
                notice_vanishing(sock)
                hold_little(sock)
        return names, servers

    def _problems(self) -> dict[str, list[str]]:
        reasons: list[str] = []
        limping: list[str] = []
        if self.pipeline.is_draining:
            reasons.append("draining")
        authenticator = self.pipeline.rules.authenticator
        if authenticator is not None:
            problems = list(authenticator.problems())
            (limping if authenticator.is_ready() else reasons).extend(f"auth: {problem}" for problem in problems)
        problem = self.store.problem()
        if problem is not None:
            (reasons if self.store.fallback is None else limping).append(f"limits: {problem}")
        return {"reasons": reasons, "limping": limping}


def trust(settings: Settings) -> TlsContexts:
    """The TLS contexts of all upstreams, read now: a file that cannot be used is found at once, a new one taken.

    Raises:
        OSError: a file of authorities cannot be used.
    """
    tls = TlsContexts()
    for name, upstream in settings.upstreams.items():
        if upstream.url.startswith("https:"):
            try:
                tls.get(None if upstream.ca_file is None else str(upstream.ca_file))
            except (OSError, ssl.SSLError) as exc:
                raise OSError(f"upstreams.{name}.ca_file: cannot be used as a file of authorities") from exc
    return tls


def _client_clocks(settings: Settings) -> ClientClocks:
    clocks = settings.client_timeouts
    return ClientClocks(header_s=clocks.header_s, keep_alive_s=clocks.keep_alive_s, write_s=clocks.write_s)


def _tick(settings: Settings) -> float:
    clients = settings.client_timeouts
    durations: list[float | None] = [clients.header_s, clients.body_s, clients.keep_alive_s, clients.write_s]
    for upstream in settings.upstreams.values():
        clocks = upstream.timeouts
        durations += [clocks.connect_s, clocks.first_byte_s, clocks.idle_s, clocks.total_s, upstream.heartbeat_s]
    return tick_for(*durations)
