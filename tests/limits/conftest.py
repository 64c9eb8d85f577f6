"""Fixtures of the shared limits store: a server, and workers on it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.limits.redis_support import RedisServer, Workers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    """A Redis server that runs."""
    server = RedisServer()
    await server.start()
    yield server
    server.close()


@pytest.fixture
async def workers(server: RedisServer) -> AsyncIterator[Workers[RedisServer]]:
    """Stores on the server."""
    workers = Workers(server)
    yield workers
    await workers.close()


@pytest.fixture(scope="module")
def one_server() -> Iterator[RedisServer]:
    """A server for many examples."""
    server = RedisServer()
    asyncio.run(server.start())
    yield server
    server.close()
