"""A reader of the console's event stream that puts its events together as the page does."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.peers import WAIT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Watching:
    """What one reader has been told so far."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.names: list[str] = []
        self.last: dict[str, Any] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.members: dict[str, Any] = {}

    @property
    def by_id(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in self.rows.values()}

    async def next(self) -> str | None:
        """Read one event and merge it; its name, None at the end of the stream."""
        name, data = "", ""
        async with asyncio.timeout(WAIT_S):
            async for raw in self.response.content:
                line = raw.decode().rstrip("\n")
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data = line.removeprefix("data: ")
                elif not line and data:
                    self._merge(name, json.loads(data))
                    return name
        return None

    async def end(self) -> None:
        """Read to the end of the stream."""
        while await self.next() is not None:
            pass

    async def until(self, condition: Callable[[Watching], bool]) -> None:
        """Read until it is so."""
        async with asyncio.timeout(WAIT_S):
            while not condition(self):
                assert await self.next() is not None, "the stream has ended"

    def _merge(self, name: str, told: dict[str, Any]) -> None:
        self.names.append(name)
        self.last = dict(told)
        rows, gone = told.pop("streams", []), told.pop("gone", [])
        if name == "snapshot":
            self.rows, self.members = {}, {}
        for key in gone:
            del self.rows[key]
        for row in rows:
            self.rows.setdefault(row["key"], {}).update(row)
        self.members |= told


@asynccontextmanager
async def watch(address: tuple[str, int], query: str = "", *fields: tuple[str, str]) -> AsyncIterator[Watching]:
    """Connect as a console does, without a browser."""
    host, port = address
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(timeout=timeout, read_bufsize=2**22) as session,
        session.get(f"http://{host}:{port}/admin/events{query}", headers=fields) as response,
    ):
        assert response.status == 200, await response.text()
        yield Watching(response)
