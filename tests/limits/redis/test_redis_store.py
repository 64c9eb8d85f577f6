"""The Redis store on a real server: what is admitted, leased, given back, over several workers."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.errors import RateLimitExceededError, TooManyStreamsError, TooManyTicketsError, retry_after
from proxy.limits.memory.store import MemoryStore
from proxy.limits.redis.scripts import Scripts
from proxy.limits.redis.store import RedisStore
from proxy.limits.store import MAX_OPEN_TICKETS, SPENT, Admission, Store
from proxy.model import Plan, Principal, Rate
from tests.limits.redis_support import (
    Workers,
    attempt,
    channel_of,
    comes_true,
    control,
    die,
    holds,
    renewed_twice,
    user,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.limits.redis.channel import Channel
    from tests.limits.redis_support import RedisServer

# A clock that the test sets: the server's own, read from a key instead.
TURNED = "local now = tonumber(redis.call('GET', 'clock') or '0')\n"
# Ahead of the server's own clock, by which its keys expire.
START = 2_100_000_000_000_001

TEN = Plan("ten", (Rate(10, 3600.0),))
STREAMS = Plan("streams", concurrent_streams=3)
BOTH_NARROW = Plan("narrow", (Rate(5, 3600.0), Rate(5, 86_400.0)))
BOTH = Plan("both", (Rate(5, 3600.0), Rate(1000, 86_400.0)), concurrent_streams=3)


async def test_store_is_a_store(workers: Workers[RedisServer]) -> None:
    """The Redis store keeps the promises of the protocol, and says how the user stands just after the charge."""
    store: Store = await workers.one()
    admission = await store.admit(user(TEN))
    assert (store.leases_held, store.problem(), store.fallback(user(TEN)), admission.fallback) == (1, None, None, None)
    rate = admission.standing.rates[0]
    assert (rate.name, rate.quota, rate.remaining, rate.reset_s) == ("10-per-1h", 10, 9, 360.0)
    assert store.standing(user(TEN)).rates[0].remaining == 9
    assert store.standing(user(TEN, "bob")).rates[0].remaining == 10
    admission.release()
    admission.release()
    assert store.leases_held == 0
    await holds(workers.server, 0)


@pytest.mark.parametrize("worker_count", [1, 2, 4])
async def test_admit_parallel_burst_rates(workers: Workers[RedisServer], worker_count: int) -> None:
    """Of a parallel burst over many users and several workers exactly the quota of each user is admitted."""
    stores = await workers.several(worker_count)
    users = [user(TEN, f"user-{number}") for number in range(20)]
    asks = [attempt(stores[index % worker_count], users[index // 40]) for index in range(800)]
    outcomes = await asyncio.gather(*asks)
    for number in range(20):
        mine = Counter(type(one) is str and one for one in outcomes[number * 40 : number * 40 + 40])
        assert mine == {False: 10, "rate_limit_exceeded": 30}


@pytest.mark.parametrize("worker_count", [2, 4])
async def test_admit_parallel_burst_streams(workers: Workers[RedisServer], worker_count: int) -> None:
    """So is the number of streams, and what one worker releases another may take."""
    stores = await workers.several(worker_count)
    users = [user(STREAMS, f"user-{number}") for number in range(10)]
    for _ in range(3):
        asks = [attempt(stores[index % worker_count], users[index // 20]) for index in range(200)]
        outcomes = await asyncio.gather(*asks)
        held = [outcome for outcome in outcomes if not isinstance(outcome, str)]
        assert len(held) == 30
        assert {outcome for outcome in outcomes if isinstance(outcome, str)} == {"too_many_streams"}
        assert await workers.server.leases() == 30
        for admission in held:
            admission.release()
        await holds(workers.server, 0)


async def test_admit_all_or_nothing(workers: Workers[RedisServer]) -> None:
    """What one rate or the streams refuse is charged to no rate and holds nothing."""
    one, other = await workers.several(2)
    for _ in range(3):
        await one.admit(user(BOTH))
    for store in (one, other):
        with pytest.raises(TooManyStreamsError) as refused:
            await store.admit(user(BOTH))
        assert refused.value.retry_after_s == 1.0
    assert [rate.remaining for rate in other.standing(user(BOTH)).rates] == [2, 997]
    await other.admit(user(Plan("more", BOTH.rates)))
    await other.admit(user(Plan("more", BOTH.rates)))
    with pytest.raises(RateLimitExceededError) as spent:
        await one.admit(user(BOTH))
    assert spent.value.retry_after_s is not None
    assert 719 < spent.value.retry_after_s <= 720
    assert await workers.server.leases() == 5


async def test_keys_hold_no_names_and_expire(workers: Workers[RedisServer]) -> None:
    """Keys are of bounded length whatever the user's name, in one hash slot a user, and all of them expire."""
    store = await workers.one()
    names = ["alice", "a" * 10_000, "{}", "a:b", "\r\n", "\udc80", "", "é"]
    for name in names:
        await store.admit(user(BOTH, name))
    first, second = await store.admit(user(BOTH, "bob")), await store.admit(user(BOTH, "bob"))
    first.refund()
    await store.put_ticket("ticket-name", b"sealed", 60, user(BOTH))
    await store.take_ticket("ticket-name")
    keys = await workers.server.keys()
    assert len({re.findall(rb"\{([^{}]*)\}", key)[0] for key in keys if b"sealed:" not in key}) == len(names) + 1
    for key in keys:
        assert re.fullmatch(rb"forward-sse:(sealed:)?\{[0-9a-f]{32}\}(:[a-z]+(:\d+/\d+)?)?(:given)?", key)
        assert 0 < await workers.server.ask("PTTL", key) <= 86_400_000 + 1
    second.refund()


async def test_keys_of_a_paid_up_user_are_gone(workers: Workers[RedisServer]) -> None:
    """Nothing is left of a user whose rates are paid and whose lease has lapsed."""
    store = await workers.one(life_s=0.1)
    admission = await store.admit(user(Plan("fast", (Rate(100, 1.0),))))
    assert len(await workers.server.keys()) == 2
    admission.release()

    async def is_empty() -> bool:
        return not await workers.server.keys()

    await comes_true(is_empty)


async def test_messages(workers: Workers[RedisServer]) -> None:
    """A refusal names the rate that binds longest and its wait, or the number of streams, over all workers."""
    one, other = await workers.several(2)
    for number in range(5):
        await (one, other)[number % 2].admit(user(BOTH_NARROW))
    with pytest.raises(RateLimitExceededError) as refused:
        await other.admit(user(BOTH_NARROW))
    wait_s = retry_after(refused.value)
    assert wait_s in range(17_270, 17_281)
    assert refused.value.message.startswith(f"5 requests per 1 d used up; try again in {wait_s} s (4 h 4")
    for store in (one, other, one):
        await store.admit(user(STREAMS, "bob"))
    for store in (one, other):
        with pytest.raises(TooManyStreamsError) as full:
            await store.admit(user(STREAMS, "bob"))
        assert full.value.message == "All of your 3 streams at a time are in use; try again when one has ended."


async def test_users_are_pairs(workers: Workers[RedisServer]) -> None:
    """Users are told apart by issuer and name together, also where one ends as the other begins."""
    store = await workers.one()
    one = Plan("one", (Rate(1, 3600.0),))
    for issuer, name in [("a", "bc"), ("ab", "c"), ("", "abc"), ("a", "BC")]:
        await store.admit(user(one, name, issuer))
        assert await attempt(store, user(one, name, issuer)) == "rate_limit_exceeded"


async def test_plans_of_one_user_share(workers: Workers[RedisServer]) -> None:
    """A rate that two of a user's plans have is one, on every worker; a tighter bound sees the streams of the other."""
    one, other = await workers.several(2)
    await one.admit(user(TEN))
    await one.admit(user(TEN))
    admission = await other.admit(user(Plan("two", (*TEN.rates, Rate(7, 60.0)), concurrent_streams=3)))
    assert [rate.remaining for rate in admission.standing.rates] == [7, 6]
    assert await attempt(other, user(Plan("two", TEN.rates, concurrent_streams=3))) == "too_many_streams"


async def test_leases_of_a_dead_worker_lapse(workers: Workers[RedisServer]) -> None:
    """A worker that dies frees its streams within their life; those of the others are renewed for as long as held."""
    dead, living = await workers.several(2, life_s=1.5)
    await dead.admit(user(STREAMS))
    await dead.admit(user(STREAMS))
    kept = await living.admit(user(STREAMS))
    assert await attempt(living, user(STREAMS)) == "too_many_streams"
    die(dead)
    later: list[Admission] = []

    async def is_admitted_twice() -> bool:
        outcome = await attempt(living, user(STREAMS))
        if not isinstance(outcome, str):
            later.append(outcome)
        return len(later) == 2

    await comes_true(is_admitted_twice)
    # The living one's are all there, renewed.
    await renewed_twice(workers.server)
    assert len(await workers.server.lapses()) == 3
    assert await attempt(living, user(STREAMS)) == "too_many_streams"
    later[0].release()
    kept.release()
    await holds(workers.server, 1)


async def test_release_at_close(workers: Workers[RedisServer]) -> None:
    """What was released just before a worker ends is free at once."""
    store = RedisStore(workers.server.address)
    await store.open()
    held = [await store.admit(user(STREAMS)) for _ in range(3)]
    for admission in held:
        admission.release()
    await store.close()
    assert await workers.server.leases() == 0
    held[0].release()
    held[0].refund()


async def test_refund_is_in_order(workers: Workers[RedisServer]) -> None:
    """What a refund gives back is the rest of that very charge, also where other workers hold those behind it."""
    one, other = await workers.several(2)
    first = await one.admit(user(TEN))
    second = await other.admit(user(TEN))
    first.refund()
    first.refund()
    second.refund()
    # Asked by the other worker: the refunds are on the server.
    async with asyncio.timeout(10):
        while (admission := await other.admit(user(TEN))).standing.rates[0].remaining != 9:
            admission.refund()
            admission.release()
    admission.release()
    first.release()
    first.refund()
    assert (await one.admit(user(TEN))).standing.rates[0].remaining == 8


async def test_refund_at_once_in_the_fields(workers: Workers[RedisServer]) -> None:
    """The answer that tells of the refusal already shows the charge as given back."""
    store = await workers.one()
    admission = await store.admit(user(TEN))
    admission.refund()
    assert store.standing(user(TEN)).rates[0].remaining == 10


async def test_first_refund_is_in_order(workers: Workers[RedisServer]) -> None:
    """A server's first refund runs before its user's next charge: nothing is run late because it must be told first."""
    store = await workers.one()
    first = await store.admit(user(TEN))
    first.refund()
    second = await store.admit(user(TEN))
    assert second.standing.rates[0].remaining == 9


async def test_first_renewal_is_in_order(workers: Workers[RedisServer]) -> None:
    """The same of renewals: a lease that is released behind the first one does not come back."""
    store = await workers.one()
    admission = await store.admit(user(TEN))
    renewal = asyncio.create_task(store._leases._renew(channel_of(store), (admission.account,)))
    await asyncio.sleep(0)
    admission.release()
    await renewal
    # Answers come in order: that of the release is there with this one.
    await channel_of(store).ask("PING")
    assert await workers.server.leases() == 0


async def test_fields_after_a_late_answer(workers: Workers[RedisServer]) -> None:
    """An answer that was read late makes nothing look used that was given back."""
    store = await workers.one()
    asking = asyncio.create_task(store.admit(user(TEN)))
    await asyncio.sleep(0)
    # The worker stands still while the answer is there.
    time.sleep(0.1)  # noqa: ASYNC251 - as said
    admission = await asking
    admission.refund()
    assert store.standing(user(TEN)).rates[0].remaining == 10
    # As above.
    await channel_of(store).ask("PING")
    assert store.standing(user(TEN)).rates[0].remaining == 10


async def test_refunds_beyond_what_is_noted(workers: Workers[RedisServer]) -> None:
    """However many charges are given back out of order, what the server keeps is bounded; never too much is free."""
    store = await workers.one()
    plenty = Plan("plenty", (Rate(1000, 3600.0),))
    held = [await store.admit(user(plenty)) for _ in range(400)]
    for admission in held[:-1]:
        admission.refund()
    sizes = [await workers.server.ask("STRLEN", key) for key in await workers.server.keys("*:given")]
    assert max(sizes) < 128 * 64
    remaining = (await store.admit(user(plenty))).standing.rates[0].remaining
    assert 600 - 1 + 100 < remaining <= 1000 - 2


async def test_script_flush_refund_in_order(workers: Workers[RedisServer]) -> None:
    """After a flush, a user's first refund still counts for their next request."""
    store = await workers.one()
    alone = user(Plan("one", (Rate(1, 60.0),)))
    await workers.server.ask("SCRIPT", "FLUSH")
    for _ in range(3):
        admission = await store.admit(alone)
        admission.refund()
        admission.release()
    await store.admit(alone)


async def test_script_flush(workers: Workers[RedisServer]) -> None:
    """A server that has forgotten the scripts is told them again, with no error for anybody."""
    store = await workers.one(life_s=0.3)
    for _ in range(3):
        await workers.server.ask("SCRIPT", "FLUSH")
        outcomes = await asyncio.gather(*[store.admit(user(TEN, f"user-{number}")) for number in range(20)])
        await workers.server.ask("SCRIPT", "FLUSH")
        for admission in outcomes:
            admission.refund()
            admission.release()
        await holds(workers.server, 0)
        await workers.server.ask("SCRIPT", "FLUSH")
        await store.put_ticket("a", b"b", 60, user(TEN))
        assert await store.take_ticket("a") == b"b"
    assert (await store.admit(user(TEN, "user-0"))).standing.rates[0].remaining == 9
    assert workers.failures == 0


async def test_many_accounts(workers: Workers[RedisServer], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker remembers is bounded; whom it forgets is as limited as before, and keeps their leases."""
    monkeypatch.setattr("proxy.limits.redis.accounts.MAX_ACCOUNTS", 10)
    store = await workers.one()
    held = [await store.admit(user(TEN, f"held-{number}")) for number in range(5)]
    for number in range(100):
        (await store.admit(user(TEN, f"user-{number}"))).release()
    assert len(tuple(store._accounts)) <= 10
    assert (await store.admit(user(TEN, "user-0"))).standing.rates[0].remaining == 8
    for admission in held:
        admission.release()
    assert store.leases_held == 1


# The same history on both stores, by one clock.

# Of what matters often enough: a refund of one that others are behind, after a time that has paid a part of it.
_STEP = st.one_of(
    st.tuples(st.just("admit"), st.integers(0, 1), st.sampled_from([0, 0, 0, 1])),
    st.tuples(st.just("admit"), st.just(0), st.just(0)),
    st.tuples(st.just("refund"), st.integers(0, 10), st.just(0)),
    st.tuples(st.just("release"), st.integers(0, 10), st.just(0)),
    st.tuples(
        st.just("wait"), st.sampled_from([1, 999, 100_000, 333_333, 1_000_000, 2_500_001, 50_000_000]), st.just(0)
    ),
)
_RATES = st.lists(
    st.builds(
        Rate, st.sampled_from([1, 3, 7, 11, 999_999_999]), st.sampled_from([0.5, 1.0, 7.0, 86_400.0, 31_622_400.0])
    ),
    max_size=2,
)


@given(
    rates=st.tuples(_RATES, _RATES),
    streams=st.sampled_from([None, None, 5]),
    steps=st.lists(_STEP, min_size=15, max_size=60),
)
@example(
    rates=((Rate(7, 10.0),), (Rate(11, 13.0),)),
    streams=None,
    # Each refund moves those behind it, of which one is paid in part when its turn comes.
    steps=[
        *[("admit", 1, 0)] * 5,
        *[("wait", 700_000, 0), ("refund", 0, 0), ("wait", 1_000_001, 0), ("refund", 1, 0), ("admit", 1, 0)],
        *[("refund", 3, 0), ("wait", 400_000, 0), ("refund", 2, 0), ("admit", 1, 0), ("wait", 1_600_000, 0)],
        *[("refund", 4, 0), ("admit", 1, 0), ("refund", 6, 0), ("refund", 7, 0), ("refund", 5, 0), ("admit", 1, 0)],
    ],
)
@example(
    rates=((Rate(7, 10.0),), ()),
    streams=None,
    # All of the second is paid by then, because the first was given back.
    steps=[
        *[("admit", 1, 0)] * 2,
        *[("wait", 200_000, 0), ("refund", 0, 0), ("admit", 1, 0), ("wait", 1_500_000, 0), ("refund", 1, 0)],
        ("admit", 1, 0),
    ],
)
@example(
    rates=((Rate(7, 10.0),), ()),
    streams=None,
    # Everything is given back, so the state is forgotten; what is noted of it does not concern what comes later.
    steps=[
        *[("admit", 1, 0)] * 3,
        *[("refund", 0, 0), ("refund", 1, 0), ("refund", 2, 0), ("wait", 1_000, 0), ("wait", 1_000, 0)],
        *[("admit", 1, 0)] * 3,
        *[("refund", 4, 0), ("refund", 5, 0), ("refund", 3, 0), ("admit", 1, 0)],
    ],
)
@settings(max_examples=100)
def test_decides_as_memory_does(
    one_server: RedisServer,
    rates: tuple[Sequence[Rate], Sequence[Rate]],
    streams: int | None,
    steps: Sequence[tuple[str, int, int]],
) -> None:
    """For every history the two stores decide alike, to the microsecond: admissions, refusals, standings, refunds.

    Refusals have the same message too.

    The histories run over two workers of the Redis store, so what one gives back moves what the other holds.
    """
    plans = [Plan("a", tuple(rates[0]), streams), Plan("b", (*rates[0][:1], *rates[1]), streams)]
    asyncio.run(_compare(one_server, plans, steps))


class _Clock:
    def __init__(self) -> None:
        self.ticks = START

    def __call__(self) -> float:
        return self.ticks / 1_000_000


async def _compare(server: RedisServer, plans: Sequence[Plan], steps: Sequence[tuple[str, int, int]]) -> None:
    clock = _Clock()
    memory = MemoryStore(clock)
    await server.ask("FLUSHALL")
    clerk = await control(server.address)
    # Leases do not lapse here: the clock jumps, and nothing renews them in between.
    stores = [RedisStore(server.address, scripts=Scripts(TURNED), life_s=1e8, timeout_s=10) for _ in range(2)]
    await clerk.ask("SET", "clock", str(START))
    for store in stores:
        await store.open()
    live: list[tuple[Admission, Admission]] = []
    try:
        for index, (what, which, whose) in enumerate(steps):
            store = stores[(which + index) % 2]
            if what == "admit":
                live += await _admit_both(memory, store, Principal("issuer", f"user-{whose}", plans[which % 2]))
            elif what == "wait":
                clock.ticks += which
                await clerk.ask("SET", "clock", str(clock.ticks))
                await _expire(clerk, clock.ticks)
            elif live:
                pair = live[which % len(live)]
                for admission in pair:
                    admission.refund() if what == "refund" else admission.release()
                if what == "release":
                    live.remove(pair)
                # Done when something later on the same connection is: each worker has its own.
                for other in stores:
                    await asyncio.sleep(0)
                    await channel_of(other).ask("PING")
        assert sum(store.leases_held for store in stores) == memory.leases_held
    finally:
        for pair in live:
            pair[1].release()
        for store in stores:
            await store.close()
        await clerk.ask("FLUSHALL")
        clerk.abort("")


async def _expire(clerk: Channel, now: int) -> None:
    """Drop what the server drops by its own clock."""
    keys = await clerk.ask("KEYS", "*:rate:*")
    assert isinstance(keys, list)
    for key in keys:
        state = None if key.endswith(b"given") else await clerk.ask("GET", key)
        if isinstance(state, bytes) and int(state.split()[0]) // 1000 + 1 <= now // 1000:
            await clerk.ask("DEL", key)


async def _admit_both(
    memory: MemoryStore, store: RedisStore, principal: Principal
) -> list[tuple[Admission, Admission]]:
    expected, found = await _outcome(memory, principal), await _outcome(store, principal)
    if isinstance(expected, tuple) or isinstance(found, tuple):
        assert found == expected
        return []
    assert found.standing.rates == expected.standing.rates
    return [(expected, found)]


async def _outcome(store: Any, principal: Principal) -> Admission | tuple[str, float | None, str]:
    try:
        admission: Admission = await store.admit(principal)
    except (RateLimitExceededError, TooManyStreamsError) as error:
        return error.code, error.retry_after_s, error.message
    return admission


async def test_tickets(workers: Workers[RedisServer]) -> None:
    """A ticket is given once, to the first of all workers, remembered as spent, and unknown after its time."""
    stores = await workers.several(3)
    body = bytes(range(256)) * 20_000
    await stores[0].put_ticket("one", body, 60, user(TEN))
    taken = await asyncio.gather(*[store.take_ticket("one") for store in stores for _ in range(10)])
    assert [answer for answer in taken if answer is not SPENT] == [body]
    assert await stores[1].take_ticket("two") is None
    await stores[0].put_ticket("two", b"x", 0.001, user(TEN))
    async with asyncio.timeout(10):
        while await stores[1].take_ticket("two") is not None:
            await stores[0].put_ticket("two", b"x", 0.001, user(TEN))
            await asyncio.sleep(0.002)
    assert b"one" not in b"".join(await workers.server.keys())


async def test_tickets_are_bounded(workers: Workers[RedisServer]) -> None:
    """One user may have so many open, over all workers; taking one makes room, others are not concerned."""
    one, other = await workers.several(2)
    for number in range(MAX_OPEN_TICKETS):
        await one.put_ticket(str(number), b"x", 60, user(TEN))
    with pytest.raises(TooManyTicketsError) as refused:
        await other.put_ticket("more", b"x", 60, user(TEN))
    wait_s = retry_after(refused.value)
    assert wait_s in range(1, 61)
    assert refused.value.message.startswith("All of your 32 tickets at a time are open;")
    assert refused.value.message.endswith(f" try again in {wait_s} s.")
    await other.put_ticket("more", b"x", 60, user(TEN, "bob"))
    assert await other.take_ticket("0") == b"x"
    await other.put_ticket("again", b"x", 60, user(TEN))


async def test_tickets_bytes_are_bounded(workers: Workers[RedisServer], monkeypatch: pytest.MonkeyPatch) -> None:
    """So are the bytes; a single ticket may have any size."""
    monkeypatch.setattr("proxy.limits.redis.tickets.MAX_OPEN_TICKET_BYTES", 10_000)
    store = await workers.one()
    await store.put_ticket("large", bytes(50_000), 60, user(TEN))
    with pytest.raises(TooManyTicketsError, match=r"^Your open tickets may hold 32 MiB at a time; .* in (60|59) s\.$"):
        await store.put_ticket("small", b"x", 60, user(TEN))
