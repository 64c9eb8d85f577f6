"""A budget over a restart: what the ledger knows of a running period is charged to it before anything is admitted."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from proxy.limits.memory import MemoryStore
from tests.conftest import token
from tests.peers import request
from tests.whole.several import with_store
from tests.whole.token_scenes import TOOK, begin, complete, left, refused, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Running
    from tests.limits.redis_support import RedisServer
    from tests.peers import Upstream

LEDGER = 'usage: {ledger: "sqlite:///ledger.db"}\n'
PLANS = {
    "tokens": "{budgets: [{tokens: 200, every: month}]}",
    "dollars": "{budgets: [{usd: 0.001, every: month}]}",
}


@pytest.fixture(autouse=True)
def _ledger_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


async def ended(proxy: Running) -> None:
    """The proxy has ended in order: its rows are in the ledger."""
    await proxy.server.close()


@pytest.mark.parametrize("unit", PLANS)
async def test_restart(start: Callable[..., Any], upstream: Upstream, unit: str) -> None:
    """Who had used up a budget before a restart is refused after it, in the first request."""
    proxy = await run(start, "openai", PLANS[unit], LEDGER)
    await complete(proxy, upstream, "openai")
    await ended(proxy)

    proxy = await run(start, "openai", PLANS[unit], LEDGER)

    answer = await refused(proxy, "openai")
    assert (answer.status, answer.get("x-forward-sse-code")) == (429, "insufficient_quota")


async def test_restart_as_the_user_is_told(start: Callable[..., Any], upstream: Upstream) -> None:
    """After a restart a user's own usage tells what the budget has left, though nothing was asked yet."""
    proxy = await run(start, "openai", PLANS["tokens"], LEDGER)
    await complete(proxy, upstream, "openai")
    await ended(proxy)

    proxy = await run(start, "openai", PLANS["tokens"], LEDGER)
    client = await proxy.client()
    client.write(request("/forward-sse/usage", method="GET", token=token()))

    (limit,) = orjson.loads((await client.read_message()).body)["limits"]
    assert (limit["used"], limit["limit"]) == (TOOK, 200)


async def test_ledger_that_cannot_be_read_at_first(start: Callable[..., Any], upstream: Upstream) -> None:
    """A ledger that does not answer refuses nobody, and is believed as soon as it does: its silence is not nothing."""
    plan = "{budgets: [{tokens: 1000, every: month}]}"
    proxy = await run(start, "openai", plan, LEDGER)
    await complete(proxy, upstream, "openai", max_tokens=50)
    await ended(proxy)
    proxy = await run(start, "openai", plan, LEDGER)
    store = proxy.service.store
    assert isinstance(store, MemoryStore)
    store._openings._now = lambda: 0.0
    with closing(sqlite3.connect("ledger.db", isolation_level=None)) as other:
        other.execute("ALTER TABLE days RENAME TO elsewhere")
        client, vendor, head = await begin(proxy, upstream, "openai", max_tokens=50)
        assert head.status == 200
        await client.gone()
        await vendor.gone()
        await proxy.idle()
        other.execute("ALTER TABLE elsewhere RENAME TO days")
    before = await left(proxy)
    assert before > 1000 - TOOK
    store._openings._now = lambda: 6.0

    await complete(proxy, upstream, "openai", max_tokens=50)

    assert await left(proxy) < 1000 - 2 * TOOK + 1


async def test_emptied_limits_server(start: Callable[..., Any], upstream: Upstream, store: RedisServer) -> None:
    """A limits server that has lost everything, asked by a new worker, knows it again."""
    more = LEDGER + with_store(store.url, "deny")
    proxy = await run(start, "openai", PLANS["tokens"], more)
    await complete(proxy, upstream, "openai")
    await ended(proxy)
    await store.ask("FLUSHALL")

    proxy = await run(start, "openai", PLANS["tokens"], more)

    answer = await refused(proxy, "openai")
    assert (answer.status, answer.get("x-forward-sse-code")) == (429, "insufficient_quota")
