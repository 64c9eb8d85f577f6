"""Three vendors, and services over them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from tests.failover.vendors import Vendor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def vendors() -> AsyncIterator[list[Vendor]]:
    """The vendors a, b and c."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Vendor(name)) for name in "abc"]
