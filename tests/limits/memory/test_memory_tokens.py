"""Users held to token rates and budgets by the memory store: holds, debt, periods, openings, and what is forgotten."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from proxy.errors import InsufficientQuotaError, LimitsUnavailableError, RateLimitExceededError
from proxy.limits.memory.store import MemoryStore
from proxy.limits.openings import Openings
from proxy.model import Amounts, Budget, Plan, Principal, Rate

if TYPE_CHECKING:
    from proxy.limits.store import Admission, Opening

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp()
DAY_LEFT_S = 12 * 3600
USD = 10**9

RATE = Plan("rate", token_rates=(Rate(1000, 10.0),))
DAY = Plan("day", budgets=(Budget("tokens", 1000, "day"),))
MONTH = Plan("month", budgets=(Budget("usd", 50 * USD, "month"),))
ALL = Plan(
    "all",
    (Rate(100, 10.0),),
    token_rates=(Rate(1000, 10.0),),
    budgets=(Budget("tokens", 5000, "day"), Budget("usd", USD, "week"), Budget("tokens", 20_000, "month")),
)


class Clocks:
    """A monotonic clock and a wall clock that go together."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def now(self) -> float:
        return 1000.0 + self.passed_s

    def wall(self) -> float:
        return NOON + self.passed_s


def store_at(clocks: Clocks, opening: Opening | None = None, max_users: int = 100_000) -> MemoryStore:
    return MemoryStore(clocks.now, max_users, wall=clocks.wall, openings=Openings(opening))


def user(plan: Plan, name: str = "alice") -> Principal:
    return Principal("tests", name, plan)


async def reserve(store: MemoryStore, principal: Principal, tokens: int, nano_usd: int = 0) -> Admission:
    """Admit and reserve as the handler does: what does not fit is refunded and released."""
    admission = await store.admit(principal)
    try:
        await store.reserve(admission, Amounts(tokens, nano_usd))
    except (RateLimitExceededError, InsufficientQuotaError):
        admission.refund()
        admission.release()
        raise
    return admission


def figures(store: MemoryStore, principal: Principal) -> tuple[tuple[int, ...], Amounts]:
    """What the budgets have spent, and what is held."""
    status = store.standing(principal).tokens
    assert status is not None
    return status.spent, status.held


async def test_debt_has_an_end() -> None:
    """However much an exchange took, or many did, the end of a rate's debt is a date."""
    store = store_at(Clocks())
    for _ in range(3):
        admission = await store.admit(user(RATE))
        admission.settle(Amounts(10**18))
    (state,) = await store.limits(user(RATE))
    assert datetime.fromtimestamp(state.resets_s, UTC).year < 2100
    with pytest.raises(RateLimitExceededError):
        await reserve(store, user(RATE), 1)


async def test_plans_without_token_limits() -> None:
    """A plan without token limits reserves nothing and tells nothing of tokens."""
    store = store_at(Clocks())
    admission = await reserve(store, user(Plan("p")), 10**9)
    admission.settle(Amounts(10**9, 10**9))
    assert store.leases_held == 0
    assert store.standing(user(Plan("p"))).tokens is None


async def test_hold_becomes_charge() -> None:
    """A reservation is held until the exchange is settled, and then exactly what it took is charged."""
    store, alice = store_at(Clocks()), user(DAY)
    admission = await reserve(store, alice, 400)
    assert figures(store, alice) == ((0,), Amounts(400))
    admission.settle(Amounts(150))
    assert figures(store, alice) == ((150,), Amounts())
    assert store.leases_held == 0


@pytest.mark.parametrize("end", ["settle", "release", "refund"])
async def test_hold_ends_once(end: str) -> None:
    """However an exchange ends, and however often that is said, its hold is given back once and charged once."""
    store, alice = store_at(Clocks()), user(DAY)
    other, admission = await reserve(store, alice, 100), await reserve(store, alice, 400)
    for _ in range(2):
        {"settle": lambda: admission.settle(Amounts(50)), "release": admission.release, "refund": admission.refund}[
            end
        ]()
    admission.settle(Amounts(50))
    admission.release()
    assert figures(store, alice) == ((0 if end == "release" else 50,), Amounts(100))
    other.settle(Amounts())
    assert figures(store, alice)[1] == Amounts()


async def test_rate_refuses_and_refills() -> None:
    """What does not fit a token rate is refused until time has paid enough, and the time that is named is true."""
    clocks = Clocks()
    store, alice = store_at(clocks), user(RATE)
    (await reserve(store, alice, 700)).settle(Amounts(700))
    with pytest.raises(RateLimitExceededError) as refused:
        await reserve(store, alice, 500)
    assert refused.value.retry_after_s == 2.0
    assert refused.value.message == "1000 tokens per 10 s used up; try again in 2 s."
    clocks.passed_s += 1.999_9
    with pytest.raises(RateLimitExceededError):
        await reserve(store, alice, 500)
    clocks.passed_s += 0.000_1
    await reserve(store, alice, 500)


async def test_rate_held() -> None:
    """Where only running exchanges are in the way, a second is named, and that they are."""
    store, alice = store_at(Clocks()), user(RATE)
    await reserve(store, alice, 700)
    with pytest.raises(RateLimitExceededError) as refused:
        await reserve(store, alice, 500)
    assert refused.value.retry_after_s == 1.0
    assert refused.value.message == (
        "What is left of your 1000 tokens per 10 s is reserved for your requests that run; try again in 1 s."
    )


async def test_rate_debt() -> None:
    """What a stream took beyond the rate is debt: nothing is admitted until it is paid."""
    clocks = Clocks()
    store, alice = store_at(clocks), user(RATE)
    (await reserve(store, alice, 10)).settle(Amounts(3500))
    with pytest.raises(RateLimitExceededError) as refused:
        await reserve(store, alice, 1)
    assert refused.value.retry_after_s == pytest.approx(25.01)
    with pytest.raises(RateLimitExceededError):
        await reserve(store, alice, 0)
    clocks.passed_s += 25.01
    await reserve(store, alice, 1)


async def test_full_allowance_admits_one() -> None:
    """A reservation larger than the whole limit fits where nothing is used or held, and then nothing beside it."""
    store = store_at(Clocks())
    for plan, error in ((RATE, RateLimitExceededError), (DAY, InsufficientQuotaError)):
        admission = await reserve(store, user(plan, plan.name), 10**9)
        with pytest.raises(error):
            await reserve(store, user(plan, plan.name), 1)
        admission.settle(Amounts())
        await reserve(store, user(plan, plan.name), 1)


async def test_budget_used_up() -> None:
    """A budget that is used up refuses until its period ends, by name, with the seconds until then."""
    clocks = Clocks()
    store, alice = store_at(clocks), user(MONTH)
    (await reserve(store, alice, 1, 49 * USD)).settle(Amounts(1, 51 * USD))
    for nano_usd in (1, 0):
        with pytest.raises(InsufficientQuotaError) as refused:
            await reserve(store, alice, 1, nano_usd)
        assert refused.value.retry_after_s == 3 * 86_400 + DAY_LEFT_S
        assert refused.value.message == ("Your budget of 50 USD a month is used up; try again in 302400 s (3 d 12 h).")
    clocks.passed_s += 3 * 86_400 + DAY_LEFT_S
    await reserve(store, alice, 1, 50 * USD)


async def test_budget_too_little_left() -> None:
    """The message tells a budget that is used up from one of which too little is left, or which others hold."""
    store, alice = store_at(Clocks()), user(DAY)
    (await reserve(store, alice, 1)).settle(Amounts(600))
    with pytest.raises(InsufficientQuotaError, match="budget of 1000 tokens a day is too little for this request"):
        await reserve(store, alice, 500)
    await reserve(store, alice, 300)
    with pytest.raises(InsufficientQuotaError, match="is reserved for your requests that run"):
        await reserve(store, alice, 200)
    await reserve(store, alice, 100)


async def test_budget_held_by_what_runs() -> None:
    """Where only running exchanges are in the way, the message says so; the wait is the period's end, as ever."""
    clocks = Clocks()
    store, alice = store_at(clocks), user(DAY)
    running = await reserve(store, alice, 900)
    for wait_s in (60.0, 4.0):
        clocks.passed_s = DAY_LEFT_S - wait_s
        with pytest.raises(InsufficientQuotaError) as refused:
            await reserve(store, alice, 200)
        assert refused.value.retry_after_s == pytest.approx(wait_s, abs=0.1)
        assert refused.value.message == (
            "What is left of your budget of 1000 tokens a day is reserved for your requests that run; "
            f"try again in {wait_s:.0f} s, or when one has ended."
        )
    running.settle(Amounts(100))
    await reserve(store, alice, 200)


async def test_unpriced_beside_held_dollars() -> None:
    """An exchange without a price is not counted against dollars, so those that are held do not refuse it."""
    store, alice = store_at(Clocks()), user(MONTH)
    await reserve(store, alice, 1, 50 * USD)
    await reserve(store, alice, 1, 0)


async def test_all_limits_or_none() -> None:
    """What one limit refuses is held in none, and the request's own charge can be given back."""
    store, alice = store_at(Clocks()), user(ALL)
    await reserve(store, alice, 1, USD)
    with pytest.raises(InsufficientQuotaError):
        await reserve(store, alice, 1, 1)
    assert figures(store, alice) == ((0, 0, 0), Amounts(1, USD))
    assert store.standing(alice).rates[0].remaining == 99
    assert store.leases_held == 1


async def test_settled_in_the_next_period() -> None:
    """An exchange is charged to the period in which it is settled."""
    clocks = Clocks()
    store, alice = store_at(clocks), user(DAY)
    admission = await reserve(store, alice, 400)
    clocks.passed_s += DAY_LEFT_S
    assert figures(store, alice) == ((0,), Amounts(400))
    admission.settle(Amounts(300))
    assert figures(store, alice) == ((300,), Amounts())
    clocks.passed_s -= 1
    assert figures(store, alice) == ((0,), Amounts())


async def test_reload_keeps_what_was_spent() -> None:
    """A budget with another limit goes on with what was spent, and a rate of both plans with what was used."""
    store = store_at(Clocks())
    (await reserve(store, user(ALL), 1)).settle(Amounts(900, 5))
    more = Plan("more", token_rates=(Rate(1000, 10.0),), budgets=(Budget("tokens", 6000, "day"),))
    with pytest.raises(RateLimitExceededError):
        await reserve(store, user(more), 200)
    assert figures(store, user(more)) == ((900,), Amounts())
    assert figures(store, user(Plan("none", budgets=(Budget("usd", 9, "week"),)))) == ((5,), Amounts())


async def test_opening_from_the_ledger() -> None:
    """What the ledger knows of a period counts before the first reservation, once for all requests that wait."""
    asked: list[tuple[str, str, int]] = []
    begun, told = asyncio.Event(), asyncio.Event()

    async def opening(issuer: str, name: str, since_ms: int) -> Amounts:
        asked.append((issuer, name, since_ms))
        begun.set()
        await told.wait()
        return Amounts(800, 7)

    store, alice = store_at(Clocks(), opening), user(DAY)
    requests = [asyncio.create_task(reserve(store, alice, 150)) for _ in range(5)]
    requests.append(cancelled := asyncio.create_task(reserve(store, alice, 150)))
    await asyncio.wait_for(begun.wait(), 5)
    cancelled.cancel()
    told.set()
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert asked == [("tests", "alice", round(NOON - DAY_LEFT_S) * 1000)]
    assert sum(isinstance(result, InsufficientQuotaError) for result in results) == 4
    assert figures(store, alice) == ((800,), Amounts(150))
    assert [state.used for state in await store.limits(alice)] == [800]


async def test_opening_fails() -> None:
    """A ledger that fails or is late refuses nobody; it is asked again later, and what it tells then counts."""
    answers: list[Amounts | None] = [None, Amounts(990)]

    async def opening(_issuer: str, _name: str, _since_ms: int) -> Amounts:
        answer = answers.pop(0)
        if answer is None:
            raise OSError("away")
        return answer

    clock_s = 0.0
    openings = Openings(opening, now=lambda: clock_s)
    clocks = Clocks()
    store, alice = MemoryStore(clocks.now, wall=clocks.wall, openings=openings), user(DAY)
    (await reserve(store, alice, 1)).settle(Amounts(5))
    (await reserve(store, alice, 1)).settle(Amounts(5))
    assert len(answers) == 1
    clock_s += 5
    with pytest.raises(InsufficientQuotaError):
        await reserve(store, alice, 20)
    assert figures(store, alice) == ((990,), Amounts())


async def test_opening_waits_for_a_ledger_that_starts() -> None:
    """While the ledger starts, a request that needs a period waits for it; others of the user wait with it."""
    ready, asked = asyncio.Event(), 0

    async def opening(_issuer: str, _name: str, _since_ms: int) -> Amounts:
        nonlocal asked
        asked += 1
        if asked == 3:
            ready.set()
        if asked < 4:
            raise OSError("not yet")
        return Amounts(990)

    clocks = Clocks()
    store = MemoryStore(clocks.now, wall=clocks.wall, openings=Openings(opening, now=lambda: 0.0, start_s=5.0))
    alice = user(DAY)
    waiting = [asyncio.create_task(reserve(store, alice, 20)) for _ in range(3)]
    without = await reserve(store, user(RATE, "bob"), 20)
    assert without.standing.tokens is not None
    async with asyncio.timeout(5):
        await ready.wait()
        assert not any(task.done() for task in waiting)
        answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [InsufficientQuotaError] * 3
    assert (asked, figures(store, alice)) == (4, ((990,), Amounts()))


async def test_opening_of_a_ledger_that_does_not_start() -> None:
    """A ledger that has not answered when its start is over refuses nobody, and from then on is not waited for."""
    asked, clock_s = 0, 0.0

    async def opening(_issuer: str, _name: str, _since_ms: int) -> Amounts:
        nonlocal asked, clock_s
        asked += 1
        clock_s += 2.0
        raise OSError("away")

    clocks = Clocks()
    store = MemoryStore(clocks.now, wall=clocks.wall, openings=Openings(opening, now=lambda: clock_s, start_s=5.0))
    await reserve(store, user(DAY), 20)
    assert asked == 3
    await reserve(store, user(DAY, "bob"), 20)
    assert asked == 4


async def test_opening_after_the_start() -> None:
    """Once the ledger has answered, its start is over: one that fails then holds nobody up."""
    answers: list[Amounts | None] = [Amounts(1), None]

    async def opening(_issuer: str, _name: str, _since_ms: int) -> Amounts:
        answer = answers.pop(0)
        if answer is None:
            raise OSError("away")
        return answer

    clocks = Clocks()
    store = MemoryStore(clocks.now, wall=clocks.wall, openings=Openings(opening, now=lambda: 0.0, start_s=5.0))
    await reserve(store, user(DAY), 20)
    await reserve(store, user(DAY, "bob"), 20)
    assert answers == []


async def test_opening_fails_for_one() -> None:
    """A user whom the ledger answers too late, because they have made it so many rows, keeps it from nobody else."""
    asked: list[str] = []
    failing = {"mallory"}

    async def opening(_issuer: str, name: str, _since_ms: int) -> Amounts:
        asked.append(name)
        if name in failing:
            raise TimeoutError
        return Amounts(900)

    clock_s = 0.0
    openings = Openings(opening, now=lambda: clock_s)
    clocks = Clocks()
    store = MemoryStore(clocks.now, wall=clocks.wall, openings=openings)
    for name in ("mallory", "alice", "mallory", "mallory", "bob"):
        await reserve(store, user(DAY, name), 1)
    assert asked == ["mallory", "alice", "bob"]
    assert figures(store, user(DAY, "bob"))[0] == (900,)

    # One that fails for several is away for all.
    failing |= {"carol", "dave"}
    for name in ("carol", "dave", "erin", "mallory"):
        await reserve(store, user(DAY, name), 1)
    assert asked[3:] == ["carol"]
    clock_s += 5
    await reserve(store, user(DAY, "erin"), 1)
    await reserve(store, user(DAY, "frank"), 1)
    assert asked[4:] == ["erin", "frank"]


async def test_opening_late() -> None:
    """A ledger that does not answer holds a request up for a fifth of a second, and the next ones not at all."""

    async def opening(_issuer: str, _name: str, _since_ms: int) -> Amounts:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    store, alice = store_at(Clocks(), opening), user(ALL)
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    await reserve(store, alice, 1)
    assert 0.15 < loop.time() - begun_s < 1
    begun_s = loop.time()
    await reserve(store, alice, 1)
    assert loop.time() - begun_s < 0.1


async def test_users_with_spending_are_kept() -> None:
    """An account with something held, owed, or spent in a running period is not forgotten; one without is."""
    clocks = Clocks()
    store = store_at(clocks, max_users=2)
    (await reserve(store, user(DAY), 1)).settle(Amounts(1000))
    held = await reserve(store, user(RATE, "bob"), 1)
    with pytest.raises(LimitsUnavailableError):
        await store.admit(user(RATE, "carol"))
    held.settle(Amounts())
    (await reserve(store, user(RATE, "carol"), 1)).settle(Amounts(3000))
    clocks.passed_s += 29
    with pytest.raises(LimitsUnavailableError):
        await store.admit(user(RATE, "dave"))
    with suppress(InsufficientQuotaError):
        await reserve(store, user(DAY), 1)
    clocks.passed_s += DAY_LEFT_S
    await store.admit(user(RATE, "dave"))
    await store.admit(user(RATE, "erin"))
    assert store.users_kept == 2


async def test_limits() -> None:
    """A user can be told of every limit: what is used, what is reserved, and when all of it is there again."""
    clocks = Clocks()
    store, alice = store_at(clocks), user(ALL)
    (await reserve(store, alice, 1)).settle(Amounts(500, 20))
    await reserve(store, alice, 300, 10)
    states = await store.limits(alice)
    assert [tuple(state) for state in states] == [
        ("requests", "100-per-10s", 100, 2, 0, NOON + 0.2),
        ("tokens", "1000-tokens-per-10s", 1000, 500, 300, NOON + 5),
        ("tokens", "5000-tokens-per-day", 5000, 500, 300, NOON + DAY_LEFT_S),
        ("usd", "1-usd-per-week", USD, 20, 10, NOON + DAY_LEFT_S + 2 * 86_400),
        ("tokens", "20000-tokens-per-month", 20_000, 500, 300, NOON + DAY_LEFT_S + 3 * 86_400),
    ]
    assert [state.used for state in await store.limits(user(ALL, "nobody"))] == [0, 0, 0, 0, 0]
    assert store.users_kept == 1


async def test_reserve_after_release() -> None:
    """An admission that was released meanwhile holds nothing, and one that has reserved does so once."""
    store, alice = store_at(Clocks()), user(DAY)
    admission: Admission = await store.admit(alice)
    admission.release()
    await store.reserve(admission, Amounts(10))
    admission = await reserve(store, alice, 10)
    await store.reserve(admission, Amounts(10))
    assert figures(store, alice) == ((0,), Amounts(10))
    assert admission.standing.tokens is not None
    assert admission.standing.tokens.held == Amounts(10)
