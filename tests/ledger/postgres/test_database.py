"""The database: its schema, rows once each and totals that are right, and what it says when it does not work."""

from __future__ import annotations

import itertools
import random
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alembic.script import ScriptDirectory
from hatchling.builders.wheel import WheelBuilder

from proxy.ledger import COLUMNS, Query, sql
from proxy.ledger.file_schema import LEDGER_SCHEMA
from proxy.ledger.postgres import database as module
from proxy.ledger.postgres import schema
from proxy.ledger.postgres.book import PostgresBook
from proxy.ledger.postgres.database import Database
from proxy.ledger.postgres.failures import FAILURES, SchemaError, TooSlowError, describe
from tests.ledger.rows import NOON_MS, row, summed
from tests.postgres import PASSWORD, ask

if TYPE_CHECKING:
    from proxy.ledger import Row
    from tests.postgres import PostgresServer

ROOT = Path(__file__).parents[3]
_SHAPE = """
    SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns
    WHERE table_name IN ('exchanges', 'days') ORDER BY table_name, ordinal_position
"""
_INDEXES = "SELECT replace(indexdef, 'public.', '') FROM pg_indexes WHERE tablename IN ('exchanges', 'days') ORDER BY 1"
_VERSION = "SELECT version_num FROM forward_sse_schema"


def some_rows(count: int, seed: int = 0) -> list[Row]:
    """Rows of several users, days, models and outcomes."""
    chance = random.Random(seed)
    return [
        row(
            NOON_MS + chance.randrange(3 * sql.DAY_MS),
            user=chance.choice(("alice", "bob", "李")),
            model=chance.choice(("gpt-x", "qwen", None)),
            upstream=chance.choice(("main", None)),
            code=chance.choice((None, "expired_token")),
            cost_nano=chance.choice((None, 1, 10**12)),
            usage=chance.choice(("none", "estimated")),
            ttfb_ms=chance.choice((None, 1.5)),
        )
        for _ in range(count)
    ]


def test_schema_is_that_of_the_portable_sql(url: str, shared_server: PostgresServer) -> None:
    """The migrations make the columns, types, keys and indexes of the steps that SQLite's tables come from."""
    with closing(Database(url)) as database:
        database.prepare()
        database.prepare()
    other = shared_server.create_database("portable")
    for statement in chain.from_iterable(LEDGER_SCHEMA.steps):
        ask(other, statement.removesuffix(" WITHOUT ROWID"))
    assert ask(url, _SHAPE) == ask(other, _SHAPE)
    assert ask(url, _INDEXES) == ask(other, _INDEXES)


def test_head_is_the_last_step() -> None:
    """The version that this release looks for is that of its last migration."""
    assert ScriptDirectory(str(schema._MIGRATIONS)).get_heads() == [schema.HEAD]


def test_steps_are_in_the_wheel(tmp_path: Path) -> None:
    """Whoever installs the package has every step, and what Alembic needs to take them."""
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as files:
        names = {Path(name) for name in files.namelist()}
    steps = {path.relative_to(ROOT) for path in (ROOT / "proxy/ledger/postgres/migrations").rglob("*.py")}
    assert len(steps) >= 3
    assert steps <= names


def test_rights_of_others(url: str, shared_server: PostgresServer) -> None:
    """Once the schema is there, a node needs four rights on two tables, and who reads needs one."""
    with closing(Database(url)) as database:
        database.prepare()
    name = url.rpartition("/")[2]
    for user, rights in (("writer", "SELECT, INSERT, UPDATE, DELETE"), ("reader", "SELECT")):
        shared_server.admin(f"CREATE USER {user} PASSWORD '{PASSWORD}'")
        ask(url, f"GRANT {rights} ON exchanges, days TO {user}")
        ask(url, f"GRANT SELECT ON forward_sse_schema TO {user}")
    with closing(Database(shared_server.url_of(name, user="writer"))) as writer:
        writer.prepare()
        assert [writer.insert([row()]), writer.insert([row()])] == [1, 1]
        assert writer.delete_old(0, 10) is False
    with closing(PostgresBook(shared_server.url_of(name, user="reader"), "it")) as reader:
        assert [one.requests for one in reader.sums(Query(0))] == [2]
        with pytest.raises(OSError, match=r"usage.ledger: it: the database's user lacks rights: 42501"):
            reader.add([row()])


def test_schema_is_made_once_by_several_nodes(url: str) -> None:
    """Nodes that start together make one schema, and none fails."""
    nodes = [Database(url) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(Database.prepare, nodes))
    assert ask(url, _VERSION) == [(schema.HEAD,)]
    for node in nodes:
        node.close()


def test_schema_of_a_later_release_is_left_alone(url: str) -> None:
    """A node of an earlier release writes nothing into a later one's schema, not even where it was changed just now."""
    with closing(Database(url)) as database:
        database.prepare()
        ask(url, "UPDATE forward_sse_schema SET version_num = '0002'")
        with pytest.raises(SchemaError, match="changed"):
            database.insert([row()])
        with pytest.raises(SchemaError, match="later release"):
            database.prepare()
        assert ask(url, "SELECT count(*) FROM exchanges") == [(0,)]
    with closing(PostgresBook(url, "it")) as book, pytest.raises(OSError, match=r"usage.ledger: it: .*later release"):
        book.sums(Query(0))


def test_schema_needs_all_characters(url: str, shared_server: PostgresServer) -> None:
    """A database that cannot hold every name is refused, and says its encoding."""
    shared_server.admin("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    with closing(Database(shared_server.url_of("latin"))) as database, pytest.raises(SchemaError, match="LATIN1"):
        database.prepare()


def test_sums_are_those_of_the_rows(url: str) -> None:
    """Sums from totals and rows are what the rows add up to, whichever the columns and the moment."""
    rows = some_rows(300)
    moments = (0, NOON_MS + sql.DAY_MS, NOON_MS + sql.DAY_MS // 2, NOON_MS + 9 * sql.DAY_MS)
    columns: tuple[Any, ...] = ((), ("user",), ("day", "model"), COLUMNS)
    with closing(Database(url)) as database:
        database.prepare()
        assert database.insert(rows) == len(rows)
        for since_ms, by, user in itertools.product(moments, columns, (None, "bob")):
            query = Query(since_ms, by, user and "tests", user)
            assert sorted(map(str, database.sums(query))) == sorted(map(str, summed(rows, query)))


def test_rows_are_inserted_once(url: str) -> None:
    """What is inserted again, in part or whole, changes neither rows nor totals."""
    rows = some_rows(200)
    with closing(Database(url)) as database:
        database.prepare()
        assert database.insert(rows[:150]) == 150
        assert database.insert(rows[100:]) == 50
        assert database.insert(rows) == 0
        assert database.sums(Query(0)) == summed(rows, Query(0))


def test_nodes_insert_side_by_side(url: str) -> None:
    """Nodes that insert the same rows and days in any order wait for each other, and none is chosen to fail."""
    rows = some_rows(1200)
    databases = [Database(url) for _ in range(4)]
    databases[0].prepare()

    def ship(number: int) -> int:
        order = random.Random(number).sample(rows, len(rows))
        return sum(databases[number].insert(order[at : at + 100]) for at in range(0, len(order), 100))

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(ship, range(4))) == len(rows)
    assert databases[0].sums(Query(0, ("user", "day"))) == sorted(
        summed(rows, Query(0, ("user", "day"))), key=lambda one: (-one.requests, *map(str, one.by.values()))
    )
    for database in databases:
        database.close()


def test_any_name_fits(url: str) -> None:
    """Names with NUL, halves of characters and of any length are stored, and their row counts."""
    chance = random.Random(1)
    long = "".join(chr(chance.randrange(0x20000, 0x2FFFF)) for _ in range(1000))
    with closing(Database(url)) as database:
        database.prepare()
        odd = row(user="a\0b", model="\ud800", id="\0")
        assert database.insert([odd, row(user=long, model=long, plan=long, upstream=long)]) == 2
        assert {one.by["user"] for one in database.sums(Query(0, ("user",)))} == {"a\ufffdb", long[:75]}


def test_old_rows_are_deleted(url: str) -> None:
    """Whole days go, in pieces, with their totals; later ones stay."""
    rows = [row(NOON_MS + number * sql.DAY_MS) for number in range(4) for _ in range(10)]
    with closing(Database(url)) as database:
        database.prepare()
        database.insert(rows)
        since_ms = NOON_MS + 2 * sql.DAY_MS
        assert [database.delete_old(since_ms, 15) for _ in range(2)] == [True, False]
        assert database.sums(Query(0)) == summed(rows[20:], Query(0))
        assert ask(url, "SELECT count(*) FROM exchanges") == [(20,)]


def test_reading_creates_nothing(url: str) -> None:
    """Whoever asks an empty database for sums gets none, and leaves it empty; `add` makes the schema."""
    with closing(PostgresBook(url, "it")) as book:
        assert book.sums(Query(0)) == []
        assert ask(url, _SHAPE) == []
        rows = some_rows(5)
        assert [book.add(rows), book.add(rows)] == [5, 0]
        assert book.sums(Query(0)) == summed(rows, Query(0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"password": "wrong"}, 'password authentication failed for user "shipper"'),
        ({"user": "nobody_here"}, 'password authentication failed for user "nobody_here"'),
        ({"database": "not_there"}, 'database "not_there" does not exist'),
        ({"port": 1}, "Connection refused"),
        ({"database": "ledger?sslmode=require"}, "server does not support SSL"),
        ({"database": "ledger?sslmod=require"}, 'invalid connection option "sslmod"'),
    ],
)
def test_no_connection(shared_server: PostgresServer, change: dict[str, Any], said: str) -> None:
    """Where no connection can be made the reason is the server's or the library's, without the password."""
    url = shared_server.url_of(**{"database": "ledger"} | change)
    with closing(Database(url)) as database:
        with pytest.raises(FAILURES) as raised:
            database.prepare()
        failure = describe(raised.value)
    assert failure.detail is not None
    assert said in failure.detail
    assert "a-password-of-the-tests" not in str(failure)


_REFUSALS = (
    ("53100", "the database's disk is full", False),
    ("25006", "the database is read-only", False),
    ("22003", "the database refuses a value", True),
    ("40P01", "the database was asked by several at once", False),
    ("42501", "the database's user lacks rights", False),
    ("P0001", "the database refuses", False),
)


def test_refusals(url: str) -> None:
    """What the database refuses is said by its code, never with its words, which may repeat a row."""
    with closing(Database(url)) as database:
        database.prepare()
        for sqlstate, reason, is_of_a_row in _REFUSALS:
            refuse(url, sqlstate)
            with pytest.raises(FAILURES) as raised:
                database.insert([row(user="somebody")])
            failure = describe(raised.value)
            assert (failure.reason, failure.sqlstate, failure.detail) == (reason, sqlstate, None)
            assert failure.is_of_a_row == is_of_a_row
            assert "somebody" in str(raised.value)
            allow(url)
            assert database.insert([row()]) == 1


def test_kept_connection_that_died(server: PostgresServer) -> None:
    """After a restart of the server the next call works at once."""
    with closing(Database(server.url)) as database:
        database.prepare()
        server.kill()
        server.start()
        assert database.insert([row()]) == 1


def test_hanging_server(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and never answers is given up after the time, connected already or not."""
    monkeypatch.setattr(Database._do, "__defaults__", (0.5,))
    with closing(Database(server.url)) as database, closing(Database(server.url + "?connect_timeout=2")) as other:
        database.prepare()
        server.stop()
        for waiting, within_s in ((database, 3), (other, module.CONNECT_S + 3)):
            began_s = time.monotonic()
            with pytest.raises(FAILURES) as raised:
                waiting.insert([row()])
            assert time.monotonic() - began_s < within_s
            assert isinstance(raised.value, TooSlowError) == (waiting is database)
        server.go_on()
        assert database.insert([row()]) == 1


def test_slow_statement(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that waits for a lock for too long is ended by the server."""
    monkeypatch.setattr(Database._do, "__defaults__", (0.5,))
    with closing(Database(url)) as database, ThreadPoolExecutor(1) as threads:
        database.prepare()
        blocking = threads.submit(ask, url, "BEGIN; LOCK TABLE exchanges; SELECT pg_sleep(2); COMMIT")
        while not ask(url, "SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted"):
            assert not blocking.done()
        with pytest.raises(FAILURES) as raised:
            database.insert([row()])
        assert describe(raised.value).reason == "the database is too slow"
        blocking.result()


def refuse(url: str, sqlstate: str, condition: str = "true") -> None:
    """Have the database refuse rows as it would for that reason."""
    ask(
        url,
        f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF {condition} THEN RAISE EXCEPTION 'no % for you', NEW."user" USING ERRCODE = '{sqlstate}'; END IF;
            RETURN NEW; END $$""",
    )
    ask(url, "CREATE TRIGGER refuse BEFORE INSERT ON exchanges FOR EACH ROW EXECUTE FUNCTION refuse()")


def allow(url: str) -> None:
    """Take them again."""
    ask(url, "DROP FUNCTION refuse CASCADE")
