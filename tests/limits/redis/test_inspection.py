"""What a limits server tells of itself, and what it does where its user may not be told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from proxy.limits.redis import RedisAddress, StoreError, inspect
from tests.limits.redis_groups import Cluster, SentinelGroup, running
from tests.limits.redis_support import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    one = RedisServer("--maxmemory-policy", "allkeys-lru")
    await one.start()
    yield one
    one.close()


async def test_inspect(server: RedisServer) -> None:
    """Version, policy, and how long an answer takes."""
    (facts,) = await inspect(server.address)

    assert facts.name == server.path
    assert facts.version is not None
    assert facts.policy == "allkeys-lru"
    assert facts.answer_s > 0


async def test_inspect_with_few_rights(server: RedisServer) -> None:
    """A user who may only ping learns how fast it is, and nothing else."""
    await server.ask("ACL", "SETUSER", "few", "on", ">secret", "+ping")
    (facts,) = await inspect(replace(server.address, user="few", password="secret"))

    assert (facts.version, facts.policy) == (None, None)
    assert facts.answer_s > 0


async def test_inspect_absent() -> None:
    """A server that is not there is an error."""
    with pytest.raises(StoreError):
        await inspect(RedisAddress(nodes=(("127.0.0.1", 1),)))


async def test_inspect_groups() -> None:
    """Of a Sentinel group the primary is asked, of a Cluster every node that the address has."""
    async with running(SentinelGroup()) as group:
        (facts,) = await inspect(group.address)
        assert facts.version is not None
    async with running(Cluster()) as cluster:
        nodes = await inspect(cluster.address)
        assert [facts.name for facts in nodes] == [f"{host}:{port}" for host, port in cluster.address.nodes]
        assert all(facts.policy == "noeviction" for facts in nodes)
