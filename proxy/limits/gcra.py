"""The generic cell rate algorithm: whether a request fits a rate, and when the next one will.

Pure integer arithmetic; the caller keeps the state and the clock. The state of a rate is one number, the *theoretical
arrival time* (TAT): when everything admitted so far will have been paid off. `quota` requests may come at once, then
one each `window / quota`; so over any span of `d` ticks at most `quota + d * quota / window` are admitted, and there is
no edge of a window at which a second `quota` could start (ITU-T I.371 names the algorithm; the burst is the quota).

Why it is exact: `window / quota` is rarely a whole number (10 s / 7), and a float would drift by every rounding. All
times are therefore counted in *parts*, of which `quota` make up one tick of the clock: a request then costs exactly
`window` parts, and `now` ticks are exactly `now * quota` parts. Nothing is ever rounded but answers in ticks, and those
upwards, so that who obeys them is admitted. Python's integers do not overflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Limit:
    """A rate in ticks: `quota` requests for each `window`, both at least 1.

    `capacity` is the burst in parts, `most_before` what may be used of it before one more request.
    """

    quota: int
    window: int
    capacity: int = field(init=False, repr=False, compare=False)
    most_before: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.quota < 1 or self.window < 1:
            raise ValueError("a rate needs a quota and a window of at least 1")
        object.__setattr__(self, "capacity", self.quota * self.window)
        object.__setattr__(self, "most_before", self.capacity - self.window)


def charge(limits: Sequence[Limit], tats: Sequence[int], now: int) -> tuple[int, ...] | None:
    """Give every TAT after one more request at `now`, or None where it does not fit all of the limits.

    All or nothing: the caller stores the result as a whole or stores nothing, so a request that one rate refuses
    costs nothing of the others.

    Here and below `tat` is the state in parts, of which anything at or before `now` (0, for a rate never used) means
    unused, and `now` is the clock in ticks.
    """
    ends: tuple[int, ...] = ()
    for index, limit in enumerate(limits):
        start = now * limit.quota
        tat = tats[index]
        if tat < start:
            tat = start
        elif tat - start > limit.most_before:
            return None
        ends += (tat + limit.window,)
    return ends


def standing(limit: Limit, tat: int, now: int) -> tuple[int, int]:
    """Give how many requests would be admitted at once right now, and the ticks until the whole quota is there again.

    The ticks are rounded up: at exactly that time the whole quota is there, a tick earlier it is not.
    """
    used = tat - now * limit.quota
    if used <= 0:
        return limit.quota, 0
    # A clock that was set back may make more used than there is; that is "none left", not a negative number.
    return max(0, (limit.capacity - used) // limit.window), -(-used // limit.quota)


def retry_after(limit: Limit, tat: int, now: int) -> int:
    """Give the ticks until a request is admitted: one at exactly that time is, one a tick earlier is not."""
    missing = tat - now * limit.quota - limit.most_before
    return max(0, -(-missing // limit.quota))


def longest_wait(limits: Sequence[Limit], tats: Sequence[int], now: int) -> tuple[Limit, int]:
    """Give the limit with the longest wait, of equals the first, and its ticks: after them a request fits every limit.

    `limits` holds at least one. Time only frees, so the longest wait serves all.
    """
    waits = [retry_after(limit, tat, now) for limit, tat in zip(limits, tats, strict=True)]
    longest = max(waits)
    return limits[waits.index(longest)], longest


def unpaid(limit: Limit, end: int, now: int) -> int:
    """Give the parts that are left at `now` of the one charge whose TAT after it was `end`: what may be given back.

    Charges are paid off in the order in which they came, one after another, so this charge occupies the time from
    `end - window` to `end`, and what lies after `now` has not been paid. Subtracting that from the TAT gives back
    exactly the rest of this charge. It never gives back more: what time has paid off is already free again, and
    giving it back once more would admit a request that the rate forbids.

    Taking a charge out moves everything behind it forward by the same amount: the caller also subtracts the result
    from the `end` of each *later* charge that may yet be given back, else that one would look less paid than it is.
    """
    left = end - now * limit.quota
    return 0 if left <= 0 else min(left, limit.window)


def paid_at(limit: Limit, tat: int) -> int:
    """Give the tick from which on a state is equal to never having been used, and may be forgotten."""
    return -(-tat // limit.quota)
