"""The writer: takes rows from the event loop without waiting, and commits them to the file from a thread of its own."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from proxy.ledger.file import LedgerFile
    from proxy.ledger.row import Row

# What waits for a disk that is full at most: about 20 MiB. The log has the lines of what does not fit.
MAX_WAITING: Final = 20_000
# Rows that come within this time share one commit.
GATHER_S: Final = 0.03
# And where each is wanted at once: a commit costs as much as ten rows do.
_AT_ONCE_S: Final = 0.002
# At most so many in a transaction: others wait for its end.
_BATCH: Final = 1000
RETRY_S: Final = 0.5
SWEEP_S: Final = 3600.0
_SWEPT: Final = 500
# Between two pieces of a sweep, in which others write.
_SWEEP_PAUSE_S: Final = 0.02
CLOSE_S: Final = 2.0


class Writer:
    """Writes rows to a file, in order. Rows that the file does not take are kept and tried again.

    `append` never waits and never raises. A row is committed within 50 ms, together with those of that time; with
    `at_once` within a few, and another thread has it on the disk then. While the file cannot be written (full, locked,
    gone) the rows wait, up to `MAX_WAITING`; what exceeds is dropped and counted. `close` writes what waits, for at
    most `CLOSE_S`.

    Attributes:
        errors: How often a transaction failed.
        dropped: How many rows were given up.
        retention_s: How long rows are kept; None where nothing is deleted. May be changed at any time.
    """

    def __init__(self, file: LedgerFile, *, at_once: bool = False, retention_s: float | None = None) -> None:
        self.errors = 0
        self.dropped = 0
        self.retention_s = retention_s
        self._file = file
        self._gather_s = _AT_ONCE_S if at_once else GATHER_S
        self._rows: deque[Row] = deque()
        # Taken from the queue, and not committed yet.
        self._batch: list[Row] = []
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._problem: str | None = None
        self._dropped_told = 0
        self._is_dropping = False
        # Of several workers one is the first, and leaves the others nothing to delete.
        self._next_sweep_s = time.monotonic() + random.uniform(0, 2.0)  # noqa: S311 - no secret
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._syncer = _Syncer(file) if at_once else None
        self._until_s = float("inf")

    @property
    def waiting(self) -> int:
        """How many rows are not committed yet."""
        return len(self._rows) + len(self._batch)

    def open(self, problem: str | None = None) -> None:
        """Start the thread; `problem` is why the file cannot be written yet."""
        if problem is not None:
            self.errors += 1
            self._lost(problem)
        if self._syncer is not None:
            self._syncer.start()
        self._thread.start()

    def append(self, row: Row) -> None:
        """Queue a row."""
        rows = self._rows
        if len(rows) >= MAX_WAITING:
            self.dropped += 1
            return
        rows.append(row)
        if not self._wake.is_set():
            self._wake.set()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what waits, for at most `timeout_s`, and close the file. Blocks; idempotent."""
        self._until_s = time.monotonic() + timeout_s
        self._closing.set()
        self._wake.set()
        if self._thread.ident is not None:
            # Longer than the thread tries, because it may wait for a lock: it says itself what it gives up.
            self._thread.join(timeout_s + 2.5)

    def _run(self) -> None:
        try:
            while not self._closing.is_set() or self.waiting:
                self._wait()
                self._wake.clear()
                if not self._write():
                    break
                self._sweep()
        finally:
            self._give_up()
            if self._syncer is not None:
                self._syncer.close()
            self._file.close()

    def _wait(self) -> None:
        pause_s = None if self.retention_s is None else max(0.0, self._next_sweep_s - time.monotonic())
        if self._wake.wait(pause_s):
            self._closing.wait(self._gather_s)

    def _write(self) -> bool:
        """Commit what waits, however often it takes; say whether there is time left."""
        rows = self._rows
        while rows or self._batch:
            if not self._batch:
                self._batch = [rows.popleft() for _ in range(min(len(rows), _BATCH))]
            try:
                self._add()
            except Exception as exc:  # noqa: BLE001 - a thread that ended would lose every row to come
                if not self._failed(exc):
                    return False
                continue
            self._worked()
        return True

    def _add(self) -> None:
        """Commit the batch, at once or row by row.

        Raises:
            sqlite3.Error, OSError: an outage; what is not committed is still in the batch.
        """
        try:
            self._file.add(self._batch)
            self._batch = []
        except Exception as exc:
            if is_outage(exc):
                raise
            self._add_each()

    def _add_each(self) -> None:
        """Commit the rows of a batch one by one, and drop those that no database would take."""
        while self._batch:
            try:
                self._file.add(self._batch[:1])
            except Exception as exc:
                # Nothing of a row belongs in a log.
                if is_outage(exc):
                    raise
                self.errors += 1
                self.dropped += 1
            del self._batch[0]

    def _failed(self, exc: Exception) -> bool:
        self.errors += 1
        if self._problem is None:
            self._lost(str(exc))
        if not self._is_dropping:
            self._tell_dropped()
            self._is_dropping = self.dropped > 0
        # Opened anew: the disk may be another one.
        self._file.close()
        if time.monotonic() + RETRY_S > self._until_s:
            return False
        if self._closing.is_set():
            time.sleep(RETRY_S)
        else:
            self._closing.wait(RETRY_S)
        return True

    def _lost(self, problem: str) -> None:
        self._problem = problem
        structlog.get_logger().warning("ledger.lost", reason=problem, rows_waiting=self.waiting)

    def _worked(self) -> None:
        if self._syncer is not None:
            self._syncer.sync()
        self._is_dropping = False
        self._tell_dropped()
        if self._problem is not None:
            self._problem = None
            structlog.get_logger().info("ledger.regained", rows_waiting=self.waiting)

    def _tell_dropped(self) -> None:
        dropped = self.dropped
        if dropped > self._dropped_told:
            structlog.get_logger().error("ledger.rows_dropped", rows=dropped - self._dropped_told)
            self._dropped_told = dropped

    def _give_up(self) -> None:
        self.dropped += self.waiting
        self._batch = []
        self._rows.clear()
        self._tell_dropped()

    def _sweep(self) -> None:
        """Delete what is too old, in small pieces, about hourly."""
        while self.retention_s is not None and time.monotonic() >= self._next_sweep_s and not self._closing.is_set():
            since_ms = int((time.time() - self.retention_s) * 1000)
            try:
                may_be_more = self._file.delete_old(since_ms, _SWEPT)
            except (sqlite3.DatabaseError, OSError) as exc:
                self.errors += 1
                structlog.get_logger().warning("ledger.not_swept", reason=str(exc))
                may_be_more = False
            if not may_be_more:
                self._next_sweep_s = time.monotonic() + SWEEP_S * random.uniform(0.9, 1.1)  # noqa: S311 - no secret
                return
            # The file is left to others for a moment, and rows that came are written.
            self._closing.wait(_SWEEP_PAUSE_S)
            if not self._write():
                return


class _Syncer(threading.Thread):
    """Has commits on the disk, as many as came meanwhile at a time.

    Beside the thread that commits: a disk takes some milliseconds, or some tens, for which a commit that survives the
    process need not wait.
    """

    def __init__(self, file: LedgerFile) -> None:
        super().__init__(name="ledger-sync", daemon=True)
        self._file = file
        self._wake = threading.Event()
        self._is_closing = False

    def sync(self) -> None:
        """Have what is committed on the disk soon."""
        self._wake.set()

    def close(self) -> None:
        """Sync a last time, and end."""
        self._is_closing = True
        self._wake.set()
        self.join(CLOSE_S)

    def run(self) -> None:
        while not self._is_closing:
            self._wake.wait()
            self._wake.clear()
            # A disk that refuses this refuses the next commit, too, which tells of it.
            with contextlib.suppress(OSError):
                self._file.sync()


def is_outage(exc: Exception) -> bool:
    """Whether it is the database that failed, and not a row that it will never take."""
    if isinstance(exc, sqlite3.IntegrityError | sqlite3.DataError | sqlite3.InterfaceError | sqlite3.ProgrammingError):
        return False
    return isinstance(exc, OSError | sqlite3.DatabaseError)
