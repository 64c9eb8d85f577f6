"""The ledger in an SQLite file: a writer's thread, and a few threads that read."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final

from proxy.errors import LedgerUnavailableError
from proxy.ledger import sql
from proxy.ledger.file import LedgerFile, open_to_read
from proxy.ledger.row import SUMS_S, USED_S, LedgerCounts, Query, amounts
from proxy.ledger.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from proxy.ledger.row import Row, Sums
    from proxy.model import Amounts

# Sums that are made at a time, and those that may wait for them: users ask for these.
_READERS: Final = 2
_MAX_ASKED: Final = 64
# Steps of SQLite's machine between two looks at the clock: some tenths of a millisecond.
_STEPS: Final = 10_000


class SqliteLedger:
    """The ledger of one node. All of its workers write to the file; each reads by connections of its own."""

    start_s: Final = 0.0

    def __init__(self, path: str | Path, *, is_synced: bool = False, retention_s: float | None = None) -> None:
        """`is_synced` commits each row without waiting for others, and has it on the disk right then."""
        self._file = LedgerFile(path, has_totals=True)
        self._writer = Writer(self._file, at_once=is_synced, retention_s=retention_s)
        self._sums = ThreadPoolExecutor(_READERS, "ledger-sums")
        # Of its own, so that what a user has used never waits for sums.
        self._used = ThreadPoolExecutor(1, "ledger-used")
        self._asked = 0
        self._is_closed = False

    async def open(self) -> None:
        """Open the file and start to write. A disk that is full, or a lock, is no error here.

        Raises:
            OSError: the file cannot be used, or was written by a later release.
        """
        problem = None
        try:
            await asyncio.to_thread(self._file.open)
        except sqlite3.Error as exc:
            # The writer opens it as soon as that is possible.
            problem = str(exc)
        self._writer.open(problem)

    async def close(self) -> None:
        """Write what waits, for at most some seconds."""
        await asyncio.to_thread(self._writer.close)
        self._is_closed = True
        for executor in (self._sums, self._used):
            executor.shutdown(wait=False, cancel_futures=True)

    def append(self, row: Row) -> None:
        """Have a row written; never waits and never raises."""
        self._writer.append(row)

    def set_retention(self, retention_s: float) -> None:
        """Delete rows that are older than this, from now on."""
        self._writer.retention_s = retention_s

    def counts(self) -> LedgerCounts:
        """The counts of this worker."""
        return LedgerCounts(self._writer.waiting, self._writer.errors, self._writer.dropped)

    async def sums(self, query: Query) -> Sequence[Sums]:
        """Sum the rows, the groups with the most requests first; at most 10,000 groups.

        Raises:
            LedgerUnavailableError: the file cannot be read, it takes longer than `SUMS_S`, or too many ask.
        """
        if self._asked >= _MAX_ASKED:
            raise LedgerUnavailableError
        self._asked += 1
        try:
            return await self._ask(self._sums, query, SUMS_S)
        except (sqlite3.Error, OSError) as exc:
            raise LedgerUnavailableError from exc
        finally:
            self._asked -= 1

    async def used(self, issuer: str, user: str, since_ms: int) -> Amounts:
        """What a user has used since a moment.

        Raises:
            LedgerUnavailableError: the file cannot be read, or not within `USED_S`.
        """
        try:
            sums = await self._ask(self._used, Query(since_ms, (), issuer, user), USED_S)
        except (sqlite3.Error, OSError) as exc:
            raise LedgerUnavailableError from exc
        return amounts(sums)

    async def _ask(self, executor: ThreadPoolExecutor, query: Query, within_s: float) -> Sequence[Sums]:
        until_s = time.monotonic() + within_s

        def is_over() -> bool:
            return self._is_closed or time.monotonic() > until_s

        asked = asyncio.get_running_loop().run_in_executor(executor, read, self._file.path, query, is_over)
        # For a disk that does not answer at all; SQLite itself looks at the clock.
        async with asyncio.timeout(within_s + 0.1):
            return await asked


def read(path: Path, query: Query, is_over: Callable[[], bool] | None = None) -> list[Sums]:
    """Make the sums of a query, unless `is_over` says meanwhile that nobody waits for them. Blocks.

    Raises:
        sqlite3.Error: the file cannot be read, or nobody waits.
    """
    statement, parameters = sql.sums_statement(query)
    with closing(open_to_read(path)) as connection:
        if is_over is not None:
            connection.set_progress_handler(is_over, _STEPS)
            if is_over():
                raise sqlite3.OperationalError("interrupted")
        return sql.read_sums(query, connection.execute(statement, parameters))


class SqliteBook:
    """The ledger in an SQLite file, opened for a command."""

    def __init__(self, path: str | Path) -> None:
        self._file = LedgerFile(path, has_totals=True)

    def sums(self, query: Query) -> Sequence[Sums]:
        """Sum the rows, the groups with the most requests first; at most 10,000 groups. No file is no row.

        Raises:
            OSError: the file cannot be read, or is of an earlier release, which reading does not change.
        """
        self._file.check()
        if not self._file.path.exists():
            return []
        with self._translated():
            self._file.check_upgraded()
            return read(self._file.path, query)

    def add(self, rows: Sequence[Row]) -> int:
        """Insert the rows that are not there yet, and return how many were new.

        Raises:
            OSError: none of them was inserted.
        """
        with self._translated():
            return self._file.add(rows)

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise OSError(f"{self._file.key}: {self._file.path}: {exc}") from exc
