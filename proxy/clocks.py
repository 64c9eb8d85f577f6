"""One coarse timer for everything that can run out of time in a worker.

A timer per stream or per event would cost more than the events themselves. Instead whoever has a deadline is *watched*:
asked a few times a second whether its time has come. The price is precision: a clock fires up to one tick late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

# Four wakes a second are nothing to a worker, and a quarter of a second is nothing to clocks of seconds.
COARSEST_TICK_S = 0.25
FINEST_TICK_S = 0.01


class Watched(Protocol):
    """Something with a deadline."""

    def check(self, now_s: float) -> None:
        """Act if time has come; `now_s` is the loop's time. Must not raise or block."""
        ...


def tick_for(*durations_s: float | None) -> float:
    """The tick that keeps the shortest of the durations within an eighth of itself, between the two bounds above."""
    shortest_s = min((duration_s for duration_s in durations_s if duration_s), default=COARSEST_TICK_S * 8)
    return min(COARSEST_TICK_S, max(FINEST_TICK_S, shortest_s / 8))


class Clocks:
    """Asks everything watched, once a tick, whether its time has come.

    Watching and forgetting are set operations. With nothing to watch there is no timer at all.

    Attributes:
        now: Gives the loop's time, in seconds.
        forget: Stops asking; forgetting what is not watched does nothing.
    """

    __slots__ = ("_handle", "_loop", "_tick_s", "_watched", "forget", "now")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, tick_s: float = COARSEST_TICK_S) -> None:
        self._loop = loop
        self._tick_s = tick_s
        self._watched: set[Watched] = set()
        self._handle: asyncio.TimerHandle | None = None
        # The loop's and the set's own methods: every request calls them several times.
        self.now: Callable[[], float] = loop.time
        self.forget: Callable[[Watched], None] = self._watched.discard

    def watch(self, watched: Watched) -> None:
        """Begin to ask `watched`; watching twice is watching once."""
        self._watched.add(watched)
        if self._handle is None:
            self._handle = self._loop.call_later(self._tick_s, self._tick)

    @property
    def watched_count(self) -> int:
        """How many are watched."""
        return len(self._watched)

    def sharpen(self, tick_s: float) -> None:
        """Change the tick, from the next wake on."""
        self._tick_s = tick_s

    def close(self) -> None:
        """Ask nobody any more."""
        self._watched.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _tick(self) -> None:
        now_s = self.now()
        # A copy: whoever is asked may forget itself or others.
        for watched in tuple(self._watched):
            watched.check(now_s)
        self._handle = self._loop.call_later(self._tick_s, self._tick) if self._watched else None
