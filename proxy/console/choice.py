"""Which streams an operator wants to see, and in which order."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

# A stream as it is shown: its members by name, `key` unlike any other's.
Row = dict[str, Any]

# What a stream is doing, in this order.
PHASES: Final = ("receiving", "connecting", "waiting", "streaming", "paused", "ending")
# By what rows are sorted: the member of a row for each name that an operator may give.
SORTS: Final = {
    "age": "started_ms",
    "user": "user",
    "plan": "plan",
    "upstream": "upstream",
    "model": "model",
    "phase": "phase",
    "first_byte": "first_byte_ms",
    "rate": "events_per_s",
    "bytes": "bytes",
    "tokens": "tokens_out",
    "cost": "cost_nano",
    "attempts": "attempts",
}
_TEXTS: Final = frozenset({"user", "plan", "upstream", "model", "phase"})
# What is looked for in a row's texts.
_SEARCHED: Final = ("id", "user", "issuer", "plan", "upstream", "model")
# Rows that are sent; of those beyond, only their number and sums.
MAX_ROWS: Final = 500


class Choice(NamedTuple):
    """The streams that have all of this; None and an empty text stand for any.

    `text` is looked for in id, user, issuer, plan, upstream and model, whatever the case. `order` is `asc` or `desc`.
    """

    text: str = ""
    user: str | None = None
    issuer: str | None = None
    upstream: str | None = None
    phase: str | None = None
    sort: str = "age"
    order: str = "desc"

    def of(self, rows: Iterable[Row]) -> list[Row]:
        """Return the rows that are wanted, in no order."""
        wanted = [
            (name, value)
            for name, value in zip(("user", "issuer", "upstream", "phase"), self[1:5], strict=True)
            if value is not None
        ]
        found = [row for row in rows if all(row[name] == value for name, value in wanted)]
        if self.text:
            text = self.text.casefold()
            found = [row for row in found if text in searched(row)]
        return found

    def first(self, rows: Iterable[Row]) -> list[Row]:
        """Return the first `MAX_ROWS` in order: unknown values last, equal ones by age, and then by key."""
        name = SORTS[self.sort]
        # The oldest stream began first.
        is_descending = (self.order == "desc") != (self.sort == "age")
        is_text = name in _TEXTS

        def known_first(row: Row) -> tuple[Any, ...]:
            value = row[name]
            if value is None:
                return (True, "" if is_text else 0, row["started_ms"], row["key"])
            if is_text:
                return (False, value, row["started_ms"], row["key"])
            return (False, -value if is_descending else value, row["started_ms"], row["key"])

        if not (is_text and is_descending):
            return heapq.nsmallest(MAX_ROWS, rows, key=known_first)
        # Texts have no negative: two passes.
        rows = sorted(rows, key=known_first)
        return sorted(rows, key=lambda row: row[name] or "", reverse=True)[:MAX_ROWS]


def searched(row: Row) -> str:
    """The texts of a row as one, folded."""
    return "\n".join(row[name] or "" for name in _SEARCHED).casefold()
