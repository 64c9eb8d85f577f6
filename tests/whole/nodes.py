"""Nodes: services on real processes with a real limits server and an offline vendor, whose log is read as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.conftest import CONFIG, SECRET, VENDOR_KEY
from tests.peers import WAIT_S, Message, connect, request
from tests.stopwatch import Stopwatch
from tests.whole.several import HURRY, SERVE_PATIENTLY, Several, address_of, with_store

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

    from proxy.mock.server import MockVendor
    from tests.peers import Upstream

BODY = {"model": "gpt-x", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
# A request that the offline vendor answers at once, in one event.
SHORT = "/mock/v1/chat/completions?events=1"
# One that it answers with an event, and then nothing for longer than any test.
SILENT = "/mock/v1/chat/completions?events=2&interval_ms=600000"


class Asked(NamedTuple):
    """How a request went."""

    status: int
    code: str | None
    # By a stopwatch that stands still while the machine does.
    took_s: float


class Node(Several):
    """A service whose lines are read by a task of its own."""

    def __init__(self, process: Process, config: Path) -> None:
        super().__init__(process, config)
        self._grown = asyncio.Condition()
        self._reading: asyncio.Task[None] | None = None

    def read_on(self) -> None:
        """Read everything that is still to come."""
        self._reading = asyncio.create_task(self._read())

    def all(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The lines so far of that event, with those fields."""
        return [line for line in self.lines if line["event"] == event and fields.items() <= line.items()]

    async def said(self, event: str, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """The lines of that event with those fields, once there are so many."""
        async with asyncio.timeout(WAIT_S * 2), self._grown:
            await self._grown.wait_for(lambda: len(self.all(event, **fields)) >= count)
        return self.all(event, **fields)

    async def read_to_end(self) -> list[dict[str, Any]]:
        """Every line there will be."""
        assert self._reading is not None
        await self._reading
        return self.lines

    async def post(self, credential: str, path: str = SHORT, fields: tuple[tuple[str, str], ...] = ()) -> Asked:
        """Ask on a connection of its own, and read the whole answer."""
        with Stopwatch() as watch:
            async with await connect(self.address) as client:
                client.write(request(path, BODY, token=credential, fields=fields))
                # Who leaves between head and end is another ending.
                answer = await client.read_message()
                return Asked(answer.status, answer.get("x-forward-sse-code"), watch.elapsed_s)

    async def quiet(self) -> dict[str, float]:
        """Scrape until no stream runs and no connection to an upstream is in use."""
        async with asyncio.timeout(WAIT_S * 2):
            while True:
                scraped = await self.metrics()
                # A worker that was too busy to answer is missing in all sums.
                is_whole = not scraped.get('forward_sse_workers{state="silent"}')
                if is_whole and not total(scraped, "active_streams") + total(scraped, "connections", 'state="active"'):
                    return scraped
                await asyncio.sleep(0.02)

    async def readiness(self) -> Message:
        return await self.ask("/readyz")

    def kill_all(self) -> None:
        """End every process at once, as a machine that is lost."""
        for pid in (self.process.pid, *self.pids.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            self.lines.append(json.loads(raw))
            async with self._grown:
                self._grown.notify_all()


def configuration(vendor: MockVendor, upstream: Upstream, more: str, store: str, policy: str) -> str:
    """Two upstreams: `main` is scripted by the test, `mock` is the offline vendor."""
    text = CONFIG.format(secret=SECRET, url=upstream.url, key=VENDOR_KEY)
    mock = f"  mock: {{url: 'http://127.0.0.1:{vendor.port}', dialect: openai, api_key: mock-key}}\n"
    text = text.replace("default_upstream:", f"{mock}default_upstream:")
    return text + more + (with_store(store, policy) if store != "memory" else "")


@asynccontextmanager
async def node(
    config: Path, text: str, *, workers: int = 2, command: tuple[str, ...] = (sys.executable, *SERVE_PATIENTLY)
) -> AsyncIterator[Node]:
    """A node by that configuration; every process of it has ended when this is left."""
    config.write_text(text)  # noqa: ASYNC240 - a few lines
    process = await asyncio.create_subprocess_exec(
        *(*command, "--config", str(config), "--workers", str(workers)), stdout=asyncio.subprocess.PIPE
    )
    one = Node(process, config)
    try:
        if workers > 1:
            await one.up()
        else:
            started = await one.line("server.started")
            one.address, one.admin_address = (address_of(started[key]) for key in ("listen", "admin_listen"))
            one.pids = {"": process.pid}
        one.read_on()
        yield one
    finally:
        for number in HURRY:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
        try:
            async with asyncio.timeout(WAIT_S):
                await process.wait()
                if one._reading is not None:
                    await one._reading
        finally:
            one.kill_all()


def total(scraped: dict[str, float], *parts: str) -> float:
    """The sum of all figures with these in their names and labels."""
    return sum(value for name, value in scraped.items() if all(part in name for part in parts))


def descriptors(pid: int) -> list[str]:
    """What a process has open."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return sorted(found)


def used_cpu_s(pid: int) -> float:
    """The CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
