"""The ledger against a vendor that counts what it generates, while everything is killed in between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

import orjson
import psycopg
import pytest

from tests.conftest import SECRET
from tests.peers import WAIT_S
from tests.postgres import PostgresServer
from tests.usage.counting_vendor import CountingVendor, Load
from tests.whole.nodes import node, total
from tests.whole.several import with_store
from tests.whole.test_usage_counted import check_counted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.limits.redis_support import RedisServer
    from tests.whole.nodes import Node

CONFIG = f"""
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
auth:
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{SECRET}"}}
plans: {{default: {{budgets: [{{tokens: 1000000000, every: month}}]}}}}
"""
STREAMS = 2000
AT_ONCE = 32


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """A ledger of each kind."""
    if request.param == "sqlite":
        yield SqliteLedger(tmp_path)
    else:
        server = PostgresServer()
        try:
            server.start()
            yield PostgresLedger(server)
        finally:
            server.close()


class Ledger(Protocol):
    """What the test does with a ledger."""

    url: str

    def disturb(self, done: int, one: Node) -> None:
        """Kill something of it, once so many streams have ended."""

    async def rows(self) -> list[dict[str, Any]]: ...


class SqliteLedger:
    """A file has nothing of its own that could be killed."""

    def __init__(self, room: Path) -> None:
        self._path = room / "ledger.db"
        self.url = f"sqlite:///{self._path}"

    def disturb(self, done: int, one: Node) -> None: ...

    async def rows(self) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self._path)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute("SELECT * FROM exchanges")]


class PostgresLedger:
    """Its shipper is killed three times, and the server once, for a fifth of the streams."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._starting: asyncio.Task[None] | None = None
        self.url = server.url
        self.killed = 0

    def disturb(self, done: int, one: Node) -> None:
        if done in {300, 900, 1400}:
            self.killed += kill_shipper(one)
        elif done == 700:
            self._server.kill()
        elif done == 1100:
            self._starting = asyncio.create_task(asyncio.to_thread(self._server.start))

    async def rows(self) -> list[dict[str, Any]]:
        assert self._starting is not None
        await self._starting
        assert self.killed
        with psycopg.connect(self.url, row_factory=psycopg.rows.dict_row) as database:
            return database.execute("SELECT * FROM exchanges").fetchall()


async def test_rows_agree_with_the_vendor(tmp_path: Path, store: RedisServer, ledger: Ledger) -> None:
    """Of 2,000 streams while all is killed: one row each, as the vendor counted; the log completes what is missing."""
    kills = 0
    async with CountingVendor() as vendor:
        usage = f"usage: {{ledger: '{ledger.url}', spool: '{tmp_path}'}}\n"
        text = f"{CONFIG}{usage}{vendor.upstreams}{with_store(store.url)}"
        async with node(tmp_path / "proxy.yaml", text) as one:

            def kill(done: int) -> None:
                nonlocal kills
                if done in {500, 1000, 1500}:
                    kills += kill_worker(one)
                ledger.disturb(done, one)

            load = Load(lambda: f"http://{one.address[0]}:{one.address[1]}", seed=11)
            await load.run(STREAMS, at_once=AT_ONCE, after=kill)
            await one.quiet()
            async with asyncio.timeout(WAIT_S * 2):
                while total(await one.metrics(), "ledger_rows_waiting"):  # noqa: ASYNC110 - no event tells of it
                    await asyncio.sleep(0.1)
        lines = {line["id"]: line for line in one.lines if line["event"] == "exchange.settled" and "row_id" in line}
    assert kills == 3
    # What was running in a worker that was killed has neither a line nor a row.
    lost = vendor.generated.keys() - lines.keys()
    assert len(lost) <= kills * AT_ONCE
    before = len(await ledger.rows())
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in one.lines))
    await run("usage", "import", str(log), "--config", str(tmp_path / "proxy.yaml"))
    rows = await ledger.rows()
    # A kill loses at most the rows of the last 50 ms.
    assert len(rows) - before <= kills * AT_ONCE
    assert {row["row_id"] for row in rows} >= {line["row_id"] for line in lines.values()}
    assert not vendor.twice
    check_counted(rows, vendor.generated, load.asked, lost)
    sums = orjson.loads(await run("usage", "--config", str(tmp_path / "proxy.yaml"), "--format", "json"))
    assert sum(one["requests"] for one in sums["rows"]) == len(rows)
    assert sum(one["output_tokens"] for one in sums["rows"]) == sum(row["output_tokens"] for row in rows)


def kill_worker(one: Node) -> int:
    """End one of the workers that serve now, as a crash would; say how many were ended."""
    started = [line["pid"] for line in one.lines if line["event"] == "worker.started"]
    for pid in reversed(started):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return 1
    return 0


def kill_shipper(one: Node) -> int:
    """End the process that ships rows, whichever worker keeps it; say how many were ended."""
    workers = [str(line["pid"]) for line in one.lines if line["event"] == "worker.started"]
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", ",".join(workers)], capture_output=True, check=False)
    pids = [int(pid) for pid in listed.stdout.split()]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


async def run(*words: str) -> str:
    """Run a command, which has to succeed, and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", *words, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    return printed.decode()
