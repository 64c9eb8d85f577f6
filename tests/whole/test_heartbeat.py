"""Heartbeats: off unless asked for, and then only where they touch nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.conftest import CONFIG, token
from tests.peers import LAST, STREAM_HEAD, Peer, Upstream, chunk, event, only, request

if TYPE_CHECKING:
    from collections.abc import Callable

PING = chunk(b": ping\n\n")
BEATING = CONFIG.replace('models: ["gpt-*"]', 'models: ["gpt-*"]\n    heartbeat: 100ms')


async def begin(proxy: Any, upstream: Upstream, first: bytes) -> tuple[Peer, Peer]:
    client = await proxy.client()
    client.write(request(body={"model": "gpt-x"}, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + (chunk(first) if first else b""))
    await client.read_head()
    if first:
        await client.read_until(first + b"\r\n")
    return client, vendor


async def test_heartbeat_at_a_boundary(start: Callable[..., Any], upstream: Upstream) -> None:
    """A silence between events is filled, again and again, and the bytes that count are the upstream's."""
    proxy = await start(config=BEATING)
    client, vendor = await begin(proxy, upstream, event("one"))

    assert await client.read_exactly(2 * len(PING)) == 2 * PING
    vendor.write(chunk(event("two")) + LAST)
    await client.read_until(event("two") + b"\r\n" + LAST)

    line = only(await proxy.settled(), "exchange.settled")
    assert (line["bytes"], line["events"]) == (len(event("one") + event("two")), 2)


async def test_heartbeat_not_inside_an_event(start: Callable[..., Any], upstream: Upstream) -> None:
    """A silence inside an event stays one: a comment there would be part of it."""
    proxy = await start("timeouts: {idle: 500ms}\n", config=BEATING)
    client, _ = await begin(proxy, upstream, event("one")[:-1])

    assert await client.read_to_end() == b""


async def test_heartbeat_not_before_the_first_byte(start: Callable[..., Any], upstream: Upstream) -> None:
    """Before the upstream has said anything there is nothing to keep alive: a byte order mark may come."""
    proxy = await start("timeouts: {idle: 500ms}\n", config=BEATING)
    client, _ = await begin(proxy, upstream, b"")

    assert PING not in await client.read_to_end()


async def test_heartbeat_off_by_default(start: Callable[..., Any], upstream: Upstream) -> None:
    """Nothing is injected unless it was asked for."""
    proxy = await start("timeouts: {idle: 400ms}\n")
    client, _ = await begin(proxy, upstream, event("one"))

    assert b"ping" not in await client.read_to_end()
