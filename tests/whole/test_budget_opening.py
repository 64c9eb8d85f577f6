"""A budget's period goes on from the ledger: neither a restart nor an emptied limits server begins it anew."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, WAIT_S, chunk, request
from tests.whole.several import with_store
from tests.whole.test_usage_whole import CONFIG, PATHS, read_rows, sse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Running
    from tests.limits.redis_support import RedisServer
    from tests.peers import Message, Upstream

BODY = {"model": "my-model", "stream": True, "max_tokens": 10, "messages": []}
USED_UP = (
    CONFIG.replace("DIALECT", "openai").replace("IDLE", "30s").replace("tokens: 1000000, every", "tokens: 60, every")
)


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the ledger's relative path leads."""
    monkeypatch.chdir(tmp_path)


async def use_up(proxy: Running, upstream: Upstream) -> None:
    """Take more tokens than the budget has, in one stream; returns once the row is in the file."""
    client = await proxy.client()
    client.write(request(PATHS["openai"], BODY, token=token()))
    vendor, _ = await upstream.take()
    usage = {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 50}}
    vendor.write(STREAM_HEAD + chunk(sse(usage)) + LAST)
    await client.read_until(LAST)
    async with asyncio.timeout(WAIT_S):
        while not read_rows():  # noqa: ASYNC110 - the ledger's own thread writes to a file
            await asyncio.sleep(0.005)


async def ask(proxy: Running) -> Message:
    client = await proxy.client()
    client.write(request(PATHS["openai"], BODY, token=token()))
    return await client.read_message()


def check_refused(answer: Message) -> None:
    assert (answer.status, answer.get("x-forward-sse-code")) == (429, "insufficient_quota")
    assert answer.get("x-ratelimit-remaining-tokens") == "0"


async def test_restart(start: Callable[..., Any], upstream: Upstream) -> None:
    """A service that starts anew, with its counts in memory, knows what was used of the month."""
    first = await start(config=USED_UP)
    await use_up(first, upstream)
    await first.close()
    second = await start(config=USED_UP)
    check_refused(await ask(second))


async def test_emptied_limits_server(start: Callable[..., Any], upstream: Upstream, store: RedisServer) -> None:
    """A limits server that has lost everything, asked by a worker that has never heard of the user, knows it again."""
    more = with_store(store.url, "deny")
    first = await start(more, config=USED_UP)
    await use_up(first, upstream)
    check_refused(await ask(first))
    await first.close()
    await store.ask("FLUSHALL")
    second = await start(more, config=USED_UP)
    check_refused(await ask(second))
