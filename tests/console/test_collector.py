"""A worker's look at its running exchanges: how often, in slices, and what is forgotten."""

from __future__ import annotations

import asyncio
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.console import Choice, Collector
from proxy.exchange.settle import NOTHING_TAKEN


class Exchange(SimpleNamespace):
    """As much of an exchange as is looked at."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # a namespace has none, an exchange that of its identity

    def __init__(self, id_: str) -> None:
        super().__init__(
            id=id_,
            started_s=0.0,
            principal=None,
            upstream=None,
            response=None,
            transport=None,
            attempts=[],
            task=object(),
            reckoning=SimpleNamespace(shown=lambda: NOTHING_TAKEN),
        )


class Exchanges:
    """Those that run, with as many events as a test says."""

    def __init__(self, count: int) -> None:
        self.running = [Exchange(f"id-{number}") for number in range(count)]
        self.events = 0
        self.looks = 0

    def live(self) -> list[tuple[Exchange, int, int]]:
        self.looks += 1
        return [(exchange, 0, self.events) for exchange in self.running]


class Stand:
    """A collector with a clock that a test moves."""

    def __init__(self, count: int) -> None:
        self.now_s = 100.0
        self.exchanges = Exchanges(count)
        fake: Any = self.exchanges
        self.collector = Collector(fake, now=lambda: self.now_s, report=dict)

    async def rows(self) -> list[dict[str, Any]]:
        part = await self.collector.part([Choice()])
        assert part["streams"] == part["chosen"][0]["sums"]["count"]
        rows: list[dict[str, Any]] = part["chosen"][0]["rows"]
        return rows


async def test_collector_looks_once_a_second() -> None:
    """Whoever asks again within the second is shown the same; a later look knows the stream again, and its rate."""
    stand = Stand(1)
    (first,) = await stand.rows()
    stand.exchanges.events = 30
    stand.now_s += 0.5
    assert await stand.rows() == [first]
    assert stand.exchanges.looks == 1
    stand.now_s += 1.5
    (later,) = await stand.rows()
    assert stand.exchanges.looks == 2
    assert (first["events_per_s"], later["events_per_s"]) == (None, 15.0)
    assert (later["key"], later["started_ms"]) == (first["key"], first["started_ms"])
    await stand.collector.close()


async def test_collector_lets_others_run() -> None:
    """Many streams are looked at in slices; one that ends meanwhile is left out; equal ids have keys of their own."""
    stand = Stand(350)
    for exchange in stand.exchanges.running:
        exchange.id = "same"
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            # The last one has not been looked at yet.
            stand.exchanges.running[-1].task = None
            await asyncio.sleep(0)

    running = asyncio.create_task(others())
    rows = await stand.rows()
    running.cancel()
    await asyncio.wait([running])
    assert turns > 3
    assert len({row["key"] for row in rows}) == 349
    await stand.collector.close()


async def test_collector_tells_a_defect() -> None:
    """A look that fails is not taken for one that saw nothing."""
    stand = Stand(1)
    del stand.exchanges.running[0].attempts
    with pytest.raises(AttributeError):
        await stand.rows()
    await stand.collector.close()


async def test_collector_forgets() -> None:
    """After its end nothing holds an exchange that was seen."""
    stand = Stand(1)
    await stand.rows()
    seen = weakref.ref(stand.exchanges.running.pop())
    assert seen() is not None
    await stand.collector.close()
    assert seen() is None
