"""The ledger of one node: reading beside writing, and what a reader may cost."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from proxy.errors import LedgerUnavailableError
from proxy.ledger import Query, sqlite
from proxy.ledger.file import LedgerFile
from proxy.ledger.sql import DAY_MS
from proxy.ledger.sqlite import SqliteBook, SqliteLedger
from proxy.model import Amounts
from tests.ledger.rows import NOON_MS, row, summed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a ledger?.db"


@asynccontextmanager
async def kept(path: Path, **options: Any) -> AsyncIterator[SqliteLedger]:
    ledger = SqliteLedger(path, **options)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


async def written(ledger: SqliteLedger) -> None:
    """Wait until no row waits."""
    async with asyncio.timeout(20):
        # Another thread writes; there is no event to wait for.
        while ledger.counts().waiting:  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.005)


async def test_sums_of_appended_rows(path: Path) -> None:
    """A row is in the sums, and in what its user has used, within a second of its end."""
    rows = [row(NOON_MS + number * DAY_MS // 3, user=user) for number in range(6) for user in ("alice", "bob")]
    async with kept(path) as ledger:
        began_s = time.monotonic()
        for one in rows:
            ledger.append(one)
        await written(ledger)
        assert time.monotonic() - began_s < 1.0
        query = Query(NOON_MS + 1, ("user", "day"))
        assert sorted(await ledger.sums(query), key=repr) == sorted(summed(rows, query), key=repr)
        assert await ledger.used("tests", "alice", NOON_MS + 1) == Amounts(5 * 120, 5 * 2_500_000)
        assert await ledger.used("tests", "nobody", 0) == Amounts()
        assert ledger.counts() == (0, 0, 0)


async def test_nothing_is_used_of_an_empty_ledger(path: Path) -> None:
    """Sums over no row are no group."""
    async with kept(path) as ledger:
        assert await ledger.sums(Query(0)) == []
        assert await ledger.used("tests", "alice", 0) == Amounts()


async def test_sums_that_take_too_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query is interrupted when its time is over, and is refused; the next one is answered."""
    async with kept(path) as ledger:
        for number in range(20_000):
            ledger.append(row(NOON_MS + number))
        await written(ledger)
        query = Query(NOON_MS + 1, ("user",))
        monkeypatch.setattr(sqlite, "SUMS_S", 0.0005)
        with pytest.raises(LedgerUnavailableError):
            await ledger.sums(query)
        monkeypatch.undo()
        assert len(await ledger.sums(query)) == 1


async def test_too_many_ask(path: Path) -> None:
    """Of many that ask at once some are refused at once; nothing queues up without a bound."""
    async with kept(path) as ledger:
        answers = await asyncio.gather(*(ledger.sums(Query(0)) for _ in range(200)), return_exceptions=True)
        assert sum(isinstance(answer, LedgerUnavailableError) for answer in answers) == 200 - sqlite._MAX_ASKED
        assert await ledger.sums(Query(0)) == []


async def test_file_is_gone(path: Path) -> None:
    """A file that is gone makes sums unavailable, and what was used is not known: that is not nothing."""
    async with kept(path) as ledger:
        path.unlink()  # noqa: ASYNC240 - a moment
        with pytest.raises(LedgerUnavailableError):
            await ledger.sums(Query(0))
        with pytest.raises(LedgerUnavailableError):
            await ledger.used("tests", "alice", 0)


async def test_start_while_locked(path: Path) -> None:
    """A file that somebody else holds for long is no error at the start: rows wait for it."""
    file = LedgerFile(path, has_totals=True)
    file.open()
    file.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    async with kept(path) as ledger:
        ledger.append(row())
        other.execute("ROLLBACK")
        other.close()
        await written(ledger)
        assert len(await ledger.sums(Query(0))) == 1


async def test_retention_may_change(path: Path) -> None:
    """A reload's retention counts from the next sweep on, which is an hour away."""
    async with kept(path, retention_s=1e9) as ledger:
        ledger.set_retention(86_400.0)
        assert ledger._writer.retention_s == 86_400.0


async def test_unusable_file_at_the_start(path: Path) -> None:
    """A file that is none of ours is an error at the start."""
    path.write_text("no database " * 100)  # noqa: ASYNC240 - a moment
    with pytest.raises(OSError, match="not a database"):
        await SqliteLedger(path).open()


def test_book(path: Path) -> None:
    """A command reads no file as an empty ledger, adds rows once, and tells failures as OSError."""
    book = SqliteBook(path)
    assert book.sums(Query(0)) == []
    assert not path.exists()
    rows = [row(), row()]
    assert (book.add(rows), book.add(rows)) == (2, 0)
    assert book.sums(Query(0)) == summed(rows, Query(0))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OSError, match="locked"):
        book.add([row()])
    other.close()
    book.close()
    book.close()
