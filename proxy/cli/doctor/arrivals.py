"""How a timed stream arrived, as statistics: spaced as it was sent, or in lumps. Pure.

Only spacings are compared, never the two clocks. A slow path adds the same to every event and changes no spacing; a
path with jitter makes some neighbours arrive together; a hop that buffers makes nearly all of them arrive together,
each time. So the best of several attempts counts, at ever longer intervals: no jitter, and no busy machine, makes most
neighbours arrive together again and again.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

# Neighbours that arrive within this share of the time between which they were sent arrive together.
_TOGETHER: Final = 0.25
# More of them than this, and somebody holds events: even lumps of no more than three have two thirds.
_MOST: Final = 0.55
# All together: what is left of the time in which they were sent.
_AT_ONCE: Final = 0.1


class Arrival(NamedTuple):
    """One event: its number, when it was sent and when it arrived, each by its own side's clock, in seconds."""

    n: int
    sent_s: float
    arrived_s: float


class Pattern(NamedTuple):
    """What a stream's spacings show. `together` is a share of the neighbours, `lumps` counts what came apart."""

    together: float
    lumps: int
    events: int
    sent_span_s: float
    arrived_span_s: float
    jitter_s: float

    @property
    def is_held(self) -> bool:
        """Whether most events waited for others."""
        return self.together > _MOST

    @property
    def is_at_once(self) -> bool:
        """Whether all of them came at one time."""
        return self.is_held and self.arrived_span_s < _AT_ONCE * self.sent_span_s


def pattern_of(arrivals: Sequence[Arrival]) -> Pattern:
    """Compare the spacing of the arrivals with that of the sending; at least two events."""
    pairs = [
        (later.sent_s - earlier.sent_s, later.arrived_s - earlier.arrived_s) for earlier, later in pairwise(arrivals)
    ]
    # Those that left together say nothing.
    apart = [(sent_s, arrived_s) for sent_s, arrived_s in pairs if sent_s > 0]
    together = sum(arrived_s < _TOGETHER * sent_s for sent_s, arrived_s in apart)
    lags = [one.arrived_s - one.sent_s for one in arrivals]
    return Pattern(
        together=together / len(apart) if apart else 0.0,
        lumps=1 + len(apart) - together,
        events=len(arrivals),
        sent_span_s=arrivals[-1].sent_s - arrivals[0].sent_s,
        arrived_span_s=arrivals[-1].arrived_s - arrivals[0].arrived_s,
        jitter_s=max(lags) - min(lags),
    )
