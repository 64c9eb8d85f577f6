"""Two nodes and their eight workers hold one limit, on any kind of store: a burst is admitted to the plan's number."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle
from typing import TYPE_CHECKING

import pytest

from tests.conftest import token
from tests.limits.redis_groups import Cluster, SentinelGroup
from tests.limits.redis_support import RedisServer, holds
from tests.peers import connect, request
from tests.whole.nodes import BODY, SHORT, SILENT, Node, configuration, node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from proxy.mock.server import MockVendor
    from tests.limits.redis_groups import Group
    from tests.peers import Peer, Upstream

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the arbiter is run on Linux")

RATE, STREAMS = 10, 4
# How many times as many as are admitted are asked for.
TIMES = 10
# Of each node.
WORKERS = 4
PLANS = f"plans: {{default: {{requests: [{RATE}/1d]}}, streams: {{concurrent_streams: {STREAMS}}}}}\n"
# Less than a request takes: each reserves the whole of it.
LAST_DOLLAR = "plans: {default: {budgets: [{usd: 0.00001, every: month}]}}\nprices: {gpt-x: {input: 1, output: 10}}\n"
RACERS, TRIES = 1000, 3
# Enough that workers ask for the same user at the same time, few enough that a shared machine answers in time.
AT_A_TIME = 40


@pytest.fixture(params=[RedisServer, SentinelGroup, Cluster])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[RedisServer | Group]:
    """A limits server that runs, of each kind."""
    kind: Callable[[], RedisServer | Group] = request.param
    store = kind()
    try:
        await store.start()
        yield store
    finally:
        store.close()


@asynccontextmanager
async def two_nodes(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, store: RedisServer | Group, plans: str = PLANS
) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes of four workers each on one limits server."""
    text = configuration(vendor, upstream, plans, store.url, "deny")
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(node(tmp_path / "one.yaml", text, workers=WORKERS))
        other = await stack.enter_async_context(node(tmp_path / "other.yaml", text, workers=WORKERS))
        yield one, other


async def test_faults_rates_of_many_users_over_eight_workers(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, store: RedisServer | Group
) -> None:
    """Of a parallel burst of each user exactly the plan's number is admitted, whichever worker is asked."""
    users = [f"user-{number}" for number in range(25)]
    slots = asyncio.Semaphore(AT_A_TIME)
    statuses: dict[str, Counter[int]] = {user: Counter() for user in users}
    async with two_nodes(tmp_path, vendor, upstream, store) as nodes:

        async def ask(one: Node, user: str) -> None:
            async with slots:
                asked = await one.post(token(user), SHORT)
            assert asked.code in {None, "rate_limit_exceeded", "limits_unavailable"}
            statuses[user][asked.status] += 1

        wanted = [user for _ in range(TIMES * RATE) for user in users]
        await asyncio.gather(*map(ask, cycle(nodes), wanted))
        settled = [await one.said("exchange.settled", len(wanted) // 2) for one in nodes]
        workers = {line["worker"] for lines in settled for line in lines}

    assert len(workers) == 2 * WORKERS
    unanswered = 0
    for counted in statuses.values():
        # A question that the store answered too late may have been charged; it never admits anybody.
        assert RATE - counted[503] <= counted[200] <= RATE
        unanswered += counted[503]
    assert unanswered < RATE * len(users) // 10
    assert len(vendor.requests) == sum(counted[200] for counted in statuses.values())


async def test_faults_streams_of_many_users_over_eight_workers(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, store: RedisServer | Group
) -> None:
    """A user has the plan's number of streams at a time over all workers, and again when those have ended."""
    users = [f"user-{number}" for number in range(10)]
    slots = asyncio.Semaphore(AT_A_TIME)
    async with two_nodes(tmp_path, vendor, upstream, store) as nodes:

        async def open_stream(one: Node, user: str) -> tuple[str, int, Peer]:
            async with slots:
                client = await connect(one.address)
                client.write(request(SILENT, BODY, token=token(user, plan="streams")))
                return user, (await client.read_head()).status, client

        for _ in range(2):
            wanted = [user for _ in range(TIMES * STREAMS) for user in users]
            opened = await asyncio.gather(*map(open_stream, cycle(nodes), wanted))
            statuses: dict[str, Counter[int]] = {user: Counter() for user in users}
            for user, status, _client in opened:
                statuses[user][status] += 1
            for counted in statuses.values():
                assert STREAMS - counted[503] <= counted[200] <= STREAMS
            streaming = sum(counted[200] for counted in statuses.values())
            assert streaming > len(users) * STREAMS * 0.9
            await holds(store, streaming)
            for _user, _status, client in opened:
                await client.gone()
            await holds(store, 0)
        for one in nodes:
            await one.quiet()


@pytest.mark.parametrize("store", [RedisServer], indirect=True)
async def test_faults_last_dollar_over_eight_workers(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, store: RedisServer | Group
) -> None:
    """Of 1,000 users who race for what is left of a budget each is admitted once, whichever workers they ask."""
    slots = asyncio.Semaphore(AT_A_TIME)
    statuses: dict[str, Counter[int]] = {f"user-{number}": Counter() for number in range(RACERS)}
    async with two_nodes(tmp_path, vendor, upstream, store, LAST_DOLLAR) as nodes:

        async def ask(one: Node, user: str) -> None:
            async with slots:
                asked = await one.post(token(user), SHORT)
            assert asked.code in {None, "insufficient_quota", "limits_unavailable"}
            statuses[user][asked.status] += 1

        # A user's tries one after the other in the list: they run at the same time, in different nodes.
        await asyncio.gather(*map(ask, cycle(nodes), [user for user in statuses for _ in range(TRIES)]))

    unanswered = sum(counted[503] for counted in statuses.values())
    assert unanswered < RACERS // 10
    for counted in statuses.values():
        assert 1 - counted[503] <= counted[200] <= 1
    assert len(vendor.requests) == sum(counted[200] for counted in statuses.values())
