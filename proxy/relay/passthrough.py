"""The body as it is: nothing is changed, and a break is told in one error event where the stream is between events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from proxy.relay.transform import Completion, Epilogue, ending_of_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.model import Ending
    from proxy.protocol.sse_observer import EventStreamObserver
    from proxy.relay.transform import StreamError


# Writes an error's code and message as an event of the upstream's dialect; None where the dialect has no such event.
ErrorEvent: TypeAlias = "Callable[[str, str], bytes | None]"


class Passthrough:
    """Bytes unchanged and in order. `observer` is None for a body that is no event stream."""

    has_failed = False

    __slots__ = ("_error_event", "_has_begun", "_observer", "_status", "allows_fast_path")

    def __init__(self, *, status: int, observer: EventStreamObserver | None, error_event: ErrorEvent) -> None:
        self._status = status
        self._observer = observer
        self._error_event = error_event
        self._has_begun = False
        self.allows_fast_path = observer is not None

    @property
    def events(self) -> int:
        """How many events the observer has seen."""
        return 0 if self._observer is None else self._observer.events

    @property
    def at_boundary(self) -> bool:
        """Whether the stream is between two events; False where it is no event stream."""
        return self._observer is not None and self._observer.at_boundary

    @property
    def allows_ping(self) -> bool:
        """Only after the upstream's first byte, because a byte order mark may come first."""
        return self._has_begun and self.at_boundary

    def transform(self, data: bytes) -> bytes:
        """The same bytes."""
        self._has_begun = True
        if self._observer is not None:
            self._observer.feed(data)
        return data

    def complete(self) -> Completion:
        """Nothing is added."""
        return Completion(ending_of_whole(self._status))

    def epilogue(self, ending: Ending, error: StreamError, *, is_behind: bool) -> Epilogue:  # noqa: ARG002 - the interface's
        """At an event boundary one error event says why; in every case the body lacks its end."""
        event = self._error_event(*error) if self.at_boundary else None
        return Epilogue(event or b"", is_clean=False)


# What a response has before it has an upstream's.
NOTHING_PASSES: Final = Passthrough(status=200, observer=None, error_event=lambda _code, _message: None)
