"""What a running response may take its time for, and when it took too long."""

from __future__ import annotations

from typing import Final, NamedTuple

from proxy.model import Ending
from proxy.timers import LONG_S


class StreamTimeouts(NamedTuple):
    """In seconds; None is off. `deadline_s`, when `total` runs out, is the loop's time; the others last."""

    idle_s: float | None
    write_s: float | None
    deadline_s: float | None
    heartbeat_s: float | None

    def are_long(self, now_s: float) -> bool:
        """Whether none of them is shorter than `LONG_S`, so that asking now and then is enough."""
        total_s = None if self.deadline_s is None else self.deadline_s - now_s
        durations_s = (self.idle_s, self.write_s, self.heartbeat_s, total_s)
        return all(duration_s is None or duration_s >= LONG_S for duration_s in durations_s)


# Before a response runs.
NO_TIMEOUTS: Final = StreamTimeouts(None, None, None, None)


class Progress:
    """When bytes last moved, as a timer sees it that looks a few times a second. Times are the loop's, in seconds."""

    __slots__ = ("_received", "_received_since_s", "_timeouts", "_unsent", "_written", "_written_since_s")

    def __init__(self, timeouts: StreamTimeouts, now_s: float) -> None:
        self._timeouts = timeouts
        self._received = self._written = self._unsent = -1
        self._received_since_s = self._written_since_s = now_s

    def paused(self) -> None:
        """The client fell behind: the write timeout begins with the next look."""
        self._unsent = -1

    def resumed(self) -> None:
        """The client caught up: the idle timeout begins anew."""
        self._received = -1

    def overdue(self, now_s: float, received: int, written: int) -> Ending | None:
        """Which timeout has run out while the client keeps up, given the bytes of both directions until now."""
        if received != self._received:
            self._received = received
            self._received_since_s = now_s
        if written != self._written:
            self._written = written
            self._written_since_s = now_s
        if self.is_over(now_s):
            return Ending.TIMEOUT_TOTAL
        idle_s = self._timeouts.idle_s
        return Ending.TIMEOUT_IDLE if idle_s is not None and now_s - self._received_since_s >= idle_s else None

    def is_stuck(self, now_s: float, unsent: int) -> bool:
        """Whether the write timeout has run out: any byte that the client took is progress, as nginx' send_timeout."""
        if unsent != self._unsent:
            self._unsent = unsent
            self._written_since_s = now_s
            return False
        write_s = self._timeouts.write_s
        return bool(unsent) and write_s is not None and now_s - self._written_since_s >= write_s

    def is_over(self, now_s: float) -> bool:
        """Whether the whole response has taken too long."""
        deadline_s = self._timeouts.deadline_s
        return deadline_s is not None and now_s >= deadline_s

    def wants_heartbeat(self, now_s: float) -> bool:
        """Whether nothing has been written for as long as a heartbeat's interval."""
        heartbeat_s = self._timeouts.heartbeat_s
        return heartbeat_s is not None and now_s - self._written_since_s >= heartbeat_s

    def wrote(self, now_s: float) -> None:
        """Something was written that is not counted."""
        self._written_since_s = now_s
