"""The SQLite file: what it takes, keeps, sums up and deletes; as a ledger and as a spool."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from proxy.ledger import COLUMNS, Query, Row
from proxy.ledger import file as file_module
from proxy.ledger.file import LedgerFile
from proxy.ledger.file_schema import LEDGER_SCHEMA
from proxy.ledger.sql import DAY_MS, MAX_TOKENS, TYPES
from proxy.ledger.sqlite import SqliteBook, read
from tests.ledger.rows import NOON_MS, row, summed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def opened(path: Path, *, has_totals: bool = True) -> LedgerFile:
    file = LedgerFile(path, has_totals=has_totals)
    file.open()
    return file


def kept(path: Path) -> list[Row]:
    """All rows of a file, by a connection of its own."""
    file = opened(path)
    rows = file.read_batch(100_000)
    file.close()
    return rows


ROWS = st.builds(
    row,
    ended_ms=st.integers(NOON_MS - 3 * DAY_MS, NOON_MS + DAY_MS),
    issuer=st.sampled_from(["tests", "others"]),
    user=st.sampled_from(["alice", "bob", "=cmd"]),
    upstream=st.sampled_from(["main", None]),
    model=st.sampled_from(["gpt-x", None]),
    code=st.sampled_from(["draining", None]),
    input_tokens=st.integers(0, 10**6),
    cached_tokens=st.integers(0, 10**6),
    cost_nano=st.sampled_from([0, 7, 10**9, None]),
    usage=st.sampled_from(["reported", "none"]),
)
QUERIES = st.builds(
    Query,
    since_ms=st.integers(NOON_MS - 4 * DAY_MS, NOON_MS + DAY_MS) | st.sampled_from([0, NOON_MS // DAY_MS * DAY_MS]),
    by=st.lists(st.sampled_from(COLUMNS), unique=True, max_size=4).map(tuple),
    issuer=st.sampled_from([None, "tests"]),
    user=st.sampled_from([None, "alice"]),
)


@examples(max_examples=60)
@given(st.lists(st.lists(ROWS, max_size=8), max_size=4), QUERIES, st.data())
def test_rows_in_sums_out(batches: list[list[Row]], query: Query, data: st.DataObject) -> None:
    """Whatever is added in whatever batches, each row counts once; whole days and parts of one sum up alike."""
    every = [one for batch in batches for one in batch]
    if every:
        # Some come again, among new ones or alone.
        batches += data.draw(st.lists(st.lists(st.sampled_from(every), max_size=4), max_size=2))
    with tempfile.TemporaryDirectory() as room:
        file = opened(Path(room, "ledger.db"))
        new = [file.add(batch) for batch in batches]
        assert sum(new) == len(every)
        assert sorted(file.read_batch(1000)) == sorted(every)
        file.close()
        found = read(file.path, query)
    assert sorted(found, key=repr) == sorted(summed(every, query), key=repr)
    assert [one.requests for one in found] == sorted((one.requests for one in found), reverse=True)


def test_batch_takes_few_statements(path: Path) -> None:
    """A batch takes few statements: each one releases the interpreter's lock, and a busy loop has it then.

    As many rows as a power of two: so there are few different statements, whatever the sizes of batches.
    """
    file = opened(path)
    assert file._connection is not None
    statements: list[str] = []
    file._connection.set_trace_callback(statements.append)
    file.add([row(user=f"user-{number % 10}") for number in range(165)])
    # BEGIN; 128, 32, 4 rows and 1; the days of 8 users and of 2; COMMIT.
    assert len(statements) == 8
    file.close()


def test_days_are_of_the_rows(path: Path) -> None:
    """A transaction that fails leaves neither rows nor totals."""
    file = opened(path)
    file.add([row()])
    with pytest.raises(sqlite3.IntegrityError):
        file.add([row(), row(plan=None)])
    assert file.count() == 1
    (sums,) = read(path, Query(0))
    assert sums.requests == 1
    file.close()


@pytest.mark.parametrize("user", ["a\0b", "a\ud800b", "'; DROP TABLE days; --", "\u202eevil", ""])
def test_any_text_is_stored(path: Path, user: str) -> None:
    """A name that a database would not take is stored with replacement characters; no name is SQL."""
    file = opened(path)
    assert file.add([row(user=user, code=user, upstream=user)]) == 1
    (found,) = file.read_batch(1)
    for text in (found.user, found.code, found.upstream):
        assert text is not None
        assert text.isprintable() or text == user
    assert len(read(path, Query(0, ("user",)))) == 1
    file.close()


def test_numbers_beyond_reason(path: Path) -> None:
    """A vendor that tells a number beyond the database's integers cannot break the sums."""
    file = opened(path)
    file.add([row(input_tokens=10**30, cost_nano=10**30) for _ in range(3)])
    (sums,) = read(path, Query(0))
    assert sums.input_tokens == 3 * MAX_TOKENS
    file.close()


def test_spool(path: Path) -> None:
    """A spool keeps rows in order until they are deleted, for any process that asks."""
    writing = opened(path, has_totals=False)
    rows = [row(NOON_MS + number) for number in range(5)]
    writing.add(rows[::-1])
    shipping = opened(path, has_totals=False)
    assert shipping.count() == 5
    batch = shipping.read_batch(3)
    assert batch == rows[:3]
    shipping.delete(one.row_id for one in batch)
    assert writing.read_batch(10) == rows[3:]
    for file in (writing, shipping):
        file.close()
        file.close()


def test_sync(path: Path) -> None:
    """The log of an open file, and of one that is closed, can be synced from any thread without harm to its locks."""
    file = opened(path)
    file.add([row()])
    with ThreadPoolExecutor(1) as other:
        other.submit(file.sync).result()
    assert file.add([row()]) == 1
    file.close()
    file.sync()


def test_retention_deletes_whole_days(path: Path) -> None:
    """What ended before the first day that is kept goes, in small pieces, from rows and totals alike."""
    file = opened(path)
    rows = [row(NOON_MS - 2 * DAY_MS + number * DAY_MS // 8) for number in range(24)]
    file.add(rows)
    since_ms = NOON_MS - DAY_MS + 1
    pieces = 0
    while file.delete_old(since_ms, 2):
        pieces += 1
    assert pieces > 1
    left = [one for one in rows if one.ended_ms >= since_ms // DAY_MS * DAY_MS]
    assert 0 < len(left) < len(rows)
    assert file.read_batch(100) == left
    for query in (Query(0, ("day",)), Query(since_ms, ("day",))):
        assert sorted(read(path, query), key=repr) == sorted(summed(left, query), key=repr)
    file.close()


def test_file_is_the_owners(path: Path) -> None:
    """Nobody else reads the file: users' names are in it."""
    opened(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_check_changes_nothing(path: Path) -> None:
    """`check` creates no file."""
    LedgerFile(path, has_totals=True).check()
    assert not path.exists()


def another_program(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE exchanges (x)")
    connection.close()


def later_release(path: Path) -> None:
    opened(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("no database, and longer than nothing " * 40), "file is not a database"),
        (another_program, "is another program's database"),
        (later_release, "was written by a later release of forward-sse (schema 2, this one knows 1)"),
        (lambda path: opened(path, has_totals=False).close(), "is a spool"),
        (lambda path: path.mkdir(), ""),
    ],
    ids=["no database", "another program's", "later release", "spool", "directory"],
)
def test_file_that_cannot_be_used(path: Path, make: object, words: str) -> None:
    """`open` and `check` say the same of it, with the key and the path, and leave it as it is."""
    assert callable(make)
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    file = LedgerFile(path, has_totals=True)
    for ask in (file.open, file.check):
        with pytest.raises(OSError, match=r"ledger\.db") as caught:
            ask()
        told = caught.value.strerror or str(caught.value)
        assert told.startswith(f"usage.ledger: {path}: ")
        assert words in told
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_no_directory(path: Path) -> None:
    """A directory that is not there is named, by both."""
    file = LedgerFile(path / "none" / "ledger.db", has_totals=True)
    for ask in (file.open, file.check):
        with pytest.raises(OSError, match=r"usage\.ledger: .*none"):
            ask()


# As the first release made it: what it wrote is read by every later one.
FIRST = """
CREATE TABLE exchanges (row_id TEXT NOT NULL PRIMARY KEY, id TEXT NOT NULL, ended_ms BIGINT NOT NULL,
    issuer TEXT NOT NULL, "user" TEXT NOT NULL, plan TEXT NOT NULL, upstream TEXT, model TEXT, dialect TEXT,
    status INTEGER, ending TEXT NOT NULL, code TEXT, ttfb_ms DOUBLE PRECISION, duration_ms DOUBLE PRECISION NOT NULL,
    bytes BIGINT NOT NULL, events BIGINT NOT NULL, input_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL, reasoning_tokens BIGINT NOT NULL, cost_nano BIGINT, currency TEXT NOT NULL,
    usage TEXT NOT NULL, price_version TEXT, attempts INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX exchanges_of_user ON exchanges (issuer, "user", row_id);
CREATE TABLE days (issuer TEXT NOT NULL, "user" TEXT NOT NULL, day INTEGER NOT NULL, plan TEXT NOT NULL,
    upstream TEXT NOT NULL, model TEXT NOT NULL, ending TEXT NOT NULL, code TEXT NOT NULL, requests BIGINT NOT NULL,
    input_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL, cached_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL, cost_nano BIGINT NOT NULL, unpriced BIGINT NOT NULL,
    PRIMARY KEY (issuer, "user", day, plan, upstream, model, ending, code)) WITHOUT ROWID;
CREATE INDEX days_of_all ON days (day);
PRAGMA application_id = 0x66737365;
PRAGMA user_version = 1;
"""


def shape(path: Path) -> dict[str, object]:
    """The tables and indexes of a file with their columns, and its version."""
    connection = sqlite3.connect(path)
    found: dict[str, object] = {
        name: connection.execute(f"PRAGMA {kind}_info({name})").fetchall()
        for kind, name in connection.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    }
    found["version"] = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return found


def of_the_first_release(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(FIRST)
    connection.close()


# A step of a release to come.
NEXT = (
    "from proxy.ledger import file, file_schema\n"
    "first = file_schema.LEDGER_SCHEMA\n"
    "added = ('ALTER TABLE exchanges ADD COLUMN region TEXT', 'CREATE INDEX regions ON exchanges (region)')\n"
    "file.LEDGER_SCHEMA = first._replace(steps=(*first.steps, added))\n"
)


def test_file_of_the_first_release(path: Path) -> None:
    """The file of the first release is used with its rows, and becomes what a new one is."""
    of_the_first_release(path)
    old = opened(path)
    old.add([row(user="alice")])
    old.close()
    new = opened(path.with_name("new.db"))
    new.close()
    assert shape(path) == shape(new.path)
    assert len(kept(path)) == 1


def test_columns_are_those_of_a_row(path: Path) -> None:
    """The steps make exactly the columns that a row has, of the types that both databases have."""
    opened(path).close()
    connection = sqlite3.connect(path)
    columns = connection.execute("SELECT name, type FROM pragma_table_info('exchanges')").fetchall()
    connection.close()
    assert dict(columns) == {name: kind.partition(" NOT")[0] for name, kind in TYPES.items()}
    assert [name for name, _ in columns] == list(Row._fields)


def test_upgraded_by_several_at_once(path: Path) -> None:
    """Processes that start together upgrade a file once, keep its rows, and all can write then."""
    of_the_first_release(path)
    with closing(opened(path)) as file:
        file.add([row(user="alice")])
    script = (
        f"import sys\n{NEXT}"
        "from tests.ledger.rows import row\n"
        "made = file.LedgerFile(sys.argv[1], has_totals=True)\n"
        "made.open()\n"
        "made.add([row(row_id=sys.argv[2])])\n"
    )
    with ThreadPoolExecutor(4) as starters:
        codes = starters.map(
            lambda name: subprocess.run([sys.executable, "-c", script, str(path), name], check=False).returncode, "abcd"
        )
        assert list(codes) == [0, 0, 0, 0]
    assert shape(path)["version"] == (2,)
    (sums,) = read(path, Query(0))
    assert sums.requests == 5


def test_upgrade_waits_for_the_writer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody upgrades while another process writes: that is no fault of the file, and passes."""
    of_the_first_release(path)
    opened(path).close()
    monkeypatch.setattr(
        file_module, "LEDGER_SCHEMA", LEDGER_SCHEMA._replace(steps=(*LEDGER_SCHEMA.steps, ("SELECT 1",)))
    )
    monkeypatch.setattr(file_module, "BUSY_S", 0.05)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        opened(path)
    assert shape(path)["version"] == (1,)
    writer.execute("COMMIT")
    writer.close()
    opened(path).close()
    assert shape(path)["version"] == (2,)


def test_upgrade_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails in its middle leaves the file as it was, for the earlier release to use."""
    of_the_first_release(path)
    before = shape(path)
    step = ("ALTER TABLE exchanges ADD COLUMN region TEXT", "ALTER TABLE exchanges ADD COLUMN region TEXT")
    monkeypatch.setattr(file_module, "LEDGER_SCHEMA", LEDGER_SCHEMA._replace(steps=(*LEDGER_SCHEMA.steps, step)))
    with pytest.raises(OSError, match=r"usage\.ledger: .*region"):
        opened(path)
    assert shape(path) == before
    monkeypatch.undo()
    with closing(opened(path)) as file:
        file.add([row()])


def test_reading_changes_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who only reads a ledger of an earlier release is told so, and leaves it to a proxy; who adds rows upgrades it."""
    of_the_first_release(path)
    before = path.read_bytes()
    step = ("ALTER TABLE exchanges ADD COLUMN region TEXT",)
    monkeypatch.setattr(file_module, "LEDGER_SCHEMA", LEDGER_SCHEMA._replace(steps=(*LEDGER_SCHEMA.steps, step)))
    book = SqliteBook(path)
    with pytest.raises(OSError, match=r"ledger\.db: was written by an earlier release .*schema 1, this one reads 2"):
        book.sums(Query(0))
    assert path.read_bytes() == before
    assert book.add([row()]) == 1
    assert len(book.sums(Query(0))) == 1
    book.close()


def test_reading_an_empty_file(path: Path) -> None:
    """A file without tables is told as that."""
    path.touch()
    with pytest.raises(OSError, match="has no tables yet"):
        SqliteBook(path).sums(Query(0))


def test_created_by_several_at_once(path: Path) -> None:
    """Processes that start together create the file once, and all can write."""
    script = (
        "import sys\n"
        "from proxy.ledger.file import LedgerFile\n"
        "from tests.ledger.rows import row\n"
        "file = LedgerFile(sys.argv[1], has_totals=True)\n"
        "file.open()\n"
        "for number in range(20):\n"
        "    file.add([row(row_id=f'{sys.argv[2]}-{number}')])\n"
    )
    with ThreadPoolExecutor(4) as starters:
        codes = starters.map(
            lambda name: subprocess.run([sys.executable, "-c", script, str(path), name], check=False).returncode, "abcd"
        )
        assert list(codes) == [0, 0, 0, 0]
    assert len(kept(path)) == 80
    (sums,) = read(path, Query(0))
    assert sums.requests == 80
