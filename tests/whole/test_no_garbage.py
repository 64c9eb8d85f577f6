"""What an exchange leaves behind in memory."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest

from proxy.exchange import Exchange
from proxy.relay import RelayResponse
from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, chunk, event, request
from tests.whole.nodes import BODY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.peers import Upstream


def in_memory() -> set[int]:
    """Which exchanges and answers the garbage collector knows of, tests before this one left theirs as well."""
    return {id(found) for found in gc.get_objects() if isinstance(found, Exchange | RelayResponse)}


@pytest.mark.parametrize("ending", ["client_closed", "complete"])
async def test_ended_stream_is_freed_at_once(start: Callable[..., Any], upstream: Upstream, ending: str) -> None:
    """A stream that has ended is freed at once: thousands in the garbage collector would hold the loop."""
    proxy = await start("")
    gc.collect()
    gc.disable()
    before = in_memory()
    try:
        client = await proxy.client()
        client.write(request(body=BODY, token=token()))
        vendor, _ = await upstream.take()
        vendor.write(STREAM_HEAD + chunk(event("one")) + (LAST if ending == "complete" else b""))
        await client.read_until(LAST if ending == "complete" else event("one"))
        await client.gone()
        assert [line["ending"] for line in await proxy.settled()] == [ending]
        assert in_memory() - before == set()
    finally:
        gc.enable()
