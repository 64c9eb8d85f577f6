"""`forward-sse usage`, run as an operator runs it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import time
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from proxy.cli.commands import cli
from proxy.ledger import Query
from proxy.ledger.file import LedgerFile
from proxy.ledger.sqlite import read
from tests.ledger.rows import row
from tests.ledger.test_log_lines import raw

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.ledger import Row

FILE = """\
auth: none
upstreams: {main: {url: "http://127.0.0.1:1", dialect: openai, api_key: none}}
default_upstream: main
"""
HOUR_MS = 3_600_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "proxy.yaml"
    path.write_text(FILE + f"usage: {{ledger: 'sqlite:///{tmp_path}/ledger.db'}}\n")
    return path


def fill(file: Path, *rows: Row) -> None:
    ledger = LedgerFile(file.with_name("ledger.db"), has_totals=True)
    ledger.open()
    ledger.add(rows)
    ledger.close()


def call(file: Path, *arguments: str, standard_input: bytes = b"") -> Result:
    return CliRunner().invoke(cli, ["usage", "--config", str(file), *arguments], input=standard_input)


def ago(ms: int) -> int:
    return int(time.time() * 1000) - ms


def test_table(file: Path) -> None:
    """A table of aligned columns, the most requests first, with a line of totals."""
    fill(
        file,
        row(ago(1000)),
        row(ago(1000), cost_nano=1),
        row(ago(1000), user="鲍勃", model=None, cost_nano=None),
        row(ago(8 * 24 * HOUR_MS), user="long-ago"),
    )
    done = call(file)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "user   model  requests  input  output  cached  reasoning     cost_usd  unpriced",
        "alice  gpt-x         2    200      40       0          0  0.002500001         0",
        "鲍勃   -             1    100      20       0          0  0.000000000         1",
        "total                3    300      60       0          0  0.002500001         1",
    ]


def test_csv(file: Path) -> None:
    """CSV has the numbers as they are, and no cell that a spreadsheet takes for a formula."""
    evil = ("=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", 'a,"b"', "\t=1", "\uff1d1", 'x";=1;b')
    fill(file, *(row(ago(1000), user=user) for user in evil))
    done = call(file, "--format", "csv", "--by", "user")
    records = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {record["user"] for record in records} == {
        "'=cmd|' /C calc'!A0", "'+1", "'-1", "'@SUM(A1)", 'a,"b"', "\\t=1", "'\uff1d1", "x\";'=1;b"
    }  # fmt: skip
    assert {record["cost_usd"] for record in records} == {"0.0025"}


def test_json(file: Path) -> None:
    """JSON has the members that the endpoints have."""
    fill(file, row(ago(1000)), row(ago(1000), model=None))
    done = call(file, "--format", "json", "--by", "model", "--since", "1h")
    told = json.loads(done.stdout)
    assert {one["model"]: one["requests"] for one in told["rows"]} == {"gpt-x": 1, None: 1}
    assert told["rows"][0]["cost_usd"] == "0.0025"
    assert told["since"].endswith("Z")


@pytest.mark.parametrize("format_", ["table", "csv", "json"])
def test_no_control_character_reaches_the_terminal(file: Path, format_: str) -> None:
    """A name cannot move the cursor, clear the screen or reverse what follows."""
    fill(file, *(row(ago(1000), user=f"a{one}b") for one in "\x1b\x07\x7f\x9b\r\u202e\u2028"))
    done = call(file, "--format", format_)
    assert done.exit_code == 0
    assert [one for one in done.stdout if not one.isprintable() and one != "\n"] == []


def test_one_user(file: Path) -> None:
    """`--user` leaves everybody else out."""
    fill(file, row(ago(1000)), row(ago(1000), user="bob"))
    done = call(file, "--user", "bob", "--by", "user", "--format", "csv")
    assert [record["user"] for record in csv.DictReader(io.StringIO(done.stdout))] == ["bob"]


def test_empty_ledger(file: Path) -> None:
    """A ledger that nobody has written to yet is no fault."""
    done = call(file)
    assert (done.exit_code, done.stdout[:17]) == (0, "No exchange since")
    assert not file.with_name("ledger.db").exists()


@pytest.mark.parametrize("arguments", [(), ("import", "-")])
def test_no_ledger(file: Path, arguments: tuple[str, ...]) -> None:
    """Without a ledger in the file the command says what to set."""
    file.write_text(FILE)
    done = call(file, *arguments)
    assert (done.exit_code, "usage.ledger" in done.stderr) == (2, True)


@pytest.mark.parametrize("arguments", [("--by", "cost"), ("--by", ""), ("--since", "x"), ("import",)])
def test_wrong_use(file: Path, arguments: tuple[str, ...]) -> None:
    """Wrong arguments are refused with exit code 2."""
    assert call(file, *arguments).exit_code == 2


def test_ledger_that_cannot_be_read(file: Path) -> None:
    """A file that is no ledger is one line and exit code 1."""
    file.with_name("ledger.db").write_text("no database " * 100)
    done = call(file)
    assert done.exit_code == 1
    assert done.stderr == f"usage.ledger: {file.with_name('ledger.db')}: file is not a database\n"


def test_import(file: Path, tmp_path: Path) -> None:
    """Each exchange of a log is imported once, from whatever file, however often, whatever stands between."""
    recent = ago(HOUR_MS)
    lines = [raw(id=f"r{number}", row_id=f"{recent + number:012x}{number:020x}") for number in range(5)]
    old = raw(row_id=f"{ago(100 * 24 * HOUR_MS):012x}{9:020x}")
    log, zipped = tmp_path / "log", tmp_path / "log.1.gz"
    # The last line is cut off, as that of a process that was killed.
    log.write_bytes(b"\n".join([*lines[:3], b"hello", raw(user=None), old, lines[4][:-30]]))
    with gzip.open(zipped, "wb") as packed:
        packed.write(b"\n".join(lines[2:]))
    done = call(file, "import", str(log), str(zipped))
    left_out, rest = "of no authenticated exchange", "older than usage.retention, 0 dated in the future"
    assert done.stdout.splitlines() == [
        f"{log}: 3 rows inserted, 0 known already; left out: 3 lines {left_out}, 1 {rest}",
        f"{zipped}: 2 rows inserted, 1 known already; left out: 0 lines {left_out}, 0 {rest}",
    ]
    again = call(file, "import", "-", standard_input=b"\n".join(lines))
    known = f"0 rows inserted, 5 known already; left out: 0 lines {left_out}, 0 {rest}"
    assert again.stdout == f"standard input: {known}\n"
    (sums,) = read(file.with_name("ledger.db"), Query(0))
    assert sums.requests == 5


def test_import_from_the_future(file: Path, tmp_path: Path) -> None:
    """A line of a day to come is left out and counted, by its `row_id` or its time; clocks may differ by a minute."""
    log = tmp_path / "log"
    log.write_bytes(
        b"\n".join(
            [
                raw(row_id=f"{ago(-24 * HOUR_MS):012x}{1:020x}"),
                raw(row_id=None, time="2999-01-01T00:00:00Z"),
                raw(row_id=f"{ago(-60_000):012x}{2:020x}"),
            ]
        )
    )
    done = call(file, "import", str(log))
    assert done.stdout.startswith(f"{log}: 1 row inserted, 0 known already; ")
    assert done.stdout.endswith(" 0 older than usage.retention, 2 dated in the future\n")
    (sums,) = read(file.with_name("ledger.db"), Query(0))
    assert sums.requests == 1


def test_import_cut_off_gzip(file: Path, tmp_path: Path) -> None:
    """Of a gzipped log that is still being written, what can be read is imported."""
    zipped = tmp_path / "log.gz"
    lines = [raw(id=f"r{number}-{number * 7919}", row_id=f"{ago(1000):012x}{number:020x}") for number in range(2000)]
    zipped.write_bytes(gzip.compress(b"\n".join(lines))[:-2000])
    done = call(file, "import", str(zipped))
    assert done.exit_code == 0
    (sums,) = read(file.with_name("ledger.db"), Query(0))
    assert 0 < sums.requests < 2000


def test_import_broken_gzip(file: Path, tmp_path: Path) -> None:
    """Of a gzipped log that is broken in the middle the command says so, without a traceback."""
    zipped = tmp_path / "log.gz"
    packed = bytearray(gzip.compress(raw(row_id=f"{ago(1000):012x}{1:020x}") * 100))
    packed[20:24] = b"\xff" * 4
    zipped.write_bytes(packed)
    done = call(file, "import", str(zipped))
    assert done.exit_code == 1
    assert str(zipped) in done.stderr
    assert isinstance(done.exception, SystemExit)


def test_import_hostile_lines(file: Path, tmp_path: Path) -> None:
    """Lines with numbers that are none of ours are skipped: they neither end the import nor spoil anybody's sums."""
    ids = iter(f"{ago(HOUR_MS) + number:012x}{number:020x}" for number in range(9))
    lines = [
        raw(row_id=next(ids)),
        *(raw(row_id=next(ids), output_tokens=-(2**63)) for _ in range(2)),
        raw(row_id=next(ids), bytes=2**64 - 1),
        raw(row_id=next(ids), cost_usd="-1e30"),
        raw(row_id=next(ids), code="a\0b", upstream="a\0b"),
    ]
    log = tmp_path / "log"
    log.write_bytes(b"\n".join(lines))
    done = call(file, "import", str(log))
    assert (done.exit_code, done.stdout.partition(";")[0]) == (0, f"{log}: 2 rows inserted, 0 known already")
    (sums,) = read(file.with_name("ledger.db"), Query(0))
    assert sums.output_tokens == 40


def test_import_missing_file(file: Path) -> None:
    """A log that is not there is wrong use."""
    assert call(file, "import", "/nowhere/log").exit_code == 2
