"""The writer's thread: what it promises of rows while the file can be written, and while it cannot."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from proxy.ledger import Query
from proxy.ledger.file import LedgerFile
from proxy.ledger.sql import DAY_MS
from proxy.ledger.sqlite import read
from proxy.ledger.writer import MAX_WAITING, Writer
from tests.ledger.rows import row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from proxy.ledger import Row
    from proxy.observability.logging import Redactor

WAIT_S = 20.0


class DiskFile(LedgerFile):
    """A file on a disk that is full as long as the test wants it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, has_totals=True)
        self.is_full = False
        self.added = threading.Semaphore(0)

    def add(self, rows: Any) -> int:
        if self._connection is not None or self.path.exists():
            self.open()
            assert self._connection is not None
            # What is there, and no page more; SQLite's greatest number otherwise.
            pages = 1 if self.is_full else 2**31
            self._connection.execute(f"PRAGMA max_page_count = {pages}")
        new = super().add(rows)
        self.added.release(len(rows))
        return new

    def wait(self, count: int) -> None:
        """Wait until so many rows were committed."""
        for _ in range(count):
            assert self.added.acquire(timeout=WAIT_S)


@pytest.fixture
def file(tmp_path: Path) -> DiskFile:
    disk = DiskFile(tmp_path / "ledger.db")
    disk.open()
    return disk


@contextmanager
def writing(file: LedgerFile, **options: Any) -> Iterator[Writer]:
    writer = Writer(file, **options)
    writer.open()
    try:
        yield writer
    finally:
        writer.close()


def until(is_so: Callable[[], bool]) -> None:
    """Wait for what another thread does and nobody is told of."""
    until_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < until_s
        time.sleep(0.005)


def big(count: int) -> list[Row]:
    """Rows that do not fit into the pages that are there."""
    return [row(user="u" * 3000) for _ in range(count)]


def requests(path: Path) -> int:
    return sum(one.requests for one in read(path, Query(0)))


def lines(log_file: tuple[Path, Redactor], event: str, count: int = 1) -> list[dict[str, Any]]:
    """The lines of an event, once there are so many."""
    found: list[dict[str, Any]] = []

    def are_there() -> bool:
        found[:] = [json.loads(line) for line in log_file[0].read_bytes().splitlines()]
        found[:] = [line for line in found if line["event"] == event]
        return len(found) >= count

    until(are_there)
    return found


@pytest.mark.parametrize("at_once", [False, True])
def test_rows_are_committed(file: DiskFile, at_once: bool) -> None:
    """What was appended is in the file soon, and counted as waiting until then."""
    with writing(file, at_once=at_once) as writer:
        for _ in range(100):
            writer.append(row())
        file.wait(100)
        until(lambda: writer.waiting == 0)
    assert requests(file.path) == 100


def test_close_writes_what_waits(file: DiskFile) -> None:
    """Rows that were appended just before the end are in the file."""
    with writing(file) as writer:
        for _ in range(2500):
            writer.append(row())
    assert requests(file.path) == 2500
    writer.close()


def test_full_disk(file: DiskFile, log_file: tuple[Path, Redactor]) -> None:
    """While the disk is full rows wait, which is counted and said once; when there is room each is written once."""
    with writing(file) as writer:
        writer.append(row())
        file.wait(1)
        file.is_full = True
        for one in big(20):
            writer.append(one)
        until(lambda: writer.errors >= 2)
        assert writer.waiting == 20
        writer.append(row())
        file.is_full = False
        file.wait(21)
        until(lambda: writer.waiting == 0)
        (lost,), (regained,) = lines(log_file, "ledger.lost"), lines(log_file, "ledger.regained")
        assert (lost["reason"], lost["level"]) == ("database or disk is full", "warning")
        assert lost["time"] <= regained["time"]
        assert writer.dropped == 0
    assert requests(file.path) == 22


def test_too_many_wait(file: DiskFile, log_file: tuple[Path, Redactor]) -> None:
    """What exceeds the bound is dropped, counted and said; the rest is written when there is room."""
    file.is_full = True
    with writing(file) as writer:
        writer.append(big(1)[0])
        until(lambda: writer.errors > 0)
        for one in [row()] * (MAX_WAITING + 10):
            writer.append(one)
        assert (writer.dropped, writer.waiting) == (10, MAX_WAITING + 1)
        (said,) = lines(log_file, "ledger.rows_dropped")
        assert (said["rows"], said["level"]) == (10, "error")
        file.is_full = False
        lines(log_file, "ledger.regained")
        writer.append(row())
    # The many were one and the same.
    assert requests(file.path) == 3


def test_close_with_a_full_disk(file: DiskFile, log_file: tuple[Path, Redactor]) -> None:
    """The end does not wait for a disk that stays full: what cannot be written is counted and said."""
    file.is_full = True
    writer = Writer(file)
    writer.open()
    for one in big(5):
        writer.append(one)
    began_s = time.monotonic()
    writer.close(timeout_s=0.2)
    assert time.monotonic() - began_s < WAIT_S
    assert writer.dropped == 5
    assert lines(log_file, "ledger.rows_dropped")[0]["rows"] == 5


def test_locked_file(file: DiskFile, log_file: tuple[Path, Redactor]) -> None:
    """A lock that another program holds for long is an outage as any other."""
    other = sqlite3.connect(file.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with writing(file) as writer:
        writer.append(row())
        assert lines(log_file, "ledger.lost")[0]["reason"] == "database is locked"
        other.execute("ROLLBACK")
        file.wait(1)
    other.close()
    assert requests(file.path) == 1


def test_file_vanishes(file: DiskFile) -> None:
    """A directory that is gone keeps rows waiting; when it is there again, so is the file."""
    moved = file.path.parent.rename(file.path.parent.with_name("moved"))
    file.close()
    with writing(file) as writer:
        writer.append(row())
        until(lambda: writer.errors > 0)
        moved.rename(file.path.parent)
        file.wait(1)
    assert requests(file.path) == 1


def test_row_that_no_database_takes(file: DiskFile) -> None:
    """A row that can never be written is dropped and counted; those beside it are written."""
    with writing(file) as writer:
        for one in (row(), row(plan=None), row(status=object()), row(status=2**70), row()):
            writer.append(one)
        file.wait(2)
        until(lambda: writer.waiting == 0)
        assert writer.dropped == 3
    assert requests(file.path) == 2


def test_retention(file: DiskFile) -> None:
    """Old rows are deleted soon after the start, as many as there are; later retention changes count."""
    now_ms = int(time.time() * 1000)
    file.add([row(now_ms - 10 * DAY_MS + number) for number in range(1200)] + [row(now_ms)])
    with writing(file, retention_s=5 * 86_400.0):
        until(lambda: requests(file.path) == 1)


async def test_append_never_blocks(file: DiskFile) -> None:
    """The loop goes on while the file is locked: an append is a moment's work."""
    other = sqlite3.connect(file.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writer = Writer(file)
    writer.open()
    began_s = time.monotonic()
    for _ in range(1000):
        writer.append(row())
        await asyncio.sleep(0)
    assert time.monotonic() - began_s < 1.0
    other.execute("ROLLBACK")
    other.close()
    await asyncio.to_thread(writer.close)
    assert requests(file.path) == 1000


class LockedAgain(LedgerFile):
    """A file that somebody locks while the rows of a batch with a bad one are tried one by one."""

    is_to_be_locked = True

    def add(self, rows: Any) -> int:
        if self.is_to_be_locked and len(rows) == 1 and rows[0].user == "after":
            self.is_to_be_locked = False
            locked = sqlite3.OperationalError("database is locked")
            locked.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise locked
        return super().add(rows)


def test_outage_while_a_bad_row_is_looked_for(tmp_path: Path) -> None:
    """Beside a row that no database takes none is lost because the file is locked just then."""
    file = LockedAgain(tmp_path / "ledger.db", has_totals=True)
    with writing(file) as writer:
        for one in (row(user="before"), row(plan=None), row(user="after"), row(user="last")):
            writer.append(one)
    assert writer.dropped == 1
    assert [one.by["user"] for one in read(file.path, Query(0, ("user",)))] == ["after", "before", "last"]
