"""Whether it is of any use to ask the server: a circuit breaker, pure, without clock or task."""

from __future__ import annotations

# One failure is a blip (a fork, a lost packet); three in a row without an answer in between are not.
TOLERATED = 3
# Between one attempt and the next. The longest is how late a server that came back is noticed, at most.
PAUSES_S = (0.1, 0.2, 0.4, 0.8)


class Breaker:
    """Closed while the server answers; open after `TOLERATED` failures in a row, or when it cannot be reached at all.

    Open, nobody asks but one probe after each pause. A probe that succeeds closes it on trial: the next failure opens
    it again, the next success forgets what was.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._pauses = 0

    @property
    def is_open(self) -> bool:
        """Whether nobody is to ask."""
        return self._failures >= TOLERATED

    def next_pause_s(self) -> float:
        """How long to wait before the next probe; longer each time until a success."""
        pause_s = PAUSES_S[min(self._pauses, len(PAUSES_S) - 1)]
        self._pauses += 1
        return pause_s

    def succeeded(self) -> None:
        """A request was answered."""
        self._failures = self._pauses = 0

    def failed(self) -> None:
        """A request was not answered."""
        self._failures += 1

    def trip(self) -> None:
        """It cannot be reached at all."""
        self._failures = TOLERATED

    def probed(self) -> None:
        """The probe was answered."""
        self._failures = min(self._failures, TOLERATED - 1)
