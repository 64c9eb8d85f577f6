"""The feed: what each console is told, at its own pace."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.console import Choice, Feed, Parts
from proxy.console import feed as module
from proxy.errors import DrainingError, TooManyConsolesError
from tests.console.made_up import MadeUp, made_up
from tests.peers import WAIT_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.console.feed import Console


async def name_of_next(console: Console) -> str:
    async with asyncio.timeout(WAIT_S):
        told = await console.next()
    assert told is not None
    return told.partition(b"\n")[0].decode()


async def test_feed_each_at_its_own_pace() -> None:
    """A console that has missed a picture is told the whole next one; others are told what has changed."""
    feed = Feed(MadeUp([made_up(1)]))
    with feed.open(Choice()) as quick, feed.open(Choice()) as slow:
        assert await name_of_next(quick) == "event: snapshot"
        assert await name_of_next(slow) == "event: snapshot"
        for _ in range(2):
            assert await name_of_next(quick) == "event: delta"
        assert await name_of_next(slow) == "event: snapshot"
        assert await name_of_next(slow) == "event: delta"
    await feed.close()


async def test_feed_heartbeat() -> None:
    """While workers do not answer, a comment shows that the connection is alive."""
    asked = asyncio.Event()

    class Stuck(MadeUp):
        async def console(self, choices: Sequence[Choice]) -> Parts:
            asked.set()
            await asyncio.Event().wait()
            return await super().console(choices)

    feed = Feed(Stuck([]))
    feed.heartbeat_s = 0.05
    with feed.open(Choice()) as console:
        assert await console.next() == b": waiting\n\n"
        assert asked.is_set()
    await feed.close()


async def test_feed_is_bounded() -> None:
    """There are so many places, each of them free again once its console has left, however often that is said."""
    feed = Feed(MadeUp([]))
    consoles = [feed.open(Choice(text=str(number))) for number in range(module.MAX_CONSOLES)]
    with pytest.raises(TooManyConsolesError):
        feed.open(Choice())
    feed.leave(consoles[0])
    feed.leave(consoles[0])
    consoles[0] = feed.open(Choice())
    assert feed.consoles == module.MAX_CONSOLES
    for console in consoles:
        feed.leave(console)
    assert feed.consoles == 0
    await feed.close()
    with pytest.raises(DrainingError):
        feed.open(Choice())


async def test_feed_leaves_nothing_behind() -> None:
    """Once the last console has left, no task of the feed runs."""
    feed = Feed(MadeUp([made_up(1)]))
    before = asyncio.all_tasks()
    with feed.open(Choice()) as console:
        await name_of_next(console)
        running = asyncio.all_tasks() - before
        assert running
    async with asyncio.timeout(WAIT_S):
        await asyncio.wait(running)
    assert asyncio.all_tasks() == before
