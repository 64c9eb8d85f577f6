"""Users held to token rates and budgets over several workers: holds, charges, deaths, losses, openings."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from proxy.errors import InsufficientQuotaError, LimitsUnavailableError, ProxyError, RateLimitExceededError
from proxy.limits.openings import Openings
from proxy.limits.redis.leases import BATCH
from proxy.model import Amounts, Budget, Plan, Principal, Rate
from tests.limits.redis_support import (
    RedisServer,
    Workers,
    channel_of,
    comes_true,
    die,
    holds,
    passes,
    renewed_twice,
    user,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.limits.redis.store import RedisStore
    from proxy.limits.store import Admission, Store

USD = 10**9
RATE = Plan("rate", token_rates=(Rate(1000, 3600.0),))
DAY = Plan("day", budgets=(Budget("tokens", 1000, "day"),))
MONTH = Plan("month", budgets=(Budget("usd", 50 * USD, "month"),))
ALL = Plan(
    "all",
    (Rate(100, 3600.0),),
    token_rates=(Rate(1000, 3600.0),),
    budgets=(Budget("tokens", 5000, "day"), Budget("usd", USD, "week"), Budget("tokens", 20_000, "month")),
)


async def reserve(store: Store, principal: Principal, tokens: int, nano_usd: int = 0) -> Admission:
    """Admit and reserve as the handler does: what does not fit is refunded and released."""
    admission = await store.admit(principal)
    try:
        await store.reserve(admission, Amounts(tokens, nano_usd))
    except ProxyError:
        admission.refund()
        admission.release()
        raise
    return admission


async def attempt(store: Store, principal: Principal, tokens: int, nano_usd: int = 0) -> Admission | str:
    """The admission, or the code of the refusal."""
    try:
        return await reserve(store, principal, tokens, nano_usd)
    except ProxyError as error:
        return error.code


async def states(store: Store, principal: Principal) -> list[tuple[int, int]]:
    """What is used and reserved of each limit, as the server knows it."""
    return [(state.used, state.reserved) for state in await store.limits(principal)]


async def become(store: Store, principal: Principal, wanted: list[tuple[int, int]]) -> None:
    """Wait until the server knows so much as used and reserved."""

    async def is_so() -> bool:
        return await states(store, principal) == wanted

    await comes_true(is_so)


async def test_hold_becomes_charge(workers: Workers[RedisServer]) -> None:
    """What one worker reserves the others see as held, and what it settles as used; the lease goes with it."""
    one, other = await workers.several(2)
    alice = user(ALL)
    admission = await reserve(one, alice, 400, USD // 2)
    assert await states(other, alice) == [(1, 0), (0, 400), (0, 400), (0, USD // 2), (0, 400)]
    await reserve(other, alice, 100)
    admission.settle(Amounts(150, 7))
    assert one.leases_held == 0
    await become(other, alice, [(2, 0), (150, 100), (150, 100), (7, 0), (150, 100)])
    await holds(workers.server, 1)
    tokens = one.standing(alice).tokens
    assert tokens is not None
    assert tokens.spent == (150, 7, 150)


@pytest.mark.parametrize("end", ["settle", "release", "refund"])
async def test_hold_ends_once(workers: Workers[RedisServer], end: str) -> None:
    """However an exchange ends, and however often that is said, its hold is given back once and charged once."""
    store, alice = await workers.one(), user(DAY)
    _other, admission = await reserve(store, alice, 100), await reserve(store, alice, 400)
    ends: dict[str, Callable[[], None]] = {
        "settle": lambda: admission.settle(Amounts(50)),
        "release": admission.release,
        "refund": admission.refund,
    }
    for _ in range(2):
        ends[end]()
    if end == "refund":
        await become(store, alice, [(0, 100)])
        await holds(workers.server, 2)
    admission.settle(Amounts(50))
    admission.release()
    await become(store, alice, [(0 if end == "release" else 50, 100)])
    await holds(workers.server, 1)


async def test_refusals(workers: Workers[RedisServer]) -> None:
    """What does not fit is refused by every worker in the memory store's words, holds nothing, and is given back."""
    one, other = await workers.several(2)
    (await reserve(one, user(ALL), 1)).settle(Amounts(900, USD))
    await become(other, user(ALL), [(1, 0), (900, 0), (900, 0), (USD, 0), (900, 0)])
    with pytest.raises(InsufficientQuotaError, match=r"^Your budget of 1 USD a week is used up; try again in \d+ s"):
        await reserve(other, user(ALL), 10)
    with pytest.raises(RateLimitExceededError, match=r"^1000 tokens per 1 h used up; try again in \d+ s") as refused:
        await reserve(other, user(Plan("rate", token_rates=ALL.token_rates)), 200)
    assert refused.value.retry_after_s is not None
    assert 355 < refused.value.retry_after_s <= 360
    await reserve(one, user(Plan("rate", token_rates=ALL.token_rates)), 99)
    with pytest.raises(RateLimitExceededError) as held:
        await reserve(other, user(Plan("rate", token_rates=ALL.token_rates)), 50)
    assert held.value.retry_after_s == 1.0
    (used, *_) = await states(one, user(ALL))
    assert used == (1, 0)


async def test_budget_held_by_another_worker(workers: Workers[RedisServer]) -> None:
    """What other workers' exchanges have reserved is told from what is used, as it is in the memory store's words."""
    one, other = await workers.several(2)
    alice = user(DAY)
    running = await reserve(one, alice, 900)
    with pytest.raises(
        InsufficientQuotaError,
        match=r"reserved for your requests that run; try again in \d+ s( \(.*\))?, or when one has ended\.$",
    ):
        await reserve(other, alice, 200)
    running.settle(Amounts(100))
    await become(other, alice, [(100, 0)])
    await reserve(other, alice, 200)


async def test_full_allowance_admits_one(workers: Workers[RedisServer]) -> None:
    """A reservation larger than the whole limit fits where nothing is used or held, and then nothing beside it."""
    store = await workers.one()
    for plan, code in ((RATE, "rate_limit_exceeded"), (DAY, "insufficient_quota")):
        admission = await reserve(store, user(plan, plan.name), 10**13)
        assert await attempt(store, user(plan, plan.name), 1) == code
        admission.release()
        assert not isinstance(await attempt(store, user(plan, plan.name), 1), str)


async def test_debt(workers: Workers[RedisServer]) -> None:
    """What a stream took beyond the limits is debt, however large, and nothing is admitted meanwhile."""
    store = await workers.one()
    (await reserve(store, user(RATE), 1)).settle(Amounts(3000))
    with pytest.raises(RateLimitExceededError) as refused:
        await reserve(store, user(RATE), 1)
    assert refused.value.retry_after_s == pytest.approx(7203.6, abs=5)
    assert await attempt(store, user(RATE), 0) == "rate_limit_exceeded"
    (await reserve(store, user(RATE, "bob"), 1)).settle(Amounts(10**18, 10**18))
    assert await attempt(store, user(RATE, "bob"), 1) == "rate_limit_exceeded"


async def test_unpriced_beside_held_dollars(workers: Workers[RedisServer]) -> None:
    """An exchange without a price is not counted against dollars, unless they are used up."""
    store = await workers.one()
    admission = await reserve(store, user(MONTH), 1, 50 * USD)
    await reserve(store, user(MONTH), 1)
    admission.settle(Amounts(1, 50 * USD))
    assert await attempt(store, user(MONTH), 1) == "insufficient_quota"


async def test_race_for_the_last_dollar(server: RedisServer) -> None:
    """Of a user who races for the last dollar over eight workers, one exchange is let in, each time one ends."""
    workers = Workers(server)
    try:
        stores = await workers.several(8)
        users = [user(MONTH, f"user-{number}") for number in range(1000)]
        begun = await asyncio.gather(*[reserve(stores[number % 8], one, 1) for number, one in enumerate(users)])
        for admission in begun:
            admission.settle(Amounts(1, 49 * USD))
        await asyncio.gather(*[channel_of(store).ask("PING") for store in stores])
        asks = [attempt(store, one, 1, USD) for one in users for store in stores]
        outcomes = await asyncio.gather(*asks)
        admitted = [[each for each in outcomes[n * 8 : n * 8 + 8] if not isinstance(each, str)] for n in range(1000)]
        assert Counter(map(len, admitted)) == {1: 1000}
        assert {each for each in outcomes if isinstance(each, str)} == {"insufficient_quota"}
        for (admission,) in admitted:
            admission.settle(Amounts(1, 2 * USD))
        await asyncio.gather(*[channel_of(store).ask("PING") for store in stores])
        again = await asyncio.gather(*[attempt(store, one, 1, USD) for one in users for store in stores])
        assert set(again) == {"insufficient_quota"}
        assert await states(stores[0], users[0]) == [(51 * USD, 0)]
        await holds(server, 0)
    finally:
        await workers.close()


async def test_settled_twice_charges_once(workers: Workers[RedisServer]) -> None:
    """A settlement whose answer was lost is sent again when the server is back, and charged once."""
    store, alice = await workers.one(timeout_s=0.3), user(DAY)
    admissions = [await reserve(store, alice, 10) for _ in range(2)]
    # Done by the server, but the connection is lost before the answer.
    workers.server.stop()
    admissions[0].settle(Amounts(100))
    await passes(lambda: store._links._default.channel is None)
    # Not sent at all.
    admissions[1].settle(Amounts(30))
    workers.server.go_on()
    await passes(lambda: store.problem() is None and store._links._default.channel is not None)
    await become(store, alice, [(130, 0)])
    await holds(workers.server, 0)
    assert store._accounts.get(alice).charges == {}


async def test_many_settled_while_the_server_is_away(workers: Workers[RedisServer]) -> None:
    """All that was settled while the server was away is charged when it is back, in batches."""
    store, alice = await workers.one(on_store_error="allow", timeout_s=1.0), user(DAY)
    await reserve(store, alice, 1)
    workers.server.stop()
    channel_of(store).abort("test")
    await passes(lambda: store.problem() is not None)
    count = 2 * BATCH + 10
    for _ in range(count):
        (await reserve(store, alice, 1)).settle(Amounts(2))
    workers.server.go_on()
    await passes(lambda: store.problem() is None)
    await become(store, alice, [(2 * count, 1)])


async def test_worker_death_gives_holds_back(workers: Workers[RedisServer]) -> None:
    """What a dead worker's exchanges had reserved is free when their leases lapse, and not before."""
    one, other = await workers.several(2, life_s=1.5)
    alice = user(DAY)
    await reserve(one, alice, 600)
    running = await reserve(other, alice, 300)
    await renewed_twice(workers.server)
    assert await states(other, alice) == [(0, 900)]
    die(one)
    assert await attempt(other, alice, 500) == "insufficient_quota"
    await become(other, alice, [(0, 300)])
    assert not isinstance(await attempt(other, alice, 700), str)
    running.settle(Amounts(1))


async def test_settled_after_its_hold_lapsed(workers: Workers[RedisServer]) -> None:
    """An exchange whose hold has lapsed is charged all the same."""
    store, alice = await workers.one(), user(DAY)
    admission = await reserve(store, alice, 600)
    for key in await workers.server.keys("*:held"):
        assert await workers.server.ask("DEL", key) == 1
    assert await states(store, alice) == [(0, 0)]
    admission.settle(Amounts(70))
    await become(store, alice, [(70, 0)])


@pytest.mark.parametrize("lost", ["*:held", "*:sums"])
async def test_evicted(workers: Workers[RedisServer], lost: str) -> None:
    """A server that evicts what is held, or the sums of it, counts right again."""
    store, alice = await workers.one(life_s=1.5), user(DAY)
    admission = await reserve(store, alice, 600)
    for key in await workers.server.keys(lost):
        await workers.server.ask("DEL", key)
    await become(store, alice, [(0, 600)])
    admission.release()
    await become(store, alice, [(0, 0)])


async def test_emptied_server_is_restored(workers: Workers[RedisServer]) -> None:
    """A server that lost everything is told what the workers know: used, spent, held, and what was not charged yet."""
    one, other = await workers.several(2, settle_s=0.3)
    alice = user(ALL)
    running = await reserve(one, alice, 100, 5)
    (await reserve(one, alice, 1)).settle(Amounts(300, 9))
    (await reserve(other, alice, 1)).settle(Amounts(50, 1))
    await become(one, alice, [(3, 0), (350, 100), (350, 100), (10, 5), (350, 100)])
    await workers.server.ask("FLUSHALL")
    await workers.server.ask("CLIENT", "KILL", "TYPE", "normal")
    await passes(lambda: workers.changes.count(None) == 2)
    assert await states(one, alice) == [(3, 0), (350, 100), (350, 100), (10, 5), (350, 100)]
    running.settle(Amounts(60, 6))
    await become(other, alice, [(3, 0), (410, 0), (410, 0), (16, 0), (410, 0)])


def ledger(told: Amounts | None, asked: list[Any]) -> Openings:
    """A ledger that knows so much of everybody, or fails."""

    async def opening(*about: Any) -> Amounts:
        asked.append(about)
        await asyncio.sleep(0)
        if told is None:
            raise OSError("away")
        return told

    return Openings(opening)


async def test_opening_from_the_ledger(workers: Workers[RedisServer]) -> None:
    """What the ledger knows of a period counts before the first reservation, and is asked once while it is known."""
    asked: list[Any] = []
    one, other = await workers.several(2, openings=ledger(Amounts(800, 7), asked))
    alice = user(DAY)
    assert await states(one, alice) == [(800, 0)]
    asked.clear()
    outcomes = await asyncio.gather(*[attempt(store, alice, 150) for store in (one, other) for _ in range(5)])
    assert Counter(isinstance(outcome, str) for outcome in outcomes) == {True: 9, False: 1}
    assert 1 <= len(asked) < 10
    assert await states(other, alice) == [(800, 150)]
    asked.clear()
    assert await attempt(other, alice, 1) != "insufficient_quota"
    assert asked == []
    # The ledger knows more than a worker that heard of the user long ago.
    await workers.server.ask("FLUSHALL")
    assert await attempt(other, alice, 500) == "insufficient_quota"


async def test_opening_fails(workers: Workers[RedisServer]) -> None:
    """A ledger that is away refuses nobody, and is not asked again at once."""
    asked: list[Any] = []
    store = await workers.one(openings=ledger(None, asked))
    for _ in range(3):
        (await reserve(store, user(ALL), 1)).settle(Amounts(1))
    assert len(asked) == 1


async def test_keys_expire(workers: Workers[RedisServer]) -> None:
    """All keys of token limits are in the user's slot, and expire."""
    store = await workers.one()
    (await reserve(store, user(ALL), 1, 1)).settle(Amounts(1, 1))
    await reserve(store, user(ALL), 1, 1)
    keys = await workers.server.keys()
    tag = store._accounts.get(user(ALL)).tag
    assert {key.removeprefix(tag).partition(b":")[0] for key in keys} == {
        b"held",
        b"leases",
        b"rate",
        b"settled",
        b"spent",
        b"sums",
        b"tokens",
    }
    for key in keys:
        assert await workers.server.ask("PTTL", key) > 0


async def test_scripts_are_flushed(workers: Workers[RedisServer]) -> None:
    """A server that forgot the scripts is told them again, and nothing is lost or counted twice."""
    store, alice = await workers.one(), user(DAY)
    flush: Callable[[], Awaitable[Any]] = lambda: workers.server.ask("SCRIPT", "FLUSH")  # noqa: E731 - short
    await flush()
    admission = await reserve(store, alice, 100)
    await flush()
    admission.settle(Amounts(40))
    await become(store, alice, [(40, 0)])
    admission = await reserve(store, alice, 100)
    await flush()
    admission.release()
    await become(store, alice, [(40, 0)])


@pytest.mark.parametrize("policy", ["deny", "local", "allow"])
async def test_server_away(workers: Workers[RedisServer], policy: str) -> None:
    """Without the server each policy does what it says; what was taken meanwhile is charged when it is back."""
    store, alice = await workers.one(on_store_error=policy, timeout_s=1.0, settle_s=0.05), user(DAY)
    (await reserve(store, alice, 1)).settle(Amounts(500))
    running = await reserve(store, alice, 300)
    between = await store.admit(alice)
    workers.server.stop()
    channel_of(store).abort("test")
    await passes(lambda: store.problem() is not None)
    with pytest.raises(LimitsUnavailableError):
        await store.limits(alice)
    if policy == "deny":
        with pytest.raises(LimitsUnavailableError):
            await store.reserve(between, Amounts(1))
        taken = 0
    elif policy == "allow":
        await store.reserve(between, Amounts(10**6))
        between.settle(Amounts(60))
        taken = 60
    else:
        with pytest.raises(InsufficientQuotaError):
            await store.reserve(between, Amounts(250))
        await store.reserve(between, Amounts(200))
        assert await attempt(store, alice, 1) == "insufficient_quota"
        between.settle(Amounts(60))
        assert not isinstance(await attempt(store, alice, 140), str)
        taken = 60
    running.settle(Amounts(20))
    workers.server.go_on()
    await passes(lambda: store.problem() is None)
    between.release()
    await become(store, alice, [(520 + taken, 140 if policy == "local" else 0)])


async def test_cancelled_at_every_step(workers: Workers[RedisServer]) -> None:
    """Whenever a caller is cancelled and releases, nothing stays held."""
    store, alice = await workers.one(openings=ledger(Amounts(1), [])), user(ALL)
    for turns in range(12):
        admission = await store.admit(alice)
        asking = asyncio.create_task(store.reserve(admission, Amounts(10, 10)))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        admission.release()
    await holds(workers.server, 0)
    assert [reserved for _, reserved in await states(store, alice)] == [0] * 5


async def test_clock_of_the_server_set_back(workers: Workers[RedisServer]) -> None:
    """A debt is as long as it was after the server's clock was set back."""
    store = await workers.one()
    (await reserve(store, user(RATE), 1)).settle(Amounts(3000))
    await become(store, user(RATE), [(3000, 0)])
    (key,) = await workers.server.keys("*:tokens:*")
    ticks, parts, at = (await workers.server.ask("GET", key)).split()
    day = 86_400_000_000
    await workers.server.ask("SET", key, b"%d %b %d" % (int(ticks) + day, parts, int(at) + day))
    with pytest.raises(RateLimitExceededError) as refused:
        await reserve(store, user(RATE), 1)
    assert refused.value.retry_after_s == pytest.approx(7203.6, abs=5)


async def test_renewed_while_it_is_asked(workers: Workers[RedisServer]) -> None:
    """A renewal that is sent while a reservation is asked for does not make one that is refused."""
    store, alice = await workers.one(), user(DAY)
    await reserve(store, alice, 600)
    admission = await store.admit(alice)
    asking = asyncio.create_task(store.reserve(admission, Amounts(500)))
    await asyncio.sleep(0)
    await store._leases._renew(channel_of(store), (store._accounts.get(alice),))
    with pytest.raises(InsufficientQuotaError):
        await asking
    await store._leases._renew(channel_of(store), (store._accounts.get(alice),))
    assert await states(store, alice) == [(0, 600)]


async def test_fields_right_after_a_settlement(workers: Workers[RedisServer]) -> None:
    """What was just settled is told as used at once, before the server has confirmed it."""
    store, alice = await workers.one(), user(DAY)
    (await reserve(store, alice, 400)).settle(Amounts(150))
    tokens = store.standing(alice).tokens
    assert tokens is not None
    assert (tokens.spent, tokens.held) == ((150,), Amounts())
    await become(store, alice, [(150, 0)])
    tokens = store.standing(alice).tokens
    assert tokens is not None
    assert (tokens.spent, tokens.held) == ((150,), Amounts())


async def test_fields_of_a_local_reservation(workers: Workers[RedisServer]) -> None:
    """A reservation that the worker makes alone is told with the rates of requests, as one of the server's is."""
    store = await workers.one(on_store_error="local", timeout_s=1.0)
    admission = await store.admit(user(ALL))
    workers.server.stop()
    channel_of(store).abort("test")
    await passes(lambda: store.problem() is not None)
    await store.reserve(admission, Amounts(10, 20))
    assert [(rate.name, rate.remaining) for rate in admission.standing.rates] == [("100-per-1h", 99)]
    assert admission.standing.tokens is not None
    assert admission.standing.tokens.held == Amounts(10, 20)
    admission.refund()
    assert store.standing(user(ALL)).tokens is not None
    assert [state.held for state in [store.standing(user(ALL)).tokens] if state is not None] == [Amounts()]
    workers.server.go_on()


async def test_settled_on_a_full_server(workers: Workers[RedisServer]) -> None:
    """A server without memory frees leases and holds all the same; what was taken is charged when it has room."""
    store, alice = await workers.one(life_s=1.5), user(DAY)
    admission = await reserve(store, alice, 400)
    await workers.server.ask("CONFIG", "SET", "maxmemory", "1")
    admission.settle(Amounts(150))
    await holds(workers.server, 0)
    await workers.server.ask("CONFIG", "SET", "maxmemory", "0")
    await become(store, alice, [(150, 0)])
    assert store._accounts.get(alice).charges == {}


async def away(store: RedisStore, server: RedisServer) -> None:
    """Lose the server."""
    server.stop()
    channel_of(store).abort("test")
    await passes(lambda: store.problem() is not None)


async def test_waiting_settlements_are_bounded(workers: Workers[RedisServer], monkeypatch: pytest.MonkeyPatch) -> None:
    """While the server is away a bounded number of settlements waits; the oldest are given up."""
    monkeypatch.setattr("proxy.limits.redis.tokens.MOST_WAITING", 2)
    store, alice = await workers.one(timeout_s=1.0), user(DAY)
    admissions = [await reserve(store, alice, 1) for _ in range(4)]
    await away(store, workers.server)
    for number, admission in enumerate(admissions):
        admission.settle(Amounts(10**number))
    assert len(store._accounts.get(alice).charges) == 2
    workers.server.go_on()
    await passes(lambda: store.problem() is None)
    await become(store, alice, [(1100, 0)])


async def test_settlements_are_not_tried_for_ever(
    workers: Workers[RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A settlement that may have been charged is not sent when the server may have forgotten that."""
    monkeypatch.setattr("proxy.limits.redis.tokens._TRY_S", -1.0)
    store, alice = await workers.one(timeout_s=0.3), user(DAY)
    admission = await reserve(store, alice, 1)
    workers.server.stop()
    admission.settle(Amounts(100))
    await passes(lambda: store._links._default.channel is None)
    workers.server.go_on()
    await passes(lambda: store._accounts.get(alice).charges == {})
    # The server had it all the same.
    await become(store, alice, [(100, 0)])


async def test_connection_lost_while_the_ledger_is_asked(workers: Workers[RedisServer]) -> None:
    """A reservation whose server is lost while the ledger is asked is refused by the policy, and nothing is held."""
    begun, told = asyncio.Event(), asyncio.Event()

    async def opening(*_about: Any) -> Amounts:
        begun.set()
        await told.wait()
        return Amounts(1)

    store, alice = await workers.one(timeout_s=1.0, openings=Openings(opening)), user(DAY)
    admission = await store.admit(alice)
    asking = asyncio.create_task(store.reserve(admission, Amounts(10)))
    await begun.wait()
    await away(store, workers.server)
    told.set()
    with pytest.raises(LimitsUnavailableError):
        await asking
    admission.release()
    workers.server.go_on()
    await passes(lambda: store.problem() is None)
    await become(store, alice, [(1, 0)])


async def test_closed_while_the_ledger_is_asked(workers: Workers[RedisServer]) -> None:
    """A store that is closed asks the ledger no more."""
    begun = asyncio.Event()

    async def opening(*_about: Any) -> Amounts:
        begun.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    store = await workers.one(openings=Openings(opening))
    asking = asyncio.create_task(store.limits(user(DAY)))
    await begun.wait()
    await store.close()
    await asyncio.wait([asking])
    assert asking.cancelled()


async def test_released_before_the_answer(workers: Workers[RedisServer]) -> None:
    """What is reserved for an admission that was released meanwhile is freed, wherever its answer comes from."""
    store, alice = await workers.one(), user(DAY)
    admission = await store.admit(alice)
    asking = asyncio.create_task(store.reserve(admission, Amounts(10)))
    await asyncio.sleep(0)
    admission.release()
    await asking
    await become(store, alice, [(0, 0)])
    await holds(workers.server, 0)
