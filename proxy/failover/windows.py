"""Counts over the last seconds, in constant memory."""

from __future__ import annotations

from typing import Final

_BUCKETS: Final = 10


class SlidingCounts:
    """Two independent counts over the last `window_s` seconds, to a tenth of it. Times are the loop's, in seconds."""

    __slots__ = ("_at", "_bucket_s", "_ends_s", "_first", "_last", "_second")

    def __init__(self, window_s: float) -> None:
        self._bucket_s = window_s / _BUCKETS
        self._first = [0] * _BUCKETS
        self._second = [0] * _BUCKETS
        # The current bucket's number, its place, and when it ends.
        self._last = self._at = 0
        self._ends_s = self._bucket_s

    def count(self, now_s: float, first: int, second: int) -> None:
        """Add to the two counts."""
        if now_s >= self._ends_s:
            self._advance(now_s)
        self._first[self._at] += first
        self._second[self._at] += second

    def sums(self, now_s: float) -> tuple[int, int]:
        """What was counted within the window."""
        if now_s >= self._ends_s:
            self._advance(now_s)
        return sum(self._first), sum(self._second)

    def clear(self) -> None:
        """Forget everything."""
        self._first = [0] * _BUCKETS
        self._second = [0] * _BUCKETS

    def _advance(self, now_s: float) -> None:
        """Empty the buckets whose time is over: the current one has a later number."""
        number = int(now_s / self._bucket_s)
        for gone in range(self._last + 1, self._last + 1 + min(number - self._last, _BUCKETS)):
            self._first[gone % _BUCKETS] = self._second[gone % _BUCKETS] = 0
        self._last, self._at = number, number % _BUCKETS
        self._ends_s = (number + 1) * self._bucket_s
