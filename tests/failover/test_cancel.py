"""A client that leaves ends the attempt under way, and the wait for the next one, at once."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from proxy.exchange import moves
from tests.conftest import token
from tests.failover import vendors as acts
from tests.failover.test_matrix import ask, start_with
from tests.failover.vendors import BODY, ROLE, config, has_read
from tests.peers import STREAM_HEAD, Peer, chunk, event, only, request
from tests.stopwatch import Stopwatch
from tests.whole.leavers import blackhole

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Start
    from tests.failover.vendors import Vendor

MOST_S = 0.05


def signals(reached: asyncio.Event, *parts: bytes) -> Callable[[Vendor, Peer], Any]:
    """A vendor that sends this, tells, and waits for the other side's end."""

    async def act(vendor: Vendor, peer: Peer) -> None:
        if parts:
            await peer.send(b"".join(parts))
        reached.set()
        await peer.closed()

    return act


PHASES = {
    "head": (),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-",),
    "preamble": (STREAM_HEAD, chunk(ROLE)),
    "output": (STREAM_HEAD, chunk(ROLE), chunk(event("x"))),
}


@pytest.mark.parametrize("position", [0, 1, 2], ids=["first", "second", "last"])
@pytest.mark.parametrize("phase", PHASES)
async def test_cancel(start: Start, vendors: list[Vendor], phase: str, position: int) -> None:
    """Whichever attempt is under way, and however far it has come: its connection is closed within 50 ms."""
    reached = asyncio.Event()
    for before in vendors[:position]:
        before.script = [acts.says_error]
    vendors[position].script = [signals(reached, *PHASES[phase])]
    proxy = await start_with(start, vendors, ", retry: {first_output: 20s}")
    client = await proxy.client()
    client.write(request("/v1/chat/completions", body=BODY, token=token()))
    await reached.wait()
    await has_read(proxy, vendors[position].peers[-1])

    with Stopwatch() as watch:
        client.reset()
        await vendors[position].all_closed()
        assert watch.elapsed_s < MOST_S or not watch.is_true
    line = only(await proxy.settled(), "exchange.settled")
    assert line["ending"] == "client_closed"
    assert [attempt["ending"] for attempt in line["attempts"]] == ["upstream_error"] * position + ["client_closed"]
    assert proxy.leases_held == 0
    for vendor in vendors:
        await vendor.all_closed()
    assert [len(vendor.asked) for vendor in vendors] == [1] * (position + 1) + [0] * (2 - position)
    assert proxy.service.rules.states["abc"[position]].running == 0


async def test_cancel_backoff(start: Start, vendors: list[Vendor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait between two attempts ends at once, and so does the answer that was held for the end."""
    monkeypatch.setattr(moves, "FIRST_BACKOFF_S", 30.0)
    monkeypatch.setattr(moves, "LONGEST_BACKOFF_S", 30.0)
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)

    reached = asyncio.Event()
    half = b"HTTP/1.1 503 No\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\nhalf"
    vendors[0].script = [signals(reached, half)]
    proxy = await start_with(start, vendors, ", retry: {within: 5m}")
    client = await proxy.client()
    client.write(request("/v1/chat/completions", body=BODY, token=token()))
    await reached.wait()
    await has_read(proxy, vendors[0].peers[0])
    assert vendors[0].open == 1

    with Stopwatch() as watch:
        client.reset()
        await vendors[0].all_closed()
        assert watch.elapsed_s < MOST_S or not watch.is_true
    line = only(await proxy.settled(), "exchange.settled")
    assert (line["ending"], len(line["attempts"])) == ("client_closed", 1)
    assert vendors[1].asked == []


async def test_stopped_between_attempts(start: Start, vendors: list[Vendor]) -> None:
    """An operator who stops an exchange ends the attempt under way."""
    reached = asyncio.Event()
    vendors[0].script = [acts.status(503)]
    vendors[1].script = [signals(reached)]
    proxy = await start_with(start, vendors, ", retry: {}")
    client = await proxy.client()
    fields = (("X-Request-Id", "mine"),)
    client.write(request("/v1/chat/completions", body=BODY, token=token(), fields=fields))
    await reached.wait()
    admin = await proxy.admin()
    admin.write(request("/admin/streams/mine", method="DELETE"))
    assert (await admin.read_message()).status == 204

    await vendors[1].all_closed()
    line = only(await proxy.settled(), "exchange.settled")
    assert line["ending"] == "stopped"
    assert [attempt["ending"] for attempt in line["attempts"]] == ["upstream_error", "stopped"]


async def test_cancel_while_connecting(start: Start, vendors: list[Vendor]) -> None:
    """A second attempt that is still connecting ends at once; nothing of it is left."""
    vendors[0].script = [acts.status(503)]
    with blackhole() as hole:
        urls = {"a": vendors[0].url, "b": hole, "c": vendors[2].url}
        proxy = await start(config=config(urls, '{models: ["gpt-*"], upstreams: [a, b, c], retry: {}}'))
        client = await proxy.client()
        client.write(request("/v1/chat/completions", body=BODY, token=token()))
        await vendors[0].is_asked()
        async with asyncio.timeout(30):
            while not proxy.service.rules.states["b"].running:  # noqa: ASYNC110 - nothing tells that it connects
                await asyncio.sleep(0.005)

        with Stopwatch() as watch:
            client.reset()
            await proxy.idle()
            assert watch.elapsed_s < MOST_S or not watch.is_true
        line = only(await proxy.settled(), "exchange.settled")
    assert [attempt["ending"] for attempt in line["attempts"]] == ["upstream_error", "client_closed"]
    assert proxy.service.pool.counts() == {}
    assert proxy.service.rules.states["b"].running == 0
    assert vendors[2].asked == []


async def test_connect_timeout_moves_on(start: Start, vendors: list[Vendor]) -> None:
    """An upstream that does not accept within `connect` was sent nothing: another is asked."""
    with blackhole() as hole:
        urls = {"a": hole, "b": vendors[1].url}
        text = config(urls, '{models: ["gpt-*"], upstreams: [a, b], retry: {}}')
        proxy = await start(config=text.replace("keep_alive: off", "keep_alive: off, connect: 200ms"))
        answer = await ask(proxy)

    assert (answer.status, answer.get("x-forward-sse-upstream")) == (200, "b")
    line = only(await proxy.settled(), "exchange.settled")
    assert [attempt["ending"] for attempt in line["attempts"]] == ["timeout_connect", "complete"]
