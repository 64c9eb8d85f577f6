"""The ledger as a worker has it, with a real shipper and a real database."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import stat
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from proxy.errors import LedgerUnavailableError
from proxy.ledger import Query
from proxy.ledger.postgres import PostgresLedger, SpoolPlace, keeper
from proxy.ledger.row import USED_S
from proxy.ledger.sql import DAY_MS
from proxy.model import Amounts
from tests.ledger.postgres.test_database import some_rows
from tests.ledger.rows import NOON_MS, row, summed
from tests.postgres import PASSWORD, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.postgres import PostgresServer

WAIT_S = 60.0
# A shipper begins within a second or two; a machine that is busy with other tests may take longer.


@asynccontextmanager
async def opened(url: str, room: Path, **options: Any) -> AsyncIterator[PostgresLedger]:
    """A worker's ledger on the node whose spool is in this room."""
    ledger = PostgresLedger(url, SpoolPlace(room / "spool"), **{"retention_s": 1e9, **options})
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


async def comes_true(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(WAIT_S):
        while True:
            answer = condition()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.02)


def shipped(url: str) -> tuple[int, int]:
    """How many rows the database has, and how many its totals count; none where it has no tables yet."""
    if not ask(url, "SELECT 1 FROM pg_tables WHERE tablename = 'days'"):
        return 0, 0
    ((rows, counted),) = ask(
        url, "SELECT (SELECT count(*) FROM exchanges), (SELECT coalesce(sum(requests), 0) FROM days)"
    )
    return rows, int(counted)


async def arrived(url: str, count: int) -> None:
    """Wait until the database has so many rows, all of them counted."""
    await comes_true(lambda: shipped(url) == (count, count))


async def ships_more(url: str, before: int) -> None:
    """Wait until the database has more rows than before."""
    await comes_true(lambda: shipped(url)[0] > before)


async def keeps_another(ledger: PostgresLedger, pid: int) -> None:
    """Wait until the death of a shipper was noticed."""
    await comes_true(lambda: ledger._keeper.pid != pid)


async def answers(ledger: PostgresLedger) -> None:
    """Wait until the shipper answers."""

    async def is_so() -> bool:
        try:
            await ledger.sums(Query(0))
        except LedgerUnavailableError:
            return False
        return True

    await comes_true(is_so)


def read_proc(pid: int, what: str) -> bytes:
    """A file of a process in `/proc`."""
    return Path(f"/proc/{pid}/{what}").read_bytes()


def is_alive(pid: int) -> bool:
    """Whether there is a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_rows_reach_the_database_and_sums_come_back(url: str, tmp_path: Path) -> None:
    """A row is in the database within a second, sums and what a user has used are asked of the shipper."""
    rows = some_rows(50)
    async with opened(url, tmp_path) as ledger:
        for one in rows:
            ledger.append(one)
        await arrived(url, 50)
        query = Query(NOON_MS + DAY_MS, ("user", "model", "day"))
        assert sorted(map(str, await ledger.sums(query))) == sorted(map(str, summed(rows, query)))
        (used,) = summed(rows, Query(NOON_MS, (), "tests", "bob"))
        await comes_true(lambda: _equals(ledger.used("tests", "bob", NOON_MS), used.cost_nano))
        assert await ledger.used("tests", "nobody", 0) == Amounts()

        began_s = time.monotonic()
        ledger.append(row())
        await arrived(url, 51)
        print("a row took", time.monotonic() - began_s)  # noqa: T201 - shown where the test fails
        await comes_true(lambda: ledger.counts() == (0, 0, 0))


async def _equals(asked: Awaitable[Amounts], nano_usd: int) -> bool:
    try:
        return (await asked).nano_usd == nano_usd
    except LedgerUnavailableError:
        # A machine that stands still makes it late.
        return False


async def test_rows_are_shipped_at_the_end(url: str, tmp_path: Path) -> None:
    """What was written last is in the database when the ledger is closed, and the shipper has ended."""
    async with opened(url, tmp_path) as ledger:
        await answers(ledger)
        pid = ledger._keeper.pid
        assert pid is not None
        for one in some_rows(700):
            ledger.append(one)
    assert shipped(url) == (700, 700)
    assert not is_alive(pid)


async def test_away_database_delays_nobody(server: PostgresServer, tmp_path: Path) -> None:
    """Without a database rows wait, questions are answered at once that there is none, and closing takes no time."""
    server.kill()
    async with opened(server.url, tmp_path) as ledger:
        for one in some_rows(30):
            ledger.append(one)
        await comes_true(lambda: ledger.counts().waiting == 30 and ledger.counts().errors > 0)
        began_s = time.monotonic()
        with pytest.raises(LedgerUnavailableError):
            await ledger.sums(Query(0))
        with pytest.raises(LedgerUnavailableError):
            await ledger.used("tests", "alice", 0)
        assert time.monotonic() - began_s < 1
        began_s = time.monotonic()
    assert time.monotonic() - began_s < keeper.END_S
    server.start()
    async with opened(server.url, tmp_path):
        await arrived(server.url, 30)


async def test_hanging_database_delays_nobody(server: PostgresServer, tmp_path: Path) -> None:
    """A server that does not answer is none: what was used is not known, closing is bounded, no row is lost."""
    async with opened(server.url, tmp_path) as ledger:
        await answers(ledger)
        server.stop()
        began_s = time.monotonic()
        with pytest.raises(LedgerUnavailableError):
            await ledger.used("tests", "alice", 0)
        assert time.monotonic() - began_s < USED_S + 0.5
        ledger.append(row())
        began_s = time.monotonic()
    assert time.monotonic() - began_s < keeper.END_S + 3
    server.go_on()
    async with opened(server.url, tmp_path):
        await arrived(server.url, 1)


async def test_database_crashes_under_load(server: PostgresServer, tmp_path: Path) -> None:
    """A server that is killed again and again has every row once when it is there, and totals of just these."""
    count = 0
    async with opened(server.url, tmp_path) as ledger:
        for number in range(3):
            for one in some_rows(400, seed=number):
                ledger.append(one)
                count += 1
            if number:
                await ships_more(server.url, count - 800)
            server.kill()
            await comes_true(lambda: ledger.counts().errors > 0)
            server.start()
        await arrived(server.url, count)


async def test_shipper_is_killed_at_any_moment(url: str, tmp_path: Path) -> None:
    """However often the shipper is killed, another one follows, and every row is counted once."""
    chance = random.Random(7)
    count = 0
    async with opened(url, tmp_path) as ledger:
        ledger._keeper._pause_s = 0.01
        for number in range(4):
            for one in some_rows(1500, seed=number):
                ledger.append(one)
                count += 1
            await comes_true(lambda: ledger._keeper.pid is not None)
            await ships_more(url, shipped(url)[0])
            await asyncio.sleep(chance.random() * 0.2)
            pid = ledger._keeper.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await keeps_another(ledger, pid)
            ledger._keeper._pause_s = 0.01
        await arrived(url, count)


async def test_one_shipper_a_node(url: str, tmp_path: Path) -> None:
    """Of several workers one keeps the shipper; when that worker ends another one does; the rows of all arrive."""
    async with opened(url, tmp_path) as first:
        await comes_true(lambda: first._keeper.pid is not None)
        async with opened(url, tmp_path) as second:
            second.append(row())
            await arrived(url, 1)
            assert second._keeper.pid is None
            await answers(second)
            await first.close()
            second.append(row())
            await comes_true(lambda: second._keeper.pid is not None)
            await arrived(url, 2)


async def test_two_nodes(url: str, tmp_path: Path) -> None:
    """Nodes with spools of their own fill one database, and each answers for both."""
    rows = some_rows(400)
    rooms = [tmp_path / "a", tmp_path / "b"]
    for room in rooms:
        room.mkdir()
    async with opened(url, rooms[0]) as one, opened(url, rooms[1]) as other:
        for number, added in enumerate(rows):
            (one if number % 2 else other).append(added)
        await arrived(url, len(rows))
        for node in (one, other):
            await answers(node)
            assert await node.sums(Query(0)) == summed(rows, Query(0))


_WORKER = """
import asyncio, sys
from pathlib import Path
from proxy.ledger import Row
from proxy.ledger.postgres import PostgresLedger, SpoolPlace

async def main():
    ledger = PostgresLedger(sys.stdin.readline().strip(), SpoolPlace(Path(sys.argv[1])), retention_s=1e9)
    await ledger.open()
    while ledger._keeper.pid is None:
        await asyncio.sleep(0.01)
    print(ledger._keeper.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in Linux's /proc")
async def test_worker_is_killed(url: str, tmp_path: Path) -> None:
    """The shipper of a worker that was killed ships what is there and ends; no list of processes had its password."""
    place = SpoolPlace(tmp_path / "spool")
    worker = subprocess.Popen(  # noqa: ASYNC220 - a process of Python's, begun at once
        [sys.executable, "-c", _WORKER, place.directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(f"{url}\n")
        worker.stdin.flush()
        pid = int(await asyncio.to_thread(worker.stdout.readline))
        for what in ("cmdline", "environ"):
            assert PASSWORD.encode() not in read_proc(pid, what)
        await comes_true(lambda: b"proxy.ledger.ship" in read_proc(pid, "cmdline"))
        # A service manager sends it to every process; it is the worker's end that counts.
        os.kill(pid, signal.SIGTERM)
        spool = place.file()
        spool.add([row()])
        await arrived(url, 1)
        spool.add([row()])
        spool.close()
        worker.kill()
    await arrived(url, 2)
    await comes_true(lambda: not is_alive(pid))


async def test_place_is_the_owners(url: str, tmp_path: Path) -> None:
    """Nobody else can enter the directory, read the spool or ask the shipper."""
    async with opened(url, tmp_path) as ledger:
        await answers(ledger)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "spool").iterdir()}
        assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
        assert {mode & 0o077 for mode in modes.values()} == {0}
        assert modes["ship.sock"] == 0o600


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere `check` refuses such a directory")
async def test_long_directory(url: str, tmp_path: Path) -> None:
    """A directory whose name is longer than a socket's may be works."""
    room = tmp_path / ("long" * 40)
    room.mkdir()
    async with opened(url, room) as ledger:
        await answers(ledger)


async def test_shipper_that_cannot_start(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told once, rows wait, and it is tried again."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with structlog.testing.capture_logs() as events:
        async with opened(url, tmp_path) as ledger:
            ledger._keeper._pause_s = 0.01
            await comes_true(lambda: ledger.counts().errors > 2)
            ledger.append(row())
            monkeypatch.undo()
            await arrived(url, 1)
    assert [event["event"] for event in events] == ["ledger.shipper_failed"]


async def test_socket_of_a_stranger(url: str, tmp_path: Path) -> None:
    """What is no question is not answered, what is no answer is none, and neither stops anything."""
    async with opened(url, tmp_path) as ledger:
        await answers(ledger)
        path = str(tmp_path / "spool/ship.sock")
        for question in (b"\n", b"{}\n", b'{"ask":"all","query":[0,[],null,null]}\n', b"x" * 100_000, b""):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(question)
            writer.write_eof()
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
        assert await ledger.sums(Query(0)) == []
    for answer in (b"", b"{}\n", b"[]\n", b'{"sums":[[["a"],1]]}\n', b"\n"):

        async def reply(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes = answer) -> None:
            writer.write(answer)
            writer.close()

        with suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - in the loop, and quick
        async with await asyncio.start_unix_server(reply, path):
            with pytest.raises(LedgerUnavailableError):
                await ledger.sums(Query(0))


async def test_shipper_that_cannot_listen(url: str, tmp_path: Path) -> None:
    """Where its socket cannot be, that is told, and rows are shipped all the same."""
    (tmp_path / "spool/ship.sock").mkdir(parents=True)
    with structlog.testing.capture_logs() as events:
        async with opened(url, tmp_path) as ledger:
            ledger.append(row())
            await arrived(url, 1)
            with pytest.raises(LedgerUnavailableError):
                await ledger.sums(Query(0))
    assert [event["event"] for event in events] == ["ledger.unanswered"]


async def test_retention_is_changed(url: str, tmp_path: Path) -> None:
    """Another retention reaches a shipper that runs: what is older leaves the database."""
    async with opened(url, tmp_path) as ledger:
        for one in some_rows(10):
            ledger.append(one)
        await arrived(url, 10)
        ledger.set_retention(86_400.0)
        await arrived(url, 0)


async def test_questions_are_bounded(url: str, tmp_path: Path) -> None:
    """Users who ask by the thousand are refused, and make no thousand connections."""
    async with opened(url, tmp_path) as ledger:
        await answers(ledger)
        asked = await asyncio.gather(*(ledger.sums(Query(0)) for _ in range(200)), return_exceptions=True)
        assert sum(isinstance(one, LedgerUnavailableError) for one in asked) >= 100
        assert await ledger.sums(Query(0)) == []
