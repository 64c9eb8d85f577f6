"""Calendar periods: where days, weeks and months begin, clock changes included."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.limits.periods import Calendar, Every, Period, period_at

EVERY: list[Every] = ["day", "week", "month"]


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("every", "moment", "start", "end", "zone"),
    [
        ("day", "2026-02-28T23:59:59", "2026-02-28", "2026-03-01", "UTC"),
        ("day", "2026-03-01T00:00:00", "2026-03-01", "2026-03-02", "Asia/Shanghai"),
        ("day", "2026-03-29T12:00:00", "2026-03-29", "2026-03-30", "Europe/Berlin"),
        ("week", "2026-11-22T23:59:59", "2026-11-16", "2026-11-23", "UTC"),
        ("week", "2026-11-23T00:00:00", "2026-11-23", "2026-11-30", "UTC"),
        ("week", "2027-01-01T10:00:00", "2026-12-28", "2027-01-04", "America/New_York"),
        ("month", "2024-02-29T10:00:00", "2024-02-01", "2024-03-01", "UTC"),
        ("month", "2026-12-31T23:59:59", "2026-12-01", "2027-01-01", "Asia/Kolkata"),
        # The clocks go forward at midnight: the day begins at 01:00.
        ("day", "2025-09-07T12:00:00", "2025-09-07T01:00", "2025-09-08", "America/Santiago"),
        # Midnight comes twice: the day begins with the first, which is summer time.
        ("day", "2025-11-02T12:00:00", "2025-11-02", "2025-11-03", "America/Havana"),
    ],
)
def test_period_at(every: Every, moment: str, start: str, end: str, zone: str) -> None:
    """A period begins at midnight in the operator's time zone: of the day, of Monday, of the first of the month."""
    assert period_at(every, at(moment, zone), ZoneInfo(zone)) == Period(int(at(start, zone)), int(at(end, zone)))


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-10-26", 24)], ids=["spring", "autumn", "after"]
)
def test_day_of_a_clock_change(day: str, hours: int) -> None:
    """A day on which the clocks change has 23 or 25 hours."""
    period = period_at("day", at(f"{day}T12:00", "Europe/Berlin"), ZoneInfo("Europe/Berlin"))
    assert period.end_s - period.start_s == hours * 3600


@pytest.mark.parametrize("every", EVERY)
def test_day_that_has_begun_does_not_end(every: Every) -> None:
    """Where the clocks go back over midnight, from 00:01 to 23:01, the old day is not opened again for an hour."""
    zone = ZoneInfo("America/St_Johns")
    changed_s = datetime(2009, 11, 1, 2, 31, tzinfo=UTC).timestamp()
    assert datetime.fromtimestamp(changed_s, zone).day == 31
    before = period_at(every, changed_s - 1, zone)
    assert before.start_s < changed_s < before.end_s
    assert period_at(every, changed_s, zone) == period_at(every, changed_s + 3600, zone) == before


ZONES = [
    "America/St_Johns",
    "UTC",
    "Europe/Berlin",
    "America/Santiago",
    "America/Havana",
    "Pacific/Apia",
    "Asia/Beirut",
    "Asia/Kathmandu",
]


@given(
    every=st.sampled_from(EVERY),
    moment=st.datetimes(datetime(1990, 1, 1), datetime(2060, 1, 1)),  # noqa: DTZ001 - made aware below
    zone=st.sampled_from(ZONES),
)
def test_periods_are_contiguous(every: Every, moment: datetime, zone: str) -> None:
    """Every moment is in exactly one period: one ends where the next begins, in every zone and year."""
    now_s = moment.replace(tzinfo=UTC).timestamp()
    period = period_at(every, now_s, ZoneInfo(zone))
    assert period.start_s <= now_s < period.end_s
    assert period_at(every, period.start_s, ZoneInfo(zone)) == period
    assert period_at(every, period.end_s - 1, ZoneInfo(zone)) == period
    assert period_at(every, period.end_s, ZoneInfo(zone)).start_s == period.end_s
    assert timedelta(seconds=period.end_s - period.start_s) < timedelta(days=32)


def test_calendar() -> None:
    """A calendar tells the period of each moment, also of one before the last that it was asked for."""
    calendar, first = Calendar(), at("2026-05-31T23:59:59")
    assert calendar.period("month", first).end_s == at("2026-06-01")
    assert calendar.period("month", first + 1).start_s == at("2026-06-01")
    assert calendar.period("month", first).start_s == at("2026-05-01")
