"""The ledger in PostgreSQL as a worker has it: rows go into the spool, questions to the shipper."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, Final

import structlog

from proxy.errors import LedgerUnavailableError
from proxy.ledger.postgres.asking import ask
from proxy.ledger.postgres.keeper import Keeper
from proxy.ledger.row import SUMS_S, USED_S, LedgerCounts, Query, amounts
from proxy.ledger.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.ledger.postgres.place import SpoolPlace
    from proxy.ledger.row import Row, Sums
    from proxy.model import Amounts

# Questions that are under way: users ask them.
_MAX_ASKED: Final = 64


class PostgresLedger:
    """The ledger of all nodes that name the same database. Rows reach it about half a second after they are written."""

    # Its shipper begins to answer a second after it was started, and later on a busy machine.
    start_s: Final = 5.0

    def __init__(self, url: str, place: SpoolPlace, *, is_synced: bool = False, retention_s: float) -> None:
        """`is_synced` commits each row without waiting for others, and has it on the disk right then."""
        self._place = place
        self._spool = place.file()
        self._writer = Writer(self._spool, at_once=is_synced)
        self._keeper = Keeper(place, url, retention_s)
        self._asked = 0

    async def open(self) -> None:
        """Open the spool, and start to write and to ship. A database that is away is no error here.

        Raises:
            OSError: the spool cannot be used, or was written by a later release.
        """
        try:
            await asyncio.to_thread(self._open_spool)
        except sqlite3.Error as exc:
            # The writer opens it as soon as that is possible.
            structlog.get_logger().warning("ledger.lost", reason=str(exc), rows_waiting=0)
        self._writer.open()
        self._keeper.open()

    def _open_spool(self) -> None:
        self._place.create()
        self._spool.open()

    async def close(self) -> None:
        """Write what waits to the spool, and ship it, for at most some seconds; what is left waits there."""
        await asyncio.to_thread(self._writer.close)
        await self._keeper.close()

    def append(self, row: Row) -> None:
        """Have a row written; never waits and never raises."""
        self._writer.append(row)

    def set_retention(self, retention_s: float) -> None:
        """Delete rows that are older than this, from now on."""
        self._keeper.set_retention(retention_s)

    def counts(self) -> LedgerCounts:
        """The counts of this worker; of the spool's rows the one worker knows that keeps the shipper."""
        writer, keeper = self._writer, self._keeper
        return LedgerCounts(writer.waiting + keeper.waiting, writer.errors + keeper.errors, writer.dropped)

    async def sums(self, query: Query) -> Sequence[Sums]:
        """Sum the rows that have reached the database, the groups with the most requests first; at most 10,000 groups.

        Raises:
            LedgerUnavailableError: the database does not answer, takes longer than `SUMS_S`, or too many ask.
        """
        if self._asked >= _MAX_ASKED:
            raise LedgerUnavailableError
        self._asked += 1
        try:
            return await ask(self._place, "sums", query, SUMS_S)
        finally:
            self._asked -= 1

    async def used(self, issuer: str, user: str, since_ms: int) -> Amounts:
        """What a user has used since a moment, as far as it has reached the database.

        Raises:
            LedgerUnavailableError: the database does not answer, or not within `USED_S`.
        """
        return amounts(await ask(self._place, "used", Query(since_ms, (), issuer, user), USED_S))
