"""The SQLite file on a node: the whole ledger, or the spool of one that is elsewhere. All workers write to it.

It is in WAL mode: readers and the one that writes do not wait for each other, and a commit is in the file's log when
the process is killed. Every call blocks: it belongs into a thread. An instance is used by one thread at a time.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from contextlib import closing, contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from proxy.ledger import sql
from proxy.ledger.file_schema import LEDGER_SCHEMA, SPOOL_SCHEMA, WrongFileError
from proxy.ledger.row import Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from proxy.ledger.row import Query

# For a lock that another process has: longer than any transaction of ours.
BUSY_S: Final = 2.0
_WAL_LIMIT_BYTES: Final = 64 * 1024 * 1024
# How many rows a statement has. As many as possible: sqlite3 releases the interpreter's lock several times in each, and
# while the loop is busy each time that the thread wants it back costs both a switch. And few different numbers: each is
# a statement of its own, and compiling one takes as long as executing it.
_AT_ONCE: Final = (128, 64, 32, 16, 8, 4, 2, 1)
# Those of both tables, and the short ones: 300 KiB.
_STATEMENTS: Final = 32
_COLUMNS: Final = ", ".join(f'"{column}"' for column in Row._fields)
_PARAMETERS: Final = re.compile(r"\(:[^)]*\)")
# What is nobody's fault and may pass; all else, at start, is the configuration's.
_PASSING: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})
_PRIMARY_CODE: Final = 0xFF


class LedgerFile:
    """An SQLite file of rows; with `has_totals` the whole ledger, whose days are summed up, else a spool.

    A commit survives the process at once, and a loss of power after the next checkpoint or `sync`.
    """

    def __init__(self, path: str | Path, *, has_totals: bool) -> None:
        self.path = Path(path)
        self._has_totals = has_totals
        self._schema = LEDGER_SCHEMA if has_totals else SPOOL_SCHEMA
        self._connection: sqlite3.Connection | None = None

    @property
    def key(self) -> str:
        """The setting that names it."""
        return "usage.ledger" if self._has_totals else "usage.spool"

    def open(self) -> None:
        """Open the file, create it where there is none, and upgrade that of an earlier release. Idempotent.

        Raises:
            OSError: the file cannot be used, or was written by a later release; the text says which and why.
            sqlite3.Error: what may pass: the disk is full, or another process holds the file.
        """
        if self._connection is not None:
            return
        try:
            # Names of users are in it.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as exc:
            raise OSError(exc.errno, f"{self.key}: {self.path}: {exc.strerror}") from exc
        # The thread that writes is not always the one that opened.
        connection = sqlite3.connect(
            self.path,
            timeout=BUSY_S,
            # sqlite3's own BEGIN, before the first INSERT or DELETE, takes the file's lock at once. That, and the end
            # by a `with` of the connection, release the interpreter's lock once each; `execute` does so more often.
            isolation_level="IMMEDIATE",
            check_same_thread=False,
            cached_statements=_STATEMENTS,
        )
        try:
            self._prepare(connection)
        except sqlite3.DatabaseError as exc:
            connection.close()
            if may_pass(exc):
                raise
            raise OSError(f"{self.key}: {self.path}: {exc}") from exc
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def close(self) -> None:
        """Close the file; idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def check(self) -> None:
        """Find out, without changing anything, whether `open` would work; a file that is not there is none yet.

        Raises:
            OSError: as `open`.
        """
        if not self.path.exists():
            room = self.path.parent
            if not room.is_dir():
                raise OSError(f"{self.key}: {self.path}: there is no directory {room}")
            if not os.access(room, os.W_OK | os.X_OK):
                raise OSError(f"{self.key}: {self.path}: the directory {room} cannot be written")
            return
        if not self.path.is_file() or not os.access(self.path, os.R_OK | os.W_OK):
            raise OSError(f"{self.key}: {self.path}: is not a file that can be written")
        try:
            with closing(open_to_read(self.path)) as connection:
                self._version_of(connection)
        except sqlite3.DatabaseError as exc:
            if not may_pass(exc):
                raise OSError(f"{self.key}: {self.path}: {exc}") from exc

    def check_upgraded(self) -> None:
        """Find out, without changing anything, whether an existing file has the tables of this release.

        Raises:
            OSError: It is of an earlier one, or cannot be used at all; the text says which.
            sqlite3.Error: It cannot be read now.
        """
        with closing(open_to_read(self.path)) as connection:
            version = self._version_of(connection)
        if version == self._schema.version:
            return
        what = (
            f"was written by an earlier release of forward-sse (schema {version}, this one reads "
            f"{self._schema.version}); a start of this release's proxy upgrades it"
            if version
            else "has no tables yet; a start of the proxy makes them"
        )
        raise OSError(f"{self.key}: {self.path}: {what}")

    def add(self, rows: Sequence[Row]) -> int:
        """Insert the rows that are not there yet, in one transaction, and return how many were new.

        Raises:
            sqlite3.Error: none was inserted.
        """
        connection = self._opened
        rows = [sql.storable(row) for row in rows]
        with connection:
            if _execute(connection, sql.INSERT_ROW, rows) == len(rows):
                self._add_to_days(connection, rows)
                return len(rows)
            # Some were known, which the count alone does not tell.
            connection.rollback()
            new = [row for row in rows if _execute(connection, sql.INSERT_ROW, [row])]
            self._add_to_days(connection, new)
            return len(new)

    def sync(self) -> None:
        """Have on the disk what is committed, as `synchronous=FULL` would in each commit; callable from any thread.

        Raises:
            OSError: the disk does not take it.
        """
        try:
            descriptor = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            # The last connection was closed, and took the log's content over into the file.
            return
        # No lock is lost by closing it: SQLite has none on this file.
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read_batch(self, limit: int) -> list[Row]:
        """The oldest rows, in order of `row_id`."""
        query = f"SELECT {_COLUMNS} FROM exchanges ORDER BY row_id LIMIT ?"  # noqa: S608 - names of columns
        return [Row(*record) for record in self._opened.execute(query, (limit,))]

    def delete(self, row_ids: Iterable[str]) -> None:
        """Delete rows of a spool, in one transaction."""
        assert not self._has_totals  # or the days would count what is gone
        connection = self._opened
        with connection:
            connection.executemany("DELETE FROM exchanges WHERE row_id = ?", ((row_id,) for row_id in row_ids))

    def count(self) -> int:
        """How many rows there are; takes as long as there are many."""
        (count,) = self._opened.execute("SELECT COUNT(*) FROM exchanges").fetchone()
        return int(count)

    def delete_old(self, since_ms: int, most: int) -> bool:
        """Delete what ended before the day of that moment, at most so many rows; say whether there may be more."""
        kept = sql.Kept.since(since_ms)
        connection = self._opened
        with connection:
            gone = connection.execute(sql.DELETE_OLD_ROWS, {"before_id": kept.before_id, "most": most}).rowcount
            if gone >= most:
                return True
            connection.execute(sql.DELETE_OLD_DAYS, {"before_day": kept.before_day})
        return False

    @property
    def _opened(self) -> sqlite3.Connection:
        self.open()
        assert self._connection is not None
        return self._connection

    def _add_to_days(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
        if self._has_totals and rows:
            _execute(connection, sql.ADD_DAY, [tuple(day.values()) for day in sql.totals(rows)])

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = self._version_of(connection)
        _set_wal(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
        if version < self._schema.version:
            with connection, self._told():
                connection.execute("BEGIN IMMEDIATE")
                # Another worker may have been faster: this asks again, with the lock.
                self._schema.upgrade(connection)

    def _version_of(self, connection: sqlite3.Connection) -> int:
        with self._told():
            return self._schema.version_of(connection)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except WrongFileError as exc:
            raise OSError(f"{self.key}: {self.path}: {exc}") from exc


def may_pass(exc: sqlite3.Error) -> bool:
    """Whether a failure is nobody's fault, and may pass by itself."""
    return getattr(exc, "sqlite_errorcode", 0) & _PRIMARY_CODE in _PASSING


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection to an existing file that changes nothing."""
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None
    )
    connection.execute("PRAGMA query_only = ON")
    return connection


def read_rows_of(connection: sqlite3.Connection, query: Query, limit: int) -> list[Row]:
    """The rows of a query's user since its moment, the oldest first. Takes as long as there are rows of anybody."""
    statement = (
        f"SELECT {_COLUMNS} FROM exchanges "  # noqa: S608 - names of columns
        'WHERE row_id >= ? AND issuer = ? AND "user" = ? ORDER BY row_id LIMIT ?'
    )
    whose = [sql.clean(name or "") for name in (query.issuer, query.user)]
    found = connection.execute(statement, (sql.first_id(query.since_ms), *whose, limit))
    return [Row(*record) for record in found]


def _execute(connection: sqlite3.Connection, statement: str, records: Sequence[Sequence[object]]) -> int:
    """Execute an INSERT for records in the order of its columns, and return how many rows it inserted or changed."""
    if not records:
        return 0
    changed = start = 0
    columns = len(records[0])
    most = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // columns
    for count in _AT_ONCE:
        while start + count <= len(records) and count <= most:
            part = records[start : start + count]
            # `execute` would ask for the last row's number besides, and release the interpreter's lock for it.
            parameters = ([*chain.from_iterable(part)],)
            changed += connection.executemany(_many(statement, columns, count), parameters).rowcount
            start += count
    return changed


@cache
def _many(statement: str, columns: int, count: int) -> str:
    """The statement with so many rows of positional parameters."""
    one = f"({', '.join('?' * columns)})"
    return _PARAMETERS.sub(", ".join([one] * count), statement)


def _set_wal(connection: sqlite3.Connection) -> None:
    """Turn WAL mode on, which stays. Of several processes that do so at once, SQLite refuses all but one at once."""
    until_s = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as exc:
            if not may_pass(exc) or time.monotonic() > until_s:
                raise
            time.sleep(0.02)
        else:
            return
