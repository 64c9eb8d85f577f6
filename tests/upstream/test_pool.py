"""Dialling: the one address or the first of several that answers, and nothing left open where it fails."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self, cast

import pytest

from proxy.errors import OverloadedError, UpstreamUnreachableError
from proxy.model import DIRECT, EgressProxy, Origin, TlsFiles
from proxy.timers import DeadlineTimer
from proxy.upstream.addresses import TTL_S, Address, Resolver
from proxy.upstream.pool import LOOK_S, MAX_AGE_S, Pool
from proxy.upstream.tls import TlsContexts
from tests.peers import Upstream
from tests.whole.leavers import blackhole
from tests.whole.nodes import descriptors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from proxy.timers import Watched
    from proxy.upstream.connection import Connection
    from proxy.upstream.pool import Key


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    clocks = DeadlineTimer(asyncio.get_running_loop())
    pool = Pool(clocks, TlsContexts())
    yield pool
    pool.close()
    clocks.close()


@pytest.fixture
def refusing() -> Iterator[int]:
    """A port where nobody listens, and that nobody else is given meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def address(host: str, port: int) -> Address:
    if ":" in host:
        return Address((socket.AF_INET6, socket.SOCK_STREAM, 6, "", (host, port, 0, 0)))
    return Address((socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)))


def key(scheme: str = "http") -> Key:
    return Origin(scheme, "vendor.example", 1), DIRECT


async def dial(pool: Pool, addresses: list[Address], scheme: str = "http") -> Connection:
    async with asyncio.timeout(10):
        return await pool.dial(key(scheme), "main", addresses, keep_s=50)


def addresses_of(upstream: Upstream, count: int) -> list[Address]:
    """So many addresses, of which only the last is any good."""
    port = upstream.address[1]
    return [address("::1" if number % 2 else "127.1.2.3", 1) for number in range(count - 1)] + [
        address("127.0.0.1", port)
    ]


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_dial_reaches_the_one_that_answers(pool: Pool, upstream: Upstream, count: int) -> None:
    """A connection is made to the one address that is given, or to that of several that answers."""
    connection = await dial(pool, addresses_of(upstream, count))
    asked = connection.send(b"GET / HTTP/1.1\r\n\r\n", b"", is_head_request=False)
    vendor, _ = await upstream.take()
    vendor.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    assert (await asked).status == 204
    assert pool.counts() == {("main", "idle"): 1}


class Upstream6(Upstream):
    """A scripted vendor at an IPv6 address."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "::1", 0)
        self.address = self._server.sockets[0].getsockname()
        return self


async def test_dial_an_ipv6_address(pool: Pool) -> None:
    """An IPv6 address is dialled as it is."""
    async with Upstream6() as upstream:
        connection = await dial(pool, [address("::1", upstream.address[1])])
        vendor = await upstream.accept()
        connection.abort()
        await vendor.closed()


async def test_dial_sends_small_writes_at_once(pool: Pool, upstream: Upstream) -> None:
    """A request is not held back for the acknowledgement of what went before it (Nagle)."""
    connection = await dial(pool, addresses_of(upstream, 1))

    assert connection._transport is not None
    sock = connection._transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("count", [1, 2])
async def test_dial_refused(pool: Pool, refusing: int, count: int) -> None:
    """Where nobody listens the upstream is unreachable, and no connection is counted."""
    addresses = [address("127.0.0.1", refusing), address("::1", refusing)][:count]

    with pytest.raises(UpstreamUnreachableError):
        await dial(pool, addresses)
    assert pool.counts() == {}


async def test_dial_never_looks_up(pool: Pool, upstream: Upstream) -> None:
    """What is no address is not looked up: between the check and the connection nobody is asked again."""
    with pytest.raises(UpstreamUnreachableError):
        await dial(pool, [address("localhost", upstream.address[1])])
    assert upstream.is_untouched


@pytest.mark.parametrize("count", [1, 2])
async def test_dial_without_descriptors(pool: Pool, upstream: Upstream, count: int) -> None:
    """A full descriptor table is this machine's fault, not the upstream's."""
    addresses = addresses_of(upstream, count)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        with pytest.raises(OverloadedError):
            await dial(pool, addresses)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert pool.counts() == {}


def sockets() -> int:
    """How many sockets this process has open."""
    return sum(name.startswith("socket:") for name in descriptors(os.getpid()))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("count", [1, 2])
async def test_dial_cancelled_while_connecting(pool: Pool, count: int) -> None:
    """Giving up closes the sockets whose connections are not made yet."""
    with blackhole() as url:
        before = sockets()
        port = int(url.rpartition(":")[2])
        dialling = asyncio.create_task(dial(pool, [address("127.0.0.1", port)] * count))
        async with asyncio.timeout(10):
            while sockets() == before:  # noqa: ASYNC110 - nothing tells when the loop has begun to connect
                await asyncio.sleep(0)
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
        async with asyncio.timeout(10):
            while sockets() > before:  # noqa: ASYNC110 - the loop closes them in its next turn
                await asyncio.sleep(0)
    assert pool.counts() == {}


@pytest.mark.parametrize("count", [1, 2])
async def test_dial_cancelled_in_the_handshake(pool: Pool, upstream: Upstream, count: int) -> None:
    """Giving up on a server that says nothing to our hello closes the connection at once."""
    dialling = asyncio.create_task(dial(pool, addresses_of(upstream, count), "https"))
    vendor = await upstream.accept()
    assert (await vendor.read_exactly(1)) == b"\x16"

    dialling.cancel()

    with pytest.raises(asyncio.CancelledError):
        await dialling
    await vendor.closed()
    assert pool.counts() == {}


@pytest.mark.parametrize("count", [1, 2])
async def test_dial_failing_handshake(pool: Pool, upstream: Upstream, count: int) -> None:
    """A server that speaks no TLS is unreachable, and its connection is closed."""
    dialling = asyncio.create_task(dial(pool, addresses_of(upstream, count), "https"))
    vendor = await upstream.accept()
    vendor.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with pytest.raises(UpstreamUnreachableError) as raised:
        await dialling
    assert isinstance(raised.value.__cause__, ssl.SSLError)
    await vendor.closed()
    assert pool.counts() == {}


class HandClocks:
    """Timers that stand still until the test moves them."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.watched: set[Watched] = set()

    def now(self) -> float:
        return self.now_s

    def add(self, watched: Watched) -> None:
        self.watched.add(watched)

    def discard(self, watched: Watched) -> None:
        self.watched.discard(watched)


async def kept_at(pool: Pool, upstream: Upstream, addresses: Sequence[Address]) -> Connection:
    """A connection to one of these addresses that has served one answer, and is kept for long."""
    return await kept(pool, upstream, keep_s=500, addresses=addresses)


async def kept(
    pool: Pool, upstream: Upstream, *fields: str, keep_s: float, addresses: Sequence[Address] = ()
) -> Connection:
    """A connection that has served one answer with these fields."""
    connection = await pool.dial(key(), "main", addresses or addresses_of(upstream, 1), keep_s=keep_s)
    asked = connection.send(b"GET / HTTP/1.1\r\n\r\n", b"", is_head_request=False)
    vendor, _ = await upstream.take()
    vendor.write("\r\n".join(["HTTP/1.1 204 No Content", *fields, "", ""]).encode())
    assert (await asked).status == 204
    return connection


@pytest.mark.parametrize(
    ("keep_s", "fields", "until_s"),
    [
        pytest.param(50, (), 50, id="settings alone"),
        pytest.param(4, (), 4, id="shorter settings"),
        pytest.param(50, ("Keep-Alive: timeout=5",), 4, id="vendor less a second"),
        pytest.param(50, ("Keep-Alive: max=100, timeout=5",), 4, id="vendor with max"),
        pytest.param(3, ("Keep-Alive: timeout=5",), 3, id="settings below the vendor"),
        pytest.param(50, ("Keep-Alive: timeout=600",), 50, id="vendor above the settings"),
        pytest.param(50, ("Keep-Alive: timeout=soon",), 50, id="vendor that is unreadable"),
        pytest.param(50, ("Keep-Alive: timeout=9", "Keep-Alive: timeout=5"), 4, id="vendor that says two"),
    ],
)
@pytest.mark.parametrize("is_asked", [False, True], ids=["clock is late", "clock asks"])
async def test_pool_keeps_no_longer_than(
    upstream: Upstream, keep_s: float, fields: tuple[str, ...], until_s: float, is_asked: bool
) -> None:
    """A kept connection is lent until its time is over, and not from then on, however late the clocks ask."""
    clocks = HandClocks()
    pool = Pool(cast("DeadlineTimer", clocks), TlsContexts())
    connection = await kept(pool, upstream, *fields, keep_s=keep_s)

    clocks.now_s += until_s - 0.01
    pool.check(clocks.now_s)
    assert pool.take(key(), "main", keep_s=keep_s) is connection
    pool._keep(connection)
    clocks.now_s += until_s
    if is_asked:
        pool.check(clocks.now_s)
        assert connection.is_closed
    assert pool.take(key(), "main", keep_s=keep_s) is None
    assert pool.counts() == {}
    pool.check(clocks.now_s)
    assert not clocks.watched


@pytest.mark.parametrize(
    ("keep_s", "fields"),
    [
        pytest.param(0, (), id="settings off"),
        pytest.param(50, ("Keep-Alive: timeout=1",), id="vendor's second"),
        pytest.param(50, ("Keep-Alive: timeout=0",), id="vendor's nothing"),
    ],
)
async def test_pool_keeps_nothing(upstream: Upstream, keep_s: float, fields: tuple[str, ...]) -> None:
    """A connection that may not be kept is closed with its answer."""
    clocks = HandClocks()
    pool = Pool(cast("DeadlineTimer", clocks), TlsContexts())

    connection = await kept(pool, upstream, *fields, keep_s=keep_s)

    assert connection.is_closed
    assert pool.counts() == {}
    assert not clocks.watched


async def test_old_connection_is_not_kept(upstream: Upstream) -> None:
    """A connection is not used again once it is old, however often it was: a vendor's move by DNS is followed."""
    clocks = DeadlineTimer(asyncio.get_running_loop())
    now_s = clocks.now()
    clocks.now = lambda: now_s
    pool = Pool(clocks, TlsContexts())
    connection = await dial(pool, addresses_of(upstream, 1))
    vendor = await upstream.accept()
    for age_s in (0.0, 150.0, MAX_AGE_S - 60, MAX_AGE_S):
        asked = connection.send(b"GET / HTTP/1.1\r\n\r\n", b"", is_head_request=False)
        await vendor.read_message()
        begun_s = connection.retire_s - MAX_AGE_S
        now_s = begun_s + age_s
        vendor.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await asked
        taken = pool.take(key(), "main", keep_s=50)
        assert (taken is connection) is (age_s < MAX_AGE_S)
    pool.close()
    clocks.close()


class Names:
    """A resolver's look-up whose answers the test changes, and who waits for them."""

    def __init__(self, *answers: tuple[Address, ...]) -> None:
        self.answers = list(answers)
        self.asked = asyncio.Event()

    async def __call__(self, host: str, port: int) -> tuple[Address, ...]:
        assert (host, port) == ("vendor.example", 1)
        self.asked.set()
        if not self.answers:
            raise UpstreamUnreachableError(reason="dns")
        return self.answers.pop(0)


@asynccontextmanager
async def moving(*answers: tuple[Address, ...]) -> AsyncIterator[tuple[Pool, HandClocks, Names]]:
    """A pool whose clocks, and whose name's addresses, the test moves; the first answer is known already."""
    clocks, names = HandClocks(), Names(*answers)
    resolver = Resolver(look_up=names, clock=clocks.now)
    pool = Pool(cast("DeadlineTimer", clocks), TlsContexts(), resolver)
    await resolver.resolve("vendor.example", 1)
    names.asked.clear()
    yield pool, clocks, names
    pool.close()
    await resolver.close()


async def looked_up(pool: Pool, names: Names) -> None:
    """The look-up that is under way has been answered, and the pool told."""
    async with asyncio.timeout(5):
        await names.asked.wait()
        await asyncio.gather(*pool.resolver._tasks.values())
        # Its callback, too, which another look-up waits for: from Python 3.12 on `gather` does not.
        await asyncio.sleep(0)


@pytest.mark.parametrize("count", [1, 2])
async def test_kept_connection_after_a_move(upstream: Upstream, count: int) -> None:
    """A vendor's name is read again while a connection is kept; one to an address that it left is closed, not used."""
    here = tuple(addresses_of(upstream, count))
    async with moving(here, here, (address("127.9.9.9", 1),)) as (pool, clocks, names):
        connection = await kept_at(pool, upstream, here)

        clocks.now_s += TTL_S
        pool.check(clocks.now_s)
        await looked_up(pool, names)
        assert pool.take(key(), "main", keep_s=500) is connection
        pool._keep(connection)

        names.asked.clear()
        clocks.now_s += TTL_S
        pool.check(clocks.now_s)
        await looked_up(pool, names)
        assert connection.is_closed
        assert pool.take(key(), "main", keep_s=500) is None
        assert pool.counts() == {}


async def test_running_stream_during_a_move(upstream: Upstream) -> None:
    """A stream goes on to its end at an address that the name has left; its connection is closed then."""
    here = tuple(addresses_of(upstream, 1))
    async with moving(here, (address("127.9.9.9", 1),)) as (pool, clocks, _):
        connection = await pool.dial(key(), "main", here, keep_s=500)
        asked = connection.send(b"GET / HTTP/1.1\r\n\r\n", b"", is_head_request=False)
        vendor, _ = await upstream.take()

        clocks.now_s += TTL_S
        await pool.resolver.resolve("vendor.example", 1)
        assert not connection.is_closed
        vendor.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert (await asked).status == 204
        await vendor.closed()
        assert pool.counts() == {}


async def test_kept_connection_without_a_resolver(upstream: Upstream) -> None:
    """A resolver that fails takes no kept connection away, and is asked again at most every few seconds."""
    here = tuple(addresses_of(upstream, 1))
    async with moving(here) as (pool, clocks, names):
        connection = await kept_at(pool, upstream, here)
        for _ in range(3):
            names.asked.clear()
            clocks.now_s += TTL_S
            pool.check(clocks.now_s)
            await looked_up(pool, names)
            names.asked.clear()
            clocks.now_s += LOOK_S / 2
            pool.check(clocks.now_s)
            await asyncio.sleep(0)
            assert not names.asked.is_set()
        assert pool.take(key(), "main", keep_s=500) is connection


async def test_tunnel_is_not_of_the_name(upstream: Upstream) -> None:
    """The address of a tunnel is the egress proxy's: the vendor's name tells nothing of it, and is not looked up."""
    here = tuple(addresses_of(upstream, 1))
    async with moving(here, (address("127.9.9.9", 1),)) as (pool, clocks, names):
        origin, way = key()
        tunnelled = (origin, way._replace(proxy=EgressProxy("http", "127.0.0.1", upstream.address[1])))
        dialling = asyncio.create_task(pool.dial(tunnelled, "main", here, keep_s=500))
        vendor, _ = await upstream.take()
        vendor.write(b"HTTP/1.1 200 OK\r\n\r\n")
        connection = await dialling
        asked = connection.send(b"GET / HTTP/1.1\r\n\r\n", b"", is_head_request=False)
        await vendor.read_message()
        vendor.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await asked
        clocks.now_s += TTL_S
        pool.check(clocks.now_s)
        await pool.resolver.resolve("vendor.example", 1)
        assert not names.answers
        assert pool.take(tunnelled, "main", keep_s=500) is connection


async def test_ways_do_not_share_connections(pool: Pool, upstream: Upstream) -> None:
    """A connection that was made in one way is not used in another: through a proxy, or with other TLS files."""
    connection = await dial(pool, addresses_of(upstream, 1))
    asked = connection.send(b"GET / HTTP/1.1\r\n\r\n", b"", is_head_request=False)
    vendor, _ = await upstream.take()
    vendor.write(b"HTTP/1.1 204 No Content\r\n\r\n")
    await asked
    origin, way = key()
    for other in (
        way._replace(proxy=EgressProxy("http", "proxy.example", 3128)),
        way._replace(server_name="other.example"),
        way._replace(tls=TlsFiles(None, "own.pem", "own.key")),
    ):
        assert pool.take((origin, other), "main", keep_s=50) is None
    assert pool.take((origin, way), "main", keep_s=50) is connection
