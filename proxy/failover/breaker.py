"""The breaker of one upstream: leaves it out when it fails, and lets one request at a time try it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.failover.windows import SlidingCounts

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.model import HealthRules

# More doublings than any `out_at_most` needs; the power of two stays a number that a float holds.
_MOST_DOUBLINGS = 32


class Breaker:
    """One upstream's in one worker. Times are the loop's, in seconds.

    Out means: left out until `out_for` is over, from then on tried by one request at a time, until one succeeds. What
    comes of a breaker is advice: who has no other target asks all the same.

    Attributes:
        failures: Failures in a row.
        last_failed_s: When the last attempt failed; 0 before any has.
        out_until_s: When it may be tried again; None where it is not out.
    """

    __slots__ = (
        "_closed_s",
        "_counts",
        "_is_probed",
        "_now",
        "_on_change",
        "_trips",
        "failures",
        "last_failed_s",
        "out_until_s",
        "rules",
    )

    def __init__(
        self, rules: HealthRules, *, now: Callable[[], float], on_change: Callable[[float | None], None]
    ) -> None:
        """`on_change` is called with the seconds for which it is left out, and with None when it is back."""
        self.rules = rules
        self._now = now
        self._on_change = on_change
        self._counts = SlidingCounts(rules.window_s)
        self._trips = 0
        self._closed_s: float | None = None
        self._is_probed = False
        self.failures = 0
        self.last_failed_s = 0.0
        self.out_until_s: float | None = None

    @property
    def is_out(self) -> bool:
        """Whether it is out, and no attempt has succeeded since."""
        return self.out_until_s is not None

    @property
    def allows(self) -> bool:
        """Whether a request that has another target may ask it: it is not out, or its time is over and nobody tries."""
        return self.out_until_s is None or (not self._is_probed and self._now() >= self.out_until_s)

    def begin(self) -> bool:
        """An attempt begins; return whether it is the one that tries, which has to call `end_probe`."""
        if self.out_until_s is None or self._is_probed or self._now() < self.out_until_s:
            return False
        self._is_probed = True
        return True

    def end_probe(self) -> None:
        """The attempt that tried is over, with a verdict or without: the next one may try."""
        self._is_probed = False

    def succeeded(self, begun_s: float, *, is_probe: bool) -> None:
        """An attempt that began then was answered. One that began before the last failure says nothing about now."""
        self.failures = 0
        self._counts.count(self._now(), 1, 0)
        # The loop's clock has milliseconds: of the same one it is the later.
        if self.out_until_s is not None and (is_probe or begun_s >= self.last_failed_s):
            self.reset()

    def failed(self, *, is_probe: bool) -> None:
        """An attempt failed by the upstream's fault."""
        self.failures += 1
        self._note_failure(1, is_probe=is_probe)

    def broke(self) -> None:
        """An answer that `succeeded` has counted broke off before its end."""
        self._note_failure(0, is_probe=False)

    def reset(self) -> None:
        """Take the upstream back."""
        was_out = self.is_out
        self.out_until_s = None
        self.failures = 0
        self._counts.clear()
        if was_out:
            self._closed_s = self._now()
            self._on_change(None)

    def _note_failure(self, attempts: int, *, is_probe: bool) -> None:
        now_s = self.last_failed_s = self._now()
        self._counts.count(now_s, attempts, 1)
        if self.out_until_s is not None:
            if is_probe:
                self._leave_out(now_s)
            return
        rules = self.rules
        attempts, failures = self._counts.sums(now_s)
        if self.failures >= rules.failures or (attempts >= rules.of_at_least and failures >= rules.share * attempts):
            if self._closed_s is None or now_s - self._closed_s > rules.window_s:
                # It was well for a while: the time begins to grow anew.
                self._trips = 0
            self._leave_out(now_s)

    def _leave_out(self, now_s: float) -> None:
        rules = self.rules
        out_for_s = min(rules.out_for_s * 2 ** min(self._trips, _MOST_DOUBLINGS), rules.out_at_most_s)
        self._trips += 1
        self.out_until_s = now_s + out_for_s
        self._counts.clear()
        self._on_change(out_for_s)
