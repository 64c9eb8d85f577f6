"""The Redis store when things die: the server, a worker, a client; nobody waits, nothing is lost or taken twice."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from proxy.errors import LimitsUnavailableError, RateLimitExceededError, TooManyStreamsError, retry_after
from proxy.limits.redis.scripts import Scripts
from proxy.limits.redis.store import RedisStore
from proxy.model import Plan, Rate
from tests.limits.redis_support import (
    RedisServer,
    Workers,
    at_once,
    attempt,
    die,
    holds,
    passes,
    renewed_twice,
    user,
)
from tests.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.limits.store import Admission

TEN = Plan("ten", (Rate(10, 3600.0),), concurrent_streams=4)
# Several times what the product has, because machines that test are busy.
TIMEOUT_S = 0.4


def most_s(timeout_s: float) -> float:
    """What no request waits for the store, whatever is the matter with it."""
    return 2 * timeout_s + 0.1


POLICIES = ["deny", "local", "allow"]
OUTAGES = ["kill", "stop"]


@pytest.fixture
async def unstarted() -> AsyncIterator[RedisServer]:
    """A server that does not run yet."""
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
async def waiting(unstarted: RedisServer) -> AsyncIterator[Workers[RedisServer]]:
    """Stores on it."""
    workers = Workers(unstarted)
    yield workers
    await workers.close()


async def timed(store: RedisStore, name: str = "alice") -> tuple[Admission | str, float]:
    """The outcome, and how long it took."""
    with Stopwatch() as watch:
        outcome = await attempt(store, user(TEN, name))
        return outcome, watch.elapsed_s


def bring_down(server: RedisServer, how: str) -> None:
    if how == "kill":
        server.kill()
    else:
        server.stop()


async def bring_back(server: RedisServer, how: str) -> None:
    if how == "kill":
        await server.start()
    else:
        server.go_on()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("how", OUTAGES)
async def test_outage(workers: Workers[RedisServer], how: str, policy: str) -> None:
    """A server that dies or hangs holds nobody up; each policy does what it says; both changes are told once."""
    store = await workers.one(timeout_s=TIMEOUT_S, on_store_error=policy, settle_s=0.05)
    before = await store.admit(user(TEN))
    bring_down(workers.server, how)

    first = await asyncio.gather(*[timed(store, f"user-{number}") for number in range(50)])
    assert max(waited_s for _, waited_s in first) < most_s(TIMEOUT_S)
    await passes(lambda: store.problem() is not None)
    # Known to be away: nobody waits at all.
    for number in range(50):
        outcome = at_once(store, user(TEN, f"user-{number}"))
        if policy == "deny":
            assert outcome == "limits_unavailable"
        else:
            assert not isinstance(outcome, str)
            assert outcome.fallback == policy
            outcome.release()
    assert store.fallback(user(TEN)) == (None if policy == "deny" else policy)
    assert len(workers.changes) == 1
    assert workers.failures > 0

    await bring_back(workers.server, how)
    await passes(lambda: store.problem() is None)
    assert len(workers.changes) == 2
    assert workers.changes[-1] is None
    assert store.fallback(user(TEN)) is None
    for outcome, _ in first:
        if not isinstance(outcome, str):
            outcome.release()
    again = await store.admit(user(TEN))
    assert again.fallback is None
    # The stream that ran on is still counted, and its charge is remembered.
    assert again.standing.rates[0].remaining <= 8
    assert store.leases_held == 2
    await holds(workers.server, 2)
    before.release()
    again.release()
    await holds(workers.server, 0)


@pytest.mark.parametrize("policy", POLICIES)
async def test_absent_at_the_start(waiting: Workers[RedisServer], policy: str) -> None:
    """A server that is not there yet keeps nobody from starting, and is found when it comes."""
    with Stopwatch() as watch:
        store = await waiting.one(timeout_s=TIMEOUT_S, on_store_error=policy)
        assert watch.elapsed_s < most_s(TIMEOUT_S)
    assert store.problem() == "the server cannot be reached"
    outcome = at_once(store, user(TEN))
    assert (outcome == "limits_unavailable") is (policy == "deny")
    with pytest.raises(LimitsUnavailableError):
        await store.put_ticket("a", b"b", 60, user(TEN))
    with pytest.raises(LimitsUnavailableError):
        await store.take_ticket("a")

    await waiting.server.start()
    await passes(lambda: store.problem() is None)
    assert waiting.changes == ["the server cannot be reached", None]
    admission = await store.admit(user(TEN))
    assert admission.fallback is None
    # What ran without the server is now known to it.
    await holds(waiting.server, 1 if policy == "deny" else 2)


async def test_default_timeout(workers: Workers[RedisServer]) -> None:
    """Nobody tells the product how long to wait for a server that hangs: it is a tenth of a second, and no second."""
    store = RedisStore(workers.server.address)
    await store.open()
    try:
        # On a machine that stood still it may have been given up, and is found again.
        await passes(lambda: store.problem() is None)
        workers.server.stop()
        asked = await asyncio.gather(*[timed(store, f"user-{number}") for number in range(50)])
    finally:
        workers.server.go_on()
        await store.close()
    assert {outcome for outcome, _ in asked} == {"limits_unavailable"}
    assert max(waited_s for _, waited_s in asked) < most_s(0.1)


async def test_hanging_at_the_start(workers: Workers[RedisServer]) -> None:
    """A server that hangs does not hold up the start either."""
    workers.server.stop()
    with Stopwatch() as watch:
        store = await workers.one(timeout_s=TIMEOUT_S)
        assert watch.elapsed_s < most_s(TIMEOUT_S)
    assert store.problem() == "the server did not answer in time"
    workers.server.go_on()
    await passes(lambda: store.problem() is None)


@pytest.fixture
async def saving() -> AsyncIterator[RedisServer]:
    """A server that runs, keeps what it saves, and answers while it loads that."""
    options = {"dbfilename": "dump.rdb", "rdbcompression": "no", "loading-process-events-interval-bytes": 1024}
    server = RedisServer(*[word for name, value in options.items() for word in (f"--{name}", str(value))])
    await server.start()
    yield server
    server.close()


async def test_loading(saving: RedisServer) -> None:
    """A server that loads its data is told as such and keeps nobody waiting; loaded, it is used, and knows all."""
    workers = Workers(saving)
    fill = "for number = 1, 3000 do redis.call('SET', 'filler:' .. number, string.rep('x', 1024)) end"
    try:
        runs = await workers.one(timeout_s=TIMEOUT_S)
        held = await runs.admit(user(TEN))
        await saving.ask("EVAL", fill, 0)
        await saving.ask("SAVE")
        saving.kill()
        # As if there were much more: it loads for longer than the test may take, until it is told to hurry.
        saving.spawn("--key-load-delay", "50000")
        await passes(lambda: runs.problem() == "the server is loading its data")
        with Stopwatch() as watch:
            starts = await workers.one(timeout_s=TIMEOUT_S)
            assert watch.elapsed_s < most_s(TIMEOUT_S)
        assert starts.problem() == "the server is loading its data"
        for store in (runs, starts):
            assert at_once(store, user(TEN)) == "limits_unavailable"

        await saving.ask("CONFIG", "SET", "key-load-delay", "0")
        await passes(lambda: runs.problem() is None and starts.problem() is None)
        again = await starts.admit(user(TEN))
        assert again.standing.rates[0].remaining == 8
        await holds(saving, 2)
        held.release()
        again.release()
        await holds(saving, 0)
        assert workers.changes[-2:] == [None, None]
        assert "the server came back empty, and is being told what was counted" not in workers.changes
    finally:
        await workers.close()


async def test_restarted_empty(workers: Workers[RedisServer]) -> None:
    """A server that comes back empty gives nobody more: streams that run are told, and so is what was used."""
    stores = await workers.several(4, settle_s=1.5)
    held = [await store.admit(user(TEN, f"user-{number}")) for store in stores for number in range(10)]
    workers.server.kill()
    await workers.server.start()
    outcomes: list[Admission | str] = []

    async def ask(store: RedisStore, name: str) -> None:
        outcome: Admission | str = "limits_unavailable"
        while outcome == "limits_unavailable":
            await asyncio.sleep(0.01)
            outcome = await attempt(store, user(TEN, name))
        outcomes.append(outcome)

    await asyncio.gather(*[ask(store, f"user-{number}") for store in stores for number in range(10) for _ in range(3)])
    assert set(outcomes) == {"too_many_streams"}
    assert await workers.server.leases() == 40
    for admission in held:
        admission.release()
    await holds(workers.server, 0)
    assert (await stores[0].admit(user(TEN, "user-0"))).standing.rates[0].remaining == 5


async def test_restarted_with_its_memory(workers: Workers[RedisServer]) -> None:
    """A connection that is lost for a moment costs nobody anything: whoever asks meanwhile waits for the next."""
    store = await workers.one()
    for _ in range(5):
        admission = await store.admit(user(TEN, "bob"))
        (link,) = store._links
        old = link.channel
        await workers.server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await passes(lambda: link.channel is not old)  # noqa: B023 - called before the next turn
        admission.release()
        again = await store.admit(user(TEN, "bob"))
        again.release()
    assert workers.changes == []
    await holds(workers.server, 0)


async def test_local_goes_on_from_what_it_knows(workers: Workers[RedisServer]) -> None:
    """A worker that counts alone counts the streams it already has and what was used, and lets no user have more."""
    store = await workers.one(timeout_s=TIMEOUT_S, on_store_error="local", settle_s=0.05)
    held = [await store.admit(user(TEN)) for _ in range(3)]
    workers.server.kill()
    await passes(lambda: store.problem() is not None)
    alone = await store.admit(user(TEN))
    assert alone.standing.rates[0].remaining == 6
    assert store.standing(user(TEN)).rates[0].remaining == 6
    assert await attempt(store, user(TEN)) == "too_many_streams"
    held[0].release()
    another = await store.admit(user(TEN))
    assert await attempt(store, user(TEN)) == "too_many_streams"
    another.refund()
    assert store.standing(user(TEN)).rates[0].remaining == 6
    assert store.leases_held == 4
    with pytest.raises(TooManyStreamsError, match=r"^All of your 4 streams at a time are in use; "):
        await store.admit(user(TEN))

    await workers.server.start()
    await passes(lambda: store.problem() is None)
    assert await attempt(store, user(TEN)) == "too_many_streams"
    for admission in (*held, alone, another):
        admission.release()
    await holds(workers.server, 0)
    assert store.leases_held == 0


async def test_local_refuses_in_the_same_words(workers: Workers[RedisServer]) -> None:
    """A worker that counts alone names the same rate, with its wait, as the server did."""
    store = await workers.one(timeout_s=TIMEOUT_S, on_store_error="local", settle_s=0.05)
    plan = Plan("narrow", (Rate(100, 1.0), Rate(2, 3600.0)))
    for _ in range(2):
        (await store.admit(user(plan))).release()
    said = []
    for is_away in (False, True):
        if is_away:
            workers.server.kill()
            await passes(lambda: store.problem() is not None)
        with pytest.raises(RateLimitExceededError) as refused:
            await store.admit(user(plan))
        wait_s = retry_after(refused.value)
        assert wait_s in range(1700, 1801)
        said.append(refused.value.message.replace(f" {wait_s} s ", " N s ").partition("(")[0])
    assert said == ["2 requests per 1 h used up; try again in N s "] * 2


async def test_outages_in_turn(workers: Workers[RedisServer]) -> None:
    """Counting alone begins anew at each outage, from what is known then."""
    store = await workers.one(timeout_s=TIMEOUT_S, on_store_error="local", settle_s=0.0)
    for turn in range(3):
        admission = await store.admit(user(TEN))
        assert admission.fallback is None
        workers.server.kill()
        await passes(lambda: store.problem() is not None)
        alone = await store.admit(user(TEN, f"user-{turn}"))
        assert alone.fallback == "local"
        alone.release()
        admission.release()
        await workers.server.start()
        await passes(lambda: store.problem() is None)
    assert len(workers.changes) == 6


async def test_released_while_the_server_is_away(workers: Workers[RedisServer]) -> None:
    """What is released during an outage is free once the server is back; what died with it needs no release."""
    one, other = await workers.several(2, timeout_s=TIMEOUT_S)
    held = [await one.admit(user(TEN)) for _ in range(4)]
    workers.server.stop()
    for admission in held:
        admission.release()
    assert one.leases_held == 0
    workers.server.go_on()
    await holds(workers.server, 0)
    await passes(lambda: other.problem() is None)
    assert not isinstance(await attempt(other, user(TEN)), str)


async def test_a_late_answer_is_undone(workers: Workers[RedisServer]) -> None:
    """A question that was given up, but that the server came to after all, leaves no lease behind."""
    store = await workers.one(timeout_s=TIMEOUT_S, life_s=3.0)
    workers.server.stop()
    outcomes = await asyncio.gather(*[attempt(store, user(TEN, f"user-{number}")) for number in range(20)])
    assert set(outcomes) == {"limits_unavailable"}
    workers.server.go_on()
    await passes(lambda: store.problem() is None)
    assert not isinstance(await attempt(store, user(TEN, "somebody")), str)
    # Everybody else's is gone before it could lapse, or lapses with the next renewals at the latest.
    await holds(workers.server, 1)


async def test_cancelled_at_every_step(workers: Workers[RedisServer]) -> None:
    """A caller that leaves holds nothing and pays nothing, at whatever step of the loop it leaves."""
    store = await workers.one()
    roomy = user(Plan("roomy", (Rate(100, 3600.0),)))
    kept = 0
    # The last one does not leave, so that one is admitted however slow the server is.
    for steps in [*range(30), None]:
        asking = asyncio.create_task(store.admit(roomy))
        for _ in range(steps or 0):
            await asyncio.sleep(0)
        if steps is not None:
            asking.cancel()
        try:
            admission = await asking
        except asyncio.CancelledError:
            continue
        kept += 1
        admission.refund()
        admission.release()
    assert kept > 0
    assert store.leases_held == 0
    await holds(workers.server, 0)
    async with asyncio.timeout(10):
        while (admission := await store.admit(roomy)).standing.rates[0].remaining != 99:
            admission.refund()
            admission.release()


async def test_cancelled_callers_poison_nothing(workers: Workers[RedisServer]) -> None:
    """Of thousands of callers that leave at any moment none leaves its answer to another, or a lease, or a task."""
    store = await workers.one()
    tasks_before = len(asyncio.all_tasks())
    # A plan for each, so that an answer of another's would be seen.
    plans = [Plan(f"plan-{number}", (Rate(1000 + number, 86_400.0),)) for number in range(50)]

    async def ask(number: int) -> None:
        plan = plans[number % 50]
        admission = await store.admit(user(plan, f"user-{number % 50}"))
        try:
            rate = admission.standing.rates[0]
            assert rate.quota == 1000 + number % 50
            assert rate.remaining < rate.quota
            await asyncio.sleep(0)
        finally:
            admission.release()

    for wave in range(40):
        asking = [asyncio.create_task(ask(number)) for number in range(100)]
        for _ in range(wave % 8):
            await asyncio.sleep(0)
        for index, task in enumerate(asking):
            if (index * 7 + wave) % 3:
                task.cancel()
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {type(None), asyncio.CancelledError}
    assert store.leases_held == 0
    assert len(asyncio.all_tasks()) == tasks_before
    assert workers.failures == 0
    await holds(workers.server, 0)


async def test_evicted(workers: Workers[RedisServer]) -> None:
    """A server that evicts keys at any moment makes no error, and nothing below zero."""
    store = await workers.one(life_s=0.5)
    held = [await store.admit(user(TEN, f"user-{number}")) for number in range(10)]
    for key in await workers.server.keys():
        await workers.server.ask("DEL", key)
    for admission in held[:5]:
        admission.refund()
        admission.release()
    # The next renewals tell the server of those that are still held.
    await holds(workers.server, 5)
    for number in range(10):
        admission = await store.admit(user(TEN, f"user-{number}"))
        assert admission.standing.rates[0].remaining == 9
        admission.release()
    for admission in held[5:]:
        admission.refund()
        admission.release()
    await holds(workers.server, 0)
    assert workers.failures == 0
    assert (await store.admit(user(TEN, "user-9"))).standing.rates[0].remaining <= 9


@pytest.mark.parametrize(
    ("spoil", "mend", "reason"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "out of memory"),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "replica"),
    ],
    ids=["out of memory", "replica"],
)
async def test_server_that_takes_no_writes(
    workers: Workers[RedisServer], spoil: tuple[str, ...], mend: tuple[str, ...], reason: str
) -> None:
    """A server that answers but cannot write is as good as none: told with its reason, and back when it can."""
    store = await workers.one()
    await workers.server.ask(*spoil)
    outcomes = [await attempt(store, user(TEN)) for _ in range(3)]
    assert set(outcomes) == {"limits_unavailable"}
    assert reason in (store.problem() or "")
    assert workers.failures >= 3
    await workers.server.ask(*mend)
    await passes(lambda: store.problem() is None)
    assert (await store.admit(user(TEN))).standing.rates[0].remaining == 9
    assert len(workers.changes) == 2


async def test_renewals_that_fail(workers: Workers[RedisServer]) -> None:
    """A server that takes no renewals is as good as none; once it does, it is told of everything that runs."""
    store = await workers.one(life_s=0.3)
    admission = await store.admit(user(TEN))
    await workers.server.ask("REPLICAOF", "127.0.0.1", "1")
    await passes(lambda: store.problem() is not None)
    await workers.server.ask("REPLICAOF", "NO", "ONE")
    for key in await workers.server.keys():
        await workers.server.ask("DEL", key)
    await passes(lambda: store.problem() is None)
    await holds(workers.server, 1)
    admission.release()
    await holds(workers.server, 0)


async def test_renewals_on_a_full_server(workers: Workers[RedisServer]) -> None:
    """Streams that run keep their leases also while the server has no room for new ones."""
    store = await workers.one(life_s=1.0)
    admission = await store.admit(user(TEN))
    await workers.server.ask("CONFIG", "SET", "maxmemory", "1")
    await renewed_twice(workers.server)
    assert await workers.server.leases() == 1
    admission.release()
    await holds(workers.server, 0)
    assert workers.changes == []


async def test_many_leases(workers: Workers[RedisServer]) -> None:
    """More leases than one batch holds are renewed as well, for one user as for many."""
    store = await workers.one(life_s=1.5)
    free = Plan("free")
    held = [await store.admit(user(free)) for _ in range(1200)]
    held += [await store.admit(user(free, f"user-{number}")) for number in range(300)]
    await renewed_twice(workers.server)
    assert await workers.server.leases() == 1500
    for admission in held:
        admission.release()
    await holds(workers.server, 0)


async def test_clock_of_the_server_set_back(workers: Workers[RedisServer]) -> None:
    """After the server's clock was set back, a user is at most out of quota, and a dead worker's leases still lapse."""
    clock = Scripts("local now = tonumber(redis.call('GET', 'clock'))\n")
    await workers.server.ask("SET", "clock", "2200000000000000")
    one, other = await workers.several(2, scripts=clock, life_s=1000.0)
    for _ in range(4):
        await one.admit(user(TEN))
    die(one)
    await workers.server.ask("SET", "clock", "2100000000000000")
    assert await attempt(other, user(TEN)) == "rate_limit_exceeded"
    await workers.server.ask("SET", "clock", str(2_100_000_000_000_000 + 720_000_000))
    assert await attempt(other, user(TEN)) == "too_many_streams"
    await workers.server.ask("SET", "clock", str(2_100_000_000_000_000 + 1_720_000_001))
    assert not isinstance(await attempt(other, user(TEN)), str)


async def test_clocks_of_the_workers(workers: Workers[RedisServer], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker's own clock says changes no decision and no field."""
    monkeypatch.setattr("time.time_ns", lambda: 0)
    early = await workers.one()
    monkeypatch.setattr("time.time_ns", lambda: 10**19)
    late = await workers.one()
    for number, store in enumerate([early, late] * 2):
        admission = await store.admit(user(TEN))
        assert admission.standing.rates[0].remaining == 9 - number
        assert store.standing(user(TEN)).rates[0].remaining == 9 - number
    assert await attempt(early, user(TEN)) == "too_many_streams"


async def test_credentials() -> None:
    """A wrong password is told as such, and never shown; the right one works, in the database that was named."""
    server = RedisServer("--requirepass", "right-password")
    address = server.address
    server.address = replace(address, password="right-password", db=3)
    await server.start()
    workers = Workers(server)
    try:
        for wrong in (replace(address, password="wrong-password"), replace(address, user="u", password="x")):
            store = await workers.one(address=wrong)
            assert store.problem() == "the server refuses the password"
            assert "wrong-password" not in repr(wrong)
        assert (await workers.one(address=address)).problem() == "the server wants a password"
        store = await workers.one()
        await store.admit(user(TEN))
        assert len(await server.keys()) == 2
        await store.put_ticket("a", b"b", 60, user(TEN))
        assert await store.take_ticket("a") == b"b"
        server.address = replace(server.address, db=0)
        assert await server.keys() == []
    finally:
        await workers.close()
        server.close()


async def test_least_privileges(workers: Workers[RedisServer]) -> None:
    """The commands and keys that the documentation names are all that a user of the server needs."""
    page = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    granted = sorted(set(re.findall(r"[`\s](\+[a-z|]+)(?=[`\s)])", page)))
    assert {"+evalsha", "+pexpireat"} <= set(granted)
    await workers.server.ask(
        "ACL", "SETUSER", "proxy", "on", ">secret", "resetkeys", "~forward-sse:*", "-@all", *granted
    )
    address = replace(workers.server.address, user="proxy", password="secret", db=1)
    store = await workers.one(address=address, life_s=1.0, on_store_error="deny")
    assert store.problem() is None
    first, second = await store.admit(user(TEN)), await store.admit(user(TEN))
    first.refund()
    for number in range(20):
        await attempt(store, user(TEN))
        await store.put_ticket(str(number), b"x", 60, user(TEN))
        assert await store.take_ticket(str(number)) == b"x"
    workers.server.address = replace(workers.server.address, db=1)
    await renewed_twice(workers.server)
    second.release()
    assert workers.changes == []
    # Empty: what a worker remembers is told.
    await workers.server.ask("FLUSHALL")
    await workers.server.ask("CLIENT", "KILL", "USER", "proxy")
    await passes(lambda: len(workers.changes) == 2)
    assert workers.changes == ["the server came back empty, and is being told what was counted", None]
    again = await store.admit(user(TEN))
    assert again.standing.rates[0].remaining == 6
    assert workers.failures == 0
