"""The Redis store behind sentinels: it follows the primary, and a failover costs nobody more than is written down."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from proxy.model import Plan, Rate
from tests.limits.redis_groups import SentinelGroup, running
from tests.limits.redis_support import Workers, attempt, comes_true, holds, passes, user
from tests.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.limits.redis.store import RedisStore

TIMEOUT_S = 0.4
QUOTA = 10
TEN = Plan("ten", (Rate(QUOTA, 86_400.0),))
STREAMS = Plan("streams", concurrent_streams=4)


@pytest.fixture
async def group() -> AsyncIterator[SentinelGroup]:
    """A primary, a replica and three sentinels that run."""
    async with running(SentinelGroup()) as group:
        yield group


@pytest.fixture
async def workers(group: SentinelGroup) -> AsyncIterator[Workers[SentinelGroup]]:
    """Stores on the group."""
    workers = Workers(group)
    yield workers
    await workers.close()


class Load:
    """Requests of ever new users, one after another in each of several lanes, until `stop` is called."""

    def __init__(self, stores: list[RedisStore]) -> None:
        self.outcomes: Counter[str] = Counter()
        self.longest_s = 0.0
        # The users that were admitted at least once; each is asked for more than its quota.
        self.admitted: Counter[str] = Counter()
        self._goes_on = True
        self._tasks = [asyncio.create_task(self._ask(store, lane)) for lane, store in enumerate(stores * 4)]

    async def stop(self) -> None:
        """End all lanes."""
        self._goes_on = False
        await asyncio.gather(*self._tasks)

    async def has_admitted(self, more: int) -> None:
        """Wait until so many more requests were admitted."""
        wanted = self.outcomes["admitted"] + more
        await passes(lambda: self.outcomes["admitted"] >= wanted)

    async def _ask(self, store: RedisStore, lane: int) -> None:
        number = 0
        while self._goes_on:
            name = f"user-{lane}-{number // (2 * QUOTA)}"
            number += 1
            with Stopwatch() as watch:
                outcome = await attempt(store, user(TEN, name))
                self.longest_s = max(self.longest_s, watch.elapsed_s)
            self.outcomes[outcome if isinstance(outcome, str) else "admitted"] += 1
            if not isinstance(outcome, str):
                self.admitted[name] += 1
                outcome.release()
            await asyncio.sleep(0.001)


async def test_admits_at_the_primary(workers: Workers[SentinelGroup]) -> None:
    """Of a burst exactly the quota is admitted, and the streams are exact, as on a single server."""
    stores = await workers.several(4)
    for plan, most in ((TEN, QUOTA), (STREAMS, 4)):
        outcomes = await asyncio.gather(*[attempt(stores[number % 4], user(plan)) for number in range(10 * most)])
        admitted = [outcome for outcome in outcomes if not isinstance(outcome, str)]
        assert len(admitted) == most
        for admission in admitted:
            admission.release()
        await holds(workers.server, 0)
    await stores[0].put_ticket("one", b"sealed", 60, user(TEN))
    assert await stores[1].take_ticket("one") == b"sealed"
    assert workers.changes == []


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_failover_under_load(workers: Workers[SentinelGroup], how: str) -> None:
    """A primary that dies or hangs is followed: nobody waits, streams stay counted, few are admitted twice."""
    group = workers.server
    stores = await workers.several(2, timeout_s=TIMEOUT_S)
    held = [await store.admit(user(STREAMS, "streaming")) for store in stores for _ in range(2)]
    await holds(group, 4)
    load = Load(stores)
    await load.has_admitted(100)
    old = await group.primary()
    old.kill() if how == "kill" else old.stop()

    async def is_another() -> bool:
        return await group.primary() is not old

    await comes_true(is_another)
    await passes(lambda: all(store.problem() is None for store in stores))
    await load.has_admitted(100)
    await load.stop()
    assert load.longest_s < 2 * TIMEOUT_S + 0.1
    assert set(load.outcomes) <= {"admitted", "rate_limit_exceeded", "limits_unavailable"}
    # What the old primary had not passed on: the users that were being asked about, one of each lane, may find what
    # they had used in the last moments unused.
    over = {name: count - QUOTA for name, count in load.admitted.items() if count > QUOTA}
    assert len(over) <= 8
    assert sum(over.values()) <= 8 * QUOTA
    # The streams that ran on are known to the new one.
    assert await attempt(stores[0], user(STREAMS, "streaming")) == "too_many_streams"
    if how == "stop":
        old.go_on()
    else:
        await old.start()
    # The old one comes back as a replica, and nobody is sent there.
    await group.is_whole()
    assert await attempt(stores[1], user(STREAMS, "streaming")) == "too_many_streams"
    for admission in held:
        admission.release()
    await holds(group, 0)


async def test_a_sentinel_is_lost(workers: Workers[SentinelGroup]) -> None:
    """Any sentinel that answers is enough to find the primary, at the start and later."""
    group = workers.server
    primary = await group.primary()
    group.sentinels[0].kill()
    group.sentinels[1].stop()
    store = await workers.one(timeout_s=TIMEOUT_S)
    await passes(lambda: store.problem() is None)
    await primary.ask("CLIENT", "KILL", "TYPE", "normal")
    assert not isinstance(await attempt(store, user(TEN)), str)
    group.sentinels[1].go_on()


async def test_what_is_wrong_is_told() -> None:
    """Sentinels that know no such service, or want a password, or are away: each is told as such."""
    group = SentinelGroup(password="s3cret")
    workers = Workers(group)
    try:
        await group.start()
        right = replace(group.address, sentinel_password="s3cret")
        assert "s3cret" not in repr(right)
        store = await workers.one(address=right)
        assert store.problem() is None
        nameless = await workers.one(address=replace(right, service="other"))
        assert nameless.problem() == "no sentinel names a primary of the service"
        for password in (None, "wrong"):
            locked = await workers.one(address=replace(right, sentinel_password=password))
            assert locked.problem() == "the sentinels want another password"
        for sentinel in group.sentinels:
            sentinel.kill()
        # The primary is still there, and so is the store; who begins now finds nobody.
        assert not isinstance(await attempt(store, user(TEN)), str)
        lost = await workers.one(address=right, timeout_s=TIMEOUT_S)
        assert lost.problem() == "no sentinel names a primary of the service"
    finally:
        await workers.close()
        group.close()
