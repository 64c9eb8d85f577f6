"""What is known of one user: how far each rate is used, and which admissions are live.

Used by the store that keeps everything here, and by the one that only remembers what another server told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from proxy.limits import gcra
from proxy.limits.store import RateStanding, Standing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.exchange import Plan, Rate

# Microseconds: fine enough for any rate, and coarse enough that `now + retry_after_s`, computed in floats and rounded
# to the nearest tick, is the very tick that was meant (for 30 years of uptime, and to a tick of a finer clock).
TICKS_PER_S = 1_000_000

_UNITS = (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1))


class Meter:
    """The state of one rate for one user; shared by all of the user's plans that have this rate."""

    __slots__ = ("limit", "name", "tat", "window_s")

    def __init__(self, limit: gcra.Limit) -> None:
        self.limit = limit
        self.name = rate_name(limit)
        self.window_s = limit.window / TICKS_PER_S
        self.tat = 0


_Live = TypeVar("_Live")


class Account(Generic[_Live]):
    """What is known of one user.

    `meters` are those of the plan seen last, `others` (by limit) those of plans seen before that are not paid off yet:
    a user with tokens of two plans, or a reload there and back, must not find a used rate fresh. `live` keeps the
    admissions that hold a lease, oldest first. `is_queued` says whether the account waits in the store's heap.
    """

    __slots__ = ("is_queued", "key", "live", "meters", "others", "plan")

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.plan: Plan | None = None
        self.meters: tuple[Meter, ...] = ()
        self.others: dict[gcra.Limit, Meter] = {}
        self.live: dict[_Live, None] = {}
        self.is_queued = False

    def adopt(self, plan: Plan, now: int) -> None:
        """Measure by the rates of `plan` from now on, with what is already used of those that it shares."""
        known = {meter.limit: meter for meter in self.meters} | self.others
        meters = tuple(known.pop(limit) if limit in known else Meter(limit) for limit in limits_of(plan.rates))
        self.others = {limit: meter for limit, meter in known.items() if gcra.paid_at(limit, meter.tat) > now}
        self.meters, self.plan = meters, plan

    def paid_at(self) -> int:
        """Give the tick from which on this account, without leases, is equal to none."""
        return max((gcra.paid_at(meter.limit, meter.tat) for meter in (*self.meters, *self.others.values())), default=0)


def limits_of(rates: Sequence[Rate]) -> tuple[gcra.Limit, ...]:
    """Give the rates in ticks, each once: a rate that a plan names twice is charged once."""
    limits = (gcra.Limit(rate.quota, max(1, round(rate.window_s * TICKS_PER_S))) for rate in rates)
    return tuple(dict.fromkeys(limits))


def rate_name(limit: gcra.Limit) -> str:
    """Name a rate as an operator would write it, like `60-per-10s`; different rates have different names."""
    unit, ticks = next(unit for unit in _UNITS if limit.window % unit[1] == 0)
    return f"{limit.quota}-per-{limit.window // ticks}{unit}"


def standing_of(meters: Sequence[Meter], tats: Sequence[int], now: int) -> Standing:
    """Word the state `tats` of the meters at `now`."""
    rates = []
    for meter, tat in zip(meters, tats, strict=True):
        limit = meter.limit
        # The common case is written out: a call for every rate of every request costs more than what it does.
        left, reset = (limit.quota, 0) if tat <= now * limit.quota else gcra.standing(limit, tat, now)
        rates.append(RateStanding(meter.name, limit.quota, meter.window_s, left, reset / TICKS_PER_S))
    return Standing(tuple(rates))


def retry_after_s(meters: Sequence[Meter], now: int) -> float:
    """Give the seconds until a request fits all of the meters."""
    limits, tats = [meter.limit for meter in meters], [meter.tat for meter in meters]
    return gcra.retry_after_all(limits, tats, now) / TICKS_PER_S
