"""Every ending of a typed stream: what the client saw, both connections, the lease, the one line."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from proxy.dialects.typed.translator import MAX_EVENT_BYTES
from proxy.model import Ending
from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, WAIT_S, Peer, Upstream, chunk, event, request
from tests.typed_streams import end, failed
from tests.whole.scenes import check_secrets, check_settled, serves
from tests.whole.typed_scenes import ASKED, BODY, CLOSED, FINISH, PLAIN, begin, line, rest_of, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running


@pytest.fixture
async def typing(start: Callable[..., Any]) -> Running:
    """A proxy with an upstream of every kind."""
    return await start(config=PLAIN)  # type: ignore[no-any-return]  # the factory's options are open


def leaves(vendor: Peer) -> None:
    vendor.close()


def resets(vendor: Peer) -> None:
    vendor.reset()


def finishes_and_leaves(vendor: Peer) -> None:
    vendor.write(chunk(FINISH))
    vendor.close()


def sends(data: bytes) -> Callable[[Peer], None]:
    return lambda vendor: vendor.write(data)


def errs(_: Peer) -> None:
    """Does nothing: a clock does."""


CHUNKED_ERROR = chunk(b'data: {"error":{"message":"overloaded","code":"busy"}}\n\n')
ENDINGS: dict[str, tuple[Callable[[Peer], None], dict[str, Any], str]] = {
    "upstream closes": (leaves, CLOSED, "upstream_closed"),
    "upstream resets": (resets, CLOSED, "upstream_closed"),
    "upstream ends inside an event": (sends(chunk(b'data: {"choices":') + LAST), CLOSED, "upstream_closed"),
    "upstream ends too early": (sends(LAST), CLOSED, "upstream_closed"),
    "upstream talks nonsense": (sends(b"\x00 no chunk"), CLOSED, "upstream_closed"),
    "upstream closes after the end": (finishes_and_leaves, end(), "upstream_closed"),
    "vendor's error": (sends(CHUNKED_ERROR), failed("busy", "overloaded"), "upstream_error"),
    "vendor's error, then text": (
        sends(CHUNKED_ERROR + chunk(event("more"))),
        failed("busy", "overloaded"),
        "upstream_error",
    ),
    "unreadable event": (
        sends(chunk(b"data: <html>\n\n")),
        failed("upstream_protocol_error", "The upstream sent an event that cannot be read."),
        "upstream_error",
    ),
    "event too large": (
        sends(chunk(b"data: " + b"x" * MAX_EVENT_BYTES)),
        failed("upstream_protocol_error", "The upstream sent an event that is too large."),
        "upstream_error",
    ),
    "idle": (
        errs,
        failed("upstream_timeout", "The upstream fell silent (clock: idle)."),
        "timeout_idle",
    ),
    "idle after the end": (sends(chunk(FINISH)), end(), "timeout_idle"),
}


@pytest.mark.parametrize("name", list(ENDINGS))
async def test_typed_endings(start: Callable[..., Any], upstream: Upstream, name: str) -> None:
    """However a stream breaks, its client is told once, in order; the log says how it was; nothing is left open."""
    act, last, ending = ENDINGS[name]
    clocks = "timeouts: {idle: 600ms}\n" if name.startswith("idle") else ""
    proxy = await start(clocks, config=PLAIN)
    client, vendor, _ = await begin(proxy, upstream)

    act(vendor)

    assert await rest_of(client) == [last]
    if name not in {"upstream ends too early", "upstream ends inside an event"}:
        await vendor.closed()
    await check_settled(proxy, ending, status=200, events=2)
    check_secrets(proxy, client.seen)
    # A body that ended in order leaves a connection that can be used again.
    client.write(request("/healthz", method="GET"))
    assert (await client.read_message()).status == 200


async def test_typed_total(start: Callable[..., Any], upstream: Upstream) -> None:
    """The total clock ends a lively stream, in order."""
    proxy = await start("timeouts: {total: 800ms}\n", config=PLAIN)
    client, vendor, _ = await begin(proxy, upstream)
    reading = asyncio.create_task(rest_of(client))
    while not reading.done():
        vendor.write(chunk(event("more")))
        await asyncio.wait((reading,), timeout=0.02)

    assert reading.result()[-1] == failed("upstream_timeout", "The stream took too long (clock: total).")
    await vendor.closed()
    await check_settled(proxy, "timeout_total")


async def test_typed_stopped_by_its_user(typing: Running, upstream: Upstream) -> None:
    """Stopping one's own stream ends it with `Cancelled`, closes the vendor's connection and keeps the client's."""
    client, vendor, head = await begin(typing, upstream)
    other = await typing.client()
    other.write(request(f"/forward-sse/streams/{head.get('x-forward-sse-id')}", method="DELETE", token=token()))
    assert (await other.read_message()).status == 204

    assert await rest_of(client) == [{"t": "Cancelled", "r": ""}]
    await vendor.closed()
    lines = await typing.settled(2)
    assert [settled["ending"] for settled in lines if settled["method"] == "POST"] == ["stopped"]
    assert typing.leases_held == 0
    client.write(request("/healthz", method="GET"))
    assert (await client.read_message()).status == 200


async def test_typed_stopped_by_the_admin(typing: Running, upstream: Upstream) -> None:
    """So does the operator."""
    client, vendor, head = await begin(typing, upstream)
    admin = await typing.admin()
    admin.write(request(f"/admin/streams/{head.get('x-forward-sse-id')}", method="DELETE"))
    assert (await admin.read_message()).status == 204

    assert await rest_of(client) == [{"t": "Cancelled", "r": ""}]
    await vendor.closed()
    await check_settled(typing, "stopped", events=2)


async def test_typed_drained(typing: Running, upstream: Upstream) -> None:
    """A drain that is over is an error, with its code."""
    client, vendor, _ = await begin(typing, upstream)
    await typing.server.drain(timeout_s=0)

    assert await rest_of(client) == [failed("draining", "The proxy is shutting down.")]
    await vendor.closed()
    await check_settled(typing, "drained")


@pytest.mark.parametrize("leave", [Peer.close, Peer.reset])
async def test_typed_client_closed(typing: Running, upstream: Upstream, leave: Callable[[Peer], None]) -> None:
    """A client that leaves closes the vendor's connection at once, though the vendor is silent."""
    client, vendor, _ = await begin(typing, upstream)

    leave(client)

    await vendor.closed()
    await check_settled(typing, "client_closed", events=1)


async def test_typed_end_does_not_wait(typing: Running, upstream: Upstream) -> None:
    """`[DONE]` is the end for the client; a vendor that then keeps its body open delays only the body's end."""
    client, vendor, _ = await begin(typing, upstream)
    vendor.write(chunk(b"data: [DONE]\n\n"))
    await client.read_until(line(t="End", r="") + b"\r\n")
    vendor.write(chunk(b": bye\n\n") + LAST)

    assert await rest_of(client) == []
    await check_settled(typing, "complete", events=2)


def waiting(proxy: Running) -> int:
    """What waits in the proxy for its clients, in bytes."""
    transports = (connection.transport for connection in proxy.server.connections)
    return sum(transport.get_write_buffer_size() for transport in transports if transport is not None)


async def hold(proxy: Running, vendor: Peer, piece: bytes) -> int:
    """Send until the proxy takes no more, and say how much was sent; what waits for the client is bounded."""
    vendor.writer.transport.set_write_buffer_limits(high=0)
    vendor.write(STREAM_HEAD)
    sent = 0
    try:
        while True:
            vendor.write(piece)
            sent += len(piece)
            async with asyncio.timeout(0.3):
                await vendor.writer.drain()
            assert waiting(proxy) <= 256 * 1024
    except TimeoutError:
        return sent


@pytest.mark.parametrize("size", [1, 100, 8_000])
async def test_typed_slow_client(typing: Running, upstream: Upstream, size: int) -> None:
    """A client that does not read slows the vendor down; what waits for it is bounded, and no event is lost."""
    client = await typing.client(receive_buffer=4096)
    client.write(request(ASKED, BODY, token=token()))
    vendor, _ = await upstream.take()
    count = max(1, 60_000 // (size + 60))
    piece = chunk(event("x" * size) * count)
    sent = await hold(typing, vendor, piece) // len(piece) * count
    await serves(typing)
    await client.read_head()
    reading = asyncio.create_task(rest_of(client))
    vendor.write(chunk(FINISH) + LAST)
    async with asyncio.timeout(WAIT_S * 3):
        events = await reading

    assert events == [text("x" * size)] * sent + [end()]
    await check_settled(typing, "complete", events=sent + 1)


@pytest.mark.parametrize("is_stopped", [True, False])
async def test_typed_client_that_reads_nothing(start: Callable[..., Any], upstream: Upstream, is_stopped: bool) -> None:
    """Neither the write clock nor a stop waits for a client that is stuck: the vendor and the lease are let go."""
    proxy = await start("client_timeouts: {write: 600ms}\n", config=PLAIN)
    client = await proxy.client(receive_buffer=4096)
    client.write(request(ASKED, BODY, token=token()))
    vendor, _ = await upstream.take()
    filling = asyncio.create_task(hold(proxy, vendor, chunk(event("x" * 8000) * 7)))
    if is_stopped:
        await client.read_head()
        async with asyncio.timeout(WAIT_S):
            while waiting(proxy) == 0:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.01)
        assert proxy.service.exchanges.live()[0][0].status == 200
        proxy.service.exchanges.interrupt(Ending.STOPPED)

    await vendor.closed()
    await check_settled(proxy, "stopped" if is_stopped else "timeout_write")
    filling.cancel()
    await asyncio.gather(filling, return_exceptions=True)
    # What is left for it is not kept for ever.
    async with asyncio.timeout(WAIT_S):
        while proxy.server.connections:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
