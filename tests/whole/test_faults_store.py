"""The limits server dies, hangs, comes back empty: nobody waits for it, streams run on, and operators are told once."""

from __future__ import annotations

import asyncio
import statistics
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import token
from tests.limits.redis_support import RedisServer, comes_true, holds
from tests.whole.nodes import Asked, Node, configuration, node
from tests.whole.several import SERVE, one_in_each

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxy.mock.server import MockVendor
    from tests.peers import Upstream

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the arbiter is run on Linux")

WORKERS = 2
RATE = 5
PLANS = f"plans: {{default: {{concurrent_streams: {WORKERS}}}, rated: {{requests: [{RATE}/1d]}}, free: {{}}}}\n"
POLICIES = ("deny", "local", "allow")
# What a request takes while the store is away: nearly all of them, and any of them. Without a bound of the store's own
# it would wait for ever, or for a client library's five seconds.
USUAL_S = 0.3
WORST_S = 2.0


@pytest.fixture
async def absent() -> AsyncIterator[RedisServer]:
    """A limits server that does not run yet."""
    server = RedisServer()
    yield server
    server.close()


async def lost(served: Node, before: int) -> list[Asked]:
    """Ask until every worker has said once more that the server is lost, and a while longer."""
    asked = []
    while len(served.all("limits.store_lost")) < before + WORKERS:
        asked.append(await served.post(token("anybody", plan="free")))
        assert len(asked) < 500
    asked += [await served.post(token("anybody", plan="free")) for _ in range(20)]
    return asked


def check_nobody_waited(asked: list[Asked]) -> None:
    assert statistics.median(one.took_s for one in asked) < USUAL_S
    assert max(one.took_s for one in asked) < WORST_S


async def check_away(served: Node, policy: str, asked: list[Asked], since: int) -> None:
    """Nobody waited; answers, readiness, figures and lines are the policy's."""
    check_nobody_waited(asked)
    answer = (503, "limits_unavailable") if policy == "deny" else (200, None)
    # The server may have answered a worker's question before it was stopped.
    assert [(one.status, one.code) for one in asked[-20:]] == [answer] * 20
    assert {(one.status, one.code) for one in asked} <= {answer, (200, None)}

    ready = await served.readiness()

    async def is_told() -> bool:
        nonlocal ready
        # On a machine that stands still for a moment, a worker may be late as well.
        return b"workers: " not in (ready := await served.readiness()).body

    await comes_true(is_told)
    problems = ready.json["reasons" if policy == "deny" else "limping"]
    assert ready.status == (503 if policy == "deny" else 200)
    assert problems
    assert all(problem.startswith("limits: ") for problem in problems)
    assert (await served.metrics())["forward_sse_limits_store_errors_total"] > 0

    lines = await served.said("exchange.settled", since + len(asked), user="anybody")
    counted = [line.get("limits") for line in lines]
    assert counted[-20:] == [None if policy == "deny" else policy] * 20


async def check_policy(served: Node, policy: str) -> None:
    """A user's rate is out of everybody's reach, each worker's own count, or nobody's."""
    user = token(f"much-{len(served.lines)}", plan="rated")
    asked = [await served.post(user) for _ in range(RATE * WORKERS + 5)]
    admitted = sum(one.status == 200 for one in asked)
    if policy == "deny":
        assert admitted == 0
    elif policy == "allow":
        assert admitted == len(asked)
    else:
        assert RATE <= admitted <= RATE * WORKERS
        assert {one.code for one in asked} == {None, "rate_limit_exceeded"}


@pytest.mark.parametrize("policy", POLICIES)
async def test_faults_store_lost_while_streams_run(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, store: RedisServer, policy: str
) -> None:
    """Killed, restarted empty, stopped, gone on: streams run on, and what was held before is held after."""
    text = configuration(vendor, upstream, PLANS, f"unix://{store.path}", policy)
    async with (
        node(tmp_path / "node.yaml", text) as served,
        one_in_each(served, upstream, token("holder"), store=store) as held,
    ):
        await holds(store, WORKERS)
        rated = token("rated", plan="rated")
        used = [await served.post(rated) for _ in range(RATE + 1)]
        assert [one.status for one in used] == [200] * RATE + [429]

        for times, fault in enumerate((store.kill, store.stop)):
            since = len(served.all("exchange.settled", user="anybody"))
            fault()
            asked = await lost(served, WORKERS * times)
            await check_away(served, policy, asked, since)
            await check_policy(served, policy)
            assert [await stream.goes_on() for stream in held.values()] == [True] * WORKERS

            if fault == store.kill:
                # Empty: it never writes anything down.
                await store.start()
            else:
                store.go_on()
            await served.said("limits.store_regained", WORKERS * (times + 1))
            assert (await served.readiness()).status == 200
            # The workers have told it what they hold and remember.
            await holds(store, WORKERS)
            again = [await served.post(token("holder")), await served.post(rated)]
            assert [one.code for one in again] == ["too_many_streams", "rate_limit_exceeded"]
            assert [await stream.goes_on() for stream in held.values()] == [True] * WORKERS

        assert [await stream.ends_well() for stream in held.values()] == [True] * WORKERS
        await holds(store, 0)
        assert (await served.post(token("holder"))).status == 200

    lost_lines = served.all("limits.store_lost")
    assert len(lost_lines) == len(served.all("limits.store_regained")) == 2 * WORKERS
    assert {line["on_store_error"] for line in lost_lines} == {policy}
    assert {line["level"] for line in lost_lines} == {"warning"}
    assert served.all("exchange.failed") == []


@pytest.mark.parametrize("policy", POLICIES)
async def test_faults_store_away_at_the_start(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, absent: RedisServer, policy: str
) -> None:
    """A service starts without its limits server, or with one that hangs, serves by the policy, and finds it later."""
    text = configuration(vendor, upstream, PLANS, f"unix://{absent.path}", policy)
    for state in ("absent", "hanging"):
        if state == "hanging":
            absent.stop()
        async with node(tmp_path / "node.yaml", text) as served:
            asked = await lost(served, 0)
            await check_away(served, policy, asked, 0)
            await check_policy(served, policy)
            if state == "hanging":
                absent.go_on()
            else:
                await absent.start()
            await served.said("limits.store_regained", WORKERS)
            assert (await served.readiness()).status == 200
            assert (await served.post(token("anybody", plan="free"))).status == 200
        assert "limits" not in served.all("exchange.settled")[-1]
        assert len(served.all("limits.store_lost")) == WORKERS
        assert len(served.all("limits.store_regained")) == WORKERS


async def test_faults_store_emptied_in_a_blink(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, store: RedisServer
) -> None:
    """A server that is back at once but empty, as after a failover, is away until it has been told everything."""
    text = configuration(vendor, upstream, PLANS, f"unix://{store.path}", "deny")
    async with (
        node(tmp_path / "node.yaml", text) as served,
        one_in_each(served, upstream, token("holder"), store=store) as held,
    ):
        await holds(store, WORKERS)
        await store.ask("FLUSHALL")
        await store.ask("CLIENT", "KILL", "TYPE", "normal")
        reasons = {line["reason"] for line in await served.said("limits.store_lost", WORKERS)}
        ready = await served.readiness()
        asked = [await served.post(token("holder")) for _ in range(5)]
        await served.said("limits.store_regained", WORKERS)
        again = await served.post(token("holder"))
        await holds(store, WORKERS)
        assert [await stream.goes_on() for stream in held.values()] == [True] * WORKERS

    assert reasons == {"the server came back empty, and is being told what was counted"}
    assert ready.status == 503
    assert {one.code for one in asked} == {"limits_unavailable"}
    check_nobody_waited(asked)
    assert again.code == "too_many_streams"


async def test_faults_store_as_it_is_run(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, store: RedisServer
) -> None:
    """The command as operators run it waits for a limits server that hangs as long as is promised."""
    text = configuration(vendor, upstream, PLANS, f"unix://{store.path}", "deny")
    free = token("anybody", plan="free")

    async def is_ready() -> bool:
        return (await served.readiness()).status == 200

    async with node(tmp_path / "node.yaml", text, command=(sys.executable, *SERVE)) as served:
        # A worker that stood still may have given the server up; it comes back to it.
        await comes_true(is_ready)
        before = len(served.all("limits.store_lost"))
        store.stop()
        # Every one of them waits for the server: they come before it is known to be away.
        first = await asyncio.gather(*[served.post(free) for _ in range(20)])
        then = await lost(served, before)
        store.go_on()
        await comes_true(is_ready)

    assert {one.code for one in first} == {"limits_unavailable"}
    assert statistics.median(one.took_s for one in first) < USUAL_S
    check_nobody_waited(then)
