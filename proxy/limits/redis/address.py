"""Where the limits server is, and connections to it: socket, TLS, credentials, Sentinel, and a command or two on one.

What requests ask goes through a `Channel`; a connection of its own is for a large command, which would hold up all
others, and for what is asked before there is a channel.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError

from proxy.limits.redis.errors import UNEXPECTED, ConnectionLostError, StoreError, translated
from proxy.protocol.verify_flags import set_verify_flags

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio.connection import AbstractConnection

    from proxy.limits.redis.channel import Answer, Command

# Redis answers within a millisecond; ten of these are a network in trouble, a hundred are an outage.
TIMEOUT_S = 0.1
# How long a large command and its answer may take.
LARGE_S = 2.0

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
        # The one that answered last is asked first.
        self._sentinels = list(address.nodes)

    async def dial(self, node: Node | None = None) -> AbstractConnection:
        """Open a connection, or give up. Cancelling leaves no connection behind.

        Without a node: to the server, or to the primary that a sentinel names.

        Raises:
            StoreError: there is none; the text says why.
        """
        if node is None:
            node = self.primary = await self._find_primary()
        try:
            address = self.address
            return await self._open(node, db=address.db, username=address.user, password=address.password)
        except TimeoutError as error:
            raise ConnectionLostError("the server cannot be reached in time") from error
        except UNEXPECTED as error:
            raise translated(error, "the server cannot be reached") from error

    @asynccontextmanager
    async def connected(self, node: Node | None) -> AsyncIterator[AbstractConnection]:
        """Give a connection to the server, or to a node, that answers; it is closed afterwards.

        A server that hangs is found out by a `PING`, in `timeout_s`.

        Raises:
            StoreError: there is none.
        """
        connection = await self.dial(node)
        try:
            await run(connection, ("PING",), timeout_s=self.timeout_s)
            yield connection
        finally:
            await drop(connection)

    async def _find_primary(self) -> Node:
        if self.address.kind != "sentinel":
            # A socket has none.
            return next(iter(self.address.nodes), ("", 0))
        failure: StoreError = ConnectionLostError(_NO_PRIMARY)
        for sentinel in tuple(self._sentinels):
            try:
                primary = await self._ask_sentinel(sentinel)
            except AuthenticationError:
                failure = StoreError("the sentinels want another password")
            except UNEXPECTED as error:
                told = translated(error, _NO_PRIMARY)
                if str(told) != _NO_PRIMARY:
                    failure = told
            else:
                if primary is not None:
                    self._sentinels.sort(key=lambda one: one != sentinel)
                    return primary
        raise failure

    async def _ask_sentinel(self, sentinel: Node) -> Node | None:
        connection = await self._open(sentinel, password=self.address.sentinel_password)
        try:
            async with asyncio.timeout(self.timeout_s):
                masters: Any = await _exchange(connection, ("SENTINEL", "MASTERS"))
        finally:
            await drop(connection)
        for words in masters:
            state = dict(zip(words[::2], words[1::2], strict=True))
            flags = state[b"flags"].split(b",")
            if state[b"name"] == self.address.service.encode() and b"master" in flags:
                is_down = b"s_down" in flags or b"o_down" in flags
                return None if is_down else (state[b"ip"].decode(), int(state[b"port"]))
        return None

    async def _open(self, node: Node, **options: Any) -> AbstractConnection:
        connection = self._connection(node, options)
        try:
            async with asyncio.timeout(2 * self.timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await drop(connection)
            raise
        return connection

    def _connection(self, node: Node, options: dict[str, Any]) -> AbstractConnection:
        options |= {
            # redis-py's defaults are unfit for a request that waits. 5 s by default. Of the other one, also 5 s,
            # redis-py makes a `wait_for` around each write, which costs a task; the channel has one timer for all.
            "socket_connect_timeout": self.timeout_s,
            "socket_timeout": None,
            # 10 retries by default; a command that got no answer may have been done, and would charge twice.
            "retry": Retry(NoBackoff(), 0),
            # RESP 3 needs HELLO, which the least privileges do not have, and brings nothing here.
            "protocol": 2,
            # CLIENT SETINFO, the same.
            "driver_info": None,
        }
        if self.address.path is not None:
            return UnixDomainSocketConnection(path=self.address.path, **options)
        host, port = node
        if self._tls is not None:
            return _TLSConnection(tls=self._tls, host=host, port=port, **options)
        return Connection(host=host, port=port, **options)


async def run(
    connection: AbstractConnection, command: Command, *, is_asking: bool = False, timeout_s: float = LARGE_S
) -> Answer:
    """Run a command; `is_asking` for a slot that is being moved to this node (ASK).

    Raises:
        StoreError: it failed, or no answer came within `timeout_s`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            if is_asking:
                await _exchange(connection, ("ASKING",))
            return await _exchange(connection, command)
    except TimeoutError as error:
        raise ConnectionLostError("the server did not answer in time") from error
    except UNEXPECTED as error:
        raise translated(error, "the connection was lost") from error


async def _exchange(connection: AbstractConnection, command: Command) -> Answer:
    # In pieces: a large argument is not copied.
    await connection.send_packed_command(connection.pack_command(*command), check_health=False)
    answer: Answer = await connection.read_response(disable_decoding=True, timeout=math.inf)
    return answer


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
            # OpenSSL would ask for a passphrase on the terminal.
            context.load_cert_chain(address.certificate, address.key, password=lambda: b"")
        except OSError as exc:
            raise OSError("limits.store: its certificate and key cannot be used") from exc
    return context
