"""The body of an echo: events of our own, each with the time at which it was sent, in place of an upstream's."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.model import FieldIndex
from proxy.upstream import UpstreamResponse

if TYPE_CHECKING:
    from proxy.upstream.response import Sink

_NO_FIELDS: Final = FieldIndex(())


class EchoSchedule(NamedTuple):
    """How many events, how far apart, and how long a silence, besides the interval, stands before the last one."""

    events: int
    interval_s: float
    silence_s: float

    @property
    def duration_s(self) -> float:
        """From the head to the last event."""
        return (self.events - 1) * self.interval_s + self.silence_s

    def due_s(self, n: int) -> float:
        """When event `n` is sent, after the head."""
        return n * self.interval_s + (self.silence_s if n == self.events - 1 else 0.0)


class EchoBody(UpstreamResponse):
    """Gives its sink one event after another, `data: {"n":0,"sent_ms":…}`, each when it is due; holds none.

    While it is paused nothing is sent; afterwards what is overdue comes at once, with the time at which it then leaves.
    Each event is a turn of the loop of its own. `abort` cancels what is still to come.
    """

    __slots__ = ("_began_s", "_handle", "_is_paused", "_loop", "_next", "_schedule")

    def __init__(self, schedule: EchoSchedule) -> None:
        super().__init__(None, 200, [], _NO_FIELDS, "chunked", None)
        self.is_complete = False
        self._schedule = schedule
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._next = 0
        self._is_paused = False
        self._handle: asyncio.TimerHandle | None = None

    def attach(self, sink: Sink) -> None:
        """Begin; the first event, where it is due at once, comes in the loop's next turn."""
        self.sink = sink
        self._began_s = self._loop.time()
        self._wait()

    def pause(self) -> None:
        """Send nothing until `resume`."""
        self._is_paused = True
        self._cancel()

    def resume(self) -> None:
        """Go on with what is due."""
        self._is_paused = False
        self._wait()

    def abort(self) -> None:
        """Send nothing more."""
        self.sink = None
        self._cancel()

    def _wait(self) -> None:
        if self.sink is not None and self._handle is None and not self._is_paused:
            self._handle = self._loop.call_at(self._began_s + self._schedule.due_s(self._next), self._send)

    def _send(self) -> None:
        self._handle = None
        sink = self.sink
        if sink is None:
            return
        data = b'data: {"n":%d,"sent_ms":%d}\n\n' % (self._next, time.time_ns() // 1_000_000)
        self._next += 1
        if self._next == self._schedule.events:
            self.is_complete = True
            self.sink = None
            sink.body(data, is_last=True)
            return
        sink.body(data)
        self._wait()

    def _cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
