"""The arithmetic of rates, against definitions that keep everything and count with fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.limits import gcra
from proxy.limits.gcra import Limit

STEADY = settings(max_examples=200)

LIMITS = st.builds(Limit, st.integers(1, 6), st.integers(1, 40))
STEPS = st.lists(st.integers(0, 12), max_size=40)  # ticks between requests


def charge(limit: Limit, tat: int, now: int) -> int | None:
    """One limit's TAT after one more request."""
    ends = gcra.charge((limit,), (tat,), now)
    return None if ends is None else ends[0]


class Replay:
    """GCRA by its definition, in fractions of a tick; `tat` is what the admitted requests so far make of it."""

    def __init__(self, limit: Limit) -> None:
        self.interval = Fraction(limit.window, limit.quota)
        self.burst = Fraction(limit.window)
        self.tat = Fraction(0)

    def admit(self, now: int) -> bool:
        end = max(self.tat, Fraction(now)) + self.interval
        if end - now > self.burst:
            return False
        self.tat = end
        return True


@given(LIMITS, STEPS)
@STEADY
def test_charge_is_exact(limit: Limit, steps: list[int]) -> None:
    """Every decision is that of exact fractions, however badly the quota divides the window."""
    replay, tat, now = Replay(limit), 0, 0
    for step in steps:
        now += step
        end = charge(limit, tat, now)
        assert (end is not None) == replay.admit(now)
        tat = tat if end is None else end
        assert Fraction(tat, limit.quota) == replay.tat


@given(LIMITS, STEPS)
@STEADY
def test_charge_any_span(limit: Limit, steps: list[int]) -> None:
    """No span of ticks, wherever it starts, admits more than the burst and what the span refills."""
    tat, now, admitted = 0, 0, []
    for step in steps:
        now += step
        while (end := charge(limit, tat, now)) is not None:
            tat = end
            admitted.append(now)
    for first, start in enumerate(admitted):
        for count, end in enumerate(admitted[first:], start=1):
            assert count <= limit.quota + Fraction((end - start) * limit.quota, limit.window)


def test_charge_window_edge() -> None:
    """A burst just before the edge of a window leaves nothing for a second one just after it."""
    limit = Limit(10, 1_000)
    tat, before, after = 0, 0, 0
    while (end := charge(limit, tat, 999)) is not None:
        tat, before = end, before + 1
    while (end := charge(limit, tat, 1_001)) is not None:
        tat, after = end, after + 1
    assert (before, after) == (10, 0)


def test_charge_never_drifts() -> None:
    """After a million seconds of a rate that no float represents, the requests admitted are those of the quota."""
    limit = Limit(7, 10_000_000)
    tat, now, admitted = 0, 1_760_000_000_000_000, 0
    start = now
    for _ in range(20_000):
        now += gcra.retry_after(limit, tat, now)
        end = charge(limit, tat, now)
        assert end is not None
        tat, admitted = end, admitted + 1
    # Seven at once; each further one waits for a whole tick, the next reckons from where this one should have been.
    assert now - start == -(-(admitted - 7) * limit.window // limit.quota)


@given(LIMITS, STEPS, st.integers(0, 20))
@STEADY
def test_standing_is_true(limit: Limit, steps: list[int], later: int) -> None:
    """`remaining` requests are admitted at once and no more; at the reset, and no tick earlier, all of the quota is."""
    tat, now = used(limit, steps)
    now += later
    remaining, reset = gcra.standing(limit, tat, now)
    assert admitted_at_once(limit, tat, now) == remaining
    assert admitted_at_once(limit, tat, now + reset) == limit.quota
    assert (reset == 0) == (tat <= now * limit.quota)
    if reset:
        assert gcra.standing(limit, tat, now + reset - 1)[1] == 1


@given(LIMITS, STEPS, st.integers(0, 20))
@STEADY
def test_retry_after_is_true(limit: Limit, steps: list[int], later: int) -> None:
    """A request at exactly the time named is admitted; one a tick earlier is not."""
    tat, now = used(limit, steps)
    now += later
    wait = gcra.retry_after(limit, tat, now)
    assert charge(limit, tat, now + wait) is not None
    assert wait == 0 or charge(limit, tat, now + wait - 1) is None


@given(st.lists(LIMITS, min_size=1, max_size=3, unique=True), STEPS)
@STEADY
def test_charge_all_or_nothing(limits: list[Limit], steps: list[int]) -> None:
    """Several limits admit exactly what each of them admits, and the time named for all of them is true."""
    tats: tuple[int, ...] = (0,) * len(limits)
    now = 0
    for step in steps:
        now += step
        each = [charge(limit, tat, now) for limit, tat in zip(limits, tats, strict=True)]
        ends = gcra.charge(limits, tats, now)
        assert ends == (None if None in each else tuple(each))
        slowest, wait = gcra.longest_wait(limits, tats, now)
        assert wait == gcra.retry_after(slowest, tats[limits.index(slowest)], now)
        assert (wait == 0) == (ends is not None)
        assert gcra.charge(limits, tats, now + wait) is not None
        assert wait == 0 or gcra.charge(limits, tats, now + wait - 1) is None
        tats = ends or tats


def test_charge_all_without_limits() -> None:
    """Without a limit everything is admitted."""
    assert gcra.charge([], [], 5) == ()


@given(LIMITS, STEPS, st.integers(0, 60))
@STEADY
def test_paid_at_is_when_forgetting_is_safe(limit: Limit, steps: list[int], later: int) -> None:
    """From that tick on a used state stands as an unused one; before it, it does not."""
    tat, _ = used(limit, steps)
    paid_at = gcra.paid_at(limit, tat)
    assert gcra.standing(limit, tat, paid_at + later) == gcra.standing(limit, 0, paid_at + later)
    assert charge(limit, tat, paid_at + later) == charge(limit, 0, paid_at + later)
    assert paid_at == 0 or gcra.standing(limit, tat, paid_at - 1) != gcra.standing(limit, 0, paid_at - 1)


class Queue:
    """Charges as amounts that are paid off first come, first served: what `unpaid` claims to compute."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.left: dict[int, int] = {}
        self.at = 0

    def go_to(self, now: int) -> None:
        paid = (now - self.at) * self.limit.quota
        self.at = now
        for charge in self.left:
            part = min(paid, self.left[charge])
            self.left[charge] -= part
            paid -= part


@given(LIMITS, st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 9)), max_size=40))
@STEADY
def test_unpaid_is_what_is_left(limit: Limit, steps: list[tuple[int, bool, int]]) -> None:
    """Giving back gives exactly what is left of a charge, and never makes room that the kept requests have used."""
    queue, tat, now = Queue(limit), 0, 0
    ends: dict[int, int] = {}
    charged_at: dict[int, int] = {}
    for number, (step, is_refund, which) in enumerate(steps):
        now += step
        queue.go_to(now)
        if is_refund and ends:
            chosen = list(ends)[which % len(ends)]
            back = gcra.unpaid(limit, ends[chosen], now)
            assert back == queue.left[chosen]
            queue.left[chosen] = 0
            tat -= back
            ends = {key: end - back * (key > chosen) for key, end in ends.items() if key != chosen}
            del charged_at[chosen]
        elif (end := charge(limit, tat, now)) is not None:
            tat = ends[number] = end
            queue.left[number] = limit.window
            charged_at[number] = now
        level = max(0, tat - now * limit.quota)
        assert level == sum(queue.left.values())
        # As if what was given back had never been: there is never more room than that.
        kept = 0
        for moment in charged_at.values():
            kept = max(kept, moment * limit.quota) + limit.window
        assert level >= max(0, kept - now * limit.quota)


@pytest.mark.parametrize(("quota", "window"), [(0, 1), (-1, 1), (1, 0), (1, -5)])
def test_limit_of_nothing(quota: int, window: int) -> None:
    """A rate without quota or window is no rate."""
    with pytest.raises(ValueError, match="at least 1"):
        Limit(quota, window)


def test_standing_clock_set_back() -> None:
    """A clock that jumps back makes nothing remain; it never gives negative numbers."""
    limit = Limit(2, 10)
    end = charge(limit, 0, 1_000)
    assert end is not None
    assert gcra.standing(limit, end, 500) == (0, 505)


def used(limit: Limit, steps: list[int]) -> tuple[int, int]:
    """Give the state and the time after requests at these intervals."""
    tat, now = 0, 0
    for step in steps:
        now += step
        tat = charge(limit, tat, now) or tat
    return tat, now


def admitted_at_once(limit: Limit, tat: int, now: int) -> int:
    count = 0
    while (end := charge(limit, tat, now)) is not None:
        tat, count = end, count + 1
    return count
