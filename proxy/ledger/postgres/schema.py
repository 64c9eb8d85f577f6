"""The database's schema: which one it has, and how it gets to this release's.

The steps are Alembic's, in `migrations`; Alembic is imported only where there is one to take.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text

from proxy.ledger.postgres.failures import SchemaError

# The last of `migrations/versions`.
HEAD: Final = "0001"
# Not Alembic's usual name: another program may have that table in the same database.
VERSION_TABLE: Final = "forward_sse_schema"
_MIGRATIONS: Final = Path(__file__).with_name("migrations")
# Of PostgreSQL's advisory locks, which are numbers that all of a database's users share.
_LOCK: Final = 0x6677645F737365


def is_current(connection: Connection) -> bool:
    """Whether the schema is this release's.

    Raises:
        SchemaError: it is a later release's.
    """
    encoding = connection.execute(text("SHOW server_encoding")).scalar()
    if encoding != "UTF8":
        raise SchemaError(f"the database's encoding is {encoding}, not UTF8")
    version = _version(connection)
    if version is not None and version > HEAD:
        raise SchemaError(f"the database has the schema of a later release ({version}, this one knows {HEAD})")
    return version == HEAD


def is_readable(connection: Connection) -> bool:
    """Whether there are tables, which are this release's.

    Raises:
        SchemaError: they are another release's.
    """
    if is_current(connection):
        return True
    if _version(connection) is not None:
        raise SchemaError("the database has the schema of an earlier release; a node of this one has yet to change it")
    return False


def check_current(connection: Connection) -> None:
    """Check before writing, in the same transaction: another node may have brought a later release's schema.

    Raises:
        SchemaError: it is not this release's.
    """
    statement = text(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608 - a constant
    if connection.execute(statement).scalar() != HEAD:
        raise SchemaError("the database's schema was changed")


def upgrade(connection: Connection) -> None:
    """Take all steps that are missing, in the transaction; of several nodes one does, and the others wait for it."""
    from alembic import command  # noqa: PLC0415 - as said above: 30 MiB that are seldom needed
    from alembic.config import Config  # noqa: PLC0415 - the same

    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    if is_current(connection):
        return
    config = Config(attributes={"connection": connection, "version_table": VERSION_TABLE})
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    command.upgrade(config, "head")


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608 - a constant
