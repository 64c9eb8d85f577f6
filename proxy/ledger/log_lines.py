"""The log's lines as rows: what `usage import` completes a ledger from."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import orjson

from proxy.ledger.row import TOKEN_COLUMNS, Row

_MARK: Final = b'"exchange.settled"'
_ROW_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_TIME_DIGITS: Final = 12
# What a date can be: the year 9999. Whoever wrote a line's time, reading the sums must not fail of it.
_LAST_MS: Final = 253_402_300_800_000
_CHANCE_DIGITS: Final = 20
_MAX_STATUS: Final = 999
# What a database's integer holds.
_MAX_INT: Final = 2**63 - 1
# What no two exchanges have in common, for a line from before a ledger was kept.
_TELLING: Final = ("id", "time", "worker", "user", "issuer", "method", "path", "status", "duration_ms", "bytes")


def read_line(raw: bytes) -> Row | None:
    """The row of an authenticated exchange's line, the same that the ledger was given; None for every other line.

    What a log's collector has put before the JSON is passed over. A line without a `row_id` is given one that follows
    from its content.
    """
    if _MARK not in raw:
        return None
    try:
        line = orjson.loads(raw[raw.index(b"{") :])
        if line["event"] != "exchange.settled" or line["user"] is None:
            return None
        return _row(line)
    except (ValueError, TypeError, KeyError, ArithmeticError):
        return None


def _row(line: dict[str, Any]) -> Row:
    row_id = line.get("row_id")
    if isinstance(row_id, str) and _ROW_ID.fullmatch(row_id):
        ended_ms = int(row_id[:_TIME_DIGITS], 16)
    else:
        ended_ms = _unix_ms(line["time"])
        told = orjson.dumps([line.get(name) for name in _TELLING])
        row_id = f"{ended_ms:012x}{hashlib.sha256(told).hexdigest()[:_CHANCE_DIGITS]}"
    if not 0 < ended_ms < _LAST_MS:
        raise ValueError("not a moment")
    cost_usd = line.get("cost_usd")
    attempts = line.get("attempts")
    return Row(
        row_id=row_id,
        id=str(line["id"]),
        ended_ms=ended_ms,
        issuer=str(line["issuer"]),
        user=str(line["user"]),
        plan=str(line["plan"]),
        upstream=_text(line.get("upstream")),
        model=_text(line.get("model")),
        dialect=_text(line.get("dialect")),
        status=None if line["status"] is None else _count(line["status"], _MAX_STATUS),
        ending=str(line["ending"]),
        code=_text(line.get("code")),
        ttfb_ms=None if line["ttfb_ms"] is None else float(line["ttfb_ms"]),
        duration_ms=float(line["duration_ms"]),
        bytes=_count(line["bytes"]),
        events=_count(line["events"]),
        **{name: _count(line.get(name) or 0) for name in TOKEN_COLUMNS},
        cost_nano=None if cost_usd is None else _count(Decimal(str(cost_usd)) * 10**9),
        currency="USD",
        usage=str(line.get("usage", "none")),
        price_version=_text(line.get("price_version")),
        attempts=len(attempts) if isinstance(attempts, list) else int("usage" in line),
    )


def _count(value: float | Decimal, most: int = _MAX_INT) -> int:
    """A number of a line, which is never negative: one that is would take from what others have used.

    Raises:
        ValueError: It is none, or too large.
    """
    count = int(value)
    if not 0 <= count <= most:
        raise ValueError("not a number of ours")
    return count


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _unix_ms(time: str) -> int:
    """The moment of a line's `time`.

    Raises:
        ValueError: It is none, or has no time zone.
    """
    moment = datetime.fromisoformat(time)
    if moment.tzinfo is None:
        raise ValueError("not a moment")
    return round(moment.timestamp() * 1000)
