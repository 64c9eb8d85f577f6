"""The ledger against a vendor that counts what it generates, while everything is killed in between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import orjson

from tests.conftest import SECRET
from tests.usage.counting_vendor import CountingVendor, Load
from tests.whole.nodes import node
from tests.whole.several import with_store
from tests.whole.test_usage_counted import check_counted

if TYPE_CHECKING:
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


async def test_rows_agree_with_the_vendor(tmp_path: Path, store: RedisServer) -> None:
    """Of 2,000 streams while workers are killed: one row each, as the vendor counted; the log completes the rest."""
    path = tmp_path / "ledger.db"
    kills = 0
    async with CountingVendor() as vendor:
        text = f"{CONFIG}usage: {{ledger: 'sqlite:///{path}'}}\n{vendor.upstreams}{with_store(store.url)}"
        async with node(tmp_path / "proxy.yaml", text) as one:

            def kill(done: int) -> None:
                nonlocal kills
                if done in {500, 1000, 1500}:
                    kills += kill_worker(one)

            load = Load(lambda: f"http://{one.address[0]}:{one.address[1]}", seed=11)
            await load.run(STREAMS, at_once=AT_ONCE, after=kill)
            await one.quiet()
        lines = {line["id"]: line for line in one.lines if line["event"] == "exchange.settled" and "row_id" in line}
    assert kills == 3
    # What was running in a worker that was killed has neither a line nor a row.
    lost = vendor.generated.keys() - lines.keys()
    assert len(lost) <= kills * AT_ONCE
    before = len(read_rows(path))
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in one.lines))
    await run("usage", "import", str(log), "--config", str(tmp_path / "proxy.yaml"))
    rows = read_rows(path)
    # A kill loses at most the rows of the last 50 ms.
    assert len(rows) - before <= kills * AT_ONCE
    assert {row["row_id"] for row in rows} >= {line["row_id"] for line in lines.values()}
    assert not vendor.twice
    check_counted(rows, vendor.generated, load.asked, lost)


def kill_worker(one: Node) -> int:
    """End one of the workers that serve now, as a crash would; say how many were ended."""
    started = [line["pid"] for line in one.lines if line["event"] == "worker.started"]
    for pid in reversed(started):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return 1
    return 0


def read_rows(path: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM exchanges")]


async def run(*words: str) -> str:
    """Run a command, which has to succeed, and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", *words, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    return printed.decode()
