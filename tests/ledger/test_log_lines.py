"""Rows from the log's lines: the same that the ledger was given."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from proxy.ledger.log_lines import read_line
from tests.ledger.rows import NOON_MS, row

LINE: dict[str, Any] = {
    "id": "request-1",
    "user": "alice",
    "issuer": "tests",
    "plan": "default",
    "upstream": "main",
    "method": "POST",
    "path": "/v1/chat/completions",
    "status": 200,
    "ending": "complete",
    "ttfb_ms": 12.5,
    "duration_ms": 100.0,
    "bytes": 1000,
    "events": 10,
    "code": None,
    "reason": None,
    "event": "exchange.settled",
    "model": "gpt-x",
    "input_tokens": 100,
    "output_tokens": 20,
    "cached_tokens": 0,
    "reasoning_tokens": 0,
    "cost_usd": "0.0025",
    "usage": "reported",
    "level": "info",
    "time": datetime.fromtimestamp(NOON_MS / 1000, UTC).isoformat(),
}
KEPT = {"row_id": f"{NOON_MS:012x}{7:020x}", "dialect": "openai", "price_version": "2026-01-01"}


def raw(**changes: Any) -> bytes:
    return json.dumps({**LINE, **changes}).encode()


def test_line_of_a_kept_ledger() -> None:
    """A line that names its row becomes that row."""
    assert read_line(raw(**KEPT)) == row(NOON_MS, row_id=KEPT["row_id"])


def test_line_from_before_a_ledger_was_kept() -> None:
    """A line without a row has one that follows from its content: the same each time, and in order of time."""
    first, again, later = read_line(raw()), read_line(b"proxy-1  | " + raw()), read_line(raw(id="request-2"))
    assert first is not None
    assert later is not None
    assert first == again
    assert first == row(NOON_MS, row_id=first.row_id, dialect=None, price_version=None)
    assert first.row_id != later.row_id
    assert first.row_id.startswith(f"{NOON_MS:012x}")
    assert len(first.row_id) == 32


def test_line_of_a_refusal() -> None:
    """An exchange that reached no vendor has a row without usage."""
    line = {name: value for name, value in LINE.items() if name not in {"model", "cost_usd", "usage"}}
    found = read_line(json.dumps(line | {"status": 429, "code": "rate_limit_exceeded", "upstream": None}).encode())
    assert found is not None
    assert (found.usage, found.model, found.cost_nano, found.attempts) == ("none", None, None, 0)
    assert (found.code, found.upstream) == ("rate_limit_exceeded", None)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b'{"event": "server.started"}',
        raw(event="server.started", reason="exchange.settled"),
        raw(user=None),
        raw()[:-20],
        raw(time="yesterday"),
        raw(time="2026-01-31T12:00:00"),
        raw(time=7),
        raw(row_id="f" * 32),
        raw(duration_ms=None),
        raw(bytes=[1]),
        raw(cost_usd="much"),
        raw(input_tokens=1e400),
        # It would take from what others have used, or fit into no database.
        raw(input_tokens=-1),
        raw(output_tokens=-(2**63)),
        raw(cost_usd="-0.01"),
        raw(cost_usd="-1e30"),
        raw(cost_usd="NaN"),
        raw(bytes=-1),
        raw(bytes=2**64 - 1),
        raw(events=2**63),
        raw(status=2**31),
        b'["exchange.settled"]',
        b'"exchange.settled" {',
        b'\xff\xfe"exchange.settled"{}',
    ],
)
def test_other_lines(line: bytes) -> None:
    """Whatever is no whole line of an authenticated exchange is no row, and no error."""
    assert read_line(line) is None


def test_row_id_of_somebody_else() -> None:
    """A `row_id` that is none of ours is not used."""
    found = read_line(raw(row_id="x' OR 1"))
    assert found is not None
    assert found.row_id.startswith(f"{NOON_MS:012x}")
