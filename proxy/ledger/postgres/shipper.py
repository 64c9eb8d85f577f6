"""The shipper: copies the spool's rows to the database in batches, and deletes them from the spool afterwards.

Killed at any moment it loses nothing and counts nothing twice: a row that is in both is not inserted again, and only
rows that are inserted are added to the totals.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from proxy.ledger.postgres.failures import FAILURES, Failure, describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.ledger.file import LedgerFile
    from proxy.ledger.postgres.database import Database
    from proxy.ledger.row import Row

BATCH: Final = 500
# Between two looks into an empty spool: with it a row is in the database within half a second.
LOOK_S: Final = 0.3
_MIN_PAUSE_S: Final = 0.25
MAX_PAUSE_S: Final = 5.0
_SWEEP_S: Final = 3600.0
_SWEPT: Final = 1000
_SWEEP_PAUSE_S: Final = 0.05
# Rows that the database refuses, each by itself, stay in the spool; more than so many are no longer a few bad rows.
_MAX_REFUSED: Final = 1000
# Counting many rows takes long; it has this share of the time.
_COUNT_SHARE: Final = 0.05


class Tell(Protocol):
    """Where events go."""

    def __call__(self, event: str, level: str, **fields: Any) -> None:
        """Take one line of the log."""
        ...


class Shipper:
    """One node's shipper. Every call blocks, and they are made by one thread.

    Attributes:
        errors: How often it failed.
        failure: Why the last attempt failed; None where it did not.
    """

    def __init__(self, spool: LedgerFile, database: Database, tell: Tell, *, retention_s: float) -> None:
        self.errors = 0
        self.failure: Failure | None = None
        self._retention_s = retention_s
        self._spool = spool
        self._database = database
        self._tell = tell
        self._is_prepared = False
        self._refused: set[str] = set()
        self._pause_s = _MIN_PAUSE_S
        self._waiting = 0
        self._next_count_s = 0.0
        # Nodes that start together do not sweep together.
        self._next_sweep_s = time.monotonic() + random.uniform(5.0, 60.0)  # noqa: S311 - no secret

    def set_retention(self, retention_s: float) -> None:
        """Delete rows that are older than this, from now on; callable from any thread."""
        self._retention_s = retention_s
        self._next_sweep_s = 0.0

    def step(self) -> float:
        """Ship a batch, and return how long to wait before the next one: 0 where more waits.

        What the database and the spool raise is told, counted, and no error here.
        """
        try:
            has_more = self._ship()
            if has_more:
                self._worked()
                return 0.0
            is_sweeping = self._sweep()
        except FAILURES as exc:
            return self._failed(describe(exc))
        self._worked()
        return _SWEEP_PAUSE_S if is_sweeping else LOOK_S

    def waiting(self) -> int:
        """How many rows are in the spool; of late, where counting takes long."""
        now_s = time.monotonic()
        if now_s >= self._next_count_s:
            try:
                self._waiting = self._spool.count()
            except FAILURES:
                return self._waiting
            self._next_count_s = now_s + (time.monotonic() - now_s) / _COUNT_SHARE
        return self._waiting

    def close(self) -> None:
        """Close the spool and the database."""
        self._spool.close()
        self._database.close()

    def _ship(self) -> bool:
        if not self._is_prepared:
            self._database.prepare()
            self._is_prepared = True
        batch = self._spool.read_batch(BATCH + len(self._refused))
        rows = [row for row in batch if row.row_id not in self._refused]
        if not rows:
            return False
        try:
            self._database.insert(rows)
        except FAILURES as exc:
            if not describe(exc).is_of_a_row:
                raise
            self._ship_each(rows)
        self._spool.delete(row.row_id for row in rows if row.row_id not in self._refused)
        return len(rows) >= BATCH

    def _ship_each(self, rows: Sequence[Row]) -> None:
        """Ship rows one by one, and leave those in the spool that the database refuses."""
        failures = []
        for row in rows:
            try:
                self._database.insert([row])
            except FAILURES as exc:
                failure = describe(exc)
                if not failure.is_of_a_row or len(self._refused) >= _MAX_REFUSED:
                    raise
                failures.append(failure)
                self._refused.add(row.row_id)
        self.errors += len(failures)
        if failures:
            self._tell("ledger.rows_refused", "error", rows=len(failures), sqlstate=failures[0].sqlstate)

    def _sweep(self) -> bool:
        """Delete a piece of what is too old, about hourly; say whether there is more."""
        if time.monotonic() < self._next_sweep_s:
            return False
        swept_s, self._next_sweep_s = self._next_sweep_s, time.monotonic() + _SWEEP_S * random.uniform(0.9, 1.1)  # noqa: S311 - no secret
        # Where it fails it is tried again an hour later: rows to come are more important.
        may_be_more = self._database.delete_old(int((time.time() - self._retention_s) * 1000), _SWEPT)
        if may_be_more:
            self._next_sweep_s = swept_s
        return may_be_more

    def _worked(self) -> None:
        self._pause_s = _MIN_PAUSE_S
        if self.failure is not None:
            self.failure = None
            self._tell("ledger.shipping_resumed", "info", rows_waiting=self.waiting())

    def _failed(self, failure: Failure) -> float:
        self.errors += 1
        if self.failure is None or self.failure.reason != failure.reason:
            fields = {name: value for name, value in failure._asdict().items() if value is not None}
            self._tell("ledger.shipping_stopped", "warning", **fields, rows_waiting=self.waiting())
        self.failure = failure
        # All anew: the schema, the server behind the name, the file behind the path.
        self._is_prepared = False
        self._database.forget_connections()
        self._spool.close()
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, MAX_PAUSE_S)
        return pause_s * random.uniform(0.8, 1.0)  # noqa: S311 - no secret
