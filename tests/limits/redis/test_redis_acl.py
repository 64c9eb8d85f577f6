"""The `ACL SETUSER` lines of docs/operating.md: each user may do all that it has to, and no more."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from proxy.limits.store import SPENT
from proxy.model import Amounts, Budget, Plan, Rate
from tests.limits.redis_groups import SERVICE, Cluster, Group, Member, SentinelGroup
from tests.limits.redis_support import RedisServer, Workers, attempt, comes_true, holds, passes, user

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.limits.redis.store import RedisStore
    from proxy.limits.store import Admission

    AnyServer = TypeVar("AnyServer", RedisServer, SentinelGroup, Cluster)

PAGE = Path(__file__).parents[3] / "docs" / "operating.md"
QUOTA = 10
PLAN = Plan(
    "two",
    (Rate(QUOTA, 86_400.0),),
    concurrent_streams=2,
    token_rates=(Rate(1000, 86_400.0),),
    budgets=(Budget("tokens", 1000, "month"),),
)
LIFE_S = 3.0
EMPTY = "the server came back empty, and is being told what was counted"


def acl(name: str, *, with_: str = "", without: str = "\n") -> list[str]:
    """The words of the page's line for a user; of several, of the one with a word, or without it."""
    lines = [line.strip() for line in PAGE.read_text().splitlines() if line.strip().startswith(f"ACL SETUSER {name} ")]
    (line,) = (line for line in lines if with_ in line and without not in line)
    return re.sub(r">\S+", ">secret", line).split()


async def members(server: RedisServer | Group) -> list[RedisServer | Member]:
    """The servers that count, those that run."""
    return [server] if isinstance(server, RedisServer) else [*await server.primaries()]


async def was_denied(asked: Iterable[RedisServer | Member]) -> list[object]:
    """What the servers refused to their users."""
    return [entry for member in asked for entry in await member.ask("ACL", "LOG")]


async def unused(words: list[str], asked: Iterable[RedisServer | Member]) -> set[str]:
    """The granted commands that no server was asked for."""
    stats = b"".join([await member.ask("INFO", "commandstats") for member in asked]).decode()
    return {word[1:] for word in words if word[0] == "+"} - set(re.findall(r"^cmdstat_([\w|]+):", stats, re.MULTILINE))


async def latest_lapse(server: RedisServer | Group) -> int:
    """When the last of all leases lapses."""
    found = [
        int(score)
        for member in await members(server)
        for key in await member.ask("KEYS", "*}:leases")
        for score in (await member.ask("ZRANGE", key, 0, -1, "WITHSCORES"))[1::2]
    ]
    return max(found)


async def exercise(workers: Workers[AnyServer], store: RedisStore, name: str = "alice") -> list[Admission]:
    """Do all that the proxy does while nothing is wrong; two leases are left, which have reserved 20 tokens."""
    held: list[Admission] = [await store.admit(user(PLAN, name)) for _ in range(2)]
    assert await attempt(store, user(PLAN, name)) == "too_many_streams"
    held[0].refund()
    for admission in held:
        await store.reserve(admission, Amounts(10, 10))
    others = [await store.admit(user(PLAN, f"{name}-{number}")) for number in range(2)]
    for admission in others:
        await store.reserve(admission, Amounts(500))
    others[0].settle(Amounts(700))
    others[1].release()
    states = await store.limits(user(PLAN, f"{name}-0"))
    assert [(state.used, state.reserved) for state in states] == [(1, 0), (700, 0), (700, 0)]
    for number in range(20):
        await store.put_ticket(f"{name}-{number}", b"sealed", 60, user(PLAN, name))
        assert await store.take_ticket(f"{name}-{number}") == b"sealed"
        assert await store.take_ticket(f"{name}-{number}") is SPENT
    lapse = await latest_lapse(workers.server)

    async def is_renewed() -> bool:
        return await latest_lapse(workers.server) > lapse

    await comes_true(is_renewed)
    assert (workers.changes, workers.failures) == ([], 0)
    return held


async def reserved(store: RedisStore) -> int:
    """What is reserved of the user's tokens, as the server knows it."""
    return (await store.limits(user(PLAN)))[-1].reserved


async def come_back_empty(workers: Workers[AnyServer], member: RedisServer | Member) -> None:
    """Take everything from a server, and the connections to it."""
    await member.ask("FLUSHALL")
    await member.ask("CLIENT", "KILL", "USER", "proxy")
    await passes(lambda: len(workers.changes) == 2)
    assert workers.changes[1] is None


async def test_single_server(workers: Workers[RedisServer], server: RedisServer) -> None:
    """On a single server, and after it lost everything."""
    words = acl("proxy", without="+asking")
    await server.ask(*words)
    address = replace(server.address, user="proxy", password="secret", db=1)
    server.address = replace(server.address, db=1)
    store = await workers.one(address=address, life_s=LIFE_S)
    held = await exercise(workers, store)
    await come_back_empty(workers, server)
    assert await reserved(store) == 20
    assert workers.changes[0] == EMPTY
    held[0].release()
    assert (await store.admit(user(PLAN))).standing.rates[0].remaining == QUOTA - 2
    assert await was_denied([server]) == []
    assert await unused(words, [server]) == set()


async def let_sentinels_log_in(group: SentinelGroup) -> None:
    """Give everybody in the group the page's users, and have all connections made anew."""
    for server in group.servers:
        for words in (acl("proxy", without="+asking"), acl("sentinel", with_="+slaveof"), acl("replica")):
            await server.ask(*words)
        await server.ask("CONFIG", "SET", "masteruser", "replica", "masterauth", "secret")
    for sentinel in group.sentinels:
        await sentinel.ask("SENTINEL", "SET", SERVICE, "auth-user", "sentinel", "auth-pass", "secret")
        await sentinel.ask("ACL", "SETUSER", "test", "on", ">secret", "+@all", "allchannels")
        await sentinel.ask(*acl("sentinel", without="+slaveof"))
        await sentinel.ask("SENTINEL", "CONFIG", "SET", "sentinel-user", "sentinel")
        await sentinel.ask("SENTINEL", "CONFIG", "SET", "sentinel-pass", "secret")
    for sentinel in group.sentinels:
        await sentinel.ask(*acl("default"))
        sentinel.address = replace(sentinel.address, user="test", password="secret")
        await sentinel.ask("CLIENT", "KILL", "USER", "default")
        await sentinel.ask("ACL", "LOG", "RESET")
    await (await group.primary()).ask("CLIENT", "KILL", "TYPE", "replica")
    await group.is_whole()


async def test_sentinel_group() -> None:
    """Behind sentinels with users of their own, and after a failover."""
    group = SentinelGroup()
    workers = Workers(group)
    try:
        await group.start()
        await let_sentinels_log_in(group)
        address = replace(group.address, user="proxy", password="secret", sentinel_password="secret")
        store = await workers.one(address=address, life_s=LIFE_S, timeout_s=1.0)
        held = await exercise(workers, store)
        old = await group.primary()
        clients = (await old.ask("CLIENT", "LIST")).decode().splitlines()
        assert {"user=sentinel", "user=replica"} <= {word for line in clients for word in line.split()}
        assert all("user=sentinel" in line for line in clients if "name=sentinel-" in line)
        assert await was_denied(group.members) == []
        old.kill()

        async def is_another() -> bool:
            return await group.primary() is not old

        await comes_true(is_another)
        await passes(lambda: store.problem() is None)
        assert await attempt(store, user(PLAN)) == "too_many_streams"
        assert await reserved(store) == 20
        for admission in held:
            admission.settle(Amounts(1))
        await holds(group, 0)
        assert [state.used for state in await store.limits(user(PLAN))] == [1, 2, 2]
        running = [member for member in group.members if member is not old]
        assert await was_denied(running) == []
    finally:
        await workers.close()
        group.close()


async def test_cluster() -> None:
    """On a Cluster, while slots move, and after a node lost everything."""
    cluster = Cluster()
    workers = Workers(cluster)
    words = acl("proxy", with_="+asking")
    try:
        await cluster.start()
        for member in cluster.members:
            await member.ask(*words)
        store = await workers.one(address=replace(cluster.address, user="proxy", password="secret"), life_s=LIFE_S)
        held = await exercise(workers, store)
        account = store._accounts.get(user(PLAN))
        source = await cluster.owner(account.slot)
        target = next(member for member in cluster.members if member is not source)
        held[0].release()
        await cluster.begin_move(account.slot, source, target)
        await cluster.move_keys(account.slot, source, target)
        held[0] = await store.admit(user(PLAN))
        await cluster.end_move(account.slot, target)
        await store.reserve(held[0], Amounts(30))
        assert await reserved(store) == 40
        assert await attempt(store, user(PLAN)) == "too_many_streams"
        await come_back_empty(workers, target)
        assert await reserved(store) == 40
        assert workers.changes[0] == f"127.0.0.1:{target.port}: {EMPTY}"
        for admission in held:
            admission.release()
        await holds(cluster, 0)
        assert (await store.admit(user(PLAN))).standing.rates[0].remaining == QUOTA - 3
        assert await was_denied(cluster.members) == []
        assert await unused(words, cluster.members) == set()
    finally:
        await workers.close()
        cluster.close()
