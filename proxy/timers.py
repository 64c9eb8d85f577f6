"""One coarse timer for all deadlines of a worker.

A timer per stream or per event would cost more than the events themselves. Instead every object with a deadline is
registered here, and its `check(now)` is called a few times a second. The price is precision: a deadline is noticed up
to one tick late.

Four checks of a stream cost more than relaying an event to it, so with thousands of slow streams the checks would
dominate: objects with long deadlines only are checked at every sixth tick, a sixth of them at each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

# Four wakes a second are nothing to a worker, and a quarter of a second is nothing to clocks of seconds.
COARSEST_TICK_S = 0.25
FINEST_TICK_S = 0.01
# Objects without a deadline shorter than `LONG_S` are checked once in so many ticks. Silence is noticed up to one such
# interval late, and its end up to another: together an eighth of the shortest.
_SELDOM = 6
LONG_S = 8 * 2 * _SELDOM * COARSEST_TICK_S
# Objects of one size are so far apart that these bits of their addresses differ.
_ADDRESS_BITS = 6


class Watched(Protocol):
    """An object with a deadline."""

    def check(self, now_s: float) -> None:
        """Act if the deadline has passed; `now_s` is the loop's time. Must not raise or block."""
        ...


def tick_for(*durations_s: float | None) -> float:
    """Return a tick of an eighth of the shortest duration, between `FINEST_TICK_S` and `COARSEST_TICK_S`."""
    shortest_s = min((duration_s for duration_s in durations_s if duration_s), default=COARSEST_TICK_S * 8)
    return min(COARSEST_TICK_S, max(FINEST_TICK_S, shortest_s / 8))


class DeadlineTimer:
    """One timer for all deadlines of a worker: calls `check(now)` on every registered object once a tick.

    `add` and `discard` are set operations. While no object is registered, no timer runs.

    Attributes:
        now: Returns the loop's time, in seconds.
    """

    __slots__ = ("_handle", "_loop", "_seldom", "_tick_s", "_turn", "_watched", "now")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, tick_s: float = COARSEST_TICK_S) -> None:
        self._loop = loop
        self.now = loop.time
        self._tick_s = tick_s
        self._watched: set[Watched] = set()
        # Each has the ticks of its turn.
        self._seldom: tuple[set[Watched], ...] = tuple(set() for _ in range(_SELDOM))
        self._turn = 0
        self._handle: asyncio.TimerHandle | None = None

    def add(self, watched: Watched) -> None:
        """Check `watched` at every tick; adding it twice is adding it once."""
        self._watched.add(watched)
        if self._handle is None:
            self._go_on()

    def discard(self, watched: Watched) -> None:
        """Stop checking it; discarding what was not added does nothing."""
        self._watched.discard(watched)

    def add_seldom(self, watched: Watched) -> None:
        """Check one that has no deadline shorter than `LONG_S`, at every sixth tick."""
        self._seldom[_turn_of(watched)].add(watched)
        if self._handle is None:
            self._go_on()

    def discard_seldom(self, watched: Watched) -> None:
        """Stop checking it; discarding what was not added does nothing."""
        self._seldom[_turn_of(watched)].discard(watched)

    @property
    def watched_count(self) -> int:
        """Count the registered objects."""
        return len(self._watched) + sum(map(len, self._seldom))

    def set_tick(self, tick_s: float) -> None:
        """Change the tick, from the next wake on."""
        self._tick_s = tick_s

    def close(self) -> None:
        """Stop the timer, and discard all objects."""
        self._watched.clear()
        for watched in self._seldom:
            watched.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _tick(self) -> None:
        self._handle = None
        now_s = self.now()
        self._turn = (self._turn + 1) % _SELDOM
        # A copy: a check may discard its own object or others.
        for watched in (*self._watched, *self._seldom[self._turn]):
            watched.check(now_s)
        # A check may have added one, and begun the next tick with it.
        if self._handle is None and self.watched_count:
            self._go_on()

    def _go_on(self) -> None:
        self._handle = self._loop.call_later(self._tick_s, self._tick)


def _turn_of(watched: Watched) -> int:
    return (id(watched) >> _ADDRESS_BITS) % _SELDOM
