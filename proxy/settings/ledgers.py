"""Builds the ledger from settings: a worker's, a command's; finds out whether it can be used.

Apart from `build`, so that a command that only asks the ledger does not load what serves requests.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.ledger import Book, Ledger
    from proxy.ledger.running import RunningFile
    from proxy.settings.server import Settings


def build_ledger(settings: Settings) -> Ledger | None:
    """Build the ledger; None where none is kept. The caller opens and closes it, within one event loop."""
    usage = settings.usage
    url = usage.ledger
    if url is None:
        return None
    # sqlite3 and its library, which only those load who keep a ledger.
    if url.path is not None:
        from proxy.ledger.sqlite import SqliteLedger  # noqa: PLC0415

        return SqliteLedger(url.path, is_synced=usage.sync == "each", retention_s=usage.retention_s)
    from proxy.ledger.postgres import PostgresLedger, SpoolPlace  # noqa: PLC0415

    return PostgresLedger(
        url.url.get_secret_value(),
        SpoolPlace(spool_directory(settings)),
        is_synced=usage.sync == "each",
        retention_s=usage.retention_s,
    )


def build_running_file(settings: Settings) -> RunningFile | None:
    """The file of what a worker runs, beside the ledger or in the spool's directory; None where no ledger is kept."""
    url = settings.usage.ledger
    if url is None:
        return None
    from proxy.ledger.file import LedgerFile  # noqa: PLC0415 - as above
    from proxy.ledger.running import RunningFile  # noqa: PLC0415 - as above

    if (path := url.path) is not None:
        ledger = Path(path)
        return RunningFile(ledger.with_name(f"{ledger.name}-running-"), lambda: LedgerFile(ledger, has_totals=True))
    from proxy.ledger.postgres import SpoolPlace  # noqa: PLC0415 - as above

    place = SpoolPlace(spool_directory(settings))
    return RunningFile(place.directory / "running-", place.file)


def spool_directory(settings: Settings) -> Path:
    """Where rows wait for PostgreSQL: `usage.spool`, else systemd's directory for state, else `spool`."""
    # systemd names several with colons between them.
    state = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(settings.usage.spool or state or "spool")


def check_ledger(settings: Settings) -> None:
    """Find out, without changing or connecting to anything, whether the ledger's files can be used.

    Raises:
        OSError: one of them cannot; the text says why.
    """
    url = settings.usage.ledger
    if url is None:
        return
    if url.path is not None:
        from proxy.ledger.file import LedgerFile  # noqa: PLC0415 - as above

        LedgerFile(url.path, has_totals=True).check()
    else:
        from proxy.ledger.postgres import SpoolPlace  # noqa: PLC0415 - as above

        SpoolPlace(spool_directory(settings)).check()


def check_ledger_url(settings: Settings) -> None:
    """Find out, without connecting, whether the database's address has only what its driver knows.

    Loads the driver, which is nothing for workers and their arbiter.

    Raises:
        OSError: it has something else; the text says what.
    """
    url = settings.usage.ledger
    if url is not None and url.path is None:
        from proxy.ledger.postgres.book import check_url  # noqa: PLC0415 - as said above

        check_url(url.url.get_secret_value(), str(url))


def open_book(settings: Settings) -> Book | None:
    """Open the ledger for a command; None where none is kept. The caller closes it."""
    url = settings.usage.ledger
    if url is None:
        return None
    if url.path is not None:
        from proxy.ledger.sqlite import SqliteBook  # noqa: PLC0415 - as above

        return SqliteBook(url.path)
    from proxy.ledger.postgres.book import PostgresBook  # noqa: PLC0415 - as above, and SQLAlchemy with it

    return PostgresBook(url.url.get_secret_value(), str(url))
