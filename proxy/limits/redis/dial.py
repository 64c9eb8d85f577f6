"""Where a Redis server is, and how a connection to it begins: socket, TLS, credentials, database."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.limits.redis.resp import TIMEOUT_S, Connection, ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Awaitable


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A server: host and port, or the `path` of a socket; `ca_file` replaces the system's trust store."""

    host: str = "127.0.0.1"
    port: int = 6379
    path: str | None = None
    db: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    is_tls: bool = False
    ca_file: str | None = None


class Dialler:
    """Opens connections to one server.

    Args:
        timeout_s: For each of two steps, and for each command later.

    Raises:
        OSError: the authority file cannot be read.
    """

    def __init__(self, address: RedisAddress, *, timeout_s: float = TIMEOUT_S) -> None:
        self._address = address
        self.timeout_s = timeout_s
        self._tls: ssl.SSLContext | None = None
        if address.is_tls:
            try:
                self._tls = ssl.create_default_context(cafile=address.ca_file)
            except OSError as exc:
                raise OSError("limits.store: its ca_file cannot be used as a file of authorities") from exc
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2

    async def dial(self, *, is_patient: bool = False) -> Connection:
        """Open a connection that is ready for commands, or give up within about twice `timeout_s`.

        Cancelling leaves no connection behind.

        Raises:
            StoreError: there is none; the text says why.
        """
        connection = Connection(timeout_s=self.timeout_s, is_patient=is_patient)
        address = self._address
        loop = asyncio.get_running_loop()
        opening: Awaitable[object]
        if address.path is not None:
            opening = loop.create_unix_connection(lambda: connection, address.path)
        else:
            opening = loop.create_connection(
                lambda: connection,
                address.host,
                address.port,
                ssl=self._tls,
                # A half-made one that is given up takes its leave as quickly.
                ssl_shutdown_timeout=None if self._tls is None else self.timeout_s,
            )
        try:
            async with asyncio.timeout(self.timeout_s):
                await opening
            await self._introduce(connection)
        except TimeoutError as exc:
            connection.abort("it is not wanted")
            raise ConnectionLostError("the server cannot be reached in time") from exc
        except ssl.SSLError as exc:
            raise ConnectionLostError("the server's certificate is not trusted, or it speaks no TLS") from exc
        except OSError as exc:
            raise ConnectionLostError("the server cannot be reached") from exc
        except BaseException:
            connection.abort("it is not wanted")
            raise
        return connection

    async def _introduce(self, connection: Connection) -> None:
        address = self._address
        if address.password is not None:
            credentials = (address.password,) if address.user is None else (address.user, address.password)
            await connection.ask("AUTH", *credentials)
        if address.db:
            await connection.ask("SELECT", address.db)
