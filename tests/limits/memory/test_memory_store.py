"""Users held to their plans: what is charged, leased, given back and forgotten."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import LimitsUnavailableError, ProxyError, RateLimitExceededError, TooManyStreamsError
from proxy.limits.gcra import Limit
from proxy.limits.memory.store import MemoryStore
from proxy.limits.quotas import limits_of, rate_name
from proxy.limits.store import Admission, RateState, Store
from proxy.model import Plan, Principal, Rate

STEADY = settings(max_examples=200)


class Clock:
    """A monotonic clock that the test turns."""

    def __init__(self, now: float = 12_345.678_9) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def user(plan: Plan, name: str = "alice", issuer: str = "https://id.example.com/") -> Principal:
    return Principal(issuer, name, plan)


def remaining(store: MemoryStore, principal: Principal) -> list[int]:
    return [rate.remaining for rate in store.standing(principal).rates]


async def admit(store: MemoryStore, principal: Principal, times: int = 1) -> list[Admission]:
    return [await store.admit(principal) for _ in range(times)]


async def is_admitted(store: MemoryStore, principal: Principal) -> bool:
    """Whether one more request fits; it is charged if so, its lease is given back."""
    try:
        admission = await store.admit(principal)
    except RateLimitExceededError:
        return False
    admission.release()
    return True


TEN = Plan("ten", (Rate(10, 10.0),))
TWO_RATES = Plan("two", (Rate(3, 1.0), Rate(5, 60.0)))
STREAMS = Plan("streams", (Rate(100, 1.0),), concurrent_streams=2)


async def test_store_is_a_store() -> None:
    """The memory store keeps the promises of the protocol, and always works."""
    store: Store = MemoryStore(Clock())
    await store.open()
    admission = await store.admit(user(TEN))
    assert admission.standing.rates == store.standing(user(TEN)).rates
    assert store.problem() is None
    await store.close()
    assert store.leases_held == 1
    admission.release()
    assert store.leases_held == 0


async def test_admit_burst() -> None:
    """The whole quota is admitted at once, and the next request when the first tenth of the window has passed."""
    clock = Clock()
    store = MemoryStore(clock)
    await admit(store, user(TEN), 10)
    with pytest.raises(RateLimitExceededError) as refused:
        await store.admit(user(TEN))
    assert refused.value.retry_after_s == 1.0
    clock.now += 0.999_999
    assert not await is_admitted(store, user(TEN))
    clock.now += 0.000_001
    assert await is_admitted(store, user(TEN))


@given(
    quota=st.integers(1, 50),
    window_s=st.sampled_from([0.5, 1.0, 1.5, 7.0, 10.0, 60.0, 86_400.0]),
    start=st.integers(0, 10**15).map(lambda ticks: ticks / 1e6),
    pause=st.integers(0, 10**8).map(lambda ticks: ticks / 1e6),
)
@STEADY
def test_admit_retry_after_is_true(quota: int, window_s: float, start: float, pause: float) -> None:
    """In seconds of a real clock too, a request at exactly the time named is admitted, one 2 µs earlier is not."""

    async def scenario() -> None:
        clock = Clock(start)
        store = MemoryStore(clock)
        principal = user(Plan("p", (Rate(quota, window_s), Rate(quota + 1, window_s * 3))))
        await admit(store, principal, quota)
        clock.now += min(pause, round(window_s / quota / 2, 6))
        with pytest.raises(RateLimitExceededError) as refused:
            await store.admit(principal)
        assert refused.value.retry_after_s is not None
        due = clock.now + refused.value.retry_after_s
        clock.now = due - 2e-6
        assert not await is_admitted(store, principal)
        clock.now = due
        assert await is_admitted(store, principal)

    asyncio.run(scenario())


async def test_admit_all_rates_or_none() -> None:
    """A request that one rate refuses is charged to none of them."""
    clock = Clock()
    store = MemoryStore(clock)
    await admit(store, user(TWO_RATES), 3)
    with pytest.raises(RateLimitExceededError):
        await store.admit(user(TWO_RATES))
    assert remaining(store, user(TWO_RATES)) == [0, 2]
    clock.now += 1
    await admit(store, user(TWO_RATES), 2)
    with pytest.raises(RateLimitExceededError) as refused:
        await store.admit(user(TWO_RATES))
    assert refused.value.retry_after_s == 11.0  # the sixth of five in a minute, a second after the first
    assert refused.value.message == "5 requests per 1 min used up; try again in 11 s."
    assert remaining(store, user(TWO_RATES)) == [1, 0]


async def test_admit_too_many_streams() -> None:
    """A plan's streams bound how many leases are held; the refused request is charged to no rate."""
    store = MemoryStore(Clock())
    first, _second = await admit(store, user(STREAMS), 2)
    with pytest.raises(TooManyStreamsError) as refused:
        await store.admit(user(STREAMS))
    assert refused.value.retry_after_s == 1.0
    assert refused.value.message == "All of your 2 streams at a time are in use; try again when one has ended."
    assert remaining(store, user(STREAMS)) == [98]
    assert store.active(user(STREAMS)) == store.leases_held == 2
    first.release()
    await store.admit(user(STREAMS))
    assert store.active(user(STREAMS)) == 2


async def test_admit_both_exceeded() -> None:
    """Who has run into both learns the time before which it is of no use to come back."""
    store = MemoryStore(Clock())
    principal = user(Plan("p", (Rate(1, 60.0),), concurrent_streams=1))
    await store.admit(principal)
    with pytest.raises(RateLimitExceededError) as refused:
        await store.admit(principal)
    assert refused.value.retry_after_s == 60.0


async def test_admit_no_limits() -> None:
    """A plan without rates and streams' bound admits everything, counts leases, and shows nothing."""
    store = MemoryStore(Clock())
    admissions = await admit(store, user(Plan("free")), 1_000)
    assert store.active(user(Plan("free"))) == 1_000
    assert admissions[0].standing.rates == store.standing(user(Plan("free"))).rates == ()
    admissions[0].refund()


async def test_admit_other_users() -> None:
    """Users are told apart by issuer and name together; none feels what another uses."""
    store = MemoryStore(Clock())
    plan = Plan("one", (Rate(1, 60.0),), concurrent_streams=1)
    others = [user(plan, "bob"), user(plan, "alice", "key"), user(plan, "Alice"), user(plan, "", "alice")]
    await store.admit(user(plan))
    for other in others:
        await store.admit(other)
    assert store.leases_held == 5
    with pytest.raises(RateLimitExceededError):
        await store.admit(user(plan))


async def test_release_any_number_of_times() -> None:
    """A lease is given back once, however often it is released, and never counts below zero."""
    store = MemoryStore(Clock())
    first, second = await admit(store, user(STREAMS), 2)
    for _ in range(3):
        first.release()
    assert store.active(user(STREAMS)) == store.leases_held == 1
    second.release()
    second.release()
    assert store.active(user(STREAMS)) == store.leases_held == 0


async def test_release_after_eviction() -> None:
    """A late second release of a user who was forgotten and came back does not touch the new lease."""
    clock = Clock()
    store = MemoryStore(clock, max_users=1)
    old = await store.admit(user(TEN))
    old.release()
    clock.now += 60
    (await store.admit(user(TEN, "bob"))).release()
    clock.now += 60
    await store.admit(user(TEN))
    old.release()
    old.refund()
    assert store.active(user(TEN)) == store.leases_held == 1
    assert remaining(store, user(TEN)) == [9]


async def test_release_keeps_the_charge() -> None:
    """The end of a stream frees its slot, not its request."""
    store = MemoryStore(Clock())
    (await store.admit(user(TEN))).release()
    assert remaining(store, user(TEN)) == [9]


async def test_standing_values() -> None:
    """The standing tells each rate's name, quota and window, what remains, and when all of it is back."""
    clock = Clock()
    store = MemoryStore(clock)
    full = (RateState("3-per-1s", 3, 1.0, 3, 0.0), RateState("5-per-1m", 5, 60.0, 5, 0.0))
    assert store.standing(user(TWO_RATES)).rates == full
    assert store.users_kept == 0
    admission = await store.admit(user(TWO_RATES))
    after = (RateState("3-per-1s", 3, 1.0, 2, 0.333_334), RateState("5-per-1m", 5, 60.0, 4, 12.0))
    assert admission.standing.rates == store.standing(user(TWO_RATES)).rates == after
    clock.now += 6
    await store.admit(user(TWO_RATES))
    assert admission.standing.rates == after
    assert store.standing(user(TWO_RATES)).rates[1].reset_s == 18.0


async def test_refund_at_once() -> None:
    """A refund gives every rate its whole charge back, once, and leaves the lease held."""
    store = MemoryStore(Clock())
    kept, refused = await admit(store, user(TWO_RATES), 2)
    refused.refund()
    refused.refund()
    assert store.standing(user(TWO_RATES)).rates == kept.standing.rates
    assert store.active(user(TWO_RATES)) == 2
    refused.release()
    refused.refund()
    assert store.standing(user(TWO_RATES)).rates == kept.standing.rates


async def test_refund_late() -> None:
    """What time has freed already is not given back a second time, on each rate by itself."""
    clock = Clock()
    store = MemoryStore(clock)
    refused = await store.admit(user(TWO_RATES))
    clock.now += 2
    await admit(store, user(TWO_RATES), 3)
    refused.refund()
    # The 12 s that the charge cost the slow rate are paid to 2 s, so 10 s come back; nothing of the fast one does.
    assert [rate.reset_s for rate in store.standing(user(TWO_RATES)).rates] == [1.0, 36.0]
    assert remaining(store, user(TWO_RATES)) == [0, 2]


async def test_refund_behind_a_refund() -> None:
    """A refund takes account of those before it: the same time is never given back for two requests."""
    clock = Clock()
    store = MemoryStore(clock)
    first, second = await admit(store, user(TEN), 2)
    first.refund()
    clock.now += 1.0  # what was left, the second request, is paid off now
    third = await store.admit(user(TEN))
    second.refund()
    assert store.standing(user(TEN)).rates == third.standing.rates
    third.refund()
    assert remaining(store, user(TEN)) == [10]


async def test_refund_out_of_order() -> None:
    """Refunds in any order at once leave a quota that was never touched."""
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)):
        store = MemoryStore(Clock())
        admissions = await admit(store, user(TEN), 3)
        for index in order:
            admissions[index].refund()
        assert store.standing(user(TEN)).rates[0].reset_s == 0.0


async def test_refund_after_release() -> None:
    """With the lease the right to a refund ends: nobody keeps track of an exchange that is over."""
    store = MemoryStore(Clock())
    admission = await store.admit(user(TEN))
    admission.release()
    admission.refund()
    assert remaining(store, user(TEN)) == [9]


async def test_plan_reload_same_rates() -> None:
    """A reload that leaves a rate as it is leaves what was used of it, whatever else of the plan changed."""
    store = MemoryStore(Clock())
    live = await store.admit(user(TEN))
    reloaded = Plan("ten", (Rate(100, 3600.0), Rate(10, 10)), concurrent_streams=5)
    assert remaining(store, user(reloaded)) == [100, 9]
    await store.admit(user(reloaded))
    assert remaining(store, user(reloaded)) == [99, 8]
    live.refund()  # it was charged under the old plan, to the rate that both have
    assert remaining(store, user(reloaded)) == [99, 9]


async def test_plan_lowered_below_usage() -> None:
    """A bound lowered below what runs lets it run, and refuses new streams until enough have ended."""
    store = MemoryStore(Clock())
    streams = await admit(store, user(Plan("p", concurrent_streams=5)), 5)
    lowered = Plan("p", concurrent_streams=2)
    for stream in streams[:3]:
        with pytest.raises(TooManyStreamsError):
            await store.admit(user(lowered))
        stream.release()
    with pytest.raises(TooManyStreamsError):
        await store.admit(user(lowered))
    streams[3].release()
    await store.admit(user(lowered))
    assert store.active(user(lowered)) == 2


async def test_plan_alternating() -> None:
    """A user with tokens of two plans does not get a used rate back by switching between them."""
    clock = Clock()
    store = MemoryStore(clock)
    one, other = Plan("a", (Rate(2, 60.0),)), Plan("b", (Rate(3, 60.0),))
    admitted = 0
    for _ in range(10):
        for plan in (one, other):
            admitted += await is_admitted(store, user(plan))
    assert admitted == 5
    clock.now += 60
    assert remaining(store, user(one)) == [2]
    assert remaining(store, user(other)) == [3]


async def test_plan_reloads_leave_nothing_behind() -> None:
    """Of rates that no plan has any more, only those are kept that are not paid off yet."""
    clock = Clock()
    store = MemoryStore(clock)
    for quota in range(1, 200):
        await is_admitted(store, user(Plan("p", (Rate(quota, 1.0),))))
        clock.now += 1
    (account,) = store._accounts.values()
    assert len(account.others) <= 1


async def test_plan_rate_twice() -> None:
    """A rate that a plan names twice is charged once."""
    store = MemoryStore(Clock())
    principal = user(Plan("p", (Rate(4, 10.0), Rate(4, 10))))
    await store.admit(principal)
    assert remaining(store, principal) == [3]


async def test_users_bound() -> None:
    """Users who hold or have used something are not forgotten for others; those are refused until one is free."""
    clock = Clock()
    store = MemoryStore(clock, max_users=3)
    held = await store.admit(user(TEN, "holds a lease"))
    (await store.admit(user(TEN, "used a second"))).release()
    for _ in range(2):
        (await store.admit(user(TEN, "used two"))).release()
    with pytest.raises(LimitsUnavailableError):
        await store.admit(user(TEN, "new"))
    assert remaining(store, user(TEN, "new")) == [10]
    clock.now += 1.0
    (await store.admit(user(TEN, "new"))).release()
    assert remaining(store, user(TEN, "used two")) == [9]
    clock.now += 1.0
    for name in ("third", "fourth"):
        await store.admit(user(TEN, name))
    with pytest.raises(LimitsUnavailableError):
        await store.admit(user(TEN, "fifth"))
    held.release()
    await store.admit(user(TEN, "fifth"))
    assert store.users_kept == 3


async def test_users_come_and_go() -> None:
    """Twenty thousand users one after another leave a handful in memory, and nothing in the queue but those."""
    clock = Clock()
    store = MemoryStore(clock, max_users=50)
    for number in range(20_000):
        (await store.admit(user(TEN, f"user-{number}"))).release()
        clock.now += 0.1
    assert store.users_kept <= 12
    assert len(store._queue) <= 12


async def test_users_all_due() -> None:
    """When everybody is due to be forgotten at once, one new user pays for a bounded part of that."""
    clock = Clock()
    store = MemoryStore(clock, max_users=2_000)
    for number in range(2_000):
        (await store.admit(user(TEN, f"user-{number}"))).release()
    clock.now += 60
    kept = [store.users_kept]
    for number in range(9):
        await store.admit(user(TEN, f"new-{number}"))
        kept.append(store.users_kept)
    assert all(before - after <= 255 for before, after in pairwise(kept))
    assert kept[-1] == 9


async def test_users_all_used_again() -> None:
    """Users who are due by what was known of them, but have been used since, are found out and kept."""
    clock = Clock()
    store = MemoryStore(clock, max_users=1_000)
    for _ in range(2):
        for number in range(1_000):
            (await store.admit(user(TEN, f"user-{number}"))).release()
        clock.now += 0.5
    for number in range(5):
        with pytest.raises(LimitsUnavailableError):
            await store.admit(user(TEN, f"new-{number}"))
    clock.now += 1.0
    await store.admit(user(TEN, "new"))
    assert store.users_kept <= 1_000 - 255


async def test_cancelled_admit_holds_nothing() -> None:
    """A caller cancelled before the decision holds nothing, for the decision has no point to stop at."""
    store = MemoryStore(Clock())
    task = asyncio.ensure_future(store.admit(user(TEN)))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.leases_held == 0
    assert remaining(store, user(TEN)) == [10]


PLANS = [Plan("a", (Rate(2, 3.0), Rate(5, 20.0)), 3), Plan("b", (Rate(5, 20.0),), 2), Plan("c", (), 1)]
ACTIONS = st.tuples(
    st.sampled_from(["admit", "admit", "refund", "release", "wait"]),
    st.integers(0, 3),  # which user, or which admission
    st.integers(0, 2),  # which plan, or how long
)


class Twins:
    """Two stores that are told the same: one with room for everybody, one that must forget to go on."""

    def __init__(self) -> None:
        self.clock = Clock(0.0)
        self.roomy = MemoryStore(self.clock)
        self.tight = MemoryStore(self.clock, max_users=2)
        self.pairs: list[tuple[Admission, Admission]] = []

    async def admit(self, principal: Principal) -> None:
        try:
            tight: Admission | ProxyError = await self.tight.admit(principal)
        except LimitsUnavailableError:
            return  # no room: as if nobody had asked
        except ProxyError as error:
            tight = error
        try:
            roomy: Admission | ProxyError = await self.roomy.admit(principal)
        except ProxyError as error:
            roomy = error
        if isinstance(tight, ProxyError) or isinstance(roomy, ProxyError):
            assert repr(tight) == repr(roomy)
            assert isinstance(tight, ProxyError)
            assert isinstance(roomy, ProxyError)
            assert tight.retry_after_s == roomy.retry_after_s
        else:
            assert tight.standing.rates == roomy.standing.rates
            self.pairs.append((tight, roomy))


@given(st.lists(ACTIONS, max_size=60))
@STEADY
def test_forgetting_changes_no_decision(actions: list[tuple[str, int, int]]) -> None:
    """A store that must forget users decides about those it takes like one that never forgets any."""

    async def scenario() -> None:
        twins = Twins()
        for action, which, what in actions:
            if action == "wait":
                twins.clock.now += (0.7, 3.0, 20.0)[what]
            elif action == "admit":
                await twins.admit(user(PLANS[what], f"user-{which}"))
            elif twins.pairs:
                for admission in twins.pairs[which % len(twins.pairs)]:
                    (admission.refund if action == "refund" else admission.release)()
            assert twins.roomy.leases_held == twins.tight.leases_held
            assert twins.tight.users_kept <= 2

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("quota", "window_s", "name"),
    [
        (60, 10.0, "60-per-10s"),
        (20_000, 86_400.0, "20000-per-1d"),
        (5, 3_600.0, "5-per-1h"),
        (5, 5_400.0, "5-per-90m"),
        (5, 60.0, "5-per-1m"),
        (5, 61.0, "5-per-61s"),
        (5, 1.5, "5-per-1500ms"),
        (5, 0.5, "5-per-500ms"),
        (5, 0.000_25, "5-per-250us"),
    ],
)
def test_rate_name(quota: int, window_s: float, name: str) -> None:
    """A rate is named as an operator would write it, its window exactly."""
    (limit,) = limits_of([Rate(quota, window_s)])
    assert rate_name(limit) == name


@given(
    st.builds(Limit, st.integers(1, 9), st.integers(1, 10**12)),
    st.builds(Limit, st.integers(1, 9), st.integers(1, 10**12)),
)
@STEADY
def test_rate_name_tells_apart(one: Limit, other: Limit) -> None:
    """Two rates have one name only if they are the same."""
    assert (rate_name(one) == rate_name(other)) == (one == other)
