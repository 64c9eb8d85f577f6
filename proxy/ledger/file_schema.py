"""The tables of the SQLite files as a list of steps, and what a file is that was found: ours, and of which release.

A file's `user_version` counts the steps that it has gone; a new file goes all of them. A step that was released is
never changed: what a release wants otherwise is one more step, of statements that rows of the release before survive,
and those of its workers that still run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from proxy.ledger import sql

if TYPE_CHECKING:
    import sqlite3

Step: TypeAlias = tuple[str, ...]


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


class WrongFileError(Exception):
    """A file that is not to be used; the text says what it is."""


LEDGER_SCHEMA: Final = FileSchema(
    0x66737365,  # fsse
    "a ledger",
    (
        (
            f"{sql.CREATE_EXCHANGES} WITHOUT ROWID",
            sql.CREATE_EXCHANGES_INDEX,
            f"{sql.CREATE_DAYS} WITHOUT ROWID",
            sql.CREATE_DAYS_INDEX,
        ),
    ),
)
SPOOL_SCHEMA: Final = FileSchema(0x66737370, "a spool", ((f"{sql.CREATE_EXCHANGES} WITHOUT ROWID",),))  # fssp


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
