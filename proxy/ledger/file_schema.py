"""The tables of the SQLite files as a list of steps, and what a file is that was found: ours, and of which release.

A file's `user_version` counts the steps that it has gone; a new file goes all of them. A step that was released is
never changed: what a release wants otherwise is one more step, of statements that rows of the release before survive,
and those of its workers that still run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import sqlite3

Step: TypeAlias = tuple[str, ...]


class WrongFileError(Exception):
    """A file that is not to be used; the text says what it is."""


class FileSchema(NamedTuple):
    """The tables of one kind of file.

    Attributes:
        application_id: Tells the file from another program's, and from the other kind of ours.
        what: The kind, in words.
        steps: The statements that lead from each version to the next, the first of them from an empty file.
    """

    application_id: int
    what: str
    steps: tuple[Step, ...]

    @property
    def version(self) -> int:
        """That of a file which has gone all steps."""
        return len(self.steps)

    def version_of(self, connection: sqlite3.Connection) -> int:
        """The version of a file: 0 for an empty one.

        Raises:
            WrongFileError: It is not empty, and not ours or of a later release.
        """
        if connection.in_transaction:
            return self._version_of(connection)
        # All of it at one moment: another worker may be about to make the tables.
        connection.execute("BEGIN")
        try:
            return self._version_of(connection)
        finally:
            connection.execute("ROLLBACK")

    def upgrade(self, connection: sqlite3.Connection) -> None:
        """Go the steps that a file has not gone, in the running transaction.

        Raises:
            WrongFileError: as `version_of`.
        """
        for statements in self.steps[self.version_of(connection) :]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {self.application_id}")
        connection.execute(f"PRAGMA user_version = {self.version}")

    def _version_of(self, connection: sqlite3.Connection) -> int:
        found, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
        if found == self.application_id:
            if version > self.version:
                raise WrongFileError(
                    f"was written by a later release of forward-sse (schema {version}, this one knows {self.version})"
                )
            return version
        (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if found == 0 and version == 0 and tables == 0:
            return 0
        kinds = {schema.application_id: schema.what for schema in (LEDGER_SCHEMA, SPOOL_SCHEMA)}
        raise WrongFileError("is " + kinds.get(found, "another program's database"))


_EXCHANGES: Final = """CREATE TABLE exchanges (
    row_id TEXT NOT NULL PRIMARY KEY,
    id TEXT NOT NULL,
    ended_ms BIGINT NOT NULL,
    issuer TEXT NOT NULL,
    "user" TEXT NOT NULL,
    plan TEXT NOT NULL,
    upstream TEXT,
    model TEXT,
    dialect TEXT,
    status INTEGER,
    ending TEXT NOT NULL,
    code TEXT,
    ttfb_ms DOUBLE PRECISION,
    duration_ms DOUBLE PRECISION NOT NULL,
    bytes BIGINT NOT NULL,
    events BIGINT NOT NULL,
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    cost_nano BIGINT,
    currency TEXT NOT NULL,
    usage TEXT NOT NULL,
    price_version TEXT,
    attempts INTEGER NOT NULL
) WITHOUT ROWID"""
# One user's rows since a moment.
_EXCHANGES_INDEX: Final = 'CREATE INDEX exchanges_of_user ON exchanges (issuer, "user", row_id)'
# One user's days stand together; a day is that of UTC, counted from the epoch.
_DAYS: Final = """CREATE TABLE days (
    issuer TEXT NOT NULL,
    "user" TEXT NOT NULL,
    day INTEGER NOT NULL,
    plan TEXT NOT NULL,
    upstream TEXT NOT NULL,
    model TEXT NOT NULL,
    ending TEXT NOT NULL,
    code TEXT NOT NULL,
    requests BIGINT NOT NULL,
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    cost_nano BIGINT NOT NULL,
    unpriced BIGINT NOT NULL,
    PRIMARY KEY (issuer, "user", day, plan, upstream, model, ending, code)
) WITHOUT ROWID"""
_DAYS_INDEX: Final = "CREATE INDEX days_of_all ON days (day)"


LEDGER_SCHEMA: Final = FileSchema(
    0x66737365,  # fsse
    "a ledger",
    ((_EXCHANGES, _EXCHANGES_INDEX, _DAYS, _DAYS_INDEX),),
)
SPOOL_SCHEMA: Final = FileSchema(0x66737370, "a spool", ((_EXCHANGES,),))  # fssp


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
