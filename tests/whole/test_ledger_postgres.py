"""Whole services with a ledger in PostgreSQL: `forward-sse usage` shows what was asked, whatever fails between."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from proxy.app import make_app
from tests.conftest import token
from tests.ledger.postgres.test_postgres_ledger import arrived, is_alive, shipped
from tests.peers import LAST, STREAM_HEAD, WAIT_S, chunk, event
from tests.postgres import PASSWORD, PostgresServer, ask, started
from tests.settings_builder import settings
from tests.whole.nodes import BODY, configuration, node
from tests.whole.test_ledger_whole import NO_BOUND, completed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aiohttp.test_utils import TestClient

    from proxy.mock.server import MockVendor
    from tests.limits.redis_support import RedisServer
    from tests.peers import Upstream
    from tests.whole.nodes import Node

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in Linux's /proc")


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server that runs."""
    with started() as server:
        yield server


def with_ledger(url: str, spool: Path) -> str:
    return f"{NO_BOUND}usage: {{ledger: '{url}', spool: '{spool}'}}\n"


def run(config: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command, to its end."""
    return subprocess.run(
        (sys.executable, "-m", "proxy", *command, "--config", str(config)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def usage(config: Path, *options: str) -> list[dict[str, Any]]:
    """What `forward-sse usage` shows."""
    done = run(config, "usage", "--format", "json", *options)
    assert (done.returncode, done.stderr) == (0, "")
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return rows


def shipper_of(pids: list[int]) -> int:
    """The process of the shipper that one of these keeps."""
    listed = subprocess.run(
        ("ps", "-o", "pid=,args=", "--ppid", ",".join(map(str, pids))), capture_output=True, text=True, check=True
    )
    (line,) = [line for line in listed.stdout.splitlines() if "proxy.ledger.ship" in line]
    return int(line.split()[0])


async def post(one: Node, count: int) -> None:
    """Ask so often, as several users."""
    for number in range(count):
        assert (await one.post(token(f"user-{number % 3}"))).status == 200


async def test_usage_shows_requests(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, server: PostgresServer
) -> None:
    """What was asked is shown by the command about a second later; what the log has is imported once."""
    text = configuration(vendor, upstream, with_ledger(server.url, tmp_path / "spool"), "memory", "deny")
    config = tmp_path / "proxy.yaml"
    async with node(config, text, workers=1) as one:
        await post(one, 6)
        await arrived(server.url, 6)
        shown = await asyncio.to_thread(usage, config, "--by", "user,ending")
        assert [(row["user"], row["ending"], row["requests"]) for row in shown] == [
            (f"user-{number}", "complete", 2) for number in range(3)
        ]
        scraped = await one.metrics()
        assert scraped["forward_sse_ledger_errors_total"] == 0
        await post(one, 1)
        one.process.send_signal(signal.SIGTERM)
        lines = await one.read_to_end()
    assert shipped(server.url) == (7, 7)
    assert PASSWORD not in json.dumps(lines)
    ask(server.url, "DELETE FROM exchanges WHERE \"user\" = 'user-1'")
    assert "2 rows inserted, 5 known already" in completed(config, lines)
    assert "0 rows inserted, 7 known already" in completed(config, lines)


@linux
async def test_workers_share_a_shipper(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, server: PostgresServer, store: RedisServer
) -> None:
    """Of several workers one keeps the shipper; killed, shipper or worker, another follows, and no row is lost."""
    text = configuration(vendor, upstream, with_ledger(server.url, tmp_path / "spool"), f"unix://{store.path}", "allow")
    async with node(tmp_path / "proxy.yaml", text, workers=3) as one:
        await post(one, 9)
        await arrived(server.url, 9)
        first = shipper_of(list(one.pids.values()))
        os.kill(first, signal.SIGKILL)
        await one.said("ledger.shipper_died")
        await post(one, 9)
        await arrived(server.url, 18)
        second = shipper_of(list(one.pids.values()))
        (keeping,) = [pid for pid in one.pids.values() if _is_child(second, pid)]
        os.kill(keeping, signal.SIGKILL)
        await post(one, 9)
        await arrived(server.url, 27)
        assert not is_alive(second)
        one.process.send_signal(signal.SIGTERM)
        await one.read_to_end()
    assert shipped(server.url) == (27, 27)


def _is_child(pid: int, of: int) -> bool:
    listed = subprocess.run(("ps", "-o", "ppid=", "-p", str(pid)), capture_output=True, text=True, check=True)
    return int(listed.stdout) == of


async def test_database_is_away(tmp_path: Path, vendor: MockVendor, upstream: Upstream, server: PostgresServer) -> None:
    """Without its database the service starts, serves, says so once, counts, and ends in time; the rows come later."""
    server.kill()
    text = configuration(vendor, upstream, with_ledger(server.url, tmp_path / "spool"), "memory", "deny")
    config = tmp_path / "proxy.yaml"
    async with node(config, text, workers=1) as one:
        (lost,) = await one.said("ledger.shipping_stopped")
        assert lost["detail"].endswith("Connection refused")
        await post(one, 5)
        async with asyncio.timeout(WAIT_S):
            while (await one.metrics())["forward_sse_ledger_rows_waiting"] != 5:  # noqa: ASYNC110 - it is the service that must be asked
                await asyncio.sleep(0.05)
        assert (await one.metrics())["forward_sse_ledger_errors_total"] > 0
        done = await asyncio.to_thread(run, config, "usage")
        assert done.returncode == 1
        assert done.stderr.startswith(
            f"usage.ledger: postgresql://127.0.0.1:{server.port}/ledger: the database gives no connection: "
        )
        server.start()
        await one.said("ledger.shipping_resumed")
        await arrived(server.url, 5)
        one.process.send_signal(signal.SIGTERM)
        lines = await one.read_to_end()
    assert len(one.all("ledger.shipping_stopped")) == 1
    assert PASSWORD not in json.dumps(lines) + done.stderr


async def test_budget_over_a_restart(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, server: PostgresServer
) -> None:
    """Who had used up a budget is refused by a node that has just started: it waits for what the database knows."""
    plan = "plans: {default: {budgets: [{tokens: 1, every: month}]}}\n"
    more = with_ledger(server.url, tmp_path / "spool").replace(NO_BOUND, plan)
    text = configuration(vendor, upstream, more, "memory", "deny")
    for expected in ((200, None), (429, "insufficient_quota")):
        async with node(tmp_path / "proxy.yaml", text, workers=1) as one:
            asked = await one.post(token())
            assert (asked.status, asked.code) == expected
            await arrived(server.url, 1)
            one.process.send_signal(signal.SIGTERM)
            await one.read_to_end()


async def test_wrong_password(tmp_path: Path, vendor: MockVendor, upstream: Upstream, server: PostgresServer) -> None:
    """A password that the server refuses is told in the server's words, and is in no text; everybody is served."""
    wrong = "not-the-password-of-the-ledger"
    url = server.url_of("ledger", password=wrong)
    text = configuration(vendor, upstream, with_ledger(url, tmp_path / "spool"), "memory", "deny")
    config = tmp_path / "proxy.yaml"
    async with node(config, text, workers=1) as one:
        (lost,) = await one.said("ledger.shipping_stopped")
        assert lost["detail"].endswith('FATAL:  password authentication failed for user "shipper"')
        await post(one, 1)
        checked = await asyncio.to_thread(run, config, "check")
        assert checked.returncode == 0
        asked = await asyncio.to_thread(run, config, "usage")
        assert asked.returncode == 1
        one.process.send_signal(signal.SIGTERM)
        lines = await one.read_to_end()
    for shown in (json.dumps(lines), checked.stdout, checked.stderr, asked.stdout, asked.stderr):
        assert wrong not in shown


@pytest.mark.parametrize("workers", [1, 2])
def test_unusable_spool(tmp_path: Path, workers: int) -> None:
    """A spool that cannot be is one line, of `check` and at the start."""
    config, spool = tmp_path / "proxy.yaml", tmp_path / "missing" / "spool"
    config.write_text(
        "auth: none\nlisten: 127.0.0.1:0\nadmin_listen: off\n"
        "upstreams: {main: {url: 'http://127.0.0.1:1', dialect: openai, api_key: none}}\ndefault_upstream: main\n"
        f"limits: {{store: 'redis://127.0.0.1:1'}}\n{with_ledger('postgresql://u:secret-word@127.0.0.1:1/x', spool)}"
    )
    words = f"usage.spool: {spool}: there is no directory {tmp_path / 'missing'}\n"
    done = run(config, "check")
    assert (done.returncode, done.stderr.endswith(f": {words}"), done.stderr.startswith(f"{config}:")) == (
        2,
        True,
        True,
    )
    done = run(config, "serve", "--workers", str(workers))
    assert (done.returncode, done.stderr) == (1, f"forward-sse: cannot start: {words}")


def test_wrong_url(tmp_path: Path) -> None:
    """An option of the address that the driver does not know is a fault of `check`; a right one is shown without it."""
    config = tmp_path / "proxy.yaml"
    for options, code, said in (
        ("?sslmod=require", 2, 'usage.ledger: postgresql://h/x: invalid connection option "sslmod"\n'),
        ("?sslmode=require&application_name=x", 0, f"postgresql://h/x, spool {tmp_path / 'spool'}, kept for "),
    ):
        config.write_text(
            "auth: none\nupstreams: {main: {url: 'http://127.0.0.1:1', dialect: openai, api_key: none}}\n"
            f"default_upstream: main\n{with_ledger(f'postgresql://u:secret-word@h/x{options}', tmp_path / 'spool')}"
        )
        done = run(config, "check")
        assert done.returncode == code
        assert said in done.stdout + done.stderr
        assert "secret-word" not in done.stdout + done.stderr


async def test_embedded(
    aiohttp_client: Callable[..., Any], upstream: Upstream, tmp_path: Path, server: PostgresServer
) -> None:
    """An application of one's own ships, too; its last rows are in the database when it is cleaned up."""
    app = make_app(settings(upstream.url, usage={"ledger": server.url, "spool": str(tmp_path / "spool")}))
    client: TestClient[Any, Any] = await aiohttp_client(app)
    answering = asyncio.create_task(
        client.post("/forward-sse", json=BODY, headers={"Authorization": f"Bearer {token()}"})
    )
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")) + LAST)
    assert await (await answering).read() == event("one")
    await client.close()
    assert ask(server.url, 'SELECT "user", ending, upstream FROM exchanges') == [("alice", "complete", "main")]


_LOADED = """
import asyncio, sys
from pathlib import Path
from aiohttp import web
from proxy.app import LEDGER, make_app
from proxy.errors import LedgerUnavailableError
from proxy.ledger import Query
from proxy.settings.loading import load

async def main():
    app = make_app(load(Path(sys.argv[1]), {}))
    runner = web.AppRunner(app)
    await runner.setup()
    while True:
        try:
            await app[LEDGER].sums(Query(0, ("user",)))
            break
        except LedgerUnavailableError:
            await asyncio.sleep(0.05)
    await runner.cleanup()

asyncio.run(main())
libraries = {"sqlalchemy", "alembic", "psycopg", "psycopg_binary"}
print(*sorted({name.partition(".")[0] for name in sys.modules} & libraries))
"""


async def test_worker_loads_no_database_library(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, server: PostgresServer
) -> None:
    """A worker that ships and asks has imported neither SQLAlchemy nor Alembic nor the driver."""
    config = tmp_path / "proxy.yaml"
    config.write_text(configuration(vendor, upstream, with_ledger(server.url, tmp_path / "spool"), "memory", "deny"))
    done = await asyncio.to_thread(
        subprocess.run,
        (sys.executable, "-c", _LOADED, str(config)),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == ""
