"""The breaker: when an upstream is left out, for how long, and who tries it again."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from proxy.failover.breaker import Breaker
from proxy.failover.budget import RetryBudget
from proxy.failover.windows import SlidingCounts
from proxy.model import HealthRules


@dataclass
class Clock:
    """A clock that a test sets, and what the breaker says."""

    now_s: float = 1000.0
    said: list[float | None] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def breaker(clock: Clock, **rules: float) -> Breaker:
    return Breaker(HealthRules(**rules), now=clock, on_change=clock.said.append)  # type: ignore[arg-type]  # a test names them


def fail(one: Breaker, count: int = 5) -> None:
    for _ in range(count):
        one.failed(is_probe=False)


def test_breaker_consecutive(clock: Clock) -> None:
    """Five failures in a row leave it out, a success between them does not."""
    one = breaker(clock)
    fail(one, 4)
    one.succeeded(clock.now_s, is_probe=False)
    fail(one, 4)
    assert one.allows
    fail(one, 1)

    assert (one.allows, one.is_out, clock.said) == (False, True, [10.0])


def test_breaker_share(clock: Clock) -> None:
    """Half of twenty attempts within the window leave it out, though successes stand between them."""
    one = breaker(clock)
    for _ in range(9):
        fail(one, 1)
        one.succeeded(clock.now_s, is_probe=False)
    assert one.allows
    one.succeeded(clock.now_s, is_probe=False)
    fail(one, 1)

    assert not one.allows


def test_breaker_share_of_few(clock: Clock) -> None:
    """Fewer attempts than `of_at_least` say nothing, and neither do those of before the window."""
    one = breaker(clock)
    for _ in range(9):
        fail(one, 1)
        one.succeeded(clock.now_s, is_probe=False)
    clock.now_s += 31
    fail(one, 1)
    one.succeeded(clock.now_s, is_probe=False)

    assert one.allows


def test_breaker_broken_streams(clock: Clock) -> None:
    """Answers that break off count against it, although each began well."""
    one = breaker(clock)
    for _ in range(20):
        one.succeeded(clock.now_s, is_probe=False)
    for _ in range(10):
        one.broke()

    assert not one.allows


def test_breaker_one_at_a_time(clock: Clock) -> None:
    """When the time is over one attempt tries; the others are left out until it is over."""
    one = breaker(clock)
    fail(one)
    assert not one.begin()
    clock.now_s += 10
    seen = [one.allows, one.begin(), one.allows, one.begin()]
    one.end_probe()

    assert [*seen, one.allows] == [True, True, False, False, True]


def test_breaker_closes(clock: Clock) -> None:
    """The attempt that succeeds takes it back, and what was counted before is forgotten."""
    one = breaker(clock)
    fail(one)
    clock.now_s += 10
    assert one.begin()
    one.succeeded(clock.now_s, is_probe=True)
    one.end_probe()
    fail(one, 4)

    assert one.allows
    assert clock.said == [10.0, None]


def test_breaker_grows(clock: Clock) -> None:
    """Each failed try doubles the time, up to `out_at_most`; well for a window, it begins anew."""
    one = breaker(clock, out_at_most_s=60.0)
    fail(one)
    for _ in range(4):
        clock.now_s += 60
        assert one.begin()
        one.failed(is_probe=True)
        one.end_probe()
    one.reset()
    clock.now_s += 29
    fail(one)
    one.reset()
    clock.now_s += 31
    fail(one)

    assert clock.said == [10.0, 20.0, 40.0, 60.0, 60.0, None, 60.0, None, 10.0]


def test_breaker_late_success(clock: Clock) -> None:
    """An answer to what was asked before the last failure does not take it back; a later one does, tried or not."""
    one = breaker(clock)
    fail(one)
    one.succeeded(clock.now_s - 1, is_probe=False)
    assert one.is_out
    one.succeeded(clock.now_s + 1, is_probe=False)
    assert not one.is_out


def test_breaker_failures_while_out(clock: Clock) -> None:
    """Who asks it because there is no other does not make the time longer."""
    one = breaker(clock)
    fail(one)
    clock.now_s += 9
    fail(one, 20)
    clock.now_s += 1

    assert one.allows
    assert clock.said == [10.0]


def test_budget(clock: Clock) -> None:
    """A fifth of the requests of the last ten seconds, and ten more; then no retry, until the window has moved on."""
    budget = RetryBudget(clock)
    for _ in range(100):
        budget.request()
    assert sum(budget.take() for _ in range(50)) == 30
    clock.now_s += 5
    assert not budget.take()
    clock.now_s += 6
    assert sum(budget.take() for _ in range(50)) == 10


def test_sliding_counts(clock: Clock) -> None:
    """What is older than the window is not counted, however much time passes at once."""
    counts = SlidingCounts(10.0)
    for second in range(20):
        counts.count(second, 1, 2)
    assert counts.sums(19) == (10, 20)
    assert counts.sums(24.5) == (5, 10)
    assert counts.sums(10_000) == (0, 0)
    counts.count(10_000, 1, 0)
    counts.clear()
    assert counts.sums(10_000) == (0, 0)
