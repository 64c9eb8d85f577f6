"""The shipper's answers to the node's workers, which cannot read the database themselves (`asking`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Final

from proxy.ledger.file import open_to_read, read_rows_of
from proxy.ledger.postgres.asking import MAX_QUESTION_BYTES, read_question, write_answer
from proxy.ledger.postgres.failures import FAILURES
from proxy.ledger.row import SUMS_S, USED_S

if TYPE_CHECKING:
    from types import TracebackType

    from proxy.ledger.postgres.database import Database
    from proxy.ledger.postgres.place import SpoolPlace
    from proxy.ledger.postgres.shipper import Shipper, Tell
    from proxy.ledger.row import Query, Sums

_READ_S: Final = 1.0
# Those of all workers.
_MAX_ASKED: Final = 256
# Each thread has a connection to the database.
_THREADS: Final = {"sums": (2, SUMS_S), "used": (2, USED_S)}
# Of one user's rows in the spool. While there are more, nobody knows what the user has used.
_MAX_WAITING: Final = 10_000
# Steps of SQLite's machine between two looks at the clock: some tenths of a millisecond.
_STEPS: Final = 10_000


class Answerer:
    """Listens on the place's socket, for its owner only; the lock's holder is the only one on the node."""

    def __init__(self, place: SpoolPlace, database: Database, shipper: Shipper, tell: Tell) -> None:
        self._place = place
        self._database = database
        self._shipper = shipper
        self._tell = tell
        self._server: asyncio.Server | None = None
        self._asked = 0
        # What a user has used never waits for sums.
        self._threads = {kind: ThreadPoolExecutor(count, kind) for kind, (count, _) in _THREADS.items()}

    async def __aenter__(self) -> None:
        """Listen; where that cannot be it is told, and rows are shipped all the same."""
        mask = os.umask(0o177)
        try:
            with self._place.socket_path() as path:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # noqa: PTH108 - a path through a descriptor, for `os` as for the socket
                self._server = await asyncio.start_unix_server(self._serve, path, limit=MAX_QUESTION_BYTES)
        except OSError as exc:
            self._tell("ledger.unanswered", "warning", reason=exc.strerror or type(exc).__name__)
        finally:
            os.umask(mask)

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Listen no longer."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._asked += 1
        try:
            async with asyncio.timeout(_READ_S):
                line = await reader.readline()
            writer.write(write_answer(await self._answer(line) if self._asked <= _MAX_ASKED else None))
            async with asyncio.timeout(_READ_S):
                await writer.drain()
            writer.close()
        except (OSError, ValueError, LookupError, TypeError):
            # Whoever asked is gone, or is no worker of ours.
            writer.transport.abort()
        finally:
            self._asked -= 1

    async def _answer(self, line: bytes) -> list[Sums] | None:
        kind, query = read_question(line)
        _, within_s = _THREADS[kind]
        if self._shipper.failure is not None:
            return None
        until_s = time.monotonic() + within_s
        try:
            read = self._read if kind == "sums" else self._read_used
            return await asyncio.get_running_loop().run_in_executor(self._threads[kind], read, query, until_s)
        except FAILURES:
            return None

    def _read(self, query: Query, until_s: float) -> list[Sums] | None:
        left_s = until_s - time.monotonic()
        # It has waited for a thread until now, and whoever asked no longer waits.
        return self._database.sums(query, timeout_s=left_s) if left_s > 0 else None

    def _read_used(self, query: Query, until_s: float) -> list[Sums] | None:
        """What a user has used, by the database and by what has not been shipped yet.

        After a restart these are the rows of whatever the process before could not ship, and of what ran when it was
        killed. An answer without them would be believed until the period's end.
        """

        def is_over() -> bool:
            return time.monotonic() > until_s

        # Before the database is asked: what is shipped in between is there then.
        with closing(open_to_read(self._place.file().path)) as connection:
            connection.set_progress_handler(is_over, _STEPS)
            waiting = read_rows_of(connection, query, _MAX_WAITING + 1)
        left_s = until_s - time.monotonic()
        if left_s <= 0 or len(waiting) > _MAX_WAITING:
            return None
        return self._database.sums_with(query, waiting, timeout_s=left_s)
