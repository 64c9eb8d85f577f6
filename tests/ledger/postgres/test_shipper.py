"""The shipper, a step at a time: what it does when the database or the spool does not do its part."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg
import pytest

from proxy.ledger import Query, sql
from proxy.ledger.file import LedgerFile
from proxy.ledger.postgres import shipper as module
from proxy.ledger.postgres.database import Database
from proxy.ledger.postgres.failures import describe
from tests.ledger.postgres.spools import Spooled
from tests.ledger.postgres.test_database import allow, refuse, some_rows
from tests.ledger.rows import NOON_MS, row, summed
from tests.postgres import ask

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.postgres import PostgresServer


@pytest.fixture
def spooled(tmp_path: Path, url: str) -> Iterator[Spooled]:
    """An empty spool of an empty database."""
    with closing(Spooled(tmp_path, url)) as spooled:
        yield spooled


def test_rows_are_moved(spooled: Spooled) -> None:
    """Rows leave the spool once they are in the database with their totals, a batch a step; then it waits for more."""
    rows = some_rows(module.BATCH + 20)
    spooled.add(rows)
    assert spooled.shipper.step() == 0
    assert (spooled.shipped(), spooled.waiting) == ((module.BATCH, module.BATCH), 20)
    assert spooled.shipper.step() == module.LOOK_S
    assert (spooled.shipped(), spooled.waiting) == ((len(rows), len(rows)), 0)
    assert spooled.shipper.waiting() == 0
    with closing(Database(spooled.url)) as database:
        assert database.sums(Query(0)) == summed(rows, Query(0))
    assert spooled.events == []


def test_database_that_is_away(server: PostgresServer, tmp_path: Path) -> None:
    """It is tried ever more seldom, told once, and what waited meanwhile is shipped when it is there."""
    server.kill()
    with closing(Spooled(tmp_path, server.url)) as spooled:
        spooled.add(some_rows(30))
        pauses = [spooled.shipper.step() for _ in range(7)]
        assert pauses[0] <= module._MIN_PAUSE_S
        assert 0.8 * module.MAX_PAUSE_S <= pauses[-1] <= module.MAX_PAUSE_S
        server.start()
        assert spooled.shipper.step() == module.LOOK_S
        assert spooled.shipped() == (30, 30)
        assert spooled.names() == ["ledger.shipping_stopped", "ledger.shipping_resumed"]
        lost = spooled.events[0]
        assert (lost["level"], lost["rows_waiting"]) == ("warning", 30)
        assert lost["detail"].endswith("Connection refused")
        assert "password" not in str(spooled.events)
        assert spooled.shipper.errors == 7


@pytest.mark.parametrize(
    ("sqlstate", "reason"),
    [("53100", "the database's disk is full"), ("40P01", "the database was asked by several at once")],
)
def test_database_that_refuses_all(spooled: Spooled, sqlstate: str, reason: str) -> None:
    """A full disk, or a lost race, is said, and no row is lost."""
    assert spooled.shipper.step()
    refuse(spooled.url, sqlstate)
    spooled.add(some_rows(10))
    assert spooled.shipper.step() < module.LOOK_S
    assert (spooled.shipped(), spooled.waiting) == ((0, 0), 10)
    assert [(event.get("reason"), event.get("sqlstate")) for event in spooled.events] == [(reason, sqlstate)]
    allow(spooled.url)
    spooled.shipper.step()
    assert (spooled.shipped(), spooled.waiting) == ((10, 10), 0)
    assert spooled.names() == ["ledger.shipping_stopped", "ledger.shipping_resumed"]


def test_row_that_is_refused(spooled: Spooled) -> None:
    """A row that the database never takes stops no other; it stays in the spool for a release that knows better."""
    assert spooled.shipper.step()
    refuse(spooled.url, "22003", "NEW.events = 13")
    bad = [row(events=13), row(events=13)]
    spooled.add([*some_rows(20), *bad])
    assert spooled.shipper.step() == module.LOOK_S
    assert (spooled.shipped(), spooled.waiting) == ((20, 20), 2)
    spooled.add(some_rows(module.BATCH, seed=1))
    assert spooled.shipper.step() == 0
    assert (spooled.shipped(), spooled.waiting) == ((20 + module.BATCH,) * 2, 2)
    (event,) = spooled.events
    assert (event["event"], event["rows"], event["sqlstate"]) == ("ledger.rows_refused", 2, "22003")
    assert spooled.shipper.errors == 2
    allow(spooled.url)
    with closing(spooled.new_shipper()) as later:
        later.step()
    assert (spooled.shipped(), spooled.waiting) == ((22 + module.BATCH,) * 2, 0)


@pytest.mark.parametrize("text", ["\0", "\ud800"])
def test_text_that_the_driver_refuses(url: str, text: str) -> None:
    """What cannot even be sent is sent otherwise, and found again; where it was, it is a fault of its row."""
    with closing(Database(url)) as database:
        database.prepare()
        assert database.insert([row(user=text, code=text, upstream=text)]) == 1
        (sums,) = database.sums(Query(0, ("code",), "tests", text))
        assert (sums.requests, sums.by["code"]) == (1, sql.clean(text))
    for error in (psycopg.DataError("a NUL"), UnicodeEncodeError("utf-8", text, 0, 1, "a surrogate")):
        assert describe(error) == ("the database refuses a value", "22000", None)


def test_schema_of_a_later_release(spooled: Spooled) -> None:
    """Rows wait in the spool while the schema is a later release's, and are shipped by the later release."""
    spooled.shipper.step()
    ask(spooled.url, "UPDATE forward_sse_schema SET version_num = '0002'")
    spooled.add(some_rows(10))
    for _ in range(3):
        spooled.shipper.step()
    assert (spooled.shipped(), spooled.waiting) == ((0, 0), 10)
    assert [event["reason"] for event in spooled.events] == [
        "the database's schema was changed",
        "the database has the schema of a later release (0002, this one knows 0001)",
    ]
    ask(spooled.url, "UPDATE forward_sse_schema SET version_num = '0001'")
    spooled.shipper.step()
    assert (spooled.shipped(), spooled.waiting) == ((10, 10), 0)


class _Undeleting(LedgerFile):
    """A spool that cannot be written, as on a disk that is full: its rows are shipped and stay."""

    def delete(self, row_ids: Iterable[str]) -> None:
        raise sqlite3.OperationalError("database or disk is full")


def test_death_between_commit_and_deletion(spooled: Spooled) -> None:
    """Rows that were committed and not deleted are shipped again, and neither they nor their totals are there twice."""
    rows = some_rows(40)
    spooled.add(rows)
    with closing(spooled.new_shipper(_Undeleting(spooled.spool.path, has_totals=False))) as dying:
        for _ in range(2):
            dying.step()
    assert (spooled.shipped(), spooled.waiting) == ((40, 40), 40)
    (lost,) = spooled.events
    assert (lost["reason"], lost["detail"]) == ("the spool cannot be used", "database or disk is full")
    spooled.add(some_rows(5, seed=2))
    spooled.shipper.step()
    assert (spooled.shipped(), spooled.waiting) == ((45, 45), 0)


def test_old_rows_are_swept(tmp_path: Path, url: str) -> None:
    """What is older than the retention leaves the database by itself, in pieces, while rows are shipped."""
    with closing(Spooled(tmp_path, url, retention_s=86_400.0)) as spooled:
        spooled.add([row(NOON_MS) for _ in range(20)])
        spooled.shipper.step()
        assert spooled.shipped() == (20, 20)
        spooled.shipper._next_sweep_s = 0
        assert spooled.shipper.step() == module.LOOK_S
        assert spooled.shipped() == (0, 0)
