"""The last vendor's answer, while others are asked: it may come late, break, or be long."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.failover import vendors as acts
from tests.failover.test_matrix import ask, check_end, start_with
from tests.failover.vendors import config

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Start
    from tests.failover.vendors import Vendor
    from tests.peers import Peer

RETRY = ", retry: {retry_paid: true}"
HEAD = b"HTTP/1.1 503 No\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"


def error_in_parts(
    first: bytes, rest: bytes, go_on: asyncio.Event, end: asyncio.Event, *, is_reset: bool
) -> Callable[[Vendor, Peer], Any]:
    """An error whose body comes in two parts, the second when told; its connection ends when told, or stays."""

    async def act(vendor: Vendor, peer: Peer) -> None:
        await peer.send(first)
        await go_on.wait()
        await peer.send(rest)
        await end.wait()
        if is_reset:
            peer.reset()
        else:
            await peer.closed()

    return act


def tells(*reached: asyncio.Event) -> Callable[[Vendor, Peer], Any]:
    """A vendor that is asked, tells so, and closes without an answer."""

    async def act(vendor: Vendor, peer: Peer) -> None:
        for one in reached:
            one.set()
        peer.close()

    return act


@pytest.mark.parametrize("size", [20, 60_000])
async def test_kept_answer_is_read_meanwhile(start: Start, vendors: list[Vendor], size: int) -> None:
    """An error that ends, and whose vendor is gone, while others are asked in vain is told as it came."""
    body = b"x" * size
    go_on, end = asyncio.Event(), asyncio.Event()
    head = HEAD % size
    vendors[0].script = [error_in_parts(head + body[: size // 2], body[size // 2 :], go_on, end, is_reset=True)]
    # Between the second and the third request the rest has been read.
    vendors[1].script = [tells(go_on)]
    vendors[2].script = [tells(end)]
    proxy = await start_with(start, vendors, RETRY)

    answer = await ask(proxy)

    assert (answer.status, answer.body, answer.is_whole) == (503, body, True)
    assert answer.get("x-forward-sse-upstream") == "a"
    line = await check_end(proxy, vendors, answer)
    assert (line["ending"], line["status"], line["upstream"]) == ("upstream_error", 503, "a")


async def test_kept_answer_that_breaks(start: Start, vendors: list[Vendor]) -> None:
    """Half of an error is no answer: the client is told what became of the last attempt, whole."""
    go_on, end = asyncio.Event(), asyncio.Event()
    end.set()
    vendors[0].script = [error_in_parts(HEAD % 100 + b"half", b"", go_on, end, is_reset=True)]
    vendors[1].script = [tells(go_on)]
    vendors[2].script = [tells()]
    proxy = await start_with(start, vendors, RETRY)

    answer = await ask(proxy)

    assert (answer.status, answer.json["error"]["code"], answer.is_whole) == (502, "upstream_unreachable", True)
    line = await check_end(proxy, vendors, answer)
    assert (line["ending"], line["status"], line["code"]) == ("upstream_error", 502, "upstream_unreachable")
    assert [attempt["status"] for attempt in line["attempts"]] == [503, None, None]


async def test_kept_answer_is_bounded(start: Start, vendors: list[Vendor]) -> None:
    """Of a long error the beginning is kept, and the rest goes the way of every answer: to the client, as it comes."""
    body = b"x" * 3_000_000
    go_on, end = asyncio.Event(), asyncio.Event()
    go_on.set()
    end.set()
    vendors[0].script = [error_in_parts(HEAD % len(body), body, go_on, end, is_reset=False)]
    for vendor in vendors[1:]:
        vendor.script = [tells()]
    proxy = await start_with(start, vendors, RETRY)

    answer = await ask(proxy)

    assert (answer.status, answer.body == body, answer.is_whole) == (503, True, True)
    await check_end(proxy, vendors, answer)


async def test_kept_answer_gives_its_connection_back(start: Start, vendors: list[Vendor]) -> None:
    """An error that was read to its end leaves its connection to the next request, whoever answers this one."""
    vendors[0].script = [acts.status(503)]
    text = config({one.name: one.url for one in vendors}, '{models: ["gpt-*"], upstreams: [a, b], retry: {}}')
    proxy = await start(config=text.replace("keep_alive: off", "keep_alive: 1m"))

    for _ in range(2):
        assert (await ask(proxy)).get("x-forward-sse-upstream") == "b"
    assert (len(vendors[0].asked), len(vendors[0].peers)) == (2, 1)
    assert [line["ending"] for line in await proxy.settled(2)] == ["complete", "complete"]
