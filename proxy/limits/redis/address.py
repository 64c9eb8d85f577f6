"""Where the limits server is, and how a connection to it begins: socket, TLS, credentials, Sentinel."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError

from proxy.limits.redis.errors import UNEXPECTED, ConnectionLostError, StoreError, translated
from proxy.protocol.verify_flags import set_verify_flags

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

# Redis answers within a millisecond; ten of these are a network in trouble, a hundred are an outage.
TIMEOUT_S = 0.1

_NO_PRIMARY = "no sentinel names a primary of the service"

Node = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """One server by host and port or by the `path` of a socket; or the sentinels of a `service`; or a Cluster's nodes.

    `ca_file` replaces the system's trust store, `certificate` and `key` (PEM files) are ours; all three are for the
    sentinels, too. `user` and `password` are for the servers only.
    """

    nodes: tuple[Node, ...] = (("127.0.0.1", 6379),)
    kind: Literal["server", "sentinel", "cluster"] = "server"
    path: str | None = None
    db: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    service: str = ""
    sentinel_password: str | None = field(default=None, repr=False)
    is_tls: bool = False
    ca_file: str | None = None
    certificate: str | None = None
    key: str | None = None


class _TLSConnection(SSLConnection):
    """redis-py's own adds `ca_file` to the system's trust store, where it is to replace it."""

    def __init__(self, *, tls: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context.context = tls


class Dialler:
    """Opens connections to the server, or to the node that is named.

    Args:
        timeout_s: For connecting, and for what is said before the first command; and for each sentinel.

    Raises:
        OSError: a file of authorities or certificates cannot be used.
    """

    def __init__(self, address: RedisAddress, *, timeout_s: float = TIMEOUT_S) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self._tls = _tls_context(address) if address.is_tls else None
        # The server that was dialled last without being named.
        self.primary: Node | None = None
        self._sentinel: Sentinel | None = None
        if address.kind == "sentinel":
            self._sentinel = Sentinel([])  # type: ignore[no-untyped-call]
            self._sentinel.sentinels = [Redis.from_pool(self._sentinel_pool(*node)) for node in address.nodes]

    async def dial(self, node: Node | None = None) -> AbstractConnection:
        """Open a connection, or give up. Cancelling leaves no connection behind.

        Without a node: to the server, or to the primary that a sentinel names.

        Raises:
            StoreError: there is none; the text says why.
        """
        if node is None:
            node = self.primary = await self._find_primary()
        connection = self._connection(node)
        try:
            async with asyncio.timeout(2 * self.timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]
        except TimeoutError as error:
            await drop(connection)
            raise ConnectionLostError("the server cannot be reached in time") from error
        except UNEXPECTED as error:
            await drop(connection)
            raise translated(error, "the server cannot be reached") from error
        except BaseException:
            await drop(connection)
            raise
        return connection

    async def close(self) -> None:
        """Let go of the sentinels."""
        if self._sentinel is not None:
            await self._sentinel.aclose()

    async def _find_primary(self) -> Node:
        """Ask one sentinel after another, as redis-py's `discover_master`, whose error does not tell what they said."""
        if self._sentinel is None:
            # A socket has none.
            return next(iter(self.address.nodes), ("", 0))
        failure: StoreError = ConnectionLostError(_NO_PRIMARY)
        for sentinel in tuple(self._sentinel.sentinels):
            try:
                masters: Any = await sentinel.sentinel_masters()
                state = masters.get(self.address.service)
                if state and self._sentinel.check_master_state(state, self.address.service):
                    # The next question begins with one that answers.
                    self._sentinel.sentinels.sort(key=lambda one: one is not sentinel)
                    return str(state["ip"]), int(state["port"])
            except AuthenticationError:
                failure = StoreError("the sentinels want another password")
            except UNEXPECTED as error:
                told = translated(error, _NO_PRIMARY)
                if str(told) != _NO_PRIMARY:
                    failure = told
            finally:
                _reraise_cancelled()
        raise failure

    def _options(self) -> dict[str, Any]:
        """What redis-py is told in place of its defaults, which are unfit for a request that waits."""
        return {
            # 5 s by default. Of the other one, also 5 s, redis-py makes a `wait_for` around each write, which costs a
            # task; the channel has one timer for all commands.
            "socket_connect_timeout": self.timeout_s,
            "socket_timeout": None,
            # 10 retries by default; a command that got no answer may have been done, and would charge twice.
            "retry": Retry(NoBackoff(), 0),
            # RESP 3 needs HELLO, which the least privileges do not have, and brings nothing here.
            "protocol": 2,
            # CLIENT SETINFO, the same.
            "driver_info": None,
        }

    def _connection(self, node: Node) -> AbstractConnection:
        address = self.address
        options = self._options() | {"db": address.db, "username": address.user, "password": address.password}
        if address.path is not None:
            return UnixDomainSocketConnection(path=address.path, **options)
        host, port = node
        if self._tls is not None:
            return _TLSConnection(tls=self._tls, host=host, port=port, **options)
        return Connection(host=host, port=port, **options)

    def _sentinel_pool(self, host: str, port: int) -> ConnectionPool:
        options = self._options() | {"host": host, "port": port, "password": self.address.sentinel_password}
        # So that one that hangs does not keep us from the others.
        options["socket_timeout"] = self.timeout_s
        if self._tls is not None:
            return ConnectionPool(connection_class=_TLSConnection, tls=self._tls, **options)
        return ConnectionPool(connection_class=Connection, **options)


def _reraise_cancelled() -> None:
    """Raise the cancellation that `wait_for`, which redis-py uses for sentinels, may have lost before Python 3.12.

    https://github.com/python/cpython/issues/86296
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def cut(connection: AbstractConnection) -> None:
    """Close a connection's socket now, without sending what is still in its buffer, which may be a whole ticket.

    redis-py's `disconnect` first flushes, for as long as a server that hangs does not read.
    """
    writer = connection._writer  # noqa: SLF001 - see above; watched by tests/limits/redis/test_channel.py
    if writer is not None:
        writer.transport.abort()


async def drop(connection: AbstractConnection) -> None:
    """The same, and let redis-py know. Does not wait."""
    cut(connection)
    await connection.disconnect(nowait=True)


def _tls_context(address: RedisAddress) -> ssl.SSLContext:
    try:
        context = set_verify_flags(ssl.create_default_context(cafile=address.ca_file))
    except OSError as exc:
        raise OSError("limits.store: its ca_file cannot be used as a file of authorities") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if address.certificate is not None:
        try:
            context.load_cert_chain(address.certificate, address.key)
        except OSError as exc:
            raise OSError("limits.store: its certificate and key cannot be used") from exc
    return context
