"""Counts over the last seconds, in constant memory."""

from __future__ import annotations

from typing import Final

_BUCKETS: Final = 10


class SlidingCounts:
    """Two independent counts over the last `window_s` seconds, to a tenth of it. Times are the loop's, in seconds."""

    __slots__ = ("_bucket_s", "_first", "_last", "_second")

    def __init__(self, window_s: float) -> None:
        self._bucket_s = window_s / _BUCKETS
        self._first = [0] * _BUCKETS
        self._second = [0] * _BUCKETS
        self._last = 0

    def count(self, now_s: float, first: int, second: int) -> None:
        """Add to the two counts."""
        number = int(now_s / self._bucket_s)
        if number > self._last:
            self._advance(number)
        at = self._last % _BUCKETS
        self._first[at] += first
        self._second[at] += second

    def sums(self, now_s: float) -> tuple[int, int]:
        """What was counted within the window."""
        number = int(now_s / self._bucket_s)
        if number > self._last:
            self._advance(number)
        return sum(self._first), sum(self._second)

    def clear(self) -> None:
        """Forget everything."""
        self._first = [0] * _BUCKETS
        self._second = [0] * _BUCKETS

    def _advance(self, number: int) -> None:
        """Empty the buckets whose time is over: the current one has a later number."""
        for gone in range(self._last + 1, self._last + 1 + min(number - self._last, _BUCKETS)):
            self._first[gone % _BUCKETS] = self._second[gone % _BUCKETS] = 0
        self._last = number
