"""A Cluster loses nodes, sentinels name another primary: nobody waits for long, and streams run on to their end."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import token
from tests.limits.redis_groups import Cluster, SentinelGroup, running
from tests.limits.redis_support import comes_true, holds
from tests.whole.nodes import Asked, Node, configuration, node
from tests.whole.several import PATIENCE, Held, hold, one_in_each

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxy.mock.server import MockVendor
    from tests.peers import Message, Upstream

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the arbiter is run on Linux")

WORKERS = 2
PLANS = f"plans: {{default: {{concurrent_streams: {WORKERS}}}, free: {{}}}}\n"
# What no request waits for the store.
PROMISED_S = 0.2 * PATIENCE
REFUSED = (503, "limits_unavailable")
SERVED = (200, None)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """Three nodes that run."""
    async with running(Cluster()) as cluster:
        yield cluster


@pytest.fixture
async def group() -> AsyncIterator[SentinelGroup]:
    """A primary, a replica and three sentinels that run."""
    async with running(SentinelGroup()) as group:
        yield group


@asynccontextmanager
async def asked_all_along(served: Node, users: list[str]) -> AsyncIterator[list[Asked]]:
    """The outcomes of requests that are sent one after another for each of the users, until this is left."""
    asked: list[Asked] = []
    is_over = asyncio.Event()

    async def ask(user: str) -> None:
        while not is_over.is_set():
            asked.append(await served.post(token(user, plan="free")))

    asking = [asyncio.create_task(ask(user)) for user in users]
    try:
        yield asked
    finally:
        is_over.set()
        await asyncio.gather(*asking)


@asynccontextmanager
async def streams(served: Node, upstream: Upstream, users: list[str]) -> AsyncIterator[list[Held]]:
    """A stream of each of the users."""
    held: list[Held] = []
    try:
        for number, user in enumerate(users):
            held.append(await hold(served, upstream, number, token(user)))
        yield held
    finally:
        for stream in held:
            await stream.client.gone()


async def lost(served: Node, users: list[str]) -> list[Asked]:
    """Ask at once, then until every worker has told that the store is lost, and a while longer."""
    asked = list(await asyncio.gather(*[served.post(token(user, plan="free")) for user in users for _ in range(4)]))
    while len(served.all("limits.store_lost")) < WORKERS:
        asked.append(await served.post(token(users[0], plan="free")))
        assert len(asked) < 500
    return asked + [await served.post(token(user, plan="free")) for user in users for _ in range(4)]


async def readiness(served: Node) -> Message:
    """What is told when all workers were asked: one that is busy may be late."""
    ready = await served.readiness()

    async def is_told() -> bool:
        nonlocal ready
        return b"workers: " not in (ready := await served.readiness()).body

    await comes_true(is_told)
    return ready


def outcomes(asked: list[Asked]) -> set[tuple[int, str | None]]:
    return {(one.status, one.code) for one in asked}


def longest_s(asked: list[Asked]) -> float:
    return max(one.took_s for one in asked)


def check_told_once(served: Node) -> list[dict[str, Any]]:
    """Each worker has told once that the store was lost, and once that it is back."""
    told = served.all("limits.store_lost")
    for lines in (told, served.all("limits.store_regained")):
        assert len(lines) == len({line["worker"] for line in lines}) == WORKERS
    assert {(line["on_store_error"], line["level"]) for line in told} == {("deny", "warning")}
    assert served.all("exchange.failed") == []
    return told


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_faults_groups_a_node_is_lost(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, cluster: Cluster, how: str
) -> None:
    """The users of a node that dies or hangs are refused in time; all others are served, also while it comes back."""
    victim, *others = cluster.members
    concerned = await cluster.users_of(victim, 3, "tests")
    well = [user for member in others for user in await cluster.users_of(member, 2, "tests")]
    name = f"127.0.0.1:{victim.port}: "
    text = configuration(vendor, upstream, PLANS, cluster.url, "deny")
    async with (
        node(tmp_path / "node.yaml", text, workers=WORKERS) as served,
        streams(served, upstream, [*concerned, *well]) as held,
    ):
        await holds(cluster, len(held))
        async with asked_all_along(served, well) as asked_well:
            victim.kill() if how == "kill" else victim.stop()
            asked = await lost(served, concerned)
            assert outcomes(asked) == {REFUSED}
            assert longest_s(asked) < PROMISED_S
            ready = await readiness(served)
            assert (ready.status, ready.json["reasons"]) == (200, [])
            assert ready.json["limping"]
            assert all(problem.startswith(f"limits: {name}") for problem in ready.json["limping"])
            assert [await stream.goes_on() for stream in held] == [True] * len(held)

            if how == "kill":
                await victim.start()
            else:
                victim.go_on()
            await served.said("limits.store_regained", WORKERS)
            ready = await readiness(served)
            assert (ready.status, ready.json["reasons"], ready.json["limping"]) == (200, [], [])
            assert outcomes([await served.post(token(user, plan="free")) for user in concerned]) == {SERVED}
        assert outcomes(asked_well) == {SERVED}
        assert longest_s(asked_well) < PROMISED_S

        await holds(cluster, len(held))
        assert [await stream.ends_well() for stream in held] == [True] * len(held)
        await holds(cluster, 0)
        await served.quiet()
        told = check_told_once(served)
        assert all(line["reason"].startswith(name) for line in told)


async def test_faults_groups_all_nodes_are_lost(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, cluster: Cluster
) -> None:
    """Without any node of its Cluster a service is not ready; it is again when they are back, empty as they are."""
    users = [user for member in cluster.members for user in await cluster.users_of(member, 2, "tests")]
    text = configuration(vendor, upstream, PLANS, cluster.url, "deny")
    async with (
        node(tmp_path / "node.yaml", text, workers=WORKERS) as served,
        streams(served, upstream, users) as held,
    ):
        await holds(cluster, len(held))
        for member in cluster.members:
            member.kill()
        asked = await lost(served, users)
        assert outcomes(asked) == {REFUSED}
        assert longest_s(asked) < PROMISED_S
        ready = await readiness(served)
        assert (ready.status, ready.json["limping"]) == (503, [])
        assert all(problem.startswith("limits: ") for problem in ready.json["reasons"])
        assert [await stream.goes_on() for stream in held] == [True] * len(held)

        for member in cluster.members:
            await member.start()
        await served.said("limits.store_regained", WORKERS)
        ready = await readiness(served)
        assert (ready.status, ready.json["reasons"], ready.json["limping"]) == (200, [], [])
        await holds(cluster, len(held))
        assert outcomes([await served.post(token(user, plan="free")) for user in users]) == {SERVED}
        assert [await stream.ends_well() for stream in held] == [True] * len(held)
        await holds(cluster, 0)
        await served.quiet()
        check_told_once(served)


async def test_faults_groups_failover_while_streams_run(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, group: SentinelGroup
) -> None:
    """When the primary dies, streams run on, nobody waits, and the one that the sentinels name knows the leases."""
    text = configuration(vendor, upstream, PLANS, group.url, "deny")
    async with (
        node(tmp_path / "node.yaml", text, workers=WORKERS) as served,
        one_in_each(served, upstream, token("holder"), store=group) as held,
    ):
        await holds(group, WORKERS)
        old = await group.primary()
        async with asked_all_along(served, ["alice", "bob"]) as asked:
            old.kill()
            refused = await lost(served, ["carol"])
            ready = await readiness(served)
            assert (ready.status, ready.json["limping"]) == (503, [])
            assert all(problem.startswith("limits: ") for problem in ready.json["reasons"])
            assert [await stream.goes_on() for stream in held.values()] == [True] * WORKERS
            await served.said("limits.store_regained", WORKERS)
            ready = await readiness(served)
            assert (ready.status, ready.json["reasons"], ready.json["limping"]) == (200, [], [])
        assert outcomes(refused) == {REFUSED}
        assert outcomes(asked) == {REFUSED, SERVED}
        assert longest_s(asked + refused) < PROMISED_S

        assert await group.primary() is not old
        await holds(group, WORKERS)
        assert (await served.post(token("holder"))).code == "too_many_streams"
        assert [await stream.goes_on() for stream in held.values()] == [True] * WORKERS
        assert [await stream.ends_well() for stream in held.values()] == [True] * WORKERS
        await holds(group, 0)
        await served.quiet()
        check_told_once(served)
