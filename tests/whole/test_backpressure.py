"""A peer that is slow makes the other one wait; what waits in between is bounded."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, WAIT_S, Peer, Upstream, chunk, event, request
from tests.whole.scenes import BODY, OK, check_settled, fill, head, serves

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running

WAITING_BYTES = 256 * 1024


def waiting(proxy: Running) -> int:
    """What waits in the proxy for its clients, in bytes."""
    transports = (connection.transport for connection in proxy.server.connections)
    return sum(transport.get_write_buffer_size() for transport in transports if transport is not None)


async def dechunk(client: Peer, digest: Any) -> int:
    """Read a chunked body to its end."""
    total = 0
    while True:
        size = int(await client.read_until(b"\r\n"), 16)
        data = await client.read_exactly(size + 2)
        client.seen = b""
        if size == 0:
            return total
        digest.update(data[:-2])
        total += size


@pytest.mark.parametrize("size", [100, 8_000, 200_000], ids=["small", "middling", "large"])
async def test_slow_client_pauses_the_upstream(proxy: Running, upstream: Upstream, size: int) -> None:
    """A client that does not read makes at most 256 KiB wait and holds the upstream; no byte is lost in the end."""
    client = await proxy.client(receive_buffer=4096)
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.writer.transport.set_write_buffer_limits(high=0)
    dice = random.Random(size)
    sent = hashlib.sha256()
    got = hashlib.sha256()
    vendor.write(STREAM_HEAD)
    total = 0
    is_held = False
    while not is_held:
        pieces = [event(str(dice.random()) + "x" * size) for _ in range(max(1, 100_000 // size))]
        for piece in pieces:
            sent.update(piece)
            total += len(piece)
        vendor.write(b"".join(map(chunk, pieces)))
        try:
            async with asyncio.timeout(0.3):
                await vendor.writer.drain()
        except TimeoutError:
            is_held = True
        assert waiting(proxy) <= WAITING_BYTES
    assert waiting(proxy) > 0
    await serves(proxy)

    await client.read_head()
    reading = asyncio.create_task(dechunk(client, got))
    vendor.write(LAST)
    async with asyncio.timeout(WAIT_S):
        assert await reading == total

    assert got.digest() == sent.digest()
    await check_settled(proxy, "complete", bytes=total)


async def test_slow_clients_do_not_slow_others(proxy: Running, upstream: Upstream) -> None:
    """A client that stopped reading holds its own upstream up, nobody else's."""
    stuck = await proxy.client(receive_buffer=4096)
    stuck.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    await fill(vendor)

    client = await proxy.client()
    client.write(request(body=BODY, token=token("bob")))
    other, _ = await upstream.take()
    other.write(OK)

    assert (await client.read_message()).body == b"ok"
    stuck.reset()
    await vendor.closed()


async def test_trickling_client_is_not_cut(start: Callable[..., Any], upstream: Upstream) -> None:
    """A client that takes a little now and then makes progress: the write clock starts anew with each."""
    proxy = await start("client_timeouts: {write: 1s}\n")
    client = await proxy.client(receive_buffer=4096)
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    size = 12 * 2**20
    sending = asyncio.create_task(vendor.send(STREAM_HEAD + chunk(b"x" * size) + LAST))
    await client.read_head()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    got = 0
    while loop.time() - began_s < 3:
        # Only time can tell: three times the clock, with a read every twentieth of it.
        got += len(await asyncio.wait_for(client.reader.read(2**17), WAIT_S))
        await asyncio.sleep(0.05)

    assert proxy.service.exchanges.live()
    assert got < size
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    client.reset()
    await vendor.closed()


async def test_client_with_a_closed_window_is_cut(start: Callable[..., Any], upstream: Upstream) -> None:
    """A client that never reads again is let go by the write clock, and its upstream with it."""
    proxy = await start("client_timeouts: {write: 200ms}\n")
    client = await proxy.client(receive_buffer=4096)
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    filling = asyncio.create_task(fill(vendor))

    await vendor.closed()

    filling.cancel()
    await check_settled(proxy, "timeout_write")
    client.reset()


async def test_refused_client_that_reads_nothing_is_let_go(start: Callable[..., Any]) -> None:
    """A client that asks and asks and reads none of the answers is not served for ever."""
    proxy = await start("client_timeouts: {write: 200ms}\n")
    client = await proxy.client(receive_buffer=4096)
    client.writer.transport.set_write_buffer_limits(high=0)
    flood = request("/healthz", method="GET") * 500

    async def ask() -> None:
        while True:
            client.write(flood)
            await client.writer.drain()

    asking = asyncio.create_task(ask())
    connection = None
    worst = 0
    async with asyncio.timeout(WAIT_S):
        while proxy.server.connections or connection is None:
            connection = next(iter(proxy.server.connections), connection)
            worst = max(worst, waiting(proxy))
            await asyncio.sleep(0.01)

    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert worst <= WAITING_BYTES


async def test_slow_upstream_pauses_nobody_but_its_own(proxy: Running, upstream: Upstream) -> None:
    """An upstream that takes no large body holds up its own exchange alone; a client that leaves meanwhile frees it."""
    client = await proxy.client()
    client.write(
        head(f"Authorization: Bearer {token()}", "X-Upstream: main", "Content-Length: 20000000") + b"x" * 20_000_000
    )
    vendor = await upstream.accept()
    await vendor.read_head()
    await serves(proxy)

    client.reset()

    # A reset, or an end before the length: never a whole request.
    got = await vendor.read_to_end()
    assert len(got) < 20_000_000
    await check_settled(proxy, "client_closed")
