"""The database: connections that answer in time or are cut, batches of rows, sums, old rows.

Every call blocks. Those of several threads run side by side.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import TextClause, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from proxy.ledger import sql
from proxy.ledger.postgres import schema
from proxy.ledger.postgres.failures import TooSlowError
from proxy.ledger.row import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection

    from proxy.ledger.row import Query, Sums

_T = TypeVar("_T")

CONNECT_S: Final = 5.0
WRITE_S: Final = 15.0
SUMS_S: Final = 30.0
# A new release's schema may need all of a large table.
UPGRADE_S: Final = 3600.0
# The server gives up first: its word says more than a cut connection.
_SERVER_SHARE: Final = 0.8
_MAX_CONNECTIONS: Final = 5
# What a day's key has beside numbers.
_NAMES: Final = ("issuer", "user", "plan", "upstream", "model", "ending", "code")
_MAX_NAMES_BYTES: Final = 2500
_MAX_CHARACTER_BYTES: Final = 4
_CLIPPED_BYTES: Final = 300

# In pieces: after a change of the retention they are many.
_DELETE_OLD_DAYS: Final = (
    "DELETE FROM days WHERE ctid = ANY(ARRAY(SELECT ctid FROM days WHERE day < :before_day LIMIT :most))"
)


def _of_arrays(statement: str) -> TextClause:
    """The statement for many rows at a time, a list for each column: one text, however many they are.

    A text with a parameter for each value takes five times as long to make as it takes to run.
    """
    head, _, rest = statement.partition(" VALUES (")
    names, _, tail = rest.partition(") ")
    arrays = ", ".join(f"CAST({name} AS {_kind(name[1:])}[])" for name in names.split(", "))
    return text(f"{head} SELECT * FROM unnest({arrays}) {tail}")  # noqa: S608 - constants


def _kind(column: str) -> str:
    """The type of a column; those that only `days` has are numbers."""
    return sql.TYPES.get(column, "BIGINT").partition(" NOT NULL")[0]


_INSERT_ROWS: Final = _of_arrays(f"{sql.INSERT_ROW} RETURNING row_id")
_ADD_DAYS: Final = _of_arrays(sql.ADD_DAY)


class Database:
    """A PostgreSQL database that has the ledger's rows.

    Nothing is connected before it is asked for something. What is asked twice, because nobody knows whether a commit
    arrived, is done once.
    """

    def __init__(self, url: str) -> None:
        self._engine = create_engine(
            make_url(url).set(drivername="postgresql+psycopg"),
            pool_size=_MAX_CONNECTIONS,
            max_overflow=0,
            pool_timeout=CONNECT_S,
            # No row in the text of an error.
            hide_parameters=True,
            connect_args={
                "connect_timeout": int(CONNECT_S),
                "application_name": "forward-sse",
                # A pooler between us may give each transaction another connection.
                "prepare_threshold": None,
            },
        )

    def prepare(self) -> None:
        """Bring the schema to this release's, unless it is.

        Raises:
            SchemaError: it is a later release's, or the database cannot hold all characters.
            DBAPIError: see `failures`.
        """
        if not self._do(schema.is_current):
            self._do(schema.upgrade, timeout_s=UPGRADE_S)

    def has_schema(self) -> bool:
        """Whether there is something to read.

        Raises:
            SchemaError: it is another release's.
        """
        return self._do(schema.is_readable)

    def insert(self, rows: Sequence[Row]) -> int:
        """Insert the rows that are not there yet and add them to the days' totals, in one transaction.

        Returns how many were new.

        Raises:
            SchemaError: the schema is not this release's; `prepare` may help.
        """
        return self._do(lambda connection: _insert(connection, rows))

    def sums(self, query: Query, *, timeout_s: float = SUMS_S) -> list[Sums]:
        """Sum the rows."""
        statement, parameters = sql.sums_statement(query)

        def read(connection: Connection) -> list[Sums]:
            return sql.read_sums(query, [tuple(record) for record in connection.execute(text(statement), parameters)])

        return self._do(read, timeout_s=timeout_s)

    def sums_with(self, query: Query, rows: Sequence[Row], *, timeout_s: float) -> list[Sums]:
        """Sum the rows, ungrouped, and those of `rows` besides that are not in the database yet."""
        assert not query.by
        statement, parameters = sql.sums_statement(query)
        # In one statement, which sees one moment: a row that arrives meanwhile is counted in one of the two places.
        known = "SELECT row_id FROM exchanges WHERE row_id = ANY(CAST(:row_ids AS TEXT[]))"
        both = f"SELECT sums.*, ARRAY({known}) FROM ({statement}) AS sums"  # noqa: S608 - constants
        parameters["row_ids"] = [row.row_id for row in rows]

        def read(connection: Connection) -> list[Sums]:
            *counts, arrived = connection.execute(text(both), parameters).one()
            known_ids = set(arrived)
            new = sql.totals(row for row in rows if row.row_id not in known_ids)
            return [*sql.read_sums(query, [counts]), *sql.read_sums(query, map(sql.counts_of, new))]

        return self._do(read, timeout_s=timeout_s)

    def delete_old(self, since_ms: int, most: int) -> bool:
        """Delete what ended before the day of that moment, at most so many rows of each table.

        Returns whether there may be more.
        """
        kept = sql.Kept.since(since_ms)

        def delete(connection: Connection) -> bool:
            rows = connection.execute(text(sql.DELETE_OLD_ROWS), {"before_id": kept.before_id, "most": most})
            days = connection.execute(text(_DELETE_OLD_DAYS), {"before_day": kept.before_day, "most": most})
            return max(rows.rowcount, days.rowcount) >= most

        return self._do(delete)

    def forget_connections(self) -> None:
        """Make new connections from now on: the name may be another server's now."""
        self._engine.dispose()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._engine.dispose()

    def _do(self, work: Callable[[Connection], _T], timeout_s: float = WRITE_S) -> _T:
        """Do something in one transaction; once more where a kept connection turned out to be dead."""
        try:
            return self._do_once(work, timeout_s)
        except DBAPIError as exc:
            if not exc.connection_invalidated:
                raise
        return self._do_once(work, timeout_s)

    def _do_once(self, work: Callable[[Connection], _T], timeout_s: float) -> _T:
        with self._engine.connect() as connection, _cut_after(connection, timeout_s), connection.begin():
            # Of this transaction only: a pooler gives the connection to others.
            limit = text("SELECT set_config('statement_timeout', :limit, true)")
            connection.execute(limit, {"limit": str(int(timeout_s * _SERVER_SHARE * 1000))})
            return work(connection)


def _insert(connection: Connection, rows: Sequence[Row]) -> int:
    schema.check_current(connection)
    if not rows:
        return 0
    # In one order: two that insert the same rows wait for each other in one direction only.
    ordered = sorted((_fitting(sql.storable(row)) for row in rows), key=lambda row: row.row_id)
    columns = dict(zip(Row._fields, map(list, zip(*ordered, strict=True)), strict=True))
    inserted = set(connection.execute(_INSERT_ROWS, columns).scalars())
    totals = sql.totals(row for row in ordered if row.row_id in inserted)
    if totals:
        connection.execute(_ADD_DAYS, {name: [day[name] for day in totals] for name in totals[0]})
    return len(inserted)


def _fitting(row: Row) -> Row:
    """The row with names that fit into an index: PostgreSQL refuses an entry of more than 2704 bytes."""
    names = {name: value for name in _NAMES if (value := getattr(row, name))}
    if sum(map(len, names.values())) * _MAX_CHARACTER_BYTES <= _MAX_NAMES_BYTES:
        return row
    if sum(len(name.encode()) for name in names.values()) <= _MAX_NAMES_BYTES:
        return row
    clipped = {name: value.encode()[:_CLIPPED_BYTES].decode(errors="ignore") for name, value in names.items()}
    return row._replace(**clipped)


@contextlib.contextmanager
def _cut_after(connection: Connection, timeout_s: float) -> Iterator[None]:
    """Shut the connection's socket down when the time is over, which fails whoever waits for it.

    The server's own timeout is no help where the server hangs or the network is gone, and the driver has none.

    Raises:
        TooSlowError: it was cut.
    """
    driver: Any = connection.connection.driver_connection
    # A copy, which is this socket's whatever becomes of the number.
    handle = socket.socket(fileno=os.dup(driver.fileno()))
    was_cut = threading.Event()

    def cut() -> None:
        was_cut.set()
        with contextlib.suppress(OSError):
            handle.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except DBAPIError as exc:
        if was_cut.is_set():
            raise TooSlowError from exc
        raise
    finally:
        timer.cancel()
        timer.join()
        handle.close()
