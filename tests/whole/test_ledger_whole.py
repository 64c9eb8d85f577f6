"""The ledger of a whole service: a row for each line of a user's exchange, whatever happens to process or disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from proxy.app import make_app
from proxy.ledger import Query
from proxy.ledger.file import LedgerFile
from proxy.ledger.log_lines import read_line
from proxy.ledger.sqlite import read
from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, WAIT_S, chunk, event, request
from tests.settings_builder import settings
from tests.whole.nodes import BODY, SILENT, configuration, node
from tests.whole.several import ONCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from aiohttp.test_utils import TestClient

    from proxy.ledger import Row
    from proxy.mock.server import MockVendor
    from tests.limits.redis_support import RedisServer
    from tests.peers import Upstream
    from tests.whole.nodes import Node

linux = pytest.mark.skipif(sys.platform != "linux", reason="the arbiter and prlimit are Linux's")

NO_BOUND = "plans: {default: {}}\n"
# A row is committed within 50 ms; a machine that is busy with other tests may stand still for longer than that.
LATE_S = 0.3


def with_ledger(path: Path, more: str = "") -> str:
    return f"usage: {{ledger: 'sqlite:///{path}'{more}}}\n"


def rows_of(path: Path) -> list[Row]:
    """Every row of a ledger, whose totals are of the same rows."""
    file = LedgerFile(path, has_totals=True)
    file.open()
    rows = file.read_batch(10**6)
    file.close()
    assert sum(sums.requests for sums in read(path, Query(0))) == len(rows)
    return rows


def rows_in(lines: Iterable[dict[str, Any]]) -> list[Row]:
    """The rows that these lines tell of."""
    found = (read_line(json.dumps(line).encode()) for line in lines)
    return sorted(row for row in found if row is not None)


def completed(config: Path, lines: Iterable[dict[str, Any]]) -> str:
    """What `usage import` says of these lines."""
    done = subprocess.run(
        (sys.executable, "-m", "proxy", "usage", "import", "-", "--config", str(config)),
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


async def test_row_for_every_line_of_a_user(start: Callable[..., Any], upstream: Upstream, tmp_path: Path) -> None:
    """Whoever was authenticated has a row, complete, refused or gone, equal to the line; who was not has none."""
    path = tmp_path / "ledger.db"
    proxy = await start(with_ledger(path) + "plans: {default: {requests: [3/1h]}}\n")
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}\n\n'
    vendor.write(ONCE + chunk(event("one")) + chunk(usage) + LAST)
    await client.read_until(LAST)
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    await vendor.gone()
    assert (await client.read_message()).status == 502
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    await client.read_until(event("one"))
    await client.gone()
    await proxy.settled(3)
    for credential, status in ((token(), 429), (None, 401)):
        client = await proxy.client()
        client.write(request(body=BODY, token=credential))
        assert (await client.read_message()).status == status
    lines = await proxy.settled(5)
    await proxy.server.close()

    rows = rows_of(path)
    assert [row.ending for row in rows] == ["complete", "upstream_error", "client_closed", "refused"]
    assert rows == rows_in(lines)
    assert (rows[0].input_tokens, rows[0].output_tokens, rows[0].usage) == (9, 4, "reported")
    assert "row_id" not in next(line for line in lines if line["status"] == 401)


async def test_embedded(aiohttp_client: Callable[..., Any], upstream: Upstream, tmp_path: Path) -> None:
    """An application of one's own keeps a ledger, too; its last rows are written when it is cleaned up."""
    path = tmp_path / "ledger.db"
    app = make_app(settings(upstream.url, usage={"ledger": f"sqlite:///{path}"}))
    client: TestClient[Any, Any] = await aiohttp_client(app)
    answering = asyncio.create_task(
        client.post("/forward-sse", json=BODY, headers={"Authorization": f"Bearer {token()}"})
    )
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")) + LAST)
    assert await (await answering).read() == event("one")
    await client.close()
    (row,) = rows_of(path)
    assert (row.user, row.ending, row.upstream) == ("alice", "complete", "main")


async def test_reload(start: Callable[..., Any], tmp_path: Path) -> None:
    """Another ledger needs a restart, which the reload says; another retention does not."""
    proxy = await start(with_ledger(tmp_path / "ledger.db"))
    for name in ("ledger.db", "other.db"):
        usage = {"ledger": f"sqlite:///{tmp_path / name}", "retention": "80d"}
        await proxy.server.reload(settings(usage=usage))
    said: list[dict[str, Any]] = []
    async with asyncio.timeout(WAIT_S):
        # The log's own thread writes to a file; there is no event to wait for.
        while len(said) < 2:
            await asyncio.sleep(0.005)
            said = [line for line in proxy.lines() if line["event"] == "configuration.reloaded"]
    assert [line["needs_restart"] for line in said] == [[], ["usage.ledger"]]
    assert not (tmp_path / "other.db").exists()


class Load:
    """Clients that ask as fast as they are answered, until the service is gone."""

    def __init__(self, served: Node, clients: int = 4) -> None:
        self.statuses: list[int] = []
        self._served = served
        self._is_over = False
        self._asking = [asyncio.create_task(self._ask(number)) for number in range(clients)]

    async def _ask(self, number: int) -> None:
        credential = token(f"user-{number}")
        while not self._is_over:
            self.statuses.append((await self._served.post(credential)).status)

    async def until(self, count: int) -> None:
        """Go on until so many were answered."""
        async with asyncio.timeout(WAIT_S):
            while len(self.statuses) < count:  # noqa: ASYNC110 - it is the clients who count
                await asyncio.sleep(0.005)

    def kill(self) -> None:
        """Kill the service; who has not connected yet does not try any more."""
        self._is_over = True
        self._served.process.kill()

    async def stop(self) -> None:
        """Ask no more; who was cut off is no error here."""
        self._is_over = True
        await asyncio.gather(*self._asking, return_exceptions=True)


@linux
@pytest.mark.parametrize("sync", ["50ms", "each"])
async def test_killed(tmp_path: Path, vendor: MockVendor, upstream: Upstream, sync: str) -> None:
    """A process killed under load has lost no row older than promised, and doubles none; the log has the rest."""
    path = tmp_path / "ledger.db"
    text = configuration(vendor, upstream, NO_BOUND + with_ledger(path, f", sync: {sync}"), "memory", "deny")
    chance = random.Random(7)
    every: list[dict[str, Any]] = []
    for _ in range(4):
        async with node(tmp_path / "proxy.yaml", text, workers=1) as one:
            load = Load(one)
            await load.until(20)
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            load.kill()
            killed_ms = int(time.time() * 1000)
            lines = await one.read_to_end()
            await load.stop()
        assert set(load.statuses) == {200}
        every += lines
        told, found = rows_in(lines), {row.row_id for row in rows_of(path)}
        assert len(told) >= 20
        lost = [row for row in told if row.row_id not in found]
        assert [row for row in lost if row.ended_ms < killed_ms - LATE_S * 1000] == []
    lacking = len(set(rows_in(every)) - set(rows_of(path)))
    said = completed(tmp_path / "proxy.yaml", every)
    assert f"{lacking} row{'' if lacking == 1 else 's'} inserted, {len(rows_in(every)) - lacking} known already" in said
    rows = rows_of(path)
    # A row may be there whose line the log's thread had not written yet.
    assert set(rows_in(every)) <= set(rows)
    assert "0 rows inserted" in completed(tmp_path / "proxy.yaml", every)
    assert rows_of(path) == rows


@linux
async def test_workers_share_a_ledger(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, store: RedisServer
) -> None:
    """Several workers write to one file; one that is killed costs at most its last moment, which the log has."""
    path = tmp_path / "ledger.db"
    text = configuration(vendor, upstream, NO_BOUND + with_ledger(path), f"unix://{store.path}", "allow")
    async with node(tmp_path / "proxy.yaml", text, workers=3) as one:
        load = Load(one, clients=6)
        await load.until(60)
        killed = random.Random(7).choice(list(one.pids.values()))
        os.kill(killed, signal.SIGKILL)
        killed_ms = int(time.time() * 1000)
        await load.until(100)
        await load.stop()
        scraped = await one.quiet()
        assert scraped["forward_sse_ledger_errors_total"] == 0
        one.process.send_signal(signal.SIGTERM)
        lines = await one.read_to_end()
    settled = [line for line in lines if line["event"] == "exchange.settled"]
    assert len({line["worker"] for line in settled}) > 1
    found = {row.row_id for row in rows_of(path)}
    lost = [row for row in rows_in(lines) if row.row_id not in found]
    assert all(killed_ms - LATE_S * 1000 <= row.ended_ms <= killed_ms for row in lost)
    assert f" {len(lost)} row{'' if len(lost) == 1 else 's'} inserted" in completed(tmp_path / "proxy.yaml", lines)
    assert set(rows_in(lines)) <= set(rows_of(path))


@linux
async def test_full_disk(tmp_path: Path, vendor: MockVendor, upstream: Upstream) -> None:
    """While the disk takes nothing more everybody is served, which is counted and said; the rows come when it does."""
    path = tmp_path / "ledger.db"
    text = configuration(vendor, upstream, NO_BOUND + with_ledger(path), "memory", "deny")
    async with node(tmp_path / "proxy.yaml", text, workers=1) as one:
        assert (await one.post(token())).status == 200
        limits = resource.prlimit(one.process.pid, resource.RLIMIT_FSIZE)
        # No file can grow beyond its first bytes: EFBIG, which SQLite takes for an error of the disk.
        resource.prlimit(one.process.pid, resource.RLIMIT_FSIZE, (512, limits[1]))
        for _ in range(30):
            assert (await one.post(token())).status == 200
        await one.said("ledger.lost")
        scraped = await one.metrics()
        assert scraped["forward_sse_ledger_errors_total"] >= 1
        assert 1 <= scraped["forward_sse_ledger_rows_waiting"] <= 31
        resource.prlimit(one.process.pid, resource.RLIMIT_FSIZE, limits)
        await one.said("ledger.regained")
        one.process.send_signal(signal.SIGTERM)
        lines = await one.read_to_end()
    assert len(one.all("ledger.lost")) == 1
    assert rows_of(path) == rows_in(lines)
    assert len(rows_of(path)) == 31


@linux
async def test_drained_streams_have_rows(tmp_path: Path, vendor: MockVendor, upstream: Upstream) -> None:
    """A stream that the drain ends has a row as any other."""
    path = tmp_path / "ledger.db"
    more = NO_BOUND + with_ledger(path) + "drain_timeout: 1s\n"
    text = configuration(vendor, upstream, more, "memory", "deny")
    async with node(tmp_path / "proxy.yaml", text, workers=1) as one:
        assert (await one.post(token())).status == 200
        held = asyncio.create_task(one.post(token(), SILENT))
        async with asyncio.timeout(WAIT_S):
            while not (await one.ask("/admin/streams")).json["streams"]:  # noqa: ASYNC110 - it is the service that must be asked
                await asyncio.sleep(0.01)
        one.process.send_signal(signal.SIGTERM)
        lines = await one.read_to_end()
        with contextlib.suppress(Exception):
            await held
    rows = rows_of(path)
    assert [row.ending for row in rows] == ["complete", "drained"]
    assert rows == rows_in(lines)


@linux
@pytest.mark.parametrize("workers", [1, 2])
def test_unusable_file(tmp_path: Path, workers: int) -> None:
    """A file that is no ledger ends the start with one line that names it, and `check` too."""
    path, config = tmp_path / "ledger.db", tmp_path / "proxy.yaml"
    path.write_text("no database " * 100)
    config.write_text(
        "auth: none\nlisten: 127.0.0.1:0\nadmin_listen: off\n"
        "upstreams: {main: {url: 'http://127.0.0.1:1', dialect: openai, api_key: none}}\ndefault_upstream: main\n"
        f"limits: {{store: 'redis://127.0.0.1:1'}}\n{with_ledger(path)}"
    )
    words = f"usage.ledger: {path}: file is not a database\n"
    line = config.read_text().splitlines().index(with_ledger(path).splitlines()[-1]) + 1
    for command, code, said in (
        (("serve", "--workers", str(workers)), 1, f"forward-sse: cannot start: {words}"),
        (("check",), 2, f"{config}:{line}: {words}"),
    ):
        done = subprocess.run(
            (sys.executable, "-m", "proxy", *command, "--config", str(config)),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (code, said)
