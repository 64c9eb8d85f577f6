"""How many of a route's requests may be tried again: without a bound, retries would double an outage's load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.failover.windows import SlidingCounts

if TYPE_CHECKING:
    from collections.abc import Callable

# Contract: a fifth of the requests of the last 10 s, and 10 more, so that a route with few requests has some.
WINDOW_S: Final = 10.0
SHARE: Final = 5
SPARE: Final = 10


class RetryBudget:
    """The retries of one route in one worker."""

    def __init__(self, now: Callable[[], float]) -> None:
        """`now` gives the loop's time, in seconds."""
        self._now = now
        self._counts = SlidingCounts(WINDOW_S)

    def request(self) -> None:
        """Count a request of the route's."""
        self._counts.count(self._now(), 1, 0)

    def take(self) -> bool:
        """Take a retry if one is left; without waiting."""
        now_s = self._now()
        requests, retries = self._counts.sums(now_s)
        if retries >= requests // SHARE + SPARE:
            return False
        self._counts.count(now_s, 0, 1)
        return True
