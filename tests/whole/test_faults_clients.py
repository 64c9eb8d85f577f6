"""A thousand clients leave at random moments in every phase, and nothing is left of them."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.limits.redis_support import holds
from tests.peers import WAIT_S
from tests.whole.leavers import PHASES, Leaver, blackhole, come_and_go
from tests.whole.nodes import Node, configuration, descriptors, node, total

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from proxy.mock.server import MockVendor
    from tests.limits.redis_support import RedisServer
    from tests.peers import Upstream

CLIENTS = 1000
AT_A_TIME = 60
PLANS = "plans: {default: {requests: [1000000/1d], concurrent_streams: 1000}}\n"
ENDINGS = {"client_closed", "complete", "refused"}


def with_hole(text: str, url: str) -> str:
    return text.replace(
        "default_upstream:",
        f"  hole: {{url: '{url}', dialect: openai, api_key: none, timeouts: {{connect: 10m}}}}\ndefault_upstream:",
    )


def check_lines(lines: list[dict[str, Any]], leavers: list[Leaver], served: int) -> None:
    """One line for every request, none that nobody sent, none of a defect; `served` came to the vendor."""
    settled = [line for line in lines if line["event"] == "exchange.settled"]
    assert not [line for line in lines if line["event"] in {"exchange.failed", "library.reported"}]
    assert {line["ending"] for line in settled} <= ENDINGS
    # A ticket is made by one request and used by another, which has an id of ours.
    ids = {leaver.id for leaver in leavers}
    sent = Counter(line["id"] for line in settled if line["id"] in ids)
    assert set(sent.values()) == {1}
    assert sum(line["upstream"] == "mock" and line["path"] != "/forward-sse/tickets" for line in settled) >= served
    by_phase = {leaver.id: leaver.phase for leaver in leavers}
    seen = Counter(by_phase[id_] for id_ in sent)
    # Of a head that never ends there is no request; of all other phases most clients stay long enough.
    assert seen["head"] == 0
    for phase in PHASES.keys() - {"head"}:
        assert seen[phase] > len(leavers) / len(PHASES) / 2, phase


async def until_quiet(served: Node, vendor: MockVendor, before: dict[int, int]) -> None:
    """Wait until the service has no more open than before, but for connections that are kept to be used again."""
    scraped = await served.quiet()
    assert await served.streams() == {}
    kept = total(scraped, "upstream_connections", 'state="idle"')
    async with asyncio.timeout(WAIT_S):
        while sum(len(descriptors(pid)) - was for pid, was in before.items()) > kept:  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.05)
    async with asyncio.timeout(WAIT_S):
        await vendor.wait_for(lambda stats: stats.active == 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_faults_clients_leave_in_every_phase(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, store: RedisServer
) -> None:
    """Afterwards no lease, connection, stream or descriptor is left, and every request has its one line."""
    with blackhole() as hole:
        text = with_hole(configuration(vendor, upstream, PLANS, f"unix://{store.path}", "deny"), hole)
        async with node(tmp_path / "node.yaml", text) as served:
            # Whatever is opened once and stays is open after this.
            await come_and_go(len(PHASES) * 4, served.address, at_a_time=8)
            await until_quiet(served, vendor, {})
            await holds(store, 0)
            before = {pid: len(descriptors(pid)) for pid in (served.process.pid, *served.pids.values())}
            requests = vendor.stats.requests

            leavers = await come_and_go(CLIENTS, served.address, at_a_time=AT_A_TIME, first=CLIENTS)
            await until_quiet(served, vendor, before)
            await holds(store, 0)
            metrics = await served.metrics()
    check_lines(served.lines, leavers, vendor.stats.requests - requests)
    assert total(metrics, "requests_total") == len(served.all("exchange.settled"))


async def test_faults_clients_leave_no_task(start: Callable[..., Any], vendor: MockVendor, upstream: Upstream) -> None:
    """The same in this process, where tasks can be counted: none is left, and no clock is watched for nothing."""
    with blackhole() as hole:
        text = configuration(vendor, upstream, PLANS, "memory", "")
        proxy = await start(config=with_hole(text, hole).replace("{", "{{").replace("}", "}}"))
        before = asyncio.all_tasks()
        leavers = await come_and_go(CLIENTS // 4, proxy.address, at_a_time=AT_A_TIME // 2)
        await proxy.idle()
        async with asyncio.timeout(WAIT_S):
            await vendor.wait_for(lambda stats: stats.active == 0)
            # The vendor, in this process too, has one for each connection that is kept.
            while len(asyncio.all_tasks() - before) > sum(proxy.service.pool.counts().values()):  # noqa: ASYNC110 - they end
                await asyncio.sleep(0.02)
    assert proxy.leases_held == 0
    assert proxy.service.exchanges.live() == []
    assert not [key for key in proxy.service.pool.counts() if key[1] == "active"]
    # The pool, for as long as it keeps connections.
    assert proxy.service.timers.watched_count <= 1
    check_lines(proxy.lines(), leavers, vendor.stats.requests)
