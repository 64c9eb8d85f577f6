"""A pool of kept connections to upstreams; it also makes new ones.

A connection is lent for one exchange. It comes back by itself when its answer is complete and clean, and is closed in
every other case.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, TypeAlias

import aiohappyeyeballs

from proxy.errors import OverloadedError, UpstreamUnreachableError
from proxy.upstream.addresses import Resolver
from proxy.upstream.connection import Connection
from proxy.upstream.egress import ATTEMPT_DELAY_S, NO_ROOM, open_tunnel
from proxy.upstream.reasons import reason_of_dial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.model import Origin, Way
    from proxy.timers import DeadlineTimer
    from proxy.upstream.addresses import Address
    from proxy.upstream.tls import TlsContexts

# How much earlier than the vendor closes a kept connection it is no longer used: a request that is written meanwhile is
# lost, and is not sent again. It has to cover the way of the vendor's answer to us and of our next request to it.
MARGIN_S = 1.0
# Per origin and worker. More than that are closed as they come back; the bound is on descriptors, not on streams.
MAX_KEPT = 256
# A connection is not used again after this: an upstream that moves is followed, however busy the connection is, also
# where its name is looked up by an egress proxy.
MAX_AGE_S = 300.0
# How often the names of kept connections are looked at, whether they are due for another look-up.
LOOK_S = 2.0

# What two exchanges must share to share a connection: the origin, and how it is reached.
Key: TypeAlias = "tuple[Origin, Way]"


class Pool:
    """The connection pool. One for each worker; its creator closes it.

    Kept ones are used last in, first out, so that few stay warm and the rest run out: each when the `keep_alive` of the
    upstream that used it last is over, or a second before its vendor's own `Keep-Alive: timeout=` is, and none after
    `MAX_AGE_S`. `tls` may be replaced; connections that stand keep theirs.

    While an origin has kept connections its name is looked up again by the resolver, every `TTL_S`. A connection to an
    address that is no longer among those of the name is not used again: kept ones are closed, those in use after their
    exchange.
    """

    def __init__(self, clocks: DeadlineTimer, tls: TlsContexts, resolver: Resolver | None = None) -> None:
        self._clocks = clocks
        self.tls = tls
        self.resolver = Resolver() if resolver is None else resolver
        self.resolver.on_found = self._retire_moved
        self._look_s = 0.0
        # While there is a key in it, the clocks ask.
        self._kept: dict[Key, list[Connection]] = {}
        # Each with the address that it is connected to.
        self._open: dict[Connection, tuple[Key, str]] = {}

    def take(self, key: Key, upstream: str, *, keep_s: float) -> Connection | None:
        """Take a kept connection that is usable now, or return None. Does not wait.

        `keep_s` is how long it may be kept after this use; 0 for not at all.
        """
        kept = self._kept.get(key)
        if not kept:
            return None
        now_s = self._clocks.now()
        while kept:
            connection = kept.pop()
            # The clocks may be late, so that one is still here whose time is over.
            if now_s < connection.kept_until_s and connection.is_usable():
                connection.upstream = upstream
                connection.keep_s = keep_s
                return connection
            connection.abort()
        return None

    async def dial(self, key: Key, upstream: str, addresses: Sequence[Address], *, keep_s: float) -> Connection:
        """Connect to one of `addresses`, which were resolved for the key's origin and are not looked up again.

        Where the key's way has an egress proxy they are the proxy's, and the proxy looks up the origin.

        Several are tried in parallel, a little apart (RFC 8305). One alone is left to the loop, which connects at half
        the price of a socket that is made here, but cannot be told the scope that a link-local address has. Cancelling
        closes whatever was begun. `keep_s` is that of `take`.

        Raises:
            UpstreamUnreachableError: refused, unroutable, or a TLS handshake that failed.
            EgressRefusedError: the egress proxy did not connect to the origin.
            OverloadedError: this machine lacks what a connection takes.
        """
        origin, way = key
        connection = Connection(upstream=upstream, key=key, on_idle=self._keep, on_closed=self._forget)
        connection.keep_s = keep_s
        is_tls = origin.scheme == "https"
        tls = self.tls.get(way.tls) if is_tls else None
        server_hostname = (way.server_name or origin.host) if is_tls else None
        loop = asyncio.get_running_loop()
        connection.retire_s = self._clocks.now() + MAX_AGE_S
        # Whatever it was given or made, the loop closes when the handshake fails or is cancelled.
        try:
            family, _, _, _, (host, port, *scope) = addresses[0].info
            if way.proxy is not None:
                host = ""
                sock = await open_tunnel(way.proxy, origin.host, origin.port, addresses)
                await loop.create_connection(lambda: connection, sock=sock, ssl=tls, server_hostname=server_hostname)
            elif len(addresses) == 1 and not any(scope):
                await loop.create_connection(
                    lambda: connection,
                    host,
                    port,
                    family=family,
                    flags=socket.AI_NUMERICHOST,
                    ssl=tls,
                    server_hostname=server_hostname,
                )
            else:
                sock = await aiohappyeyeballs.start_connection(
                    [address.info for address in addresses], happy_eyeballs_delay=ATTEMPT_DELAY_S, loop=loop
                )
                host = sock.getpeername()[0]
                await loop.create_connection(lambda: connection, sock=sock, ssl=tls, server_hostname=server_hostname)
        except OSError as exc:
            if exc.errno in NO_ROOM and not isinstance(exc, ssl.SSLError):
                raise OverloadedError from exc
            raise UpstreamUnreachableError(reason=reason_of_dial(exc, is_tls=is_tls)) from exc
        except asyncio.CancelledError:
            # The loop closes a half-made transport in an orderly way, which for TLS may take the peer's answer.
            connection.abort()
            raise
        # It may have been lost again already, and told so.
        if not connection.is_closed:
            self._open[connection] = key, _without_scope(host)
        return connection

    def counts(self) -> dict[tuple[str, str], int]:
        """Count the open connections by upstream and state (`active`, `idle`)."""
        counts: dict[tuple[str, str], int] = {}
        idle = {connection for kept in self._kept.values() for connection in kept}
        for connection in self._open:
            label = (connection.upstream, "idle" if connection in idle else "active")
            counts[label] = counts.get(label, 0) + 1
        return counts

    def check(self, now_s: float) -> None:
        """Close connections that were kept too long; called by the `DeadlineTimer`."""
        for key, kept in list(self._kept.items()):
            for connection in [connection for connection in kept if now_s >= connection.kept_until_s]:
                connection.abort()
            if not kept:
                del self._kept[key]
        if now_s >= self._look_s:
            self._look_s = now_s + LOOK_S
            for origin, way in self._kept:
                if way.proxy is None:
                    self.resolver.refresh(origin.host, origin.port)
        if not self._kept:
            self._clocks.discard(self)

    def close(self) -> None:
        """Close every connection, those in use included."""
        for connection in list(self._open):
            connection.abort()
        self._kept.clear()
        self._clocks.discard(self)

    def _keep(self, connection: Connection) -> None:
        now_s = self._clocks.now()
        until_s = min(now_s + connection.keep_s, connection.retire_s)
        if connection.vendor_keep_s is not None:
            until_s = min(until_s, now_s + connection.vendor_keep_s - MARGIN_S)
        if until_s <= now_s:
            connection.abort()
            return
        kept = self._kept.get(connection.key)
        if kept is None:
            kept = self._kept[connection.key] = []
            self._clocks.add(self)
        elif len(kept) >= MAX_KEPT:
            connection.abort()
            return
        connection.kept_until_s = until_s
        kept.append(connection)

    def _retire_moved(self, host: str, port: int, addresses: Sequence[Address]) -> None:
        """Use no connection to that host again that goes to none of these addresses."""
        known = {_without_scope(address.info[4][0]) for address in addresses}
        for connection, (key, address) in list(self._open.items()):
            origin, way = key
            if origin.host == host and origin.port == port and way.proxy is None and address not in known:
                connection.retire_s = 0.0
                if connection in self._kept.get(key, ()):
                    connection.abort()

    def _forget(self, connection: Connection) -> None:
        self._open.pop(connection, None)
        kept = self._kept.get(connection.key)
        if kept is not None and connection in kept:
            kept.remove(connection)


def _without_scope(host: str) -> str:
    return host.partition("%")[0]
