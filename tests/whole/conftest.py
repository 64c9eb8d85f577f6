"""Fixtures of the tests on whole services."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.mock.server import MockVendor
from tests.limits.redis_support import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def vendor() -> AsyncIterator[MockVendor]:
    """The offline vendor."""
    async with MockVendor() as vendor:
        yield vendor


@pytest.fixture
async def store() -> AsyncIterator[RedisServer]:
    """A limits server that runs."""
    server = RedisServer()
    await server.start()
    yield server
    server.close()
