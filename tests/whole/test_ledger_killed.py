"""What ran in a worker that was killed: one row and one line each, by whoever starts next."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from proxy.ledger.running import SLOT_BYTES
from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, WAIT_S, chunk, connect, event, request
from tests.whole.nodes import BODY, configuration, node
from tests.whole.test_ledger_whole import completed, rows_in, rows_of, with_ledger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from proxy.mock.server import MockVendor
    from tests.limits.redis_support import RedisServer
    from tests.peers import Peer, Upstream
    from tests.whole.nodes import Node

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the arbiter is run on Linux")

EVENTS = 40
PLAN = "plans: {default: {budgets: [{tokens: 2000000, every: month}]}}\n"


async def begin(one: Node, upstream: Upstream, id_: str) -> tuple[Peer, Peer]:
    """A stream that has had some events, and goes on."""
    client = await connect(one.address)
    client.write(request("/main/v1/chat/completions", BODY, token=token(), fields=(("X-Request-Id", id_),)))
    vendor, _ = await upstream.take()
    told = event("some words of an answer") * EVENTS
    vendor.write(STREAM_HEAD + chunk(told))
    await client.read_until(told + b"\r\n")
    return client, vendor


async def kept(room: Path, *ids: str) -> None:
    """Wait until what those have taken is in the workers' files."""
    async with asyncio.timeout(WAIT_S):
        while not all(f'"id":"{id_}"' in running(room) for id_ in ids):  # noqa: ASYNC110 - another process writes
            await asyncio.sleep(0.05)


async def used(one: Node) -> int:
    """What the budget of the user has used."""
    async with await connect(one.address) as asking:
        asking.write(request("/forward-sse/usage", method="GET", token=token()))
        (limit,) = (await asking.read_message()).json["limits"]
        return int(limit["used"])


def files(room: Path) -> list[Path]:
    return list(room.rglob("*running-*"))


def running(room: Path) -> str:
    """The lines in the files of workers that live or died."""
    data = b"".join(path.read_bytes() for path in files(room))
    slots = (data[start : start + SLOT_BYTES] for start in range(0, len(data), SLOT_BYTES))
    return "".join(slot.rstrip(b"\0").decode() for slot in slots if slot[:1] != b"\0")


def check(line: dict[str, Any]) -> None:
    """The line of what ran in a worker that was killed."""
    assert (line["ending"], line["reason"], line["status"]) == ("stopped", "worker_died", 200)
    assert (line["usage"], line["events"]) == ("estimated", EVENTS)
    assert line["output_tokens"] > EVENTS
    assert line["bytes"] > EVENTS * 20


async def test_killed_process(tmp_path: Path, vendor: MockVendor, upstream: Upstream) -> None:
    """The next process accounts for what ran, and charges it to the budget; what had ended is not counted again."""
    text = configuration(vendor, upstream, PLAN + with_ledger(tmp_path / "ledger.db"), "memory", "deny")
    async with node(tmp_path / "proxy.yaml", text, workers=1) as one:
        ended, vendor_of_ended = await begin(one, upstream, "ended")
        broken, vendor_of_broken = await begin(one, upstream, "broken")
        await kept(tmp_path, "ended", "broken")
        vendor_of_ended.write(LAST)
        await ended.read_until(LAST)
        await one.said("exchange.settled", id="ended")
        assert '"id":"ended"' not in running(tmp_path)
        # Its row is committed within 50 ms.
        async with asyncio.timeout(WAIT_S):
            while not rows_of(tmp_path / "ledger.db"):  # noqa: ASYNC110 - another process writes
                await asyncio.sleep(0.01)
        one.process.kill()
        first = await one.read_to_end()
        for peer in (ended, broken, vendor_of_ended, vendor_of_broken):
            await peer.gone()

    async with node(tmp_path / "proxy.yaml", text, workers=1) as one:
        (line,) = await one.said("exchange.settled")
        check(line)
        assert (line["id"], line["user"]) == ("broken", "alice")
        tokens = line["input_tokens"] + line["output_tokens"]
        assert await used(one) == tokens + sum(row.input_tokens + row.output_tokens for row in rows_in(first))
        metrics = await one.metrics()
        assert metrics['forward_sse_tokens_total{kind="output",upstream="main"}'] == line["output_tokens"]
        one.process.send_signal(signal.SIGTERM)
        second = await one.read_to_end()
    rows = rows_of(tmp_path / "ledger.db")
    assert sorted(row.id for row in rows if row.id in {"ended", "broken"}) == ["broken", "ended"]
    assert "0 rows inserted" in completed(tmp_path / "proxy.yaml", first + second)
    assert not files(tmp_path)


async def lose_a_worker(
    room: Path, text: str, upstream: Upstream, used: Callable[[Node], Awaitable[int]]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Kill one of a service's workers while four streams run; gives these, and all lines of the service's log.

    What ran in the worker has been settled by the one in its place, and charged once.
    """
    async with node(room / "proxy.yaml", text) as one:
        streams = {id_: await begin(one, upstream, id_) for id_ in ("one", "two", "three", "four")}
        await kept(room, *streams)
        workers = {id_: await one.worker_of(id_) for id_ in streams}
        dead = workers["one"]
        os.kill(one.pids[dead], signal.SIGKILL)
        gone = {id_ for id_, worker in workers.items() if worker == dead}
        lines = await one.said("exchange.settled", len(gone))
        assert {line["id"] for line in lines} == gone
        for line in lines:
            check(line)
        for id_ in streams.keys() - gone:
            client, its_vendor = streams[id_]
            its_vendor.write(LAST)
            await client.read_until(LAST)
        settled = await one.said("exchange.settled", len(streams))
        took = sum(line["input_tokens"] + line["output_tokens"] for line in settled)
        async with asyncio.timeout(WAIT_S):
            while (await used(one)) != took:  # noqa: ASYNC110 - it is the service that must be asked
                await asyncio.sleep(0.02)
        one.process.send_signal(signal.SIGTERM)
        every = await one.read_to_end()
        for peers in streams.values():
            for peer in peers:
                await peer.gone()
    return list(streams), every


async def test_killed_worker(tmp_path: Path, vendor: MockVendor, upstream: Upstream, store: RedisServer) -> None:
    """The worker that is started in its place accounts for it, once, and charges it; streams of the others go on."""
    text = configuration(vendor, upstream, PLAN + with_ledger(tmp_path / "ledger.db"), f"unix://{store.path}", "allow")
    streams, every = await lose_a_worker(tmp_path, text, upstream, used)
    assert sorted(row.id for row in rows_of(tmp_path / "ledger.db") if row.id in streams) == sorted(streams)
    assert sorted(rows_in(every)) == sorted(rows_of(tmp_path / "ledger.db"))
    assert not files(tmp_path)


async def test_killed_early(tmp_path: Path, vendor: MockVendor, upstream: Upstream) -> None:
    """What is kept of an exchange does not wait until it is a second old, nor until the vendor has begun to answer."""
    text = configuration(vendor, upstream, PLAN + with_ledger(tmp_path / "ledger.db"), "memory", "deny")
    async with node(tmp_path / "proxy.yaml", text, workers=1) as one:
        # On a machine that has other things to do one of several is seen in time.
        for number in range(10):
            client = await connect(one.address)
            client.write(request("/main/v1/chat/completions", BODY, token=token(), fields=(("X-Request-Id", "early"),)))
            vendor_of_early, _ = await upstream.take()
            await kept(tmp_path, "early")
            is_early = json.loads(running(tmp_path))["duration_ms"] < 1000
            if is_early:
                one.process.kill()
            await client.gone()
            await vendor_of_early.gone()
            if is_early:
                break
            await one.said("exchange.settled", number + 1, id="early")
        assert is_early
        before = await one.read_to_end()

    async with node(tmp_path / "proxy.yaml", text, workers=1) as one:
        (line,) = await one.said("exchange.settled")
        assert (line["id"], line["ending"], line["reason"], line["status"]) == ("early", "stopped", "worker_died", None)
        assert (line["usage"], line["output_tokens"]) == ("estimated", 0)
        assert line["input_tokens"] > 0
        assert await used(one) == sum(row.input_tokens + row.output_tokens for row in rows_in([*before, line]))
        one.process.send_signal(signal.SIGTERM)
        await one.read_to_end()
