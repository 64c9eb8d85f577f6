"""`forward-sse usage`: sums of the ledger as a table, CSV or JSON; and its completion from the log."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import time
import unicodedata
import zlib
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal, NamedTuple

from proxy.ledger import Query, Sums
from proxy.ledger.log_lines import read_line
from proxy.usage import usd_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from proxy.ledger import Book, Column, Row

Format = Literal["table", "csv", "json"]
_HEADINGS: Final = {
    "input_tokens": "input",
    "output_tokens": "output",
    "cached_tokens": "cached",
    "reasoning_tokens": "reasoning",
}
_NUMBERS: Final = ("requests", *_HEADINGS, "cost_usd", "unpriced")
# What a spreadsheet takes for a formula where a cell begins with it (OWASP, CSV injection).
_FORMULA: Final = re.compile("[=+\\-@\t\r\uff1d\uff0b\uff0d\uff20]")
# Where the decimal point is a comma, spreadsheets take this for the end of a cell.
_SEPARATED: Final = re.compile(f";(?={_FORMULA.pattern})")
_BATCH: Final = 1000
# A line of ours has at most some thousand bytes; what is longer is read in pieces, which are no lines of ours.
_MAX_LINE: Final = 1024 * 1024
# By so much the clocks of two nodes may differ. What is later has no true date, and would be of a period to come.
_MAX_AHEAD_S: Final = 300.0


def report(book: Book, *, since_ms: int, by: tuple[Column, ...], user: str | None, format_: Format) -> str:
    """Write the sums of the rows since a moment, in one of the formats.

    Raises:
        OSError: the ledger cannot be read.
    """
    sums = book.sums(Query(since_ms, by, None, user))
    since = datetime.fromtimestamp(since_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if format_ == "json":
        told = json.dumps({"since": since, "rows": [one.as_json() for one in sums]}, indent=2)
        # JSON leaves this control character as it is.
        return told.replace("\x7f", "\\u007f")
    if format_ == "csv":
        return _csv(by, sums)
    return _table(by, sums) if sums else f"No exchange since {since}."


def _csv(by: Sequence[Column], sums: Sequence[Sums]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*by, *_NUMBERS])
    for one in sums:
        writer.writerow([*(_cell(one.by[column]) for column in by), *(_number(one, name) for name in _NUMBERS)])
    return text.getvalue().removesuffix("\n")


def _cell(value: str | None) -> str:
    """A name as a cell that no spreadsheet executes."""
    text = _printable(value or "")
    text = _SEPARATED.sub(";'", text)
    return f"'{text}" if _FORMULA.match(text) else text


def _table(by: Sequence[Column], sums: Sequence[Sums]) -> str:
    """A table with numbers to the right, and a last line with their totals."""
    total = Sums({}, *(sum(numbers) for numbers in zip(*(one[1:] for one in sums), strict=True)))
    # As many decimals as the longest needs: the points stand below each other, and nothing is rounded.
    decimals = max(len(usd_text(one.cost_nano).partition(".")[2]) for one in (*sums, total))
    names = [
        *([_printable(one.by[column] or "-") for column in by] for one in sums),
        ["total", *[""] * len(by)][: len(by)],
    ]
    numbers = [[_number(one, name, decimals) for name in _NUMBERS] for one in (*sums, total)]
    lines = [
        [*by, *(_HEADINGS.get(name, name) for name in _NUMBERS)],
        *([*texts, *figures] for texts, figures in zip(names, numbers, strict=True)),
    ]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell + " " * (width - _width(cell)) if number < len(by) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _number(sums: Sums, name: str, decimals: int = 0) -> str:
    if name != "cost_usd":
        return str(getattr(sums, name))
    whole, _, part = usd_text(sums.cost_nano).partition(".")
    part = part.ljust(decimals, "0")
    return f"{whole}.{part}" if part else whole


def _printable(text: str) -> str:
    """The text with control characters and invisible ones escaped: names are users' and clients'."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else not unicodedata.combining(one) for one in text)


class Imported(NamedTuple):
    """What came of the lines of a log."""

    new: int = 0
    known: int = 0
    skipped: int = 0
    too_old: int = 0
    to_come: int = 0

    def __str__(self) -> str:
        return (
            f"{_count(self.new, 'row')} inserted, {self.known} known already; left out: "
            f"{_count(self.skipped, 'line')} of no authenticated exchange, {self.too_old} older than usage.retention, "
            f"{self.to_come} dated in the future"
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def import_log(book: Book, lines: Iterator[bytes], *, retention_s: float) -> Imported:
    """Insert the row of each authenticated exchange's line, exactly once however often its line is read.

    Raises:
        OSError: the log cannot be read, or the ledger does not take the rows; those of earlier lines are inserted.
    """
    done = Imported()
    while batch := list(islice(lines, _BATCH)):
        now_s = time.time()  # of each batch: a log may be followed for days
        since_ms, until_ms = int((now_s - retention_s) * 1000), int((now_s + _MAX_AHEAD_S) * 1000)
        rows: list[Row] = []
        too_old = to_come = 0
        for raw in batch:
            row = read_line(raw)
            if row is None:
                continue
            # The next sweep would delete it.
            if row.ended_ms < since_ms:
                too_old += 1
            elif row.ended_ms > until_ms:
                to_come += 1
            else:
                rows.append(row)
        new = book.add(rows) if rows else 0
        skipped = len(batch) - len(rows) - too_old - to_come
        found = Imported(new, len(rows) - new, skipped, too_old, to_come)
        done = Imported(*map(sum, zip(done, found, strict=True)))
    return done


def lines_of(name: str) -> Iterator[bytes]:
    """The lines of a log's file, of a gzipped one (`.gz`), or of standard input (`-`).

    Raises:
        OSError: It cannot be read.
    """
    with _opened(name) as file:
        try:
            yield from iter(lambda: file.readline(_MAX_LINE), b"")
        except EOFError:
            # A gzipped file that is still being written: what is there has been read.
            return
        except zlib.error as exc:
            raise OSError(f"{name}: {exc}") from exc


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes] | Any]:
    if name == "-":
        yield sys.stdin.buffer
    elif name.endswith(".gz"):
        with gzip.open(name) as zipped:
            yield zipped
    else:
        with Path(name).open("rb") as plain:
            yield plain
