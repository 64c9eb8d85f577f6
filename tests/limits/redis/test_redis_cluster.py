"""The Redis store on a Cluster: each user has a node, slots move, nodes die, and the rest does not notice."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from redis.crc import key_slot

from proxy.errors import LimitsUnavailableError
from proxy.limits.redis.accounts import UserAccount
from proxy.limits.redis.cluster import ClusterLinks
from proxy.limits.redis.store import RedisStore
from proxy.limits.store import SPENT
from proxy.model import Plan, Rate
from tests.limits.redis_groups import Cluster, running, slot_of
from tests.limits.redis_support import Workers, attempt, comes_true, holds, passes, user
from tests.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.limits.store import Admission

TIMEOUT_S = 0.4
MOST_S = 2 * TIMEOUT_S + 0.1
QUOTA = 10
TEN = Plan("ten", (Rate(QUOTA, 86_400.0), Rate(1000, 86_400.0)), concurrent_streams=QUOTA)
# Minutes for one charge, so that none is paid off while a test counts.
PLENTY = Plan("plenty", (Rate(100_000, 31_622_400.0),))


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """Three nodes that run."""
    async with running(Cluster()) as cluster:
        yield cluster


@pytest.fixture
async def workers(cluster: Cluster) -> AsyncIterator[Workers[Cluster]]:
    """Stores on the Cluster."""
    workers = Workers(cluster)
    yield workers
    await workers.close()


async def test_admits_on_all_nodes(workers: Workers[Cluster]) -> None:
    """Of a burst of many users exactly the quota of each is admitted, over several workers; every node has its part."""
    stores = await workers.several(4)
    names = [f"user-{number}" for number in range(30)]
    wanted = [(stores[index % 4], name) for index in range(3 * QUOTA) for name in names]
    outcomes = await asyncio.gather(*[attempt(store, user(TEN, name)) for store, name in wanted])
    admitted: Counter[str] = Counter()
    held: list[Admission] = []
    for (_, name), outcome in zip(wanted, outcomes, strict=True):
        if isinstance(outcome, str):
            assert outcome == "rate_limit_exceeded"
        else:
            admitted[name] += 1
            held.append(outcome)
    assert admitted == dict.fromkeys(names, QUOTA)
    for member in await workers.server.primaries():
        assert await member.ask("KEYS", "*:leases")
    await holds(workers.server, len(held))
    held[0].refund()
    for admission in held:
        admission.release()
    await holds(workers.server, 0)
    assert not isinstance(await attempt(stores[1], user(TEN, names[0])), str)
    assert workers.changes == []
    assert workers.failures == 0


async def test_tickets(workers: Workers[Cluster]) -> None:
    """A ticket is given once, wherever it and its owner's keys lie, and no longer counts as open then."""
    one, other = await workers.several(2)
    for number in range(40):
        await one.put_ticket(f"ticket-{number}", b"sealed-%d" % number, 60, user(TEN))
        assert await other.take_ticket(f"ticket-{number}") == b"sealed-%d" % number
        assert await one.take_ticket(f"ticket-{number}") is SPENT
    assert workers.failures == 0


async def test_scripts_are_flushed(workers: Workers[Cluster]) -> None:
    """Nodes that forgot the scripts are told again, each on its own; a refund comes before the next charge."""
    store = await workers.one()
    alone = Plan("one", (Rate(1, 60.0),))
    for number in range(20):
        for member in await workers.server.primaries():
            await member.ask("SCRIPT", "FLUSH")
        for _ in range(3):
            admission = await store.admit(user(alone, f"user-{number}"))
            admission.refund()
            admission.release()
    await holds(workers.server, 0)
    assert workers.failures == 0


async def test_a_node_is_lost(workers: Workers[Cluster]) -> None:
    """The users of a node that dies are served by `on_store_error`, all others as ever; it is told, and ends."""
    cluster = workers.server
    denies = await workers.one(timeout_s=TIMEOUT_S)
    counts = await workers.one(timeout_s=TIMEOUT_S, on_store_error="local")
    victim, *others = await cluster.primaries()
    lost = await cluster.users_of(victim, 5)
    well = [name for member in others for name in await cluster.users_of(member, 5)]
    held = [await denies.admit(user(TEN, name)) for name in (*lost, *well)]
    victim.kill()
    await passes(lambda: denies.problem() is not None and counts.problem() is not None)
    assert denies.problem() == f"127.0.0.1:{victim.port}: the server cannot be reached"
    assert denies.is_serving
    for name in well:
        for store in (denies, counts):
            admission = await store.admit(user(TEN, name))
            assert admission.fallback is None
            assert store.fallback(user(TEN, name)) is None
            admission.release()
    for name in lost:
        with Stopwatch() as watch:
            assert await attempt(denies, user(TEN, name)) == "limits_unavailable"
            assert watch.elapsed_s < MOST_S
        # Counting alone goes on, whoever else is served by other nodes meanwhile.
        mine = [await counts.admit(user(TEN, name)) for _ in range(QUOTA)]
        assert {admission.fallback for admission in mine} == {"local"}
        assert await attempt(counts, user(TEN, name)) == "rate_limit_exceeded"
        assert counts.fallback(user(TEN, name)) == "local"
        for admission in mine:
            admission.release()
    assert [change for change in workers.changes if change is None] == []
    others_channels = {link.channel for link in denies._links if link.channel is not None}
    assert len(others_channels) == 2
    await victim.start()
    await passes(lambda: denies.problem() is None and counts.problem() is None)
    # While it starts it answers CLUSTERDOWN, which ends no other connection.
    assert others_channels < {link.channel for link in denies._links}
    assert workers.changes.count(None) == 2
    # It came back empty, and was told what was used and what runs.
    await holds(cluster, len(held))
    for name in lost:
        assert (await denies.admit(user(TEN, name))).standing.rates[0].remaining == QUOTA - 2


async def test_full_coverage_is_required() -> None:
    """A Cluster that stops altogether when a node is lost is as good as none; it is told why, and found again."""
    cluster = Cluster(full=True)
    apart = Workers(cluster)
    try:
        await cluster.start()
        store = await apart.one(timeout_s=TIMEOUT_S)
        victim, other, _ = await cluster.primaries()
        (name,) = await cluster.users_of(other, 1)
        assert not isinstance(await attempt(store, user(PLENTY, name)), str)
        victim.kill()

        async def is_down() -> bool:
            return await attempt(store, user(PLENTY, name)) == "limits_unavailable" and not store.is_serving

        await comes_true(is_down)
        await victim.start()
        await passes(lambda: store.problem() is None)
        assert not isinstance(await attempt(store, user(PLENTY, name)), str)
    finally:
        await apart.close()
        cluster.close()


async def test_absent_at_the_start(workers: Workers[Cluster]) -> None:
    """A Cluster that is not there yet keeps nobody from starting; one node that answers is enough to find all."""
    cluster = workers.server
    for member in cluster.members:
        member.stop()
    with Stopwatch() as watch:
        store = await workers.one(timeout_s=TIMEOUT_S)
        assert watch.elapsed_s < 2 * MOST_S
    assert store.problem() == "the server did not answer in time"
    assert not store.is_serving
    assert await attempt(store, user(TEN)) == "limits_unavailable"
    with pytest.raises(LimitsUnavailableError):
        await store.take_ticket("a")
    for member in cluster.members:
        member.go_on()
    await passes(lambda: store.problem() is None)
    assert not isinstance(await attempt(store, user(TEN)), str)


class Load:
    """Requests of one user after another through a store, each charged and given back a lease, until `stop`."""

    def __init__(self, store: RedisStore, names: list[str], plan: Plan = PLENTY) -> None:
        self.outcomes: Counter[str] = Counter()
        self.longest_s = 0.0
        self._goes_on = True
        self._tasks = [asyncio.create_task(self._ask(store, user(plan, name))) for name in names]

    async def stop(self) -> None:
        """End it."""
        self._goes_on = False
        await asyncio.gather(*self._tasks)

    async def has_admitted(self, more: int) -> None:
        """Wait until so many more requests were admitted."""
        wanted = self.outcomes["admitted"] + more
        await passes(lambda: self.outcomes["admitted"] >= wanted)

    async def _ask(self, store: RedisStore, principal: object) -> None:
        while self._goes_on:
            with Stopwatch() as watch:
                outcome = await attempt(store, principal)  # type: ignore[arg-type]
                self.longest_s = max(self.longest_s, watch.elapsed_s)
            self.outcomes[outcome if isinstance(outcome, str) else "admitted"] += 1
            if not isinstance(outcome, str):
                outcome.release()
            await asyncio.sleep(0.001)


async def test_a_slot_moves_under_load(workers: Workers[Cluster]) -> None:
    """A slot that is moved takes its users along: MOVED and ASK are followed, nothing is lost or charged twice."""
    cluster = workers.server
    store, other = await workers.several(2, timeout_s=TIMEOUT_S)
    source, target, _ = await cluster.primaries()
    (name,) = await cluster.users_of(source, 1)
    slot = slot_of(name)
    busy = await cluster.users_of(source, 8)
    held = await store.admit(user(PLENTY, name))
    used = 1
    load = Load(store, busy[1:])
    await load.has_admitted(50)
    await cluster.begin_move(slot, source, target)
    for _ in range(5):
        outcome = await attempt(store, user(PLENTY, name))
        assert not isinstance(outcome, str)
        outcome.release()
        used += 1
    await cluster.move_keys(slot, source, target)
    # The source has no more of it: it says ASK, to each worker.
    for one in (store, other):
        outcome = await attempt(one, user(PLENTY, name))
        assert not isinstance(outcome, str)
        outcome.release()
        used += 1
    await cluster.end_move(slot, target)
    # MOVED.
    for one in (store, other, store):
        outcome = await attempt(one, user(PLENTY, name))
        assert not isinstance(outcome, str)
        used += 1
        assert outcome.standing.rates[0].remaining == 100_000 - used
        outcome.refund()
        used -= 1
        outcome.release()
    await load.has_admitted(50)
    await load.stop()
    assert load.longest_s < MOST_S
    assert set(load.outcomes) == {"admitted"}
    held.release()
    await holds(cluster, 0)
    assert workers.changes == []


async def test_keys_on_their_way(workers: Workers[Cluster]) -> None:
    """While a user's keys are on two nodes there is no answer (TRYAGAIN): nobody waits long, no node is blamed."""
    cluster = workers.server
    store = await workers.one(timeout_s=TIMEOUT_S)
    source, target, _ = await cluster.primaries()
    (name,) = await cluster.users_of(source, 1)
    slot = slot_of(name)
    held = await store.admit(user(TEN, name))
    await cluster.begin_move(slot, source, target)
    (key, *_) = await source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1)
    await source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
    with Stopwatch() as watch:
        outcomes = await asyncio.gather(*[attempt(store, user(TEN, name)) for _ in range(10)])
        assert watch.elapsed_s < MOST_S
    assert set(outcomes) == {"limits_unavailable"}
    assert store.problem() is None
    waiting = asyncio.create_task(attempt(store, user(TEN, name)))
    await asyncio.sleep(0)
    await cluster.move_keys(slot, source, target)
    await cluster.end_move(slot, target)
    await waiting
    again = await store.admit(user(TEN, name))
    assert again.standing.rates[0].remaining in {QUOTA - 2, QUOTA - 3}
    again.release()
    held.release()


async def test_nodes_that_name_each_other(workers: Workers[Cluster]) -> None:
    """Two nodes of which each says that the other has a slot are asked a few times, and not for long."""
    cluster = workers.server
    store = await workers.one(timeout_s=TIMEOUT_S)
    source, target, _ = await cluster.primaries()
    (name,) = await cluster.users_of(source, 1)
    # It gives the slot away, and the other has not heard of that.
    await source.ask("CLUSTER", "SETSLOT", slot_of(name), "NODE", await target.ask("CLUSTER", "MYID"))
    with Stopwatch() as watch:
        assert await attempt(store, user(TEN, name)) == "limits_unavailable"
        assert watch.elapsed_s < MOST_S
    refused = [await member.ask("INFO", "errorstats") for member in (source, target)]
    hops = [int(re.findall(rb"errorstat_MOVED:count=(\d+)", text)[0]) for text in refused]
    assert max(hops) < TIMEOUT_S / 0.01
    assert store.problem() is None
    await cluster.end_move(slot_of(name), target)
    assert not isinstance(await attempt(store, user(TEN, name)), str)


async def test_a_node_is_new(workers: Workers[Cluster]) -> None:
    """A node that takes a slot and that no worker has heard of is found, within the time of the request."""
    cluster = workers.server
    store = await workers.one(timeout_s=TIMEOUT_S)
    links = store._links
    assert isinstance(links, ClusterLinks)
    source, target, _ = await cluster.primaries()
    (name,) = await cluster.users_of(source, 1)
    (await store.admit(user(TEN, name))).release()
    # As if it had not been there.
    node = ("127.0.0.1", target.port)
    await links._links.pop(node).close()
    await cluster.begin_move(slot_of(name), source, target)
    await cluster.move_keys(slot_of(name), source, target)
    await cluster.end_move(slot_of(name), target)
    assert (await store.admit(user(TEN, name))).standing.rates[0].remaining == QUOTA - 2
    assert node in links._links


async def test_opened_twice(cluster: Cluster) -> None:
    """A store that is opened several times, also at once, follows the Cluster by one task, and closes it."""
    store = RedisStore(cluster.address)
    await asyncio.gather(store.open(), store.open())
    await store.open()
    assert [task.get_name() for task in asyncio.all_tasks()].count("limits.cluster") == 1
    (await store.admit(user(TEN))).release()
    await store.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("limits.")]


def test_slots_are_those_of_the_tag() -> None:
    """All keys of a user, and nothing else of them, decide on the node."""
    account = UserAccount(("issuer", "{}"))
    assert account.slot == key_slot(account.leases_key) == key_slot(account.tag + b"rate:1/2:given")
