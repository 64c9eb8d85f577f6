"""The worker's one timer: who is asked how often, and that nobody is asked for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from proxy.timers import COARSEST_TICK_S, LONG_S, DeadlineTimer

if TYPE_CHECKING:
    from collections.abc import Callable

TICKS = 6


class Loop:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Any:
        entry = (self.now_s + delay_s, call)
        self.due.append(entry)
        return Handle(self, entry)

    def tick(self) -> None:
        """Let the next timer fire; there is never more than one."""
        ((self.now_s, call),) = self.due
        self.due.clear()
        call()


class Handle:
    def __init__(self, loop: Loop, entry: tuple[float, Callable[[], None]]) -> None:
        self._loop = loop
        self._entry = entry

    def cancel(self) -> None:
        self._loop.due.remove(self._entry)


class Silence:
    """Notes when it is asked; as a relay does, it sees only then that bytes have moved, and ends after a silence."""

    def __init__(self, clock_s: float = LONG_S) -> None:
        self.asked_s: list[float] = []
        self.has_moved = False
        self.ended_s: float | None = None
        self._clock_s = clock_s
        self._since_s = 0.0

    def check(self, now_s: float) -> None:
        self.asked_s.append(now_s)
        if self.has_moved:
            self.has_moved, self._since_s = False, now_s
        elif self.ended_s is None and now_s - self._since_s >= self._clock_s:
            self.ended_s = now_s


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def clocks(loop: Loop) -> DeadlineTimer:
    return DeadlineTimer(cast("Any", loop))


def test_clocks_ask_at_every_tick(loop: Loop, clocks: DeadlineTimer) -> None:
    """Who is watched is asked at each tick, with the loop's time."""
    one = Silence()
    clocks.add(one)
    clocks.add(one)
    for _ in range(3):
        loop.tick()
    assert one.asked_s == [COARSEST_TICK_S, 2 * COARSEST_TICK_S, 3 * COARSEST_TICK_S]


def test_clocks_ask_seldom_at_every_sixth(loop: Loop, clocks: DeadlineTimer) -> None:
    """Who has long clocks is asked once in six ticks, and of many about as many at each."""
    many = [Silence() for _ in range(800)]
    for one in many:
        clocks.add_seldom(one)
        clocks.add_seldom(one)
    at_each = []
    for _ in range(2 * TICKS):
        before = sum(len(one.asked_s) for one in many)
        loop.tick()
        at_each.append(sum(len(one.asked_s) for one in many) - before)
    assert {len(one.asked_s) for one in many} == {2}
    assert {round(one.asked_s[1] - one.asked_s[0], 9) for one in many} == {TICKS * COARSEST_TICK_S}
    assert max(at_each) < 800 / 2


@pytest.mark.parametrize("moved_at_tick", range(TICKS))
def test_clocks_are_late_by_an_eighth_at_most(loop: Loop, clocks: DeadlineTimer, moved_at_tick: int) -> None:
    """A silence is ended after its clock, and at most an eighth of it later, whenever it began."""
    one = Silence()
    clocks.add_seldom(one)
    for _ in range(TICKS + moved_at_tick):
        loop.tick()
    one.has_moved, moved_s = True, loop.now_s
    while one.ended_s is None:
        loop.tick()
    assert LONG_S <= one.ended_s - moved_s <= LONG_S * 9 / 8


@pytest.mark.parametrize("kind", ["add", "add_seldom"])
def test_clocks_discard(loop: Loop, clocks: DeadlineTimer, kind: str) -> None:
    """A discarded object is not checked again; with no object left there is no timer, with another one there is."""
    add = getattr(clocks, kind)
    discard = getattr(clocks, kind.replace("add", "discard"))
    one, other = Silence(), Silence()
    for watched in (one, other):
        add(watched)
    assert clocks.watched_count == 2
    discard(one)
    discard(one)
    assert clocks.watched_count == 1
    for _ in range(TICKS):
        loop.tick()
    assert one.asked_s == []
    assert other.asked_s
    discard(other)
    loop.tick()
    assert loop.due == []
    add(one)
    assert len(loop.due) == 1
    clocks.close()
    assert (loop.due, clocks.watched_count) == ([], 0)


def test_clocks_change_while_asking(loop: Loop, clocks: DeadlineTimer) -> None:
    """Whoever is asked may forget itself and have others watched, of either kind."""
    later, often = Silence(), Silence()

    class Changing:
        def check(self, now_s: float) -> None:
            del now_s
            clocks.discard(self)
            clocks.add(often)
            clocks.add_seldom(later)

    clocks.add(Changing())
    for _ in range(TICKS + 1):
        loop.tick()
    assert (len(often.asked_s), len(later.asked_s), clocks.watched_count) == (TICKS, 1, 2)
