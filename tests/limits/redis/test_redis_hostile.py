"""The Redis store against servers that answer wrongly, at the wrong moment or not at all, and callers that leave."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from hiredis import Reader

from proxy.errors import LimitsUnavailableError
from proxy.limits.redis.accounts import UserAccount
from proxy.limits.redis.address import Dialler, RedisAddress
from proxy.limits.redis.channel import Channel
from proxy.limits.redis.cluster import ClusterLinks
from proxy.limits.redis.errors import StoreError
from proxy.limits.redis.store import RedisStore
from proxy.model import Amounts, Budget, Plan, Rate
from tests.limits.redis_support import RedisServer, Workers, attempt, channel_of, holds, passes, user
from tests.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Answer = bytes | Callable[[], Awaitable[bytes]]
    OnCluster = Callable[..., Awaitable[RedisStore]]
    Begin = Callable[[], Awaitable["Scripted"]]

# Of a server that answers; what takes longer hangs.
PROMPT_S = 5.0
# Several times what the product has, because machines that test are busy.
TIMEOUT_S = 0.4
STREAMS = Plan("streams", concurrent_streams=1)
RATED = Plan("rated", (Rate(10, 3600.0),))

GREETED = b"*2\r\n:1700000000000000\r\n$1\r\nm\r\n"
ADMITTED = b"*2\r\n:0\r\n:1700000000000000\r\n"


def kind(words: list[bytes]) -> str:
    """Which command it is; of a script, by its first key: memory, probe-leases, leases (an admission), open, sealed."""
    if words[0] not in {b"EVAL", b"EVALSHA"}:
        return words[0].decode()
    return "sealed" if b"sealed" in words[3] else words[3].rpartition(b":")[2].decode()


def slots(*ranges: tuple[int, int, Scripted]) -> bytes:
    """An answer to `CLUSTER SLOTS`."""
    entry = b"*3\r\n:%d\r\n:%d\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n"
    return b"*%d\r\n" % len(ranges) + b"".join(entry % (first, last, node.port) for first, last, node in ranges)


class Scripted:
    """A server that answers each command as the test says; by default it admits everything, and keeps nothing."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {
            "memory": GREETED,
            "probe-leases": ADMITTED,
            "probe-held": ADMITTED,
            "leases": ADMITTED,
            "open": b":0\r\n",
            "sealed": b"+OK\r\n",
            "PING": b"+PONG\r\n",
            "ZREM": b":1\r\n",
        }
        # After which answer it closes.
        self.last: str | None = None
        self.heard: Counter[str] = Counter()
        self.lost = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def begin(self) -> None:
        self._server = await asyncio.start_server(self._arrive, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.address = RedisAddress(nodes=(("127.0.0.1", self.port),))

    def cut(self) -> None:
        """End all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        await passes(lambda: self.lost == len(self._writers))

    @property
    def connections(self) -> int:
        return len(self._writers)

    async def leases(self) -> int:
        """None: it keeps nothing."""
        return 0

    async def hears(self, what: str, count: int = 1) -> None:
        """Wait until it was asked so often."""
        async with asyncio.timeout(PROMPT_S):
            await passes(lambda: self.heard[what] >= count)

    async def _arrive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        parser = Reader()
        try:
            while data := await reader.read(65536):
                parser.feed(data)
                while (words := parser.gets()) is not False:
                    what = kind(words)
                    self.heard[what] += 1
                    answer = self.answers[what]
                    writer.write(answer if isinstance(answer, bytes) else await answer())
                    if what == self.last:
                        return
        except ConnectionError:
            pass
        finally:
            self.lost += 1
            writer.close()


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    """Begin scripted servers, which end with the test."""
    async with AsyncExitStack() as stack:

        async def one() -> Scripted:
            scripted = Scripted()
            await scripted.begin()
            stack.push_async_callback(scripted.close)
            return scripted

        yield one


@pytest.fixture
async def scripted(begin: Begin) -> Scripted:
    """One of them."""
    return await begin()


@pytest.fixture
async def stores(scripted: Scripted) -> AsyncIterator[Workers[Scripted]]:
    """Stores on it."""
    workers: Workers[Scripted] = Workers(scripted)
    yield workers
    async with asyncio.timeout(PROMPT_S):
        await workers.close()


def cluster_of(*nodes: Scripted) -> RedisAddress:
    """Nodes of a Cluster."""
    return RedisAddress(kind="cluster", nodes=tuple(("127.0.0.1", node.port) for node in nodes))


def sentinel_of(node: Scripted) -> RedisAddress:
    """A sentinel."""
    return RedisAddress(kind="sentinel", nodes=(("127.0.0.1", node.port),), service="limits")


def name_in(first: int, last: int) -> str:
    """A user whose keys are in one of the slots."""
    names = (f"user-{number}" for number in range(1000))
    return next(name for name in names if first <= UserAccount(("https://id.example.com/", name)).slot <= last)


async def admits(store: RedisStore, name: str = "alice") -> bool:
    """Whether the server admits the user."""
    outcome = await attempt(store, user(STREAMS, name))
    if isinstance(outcome, str):
        return False
    outcome.release()
    return outcome.fallback is None


async def is_back(store: RedisStore) -> None:
    """Wait until requests are served."""
    async with asyncio.timeout(PROMPT_S):
        while not await admits(store):  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.02)


async def closes(store: RedisStore) -> None:
    """Close it, and see that this ends."""
    closing = asyncio.create_task(store.close())
    # No timeout around it, whose cancellation might be lost in it.
    await asyncio.wait((closing,), timeout=PROMPT_S)
    assert closing.done()
    await closing


def own_tasks() -> list[str]:
    """The store's tasks that run."""
    return sorted(task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("limits."))


# What a server answers


@pytest.mark.parametrize(
    "greeting",
    [b"*1\r\n:1\r\n", b"*2\r\n$1\r\nx\r\n$1\r\nm\r\n", b"-MOVED x\r\n"],
    ids=["too short", "no clock", "MOVED to nowhere"],
)
async def test_greeting_of_no_known_form(stores: Workers[Scripted], greeting: bytes) -> None:
    """A server that greets in no form that is known holds up no start, and is used once it answers rightly."""
    stores.server.answers["memory"] = greeting
    async with asyncio.timeout(PROMPT_S):
        store = await stores.one()
    assert store.problem() is not None
    assert not await admits(store)
    stores.server.answers["memory"] = GREETED
    await is_back(store)
    assert store.problem() is None


@pytest.mark.parametrize(
    "answer",
    [b"*1\r\n:1\r\n", ADMITTED, b"*0\r\n", b"*5\r\n" + 5 * b"$1\r\nx\r\n", b"$1\r\nx\r\n", b"$-1\r\n"],
    ids=["short", "of no rate", "empty", "words", "word", "nil"],
)
async def test_admission_of_no_known_form(stores: Workers[Scripted], answer: bytes) -> None:
    """An answer that is none to an admission is a failure of the store, and none of the proxy."""
    store = await stores.one()
    stores.server.answers["leases"] = answer
    assert await attempt(store, user(RATED)) == "limits_unavailable"
    assert stores.failures == 1
    stores.server.answers["leases"] = ADMITTED
    await is_back(store)


@pytest.mark.parametrize(
    "answer",
    [
        b"*1\r\n*2\r\n$4\r\nname\r\n$1\r\nx\r\n",
        b"*1\r\n:1\r\n",
        b"+OK\r\n",
        b":1\r\n",
        b"-MOVED x\r\n",
        b"*1\r\n*4\r\n$4\r\nname\r\n$1\r\nx\r\n$4\r\nport\r\n$1\r\ny\r\n",
    ],
    ids=["no port", "list", "word", "number", "MOVED to nowhere", "port of letters"],
)
async def test_sentinel_of_no_known_form(stores: Workers[Scripted], answer: bytes) -> None:
    """A sentinel that answers in no form that is known holds up no start, and is asked again."""
    stores.server.answers["SENTINEL"] = answer
    async with asyncio.timeout(PROMPT_S):
        store = await stores.one(address=sentinel_of(stores.server))
    assert store.problem() is not None
    asked = stores.server.heard["SENTINEL"]
    await stores.server.hears("SENTINEL", asked + 1)
    await closes(store)


_TO_HERE = b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n"


@pytest.mark.parametrize(
    "answer",
    [_TO_HERE + b"$-1\r\n", _TO_HERE + b"*0\r\n", _TO_HERE + b"$1\r\nx\r\n"],
    ids=["nil", "list", "word"],
)
async def test_slots_of_no_known_form(begin: Begin, stores: Workers[Scripted], answer: bytes) -> None:
    """A Cluster whose slots were once told in no form that is known is still followed."""
    old, new = stores.server, await begin()
    for node in (old, new):
        node.answers["CLUSTER"] = slots((0, 16383, old))
    store = await stores.one(address=cluster_of(old), timeout_s=TIMEOUT_S)
    assert await admits(store)

    old.answers |= {"CLUSTER": answer, "leases": b"-CLUSTERDOWN Hash slot not served\r\n"}
    asked = old.heard["CLUSTER"]
    assert not await admits(store)
    await old.hears("CLUSTER", asked + 1)
    # Whatever became of that answer: the slots have moved.
    for node in (old, new):
        node.answers["CLUSTER"] = slots((0, 16383, new))
    slot = UserAccount(("https://id.example.com/", "alice")).slot
    old.answers["leases"] = b"-MOVED %d 127.0.0.1:%d\r\n" % (slot, new.port)
    await is_back(store)
    assert new.heard["leases"] > 0
    await closes(store)


@pytest.mark.parametrize(
    "data",
    [
        b"-MOVED garbage\r\n",
        b"-ASK 1 host\r\n",
        b"-MOVED 1 h:x\r\n",
        b"%1\r\n*0\r\n:1\r\n",
        b">0\r\n",
        b"*1\r\n-MOVED x\r\n",
    ],
    ids=["MOVED", "ASK", "MOVED to a word", "map", "push", "MOVED in a list"],
)
async def test_answers_that_nobody_can_parse_end_the_channel(scripted: Scripted, data: bytes) -> None:
    """A connection whose answer redis-py fails on is left at once, and does not look usable until it is late."""
    channel = Channel(await Dialler(scripted.address).dial(), timeout_s=10 * PROMPT_S)
    scripted.answers["PING"] = data
    lost: asyncio.Queue[str] = asyncio.Queue()
    channel.on_lost = lambda why, _commands: lost.put_nowait(why)
    asking = asyncio.create_task(channel.ask("PING"))
    async with asyncio.timeout(PROMPT_S):
        assert await lost.get() == "the server does not speak the protocol"
        with pytest.raises(StoreError):
            await asking
    assert not channel.is_usable


async def test_channel_that_is_closed_after_each_greeting(stores: Workers[Scripted]) -> None:
    """A server that closes each connection as soon as it was greeted is not dialled without a pause."""
    stores.server.last = "probe-leases"
    await stores.one()
    began_s, already = time.monotonic(), stores.server.connections
    async with asyncio.timeout(PROMPT_S):
        await passes(lambda: stores.server.connections >= already + 8)
    # Of the eight the first may have been due.
    assert time.monotonic() - began_s > 7 * 0.04


# A Cluster whose nodes differ


async def test_blank_seed(begin: Begin, stores: Workers[Scripted]) -> None:
    """A worker starts though the first node of its list has forgotten the Cluster."""
    blank, well = stores.server, await begin()
    blank.answers["CLUSTER"] = b"*0\r\n"
    well.answers["CLUSTER"] = slots((0, 16383, well))
    store = await stores.one(address=cluster_of(blank, well))
    assert store.problem() is None
    assert await admits(store)


async def test_node_that_forgot_the_cluster(stores: Workers[Scripted]) -> None:
    """A node that says that nobody has any slot takes none away from those that serve them."""
    node = stores.server
    node.answers["CLUSTER"] = slots((0, 16383, node))
    store = await stores.one(address=cluster_of(node))
    node.answers |= {"CLUSTER": b"*0\r\n", "leases": b"-CLUSTERDOWN Hash slot not served\r\n"}
    links = store._links
    assert isinstance(links, ClusterLinks)
    # Nobody outside hears when the slots were read.
    reading = links._read
    assert not await admits(store)
    node.answers["leases"] = ADMITTED
    async with asyncio.timeout(PROMPT_S):
        await asyncio.shield(reading)
    assert await admits(store)
    assert store.problem() is None


async def test_cluster_without_slots(stores: Workers[Scripted]) -> None:
    """Nodes that answer, and of which none serves anything, are told as what they are."""
    stores.server.answers["CLUSTER"] = b"*0\r\n"
    store = await stores.one(address=cluster_of(stores.server))
    assert store.problem() == "the cluster serves not all slots"


@pytest.mark.parametrize("ranges", [(0, 10**12), (0, 16384), (-1, 5), (5, 4)])
async def test_slots_that_there_are_not(stores: Workers[Scripted], ranges: tuple[int, int]) -> None:
    """An answer with slots that no Cluster has is not understood, and read anew; it takes no memory for them."""
    node = stores.server
    node.answers["CLUSTER"] = slots((*ranges, node))
    store = await stores.one(address=cluster_of(node))
    assert store.problem() is not None
    node.answers["CLUSTER"] = slots((0, 16383, node))
    async with asyncio.timeout(PROMPT_S):
        await passes(lambda: store.problem() is None)
    assert await admits(store)


@pytest.mark.parametrize("slot", [-1, 16384])
async def test_redirect_for_no_slot(stores: Workers[Scripted], slot: int) -> None:
    """A redirect for a slot that there is not is a failure of that request alone, which is answered."""
    node = stores.server
    node.answers["CLUSTER"] = slots((0, 16383, node))
    store = await stores.one(address=cluster_of(node), timeout_s=TIMEOUT_S)
    node.answers["leases"] = b"-MOVED %d 127.0.0.1:%d\r\n" % (slot, node.port)
    async with asyncio.timeout(PROMPT_S):
        assert not await admits(store)
    node.answers["leases"] = ADMITTED
    assert await admits(store)
    assert store.problem() is None


async def test_one_node_says_that_the_cluster_is_down(begin: Begin, stores: Workers[Scripted]) -> None:
    """A node that calls the Cluster down costs the users of the others nothing: these are asked whether they serve."""
    down, well = stores.server, await begin()
    for node in (down, well):
        node.answers["CLUSTER"] = slots((0, 8191, down), (8192, 16383, well))
    store = await stores.one(address=cluster_of(down, well))
    refused = asyncio.Event()

    async def after_that() -> bytes:
        await refused.wait()
        return ADMITTED

    down.answers["leases"] = b"-CLUSTERDOWN The cluster is down\r\n"
    well.answers["leases"] = after_that
    probed = well.heard["probe-leases"]
    connections = well.connections
    asking = asyncio.create_task(admits(store, name_in(8192, 16383)))
    await well.hears("leases")
    assert not await admits(store, name_in(0, 8191))
    refused.set()
    assert await asking
    await well.hears("probe-leases", probed + 1)
    assert await admits(store, name_in(8192, 16383))
    assert well.connections == connections


async def test_close_as_a_node_is_dropped(begin: Begin, scripted: Scripted) -> None:
    """A store that is closed just as a node has lost its slots leaves that node, too."""
    other = await begin()
    for node in (scripted, other):
        node.answers["CLUSTER"] = slots((0, 8191, scripted), (8192, 16383, other))
    store = RedisStore(cluster_of(scripted, other))
    await store.open()
    assert other.connections > other.lost
    links = store._links
    assert isinstance(links, ClusterLinks)
    await links._adopt([("127.0.0.1", scripted.port)] * 16384, is_patient=False)
    await links.close()
    await closes(store)
    assert own_tasks() == []
    async with asyncio.timeout(PROMPT_S):
        await passes(lambda: other.lost == other.connections)


# Closing, opening, leaving


async def test_close_while_a_sentinel_is_asked(scripted: Scripted) -> None:
    """A store is closed at once, at whatever step of asking a sentinel."""
    scripted.answers["SENTINEL"] = b"-ERR unknown command 'SENTINEL'\r\n"
    for steps in range(40):
        store = RedisStore(sentinel_of(scripted))
        opening = asyncio.create_task(store.open())
        for _ in range(steps):
            await asyncio.sleep(0)
        opening.cancel()
        await closes(store)
        await asyncio.wait((opening,))
    assert own_tasks() == []


async def test_close_that_is_cancelled(server: RedisServer) -> None:
    """Whoever closes a store and is cancelled at it hears of that, at whatever step; nothing goes on to run."""
    for steps in range(40):
        store = RedisStore(server.address)
        await store.open()
        closing = asyncio.create_task(store.close())
        for _ in range(steps):
            await asyncio.sleep(0)
        was_closed = closing.done()
        closing.cancel()
        await asyncio.wait((closing,))
        assert closing.cancelled() is not was_closed
        await store.close()
    assert own_tasks() == []


async def test_opened_twice(server: RedisServer) -> None:
    """A store that was opened twice is closed by closing it."""
    store = RedisStore(server.address)
    await store.open()
    await store.open()
    assert await admits(store)
    await store.close()
    assert own_tasks() == []


async def test_on_change_that_raises(server: RedisServer) -> None:
    """A change that cannot be written down keeps nobody waiting, and the server is found again."""

    def fail(_problem: str | None) -> None:
        raise OSError("no space left on device")

    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context.get("exception")))
    store = RedisStore(server.address, on_change=fail, timeout_s=TIMEOUT_S)
    await store.open()
    server.stop()
    async with asyncio.timeout(PROMPT_S):
        while store.problem() is None:
            await asyncio.gather(*[attempt(store, user(STREAMS, f"user-{number}")) for number in range(5)])
    server.go_on()
    await is_back(store)
    assert store.problem() is None
    assert {str(error) for error in told} == {"no space left on device"}
    await store.close()


async def test_released_while_a_server_is_told(workers: Workers[RedisServer]) -> None:
    """A stream that ends while a server that came back empty is being told of it is free as soon as that is over."""
    # No renewal, which would also see to it, comes before the test is over.
    store = await workers.one(settle_s=1.0, life_s=1000.0)
    admission = await store.admit(user(STREAMS))
    workers.server.kill()
    await passes(lambda: channel_is_lost(store))
    await workers.server.start()
    await holds(workers.server, 1)
    assert "empty" in (store.problem() or "")
    admission.release()
    await passes(lambda: store.problem() is None)
    async with asyncio.timeout(PROMPT_S):
        await holds(workers.server, 0)
    assert await admits(store)


def channel_is_lost(store: RedisStore) -> bool:
    """Whether the store has noticed."""
    return all(link.channel is None for link in store._links)


async def test_local_counts_end_with_their_outage(workers: Workers[RedisServer]) -> None:
    """What a worker counted alone is forgotten once the server is back, also of users who do not come again."""
    store = await workers.one(on_store_error="local", settle_s=0.0, timeout_s=TIMEOUT_S)
    (link,) = store._links
    counts = []
    for turn in range(2):
        workers.server.kill()
        await passes(lambda: store.problem() is not None)
        (await store.admit(user(STREAMS, f"user-{turn}"))).release()
        assert link.local is not None
        counts.append(weakref.ref(link.local))
        await workers.server.start()
        await passes(lambda: store.problem() is None)
    gc.collect()
    assert [count() for count in counts] == [None, None]


# Time


async def test_second_look_each_time(scripted: Scripted) -> None:
    """A worker that is held up again and again finds each answer that is in its socket already."""
    channel = Channel(await Dialler(scripted.address).dial(), timeout_s=TIMEOUT_S / 4)

    async def hold_up() -> bytes:
        # The worker, too, which is in the same loop: it comes to the answer after the time for it.
        time.sleep(TIMEOUT_S / 2)  # noqa: ASYNC251 - the point
        return b"+PONG\r\n"

    scripted.answers["PING"] = hold_up
    for _ in range(3):
        assert await channel.ask("PING") == b"PONG"
        # Until it has looked whether anything is late.
        await passes(lambda: channel._timer is None)
    channel.abort("")


async def test_longest_wait(stores: Workers[Scripted]) -> None:
    """A redial, a script that the server has forgotten and an answer that never comes are no three times of waiting."""
    server = stores.server
    store = await stores.one(timeout_s=TIMEOUT_S)

    def slowly(answer: bytes) -> Callable[[], Awaitable[bytes]]:
        async def after_a_while() -> bytes:
            await asyncio.sleep(0.9 * TIMEOUT_S)
            return answer

        return after_a_while

    whole = asyncio.Event()

    async def never() -> bytes:
        whole.set()
        return b""

    async def forgotten() -> bytes:
        server.answers["leases"] = never
        return await slowly(b"-NOSCRIPT no\r\n")()

    server.answers |= {"memory": slowly(GREETED), "leases": forgotten}
    server.cut()
    await passes(lambda: channel_is_lost(store))
    with Stopwatch() as watch:
        assert not await admits(store)
        assert watch.elapsed_s < 2 * TIMEOUT_S + 0.1
    server.answers |= {"memory": GREETED, "leases": ADMITTED}


# Tickets


async def test_ticket_cancelled_as_it_is_counted(workers: Workers[RedisServer]) -> None:
    """A ticket whose client left before it was kept is not counted among the user's open ones."""
    store = await workers.one()
    await workers.server.ask("CONFIG", "RESETSTAT")
    channel = channel_of(store)
    workers.server.stop()
    putting = asyncio.create_task(store.put_ticket("a", b"sealed", 60, user(STREAMS)))
    await passes(lambda: channel.waiting == 1)
    putting.cancel()
    await asyncio.wait((putting,))
    assert putting.cancelled()
    workers.server.go_on()
    # Behind whatever the put has sent.
    await channel.ask("PING")
    assert b"cmdstat_zadd:calls=1" in await workers.server.ask("INFO", "commandstats")
    assert await workers.server.keys() == []


async def test_ticket_cancelled_as_it_is_kept(stores: Workers[Scripted]) -> None:
    """A ticket that the server may have kept is counted until it lapses: nobody stores more than is allowed."""
    store = await stores.one()
    kept = asyncio.Event()

    async def keep() -> bytes:
        kept.set()
        return b""

    stores.server.answers["sealed"] = keep
    putting = asyncio.create_task(store.put_ticket("a", b"sealed", 60, user(STREAMS)))
    async with asyncio.timeout(PROMPT_S):
        await kept.wait()
    putting.cancel()
    await asyncio.wait((putting,))
    assert putting.cancelled()
    # Its answer is behind that to whatever the put has sent.
    await channel_of(store).ask("PING")
    assert stores.server.heard["ZREM"] == 0


async def test_ticket_connections_are_counted(workers: Workers[RedisServer]) -> None:
    """A ticket that could not be asked for because the server hangs is a failure that operators see."""
    store = await workers.one(timeout_s=TIMEOUT_S)
    workers.server.stop()
    for _ in range(2):
        with pytest.raises(LimitsUnavailableError):
            await store.take_ticket("a")
    assert workers.failures == 2
    workers.server.go_on()


LIMITED = Plan("limited", budgets=(Budget("tokens", 1000, "month"),))


@pytest.mark.parametrize(
    "answer",
    [b"$-1\r\n", b"+OK\r\n", b"*0\r\n", b"*1\r\n:0\r\n", b"*2\r\n:0\r\n:1\r\n", b"*6\r\n" + b"$1\r\na\r\n" * 6],
    ids=["nil", "word", "empty", "short", "of no limit", "words"],
)
async def test_reservation_of_no_known_form(stores: Workers[Scripted], answer: bytes) -> None:
    """A reservation or a settlement that is answered in no known form is a failure, and the worker goes on."""
    store = await stores.one()
    stores.server.answers["held"] = answer
    admission = await store.admit(user(LIMITED))
    with pytest.raises(LimitsUnavailableError):
        await store.reserve(admission, Amounts(10))
    with pytest.raises(LimitsUnavailableError):
        await store.limits(user(LIMITED))
    stores.server.answers["leases"] = answer
    admission.settle(Amounts(10))
    assert store.leases_held == 0
    stores.server.answers["leases"] = ADMITTED
    await is_back(store)
    assert store._accounts.get(user(LIMITED)).charges == {}
