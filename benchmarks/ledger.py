"""The ledger with a million rows: how long sums take. `python -m benchmarks.ledger [--rows N] [--keep FILE]`.

The rows are of 90 days, 1,000 users and 5 models; each time is the best of three, from the command's view: a new
connection, caches of the system warm.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from proxy.ledger import Query, Row
from proxy.ledger.file import LedgerFile
from proxy.ledger.sqlite import read

if TYPE_CHECKING:
    from collections.abc import Iterator

DAYS: Final = 90
DAY_MS: Final = 86_400_000
USERS: Final = 1000
MODELS: Final = ("gpt-4o", "gpt-4o-mini", "claude-sonnet-4", "gemini-2.5-pro", "qwen-max")
ENDINGS: Final = (*["complete"] * 19, "client_closed")
BATCH: Final = 1000
ISSUER: Final = "https://id.example.com/"


def rows(count: int, now_ms: int) -> Iterator[Row]:
    """As many rows, in order of time, that end now."""
    chance = random.Random(1)  # noqa: S311 - the same rows each time
    for number in range(count):
        ended_ms = now_ms - DAYS * DAY_MS + number * DAYS * DAY_MS // count
        yield Row(
            row_id=f"{ended_ms:012x}{chance.getrandbits(80):020x}",
            id=f"{chance.getrandbits(64):016x}",
            ended_ms=ended_ms,
            issuer=ISSUER,
            user=f"user-{chance.randrange(USERS)}",
            plan="default",
            upstream="main",
            model=chance.choice(MODELS),
            dialect="openai",
            status=200,
            ending=chance.choice(ENDINGS),
            code=None,
            ttfb_ms=250.5,
            duration_ms=4200.1,
            bytes=12_000,
            events=300,
            input_tokens=chance.randrange(4000),
            output_tokens=chance.randrange(1000),
            cached_tokens=0,
            reasoning_tokens=0,
            cost_nano=chance.randrange(10**8),
            currency="USD",
            usage="reported",
            price_version="2026-01-01",
            attempts=1,
        )


def fill(path: Path, count: int, now_ms: int) -> None:
    """Write the rows as the writer does, in batches."""
    file = LedgerFile(path, has_totals=True)
    file.open()
    batch: list[Row] = []
    for row in rows(count, now_ms):
        batch.append(row)
        if len(batch) == BATCH:
            file.add(batch)
            batch = []
    file.add(batch)
    file.close()


def queries(now_ms: int) -> dict[str, Query]:
    """What is asked, by name."""
    month = now_ms - 30 * DAY_MS
    # A budget's month that began at midnight somewhere else: half of a day is summed row by row.
    elsewhere = month // DAY_MS * DAY_MS + DAY_MS // 2
    return {
        "--since 30d --by user": Query(month, ("user",)),
        "--since 30d --by user,model": Query(month, ("user", "model")),
        "--since 90d --by day,model": Query(now_ms - 90 * DAY_MS, ("day", "model")),
        "--since 7d --by user,model": Query(now_ms - 7 * DAY_MS, ("user", "model")),
        "--since 1h --by user": Query(now_ms - DAY_MS // 24, ("user",)),
        "one user's own, 30d by day,model": Query(month, ("day", "model"), ISSUER, "user-7"),
        "used by one user this month": Query(elsewhere, (), ISSUER, "user-7"),
    }


def main() -> None:
    """Fill a ledger and time each query."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, help="keep the file, or use it where it exists")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        path = options.keep or Path(room, "ledger.db")
        now_ms = int(time.time() * 1000)
        if not path.exists():
            began_s = time.perf_counter()
            fill(path, options.rows, now_ms)
            took_s = time.perf_counter() - began_s
            print(f"filled {options.rows} rows in {took_s:.1f} s: {took_s / options.rows * 1e6:.0f} us a row")
        print(f"{path.stat().st_size / 2**20:.0f} MiB")
        for name, query in queries(now_ms).items():
            took = []
            for _ in range(3):
                began_s = time.perf_counter()
                groups = len(read(path, query))
                took.append(time.perf_counter() - began_s)
            print(f"{name:<36} {min(took) * 1000:8.1f} ms  {groups:6} groups")


if __name__ == "__main__":
    main()
