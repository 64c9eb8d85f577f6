"""What a running response may take its time for."""

from __future__ import annotations

from typing import NamedTuple

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
