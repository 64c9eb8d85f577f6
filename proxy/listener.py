"""Listens to clients: makes a connection for each, and knows those that are open."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.client_connection import ClientConnection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.client_connection import ClientClocks
    from proxy.clocks import Clocks
    from proxy.errors import ProxyError
    from proxy.phases.accept import ClientConnection as AnyConnection
    from proxy.phases.accept import Incoming
    from proxy.phases.answer import Settled


class Listener:
    """Makes a `ClientConnection` for each client: a protocol factory."""

    def __init__(
        self,
        handle: Callable[[Incoming], Awaitable[Settled]],
        refuse_head: Callable[[AnyConnection, ProxyError], Settled],
        *,
        clocks: Clocks,
        client_clocks: ClientClocks,
        max_header_bytes: int,
    ) -> None:
        self.handle = handle
        self.refuse_head = refuse_head
        self.clocks = clocks
        self.client_clocks = client_clocks
        self.max_header_bytes = max_header_bytes
        self.open: set[ClientConnection] = set()
        self._emptied: asyncio.Event | None = None

    def __call__(self) -> ClientConnection:
        """A new connection's protocol."""
        return ClientConnection(self, asyncio.get_running_loop())

    def hang_up(self) -> None:
        """Close every connection once what was written to it has left."""
        for connection in list(self.open):
            connection.close()

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
