"""Why the database did not do what it was asked, in words for the log."""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoFreeConnectionError

# SQLSTATEs, or their first two characters: PostgreSQL's documentation, appendix A.
_REASONS: Final = {
    "08": "the database cannot be reached",
    "22": "the database refuses a value",
    "23": "the database refuses a value",
    "25006": "the database is read-only",
    "28": "the database refuses the user or the password",
    "3D": "there is no such database",
    "40": "the database was asked by several at once",
    "42501": "the database's user lacks rights",
    "42": "the database has other tables than expected",
    "53": "the database is short of resources",
    "53100": "the database's disk is full",
    "54": "the database refuses a value",
    "55": "the database was busy for too long",
    "57014": "the database is too slow",
    "57": "the database is stopping or starting",
    "58": "the database cannot use its files",
    "XX": "the database is damaged",
}
_OF_A_ROW: Final = frozenset({"22", "23", "54"})
_DATA_EXCEPTION: Final = "22000"
_MAX_DETAIL_CHARS: Final = 300


class Failure(NamedTuple):
    """What failed, and how.

    Attributes:
        reason: Words of ours.
        sqlstate: None where the database did not answer.
        detail: libpq's words, of a connection that was not made; nothing of a row was sent by then.
    """

    reason: str
    sqlstate: str | None = None
    detail: str | None = None

    @property
    def is_of_a_row(self) -> bool:
        """Whether it may be one row that is refused, and not all."""
        return self.sqlstate is not None and self.sqlstate[:2] in _OF_A_ROW


class SchemaError(Exception):
    """The database cannot be used by this release; the text says why."""


class TooSlowError(Exception):
    """The database did not answer in time, and the connection was cut."""


FAILURES: Final = (DBAPIError, NoFreeConnectionError, SchemaError, TooSlowError, UnicodeError, sqlite3.Error, OSError)


def describe(error: Exception) -> Failure:
    """Say what one of `FAILURES` means; never with the driver's words about a statement, which may repeat a row."""
    if isinstance(error, SchemaError):
        return Failure(str(error))
    if isinstance(error, TooSlowError):
        return Failure(_REASONS["57014"])
    if isinstance(error, sqlite3.Error | OSError):
        return Failure("the spool cannot be used", detail=str(error)[:_MAX_DETAIL_CHARS])
    cause = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(cause, "sqlstate", None)
    if state is None and isinstance(cause, psycopg.DataError | UnicodeError):
        # The driver's own, before anything was sent.
        state = _DATA_EXCEPTION
    if isinstance(state, str):
        return Failure(_REASONS.get(state) or _REASONS.get(state[:2]) or "the database refuses", state)
    if isinstance(error, DBAPIError) and error.statement is None and cause is not None:
        # libpq knows no SQLSTATE of a connection that was never made.
        lines = str(cause).splitlines()
        return Failure("the database gives no connection", detail=lines[0][:_MAX_DETAIL_CHARS] if lines else None)
    return Failure(_REASONS["08"])
