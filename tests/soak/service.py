"""The service under a soak: the real command, its log in a file, its workers found by what they say."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from tests.peers import connect, request
from tests.whole.nodes import total
from tests.whole.several import SERVE, address_of
from tests.whole.test_admin_whole import samples

if TYPE_CHECKING:
    from pathlib import Path

START_S, QUIET_S, STOP_S = 30.0, 90.0, 90.0


class Service:
    """One service; `pids` are its workers by name, those that live now."""

    def __init__(self, room: Path, text: str, workers: int) -> None:
        self.room = room
        self.text = text
        self.workers = workers
        self.config = room / "proxy.yaml"
        self.log = room / "log.jsonl"
        self.pids: dict[str, int] = {}
        self.all_pids: set[int] = set()
        self._names: dict[int, str] = {}
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, and wait until all of it serves."""
        self.config.write_text(self.text)
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, *SERVE, "--config", str(self.config), "--workers", str(self.workers)), stdout=log
            )
        self._started: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._following = asyncio.create_task(self._follow())
        async with asyncio.timeout(START_S):
            started = await self._started
            while self.workers > 1 and len(self.pids) < self.workers:  # noqa: ASYNC110 - the follower finds them
                await asyncio.sleep(0.05)
        self.address, self.admin_address = address_of(started["listen"]), address_of(started["admin_listen"])
        self._learn("main" if self.workers == 1 else "arbiter", self._process.pid)
        if self.workers == 1:
            self.pids = {"main": self._process.pid}

    def signal(self, number: signal.Signals) -> None:
        """To the process that was started."""
        self._process.send_signal(number)

    def names(self) -> dict[int, str]:
        """Every process there was, by its id."""
        return self._names

    async def stop(self) -> int | None:
        """Drain, and give the exit code; whoever is still there after long is killed."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
        if self._following is not None:
            self._following.cancel()
        return self._process.returncode

    async def metrics(self) -> dict[str, float]:
        """A scrape."""
        return samples((await self._get("/metrics")).decode())

    async def streams(self) -> list[Any]:
        """The live streams."""
        found: list[Any] = json.loads(await self._get("/admin/streams"))["streams"]
        return found

    async def quiet(self) -> dict[str, float]:
        """Scrape until nothing runs any more; what is still running after long is in the scrape."""
        until_s = time.monotonic() + QUIET_S
        while True:
            scraped = await self.metrics()
            is_whole = not scraped.get('forward_sse_workers{state="silent"}')
            running = total(scraped, "active_streams") + total(scraped, "connections", 'state="active"')
            if (is_whole and not running) or time.monotonic() > until_s:
                return scraped
            await asyncio.sleep(0.2)

    async def _get(self, path: str) -> bytes:
        async with await connect(self.admin_address) as admin:
            admin.write(request(path, method="GET"))
            return (await admin.read_message()).body

    async def _follow(self) -> None:
        """Learn from the log who serves."""
        with self.log.open("rb") as log:
            rest = b""
            while True:
                *lines, rest = (rest + log.read(1 << 20)).split(b"\n")
                for raw in lines:
                    # The few that matter here are told by their bytes: the rest is read when all is over.
                    if b'"worker.started"' in raw:
                        line = json.loads(raw)
                        self.pids[line["worker"]] = line["pid"]
                        self._learn(f"worker {line['worker'].rpartition('-')[2]}", line["pid"])
                    elif b'"server.started"' in raw:
                        self._started.set_result(json.loads(raw))
                if not lines:
                    await asyncio.sleep(0.1)
                else:
                    await asyncio.sleep(0)

    def _learn(self, name: str, pid: int) -> None:
        self.all_pids.add(pid)
        self._names[pid] = name
