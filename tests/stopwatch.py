"""A stopwatch that stands still while the machine does: a bound on a wait is then no bound on the test's machine."""

from __future__ import annotations

import asyncio
from typing import Self

_TICK_S = 0.01
# Of a tick that comes in time, no more than this is counted.
_MOST_S = 2 * _TICK_S


class Stopwatch:
    """Counts the time in which this loop ran: a tick that comes late, however late, counts as at most two.

    It never shows more than has passed, and on a machine that does not stand still no less.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stood_still_s = 0.0

    def __enter__(self) -> Self:
        self._began_s = self._seen_s = self._loop.time()
        self._handle = self._loop.call_later(_TICK_S, self._tick)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._handle.cancel()

    @property
    def elapsed_s(self) -> float:
        """The time so far."""
        self._see()
        return self._seen_s - self._began_s - self._stood_still_s

    @property
    def is_true(self) -> bool:
        """Whether all that has passed was counted."""
        self._see()
        return self._stood_still_s == 0.0

    def _see(self) -> None:
        now_s = self._loop.time()
        self._stood_still_s += max(0.0, now_s - self._seen_s - _MOST_S)
        self._seen_s = now_s

    def _tick(self) -> None:
        self._see()
        self._handle = self._loop.call_later(_TICK_S, self._tick)
