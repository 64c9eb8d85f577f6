"""Rows for the tests, and what their sums must be."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from proxy.ledger import Row, Sums
from proxy.ledger.sql import DAY_MS, _shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.ledger import Query

_NUMBERS = itertools.count()
NOON_MS = 20_000 * DAY_MS + DAY_MS // 2


def row(ended_ms: int = NOON_MS, **changes: Any) -> Row:
    """A row, with what a test changes of it."""
    made = Row(
        row_id=f"{ended_ms:012x}{next(_NUMBERS):020x}",
        id="request-1",
        ended_ms=ended_ms,
        issuer="tests",
        user="alice",
        plan="default",
        upstream="main",
        model="gpt-x",
        dialect="openai",
        status=200,
        ending="complete",
        code=None,
        ttfb_ms=12.5,
        duration_ms=100.0,
        bytes=1000,
        events=10,
        input_tokens=100,
        output_tokens=20,
        cached_tokens=0,
        reasoning_tokens=0,
        cost_nano=2_500_000,
        currency="USD",
        usage="reported",
        price_version="2026-01-01",
        attempts=1,
    )
    return made._replace(**changes)


def summed(rows: Iterable[Row], query: Query) -> list[Sums]:
    """What a query must return, found the long way."""
    groups: defaultdict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * 7)
    for one in {one.row_id: one for one in reversed(list(rows))}.values():
        if (
            one.ended_ms < query.since_ms
            or query.user not in {None, one.user}
            or query.issuer not in {None, one.issuer}
        ):
            continue
        values = {**one._asdict(), "day": one.ended_ms // DAY_MS}
        sums = groups[tuple(_shown(column, values[column] or "") for column in query.by)]
        is_unpriced = one.cost_nano is None and one.usage != "none"
        numbers = (1, *one[16:20], one.cost_nano or 0, int(is_unpriced))
        for index, number in enumerate(numbers):
            sums[index] += number
    return [Sums(dict(zip(query.by, key, strict=True)), *sums) for key, sums in groups.items()]
