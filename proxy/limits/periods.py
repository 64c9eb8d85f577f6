"""The calendar periods of budgets: days, weeks from Monday and months, in the operator's time zone.

Pure. A day has 23 or 25 hours where the clocks change; where midnight does not exist a day begins with the change,
and where it comes twice with the first.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from datetime import tzinfo

Every: TypeAlias = Literal["day", "week", "month"]


class Period(NamedTuple):
    """A span of Unix time in seconds, its end not included."""

    start_s: int
    end_s: int


def period_at(every: Every, at_s: float, zone: tzinfo) -> Period:
    """Give the period of a moment."""
    today = datetime.fromtimestamp(at_s, zone).date()
    if at_s >= _midnight(today + timedelta(days=1), zone):
        # Clocks were set back over midnight: the next day has begun, and does not begin again.
        today += timedelta(days=1)
    if every == "day":
        first, after = today, today + timedelta(days=1)
    elif every == "week":
        first = today - timedelta(days=today.weekday())
        after = first + timedelta(days=7)
    else:
        first = today.replace(day=1)
        after = (first + timedelta(days=31)).replace(day=1)
    return Period(_midnight(first, zone), _midnight(after, zone))


def _midnight(day: date, zone: tzinfo) -> int:
    # Of two midnights the first; one that is skipped is, by the offset before it (PEP 495), when the clocks change.
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())


class Calendar:
    """The running period of each kind, computed when the former one has ended."""

    def __init__(self, zone: tzinfo = UTC) -> None:
        self._zone = zone
        self._running: dict[Every, Period] = {}

    def period(self, every: Every, at_s: float) -> Period:
        """Give the period of a moment."""
        period = self._running.get(every)
        if period is None or not period.start_s <= at_s < period.end_s:
            period = self._running[every] = period_at(every, at_s, self._zone)
        return period
