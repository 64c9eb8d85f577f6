"""The ledger in PostgreSQL, opened for a command."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import make_conninfo
from sqlalchemy import make_url

from proxy.ledger.postgres.database import Database
from proxy.ledger.postgres.failures import FAILURES, describe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from proxy.ledger.row import Query, Row, Sums


def check_url(url: str, shown: str) -> None:
    """Check the names of the URL's options, without connecting; `shown` is the URL without the password.

    Raises:
        OSError: there is one that PostgreSQL's library does not know.
    """
    try:
        make_conninfo(**{name: str(value) for name, value in make_url(url).query.items()})
    except psycopg.ProgrammingError as exc:
        # libpq's words, which name the option only.
        raise OSError(f"usage.ledger: {shown}: {str(exc).strip()}") from exc


class PostgresBook:
    """A PostgreSQL ledger; `shown` is its address without the password."""

    def __init__(self, url: str, shown: str) -> None:
        self._database = Database(url)
        self._shown = shown

    def sums(self, query: Query) -> Sequence[Sums]:
        """Sum the rows, the groups with the most requests first; at most 10,000 groups.

        Raises:
            OSError: the database does not answer, or has another release's schema.
        """
        with self._translated():
            return self._database.sums(query) if self._database.has_schema() else []

    def add(self, rows: Sequence[Row]) -> int:
        """Insert the rows that are not there yet, and return how many were new.

        Raises:
            OSError: none of them was inserted.
        """
        with self._translated():
            self._database.prepare()
            return self._database.insert(rows)

    def close(self) -> None:
        """Close the database; idempotent."""
        self._database.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FAILURES as exc:
            failure = describe(exc)
            more = "".join(f": {part}" for part in (failure.detail, failure.sqlstate) if part)
            raise OSError(f"usage.ledger: {self._shown}: {failure.reason}{more}") from exc
