"""Any history of exchanges under token limits, on both stores by one clock: what is promised of budgets and holds."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import InsufficientQuotaError, RateLimitExceededError
from proxy.limits.memory.store import MemoryStore
from proxy.limits.redis.scripts import Scripts
from proxy.limits.redis.store import RedisStore
from proxy.model import Amounts, Budget, Plan, Principal, Rate
from tests.limits.redis_support import channel_of, control

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.limits.redis.channel import Channel
    from proxy.limits.store import Admission, Store
    from tests.limits.redis_support import RedisServer

# A Monday's midnight far ahead, so that nothing expires by the server's own clock: 2040-01-02.
START_S = 2_209_075_200
LIFE_S = 20
TURNED = "local now = tonumber(redis.call('GET', 'clock') or '0')\n"

PLAN = Plan(
    "p",
    token_rates=(Rate(1000, 60.0),),
    budgets=(Budget("tokens", 5000, "day"), Budget("usd", 300, "week")),
)
ALICE = Principal("tests", "alice", PLAN)

_STEP = st.one_of(
    st.tuples(st.just("reserve"), st.integers(0, 1), st.sampled_from([0, 1, 50, 300, 999, 1000, 7000])),
    st.tuples(st.just("reserve"), st.integers(0, 1), st.sampled_from([10, 50, 100])),
    st.tuples(st.just("settle"), st.integers(0, 9), st.sampled_from([0, 1, 40, 300, 2500])),
    st.tuples(st.just("settle"), st.integers(0, 9), st.sampled_from([10, 50, 100])),
    st.tuples(st.just("release"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("refund"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("wait"), st.just(0), st.sampled_from([1, 30, 3600, 86_400])),
    st.tuples(st.just("set back"), st.just(0), st.sampled_from([1, 30, 7200])),
    st.tuples(st.just("die"), st.integers(0, 1), st.just(0)),
)


class Clock:
    """The one clock of a history."""

    def __init__(self) -> None:
        self.now_s = START_S + 43_200
        self._back_s = 0

    def __call__(self) -> float:
        return float(self.now_s)

    def monotonic(self) -> float:
        return float(self.now_s + self._back_s)

    def set_back(self, by_s: int) -> None:
        self.now_s -= by_s
        self._back_s += by_s


class World(Protocol):
    """A store, or two, under test."""

    async def store(self, which: int) -> Store:
        """The store of a worker."""
        ...

    async def tell(self, clock: Clock) -> None:
        """Take note of the time."""
        ...

    async def die(self, which: int) -> bool:
        """Let a worker die with all that it holds, and its leases lapse; whether that can be."""
        ...

    async def rest(self) -> None:
        """Wait until all that was sent is done."""
        ...


class MemoryWorld:
    """One process; it dies with its numbers, so it does not die here."""

    def __init__(self, clock: Clock) -> None:
        self._store = MemoryStore(clock.monotonic, wall=clock)

    async def store(self, which: int) -> Store:
        return self._store

    async def tell(self, clock: Clock) -> None: ...

    async def die(self, which: int) -> bool:
        return False

    async def rest(self) -> None: ...


class RedisWorld:
    """Two workers on a server whose clock is the history's."""

    def __init__(self, server: RedisServer, clerk: Channel) -> None:
        self._server = server
        self._clerk = clerk
        self._stores: list[RedisStore] = []
        self._dead: list[RedisStore] = []

    async def begin(self) -> None:
        self._stores = [await self._one() for _ in range(2)]

    async def store(self, which: int) -> Store:
        return self._stores[which]

    async def tell(self, clock: Clock) -> None:
        await self._clerk.ask("SET", "clock", str(clock.now_s * 1_000_000))
        for store in self._stores:
            store._links._default.clock.update(clock.now_s * 1_000_000)
            # Leases live by real time in a worker, and the history's is faster.
            await store._leases._renew(channel_of(store), tuple(store._accounts))

    async def die(self, which: int) -> bool:
        dead = self._stores[which]
        self._stores[which] = await self._one()
        # Nothing of it is renewed, or told, from now on.
        dead._leases._holding.clear()
        self._dead.append(dead)
        return True

    async def rest(self) -> None:
        await asyncio.sleep(0)
        for store in self._stores:
            await channel_of(store).ask("PING")

    async def end(self) -> None:
        for store in (*self._stores, *self._dead):
            await store.close()

    async def _one(self) -> RedisStore:
        store = RedisStore(self._server.address, scripts=Scripts(TURNED), life_s=LIFE_S, timeout_s=10)
        await store.open()
        return store


@dataclass
class Running:
    """An exchange that runs: of which worker, and what it has reserved."""

    admission: Admission
    worker: int
    held: Amounts


class History:
    """One history: what runs, and what was taken."""

    def __init__(self, world: World, clock: Clock) -> None:
        self.world = world
        self.clock = clock
        self.running: list[Running] = []
        # What was taken in each day and week, and how much of it beyond what was reserved.
        self.spent: Counter[tuple[int, int]] = Counter()
        self.overrun: Counter[tuple[int, int]] = Counter()

    async def play(self, steps: Sequence[tuple[str, int, int]]) -> None:
        """Go through a history, and check what is promised after each step."""
        await self.world.tell(self.clock)
        for what, which, much in steps:
            if what == "reserve":
                await self.reserve(which % 2, Amounts(much, much // 3))
            elif what == "wait":
                self.clock.now_s += much
                await self.world.tell(self.clock)
            elif what == "set back":
                # Within the day: what was reserved in a day that has not begun yet is beside what the former one spent.
                self.clock.set_back(min(much, (self.clock.now_s - START_S) % 86_400))
                await self.world.tell(self.clock)
            elif what == "die":
                await self.die(which % 2)
            elif self.running:
                self.end(what, self.running[which % len(self.running)], Amounts(much, much // 5))
            await self.world.rest()
            await self.check()
        for one in self.running:
            one.admission.settle(Amounts())
        self.running.clear()
        await self.world.rest()
        await self.check()

    async def check(self) -> None:
        """Only what runs holds anything, and budgets have spent what was taken: beyond the limit, overruns alone."""
        states = await (await self.world.store(0)).limits(ALICE)
        tokens = sum(one.held.tokens for one in self.running)
        nano_usd = sum(one.held.nano_usd for one in self.running)
        assert [state.reserved for state in states] == [min(tokens, 1000), min(tokens, 5000), min(nano_usd, 300)]
        assert [state.used for state in states[1:]] == [self.spent[period] for period in self._periods()]
        for state, period in zip(states[1:], self._periods(), strict=True):
            assert state.used + state.reserved <= state.limit + self.overrun[period]

    async def reserve(self, worker: int, estimate: Amounts) -> None:
        """Begin an exchange, if it fits what the user's limits say just before."""
        store = await self.world.store(worker)
        wanted = (estimate.tokens, estimate.tokens, estimate.nano_usd)
        fits = all(
            state.used + state.reserved + min(amount, state.limit) <= state.limit
            if amount
            else state.used < state.limit
            for state, amount in zip(await store.limits(ALICE), wanted, strict=True)
        )
        admission = await store.admit(ALICE)
        if fits:
            await store.reserve(admission, estimate)
            self.running.append(Running(admission, worker, estimate))
            return
        with pytest.raises((RateLimitExceededError, InsufficientQuotaError)) as refused:
            await store.reserve(admission, estimate)
        assert refused.value.retry_after_s is not None
        assert refused.value.retry_after_s > 0
        admission.refund()
        admission.release()

    async def die(self, worker: int) -> None:
        """Let a worker die, and what it held lapse while the other goes on."""
        if await self.world.die(worker):
            self.running = [one for one in self.running if one.worker != worker]
            for _ in range(3):
                self.clock.now_s += LIFE_S // 2
                await self.world.tell(self.clock)

    def end(self, how: str, one: Running, took: Amounts) -> None:
        """End an exchange, or refund it, and say so twice."""
        if how != "refund":
            self.running.remove(one)
        ends: dict[str, Callable[[], None]] = {
            "refund": one.admission.refund,
            "release": one.admission.release,
            "settle": partial(one.admission.settle, took),
        }
        for _ in range(2):
            ends[how]()
        if how == "settle":
            for period, limit, taken, held in zip(self._periods(), (5000, 300), took, one.held, strict=True):
                self.spent[period] += taken
                # What reserves nothing overruns by all that it takes.
                self.overrun[period] += max(0, taken - min(held, limit))
        one.held = Amounts()

    def _periods(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The running day and week."""
        days = (self.clock.now_s - START_S) // 86_400
        return (1, days), (7, days // 7)


async def play_on_redis(server: RedisServer, steps: Sequence[tuple[str, int, int]]) -> None:
    await server.ask("FLUSHALL")
    clock, clerk = Clock(), await control(server.address)
    await clerk.ask("SET", "clock", str(clock.now_s * 1_000_000))
    world = RedisWorld(server, clerk)
    try:
        await world.begin()
        await History(world, clock).play(steps)
    finally:
        await world.end()
        await server.ask("FLUSHALL")
        clerk.abort("")


@given(steps=st.lists(_STEP, min_size=5, max_size=60))
@settings(max_examples=200)
def test_memory_keeps_its_promises(steps: Sequence[tuple[str, int, int]]) -> None:
    """In any history of the memory store budgets exceed their limits by overruns alone, and ended holds are gone."""
    clock = Clock()
    asyncio.run(History(MemoryWorld(clock), clock).play(steps))


@given(steps=st.lists(_STEP, min_size=5, max_size=40))
@settings(max_examples=60, deadline=None)
def test_redis_keeps_its_promises(one_server: RedisServer, steps: Sequence[tuple[str, int, int]]) -> None:
    """In any history over two workers of the Redis store, in which workers die too, the same is so."""
    asyncio.run(play_on_redis(one_server, steps))


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_period_ends_while_exchanges_run(kind: str, server: RedisServer) -> None:
    """Exchanges that run over midnight hold their reservations in the new day, and are charged to it."""
    steps = [
        ("reserve", 0, 999),
        ("settle", 0, 999),
        ("reserve", 1, 50),
        ("wait", 0, 86_400),
        ("reserve", 0, 300),
        ("settle", 0, 2500),
        ("settle", 0, 40),
    ]
    if kind == "redis":
        await play_on_redis(server, steps)
    else:
        clock = Clock()
        await History(MemoryWorld(clock), clock).play(steps)
