"""The body for an `EventSource`, which sees neither a status nor how a body ended: both are told in events.

An error comes as a plain message, then one event named `end`. A response that is no event stream, an upstream's own
error most of all, comes as one message. What the upstream's event streams say is not touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from proxy.dialects.base import broken_stream_status
from proxy.errors import ProxyError, UpstreamProtocolError
from proxy.protocol.header_fields import fold, is_encoded, to_client
from proxy.protocol.in_band import DataLines, end_event, torn
from proxy.protocol.sse_observer import EventStreamObserver, encode_event, is_event_stream
from proxy.relay.transform import ERROR_FOR_ENDING, OF_THE_BODY, Completion, Epilogue, ending_of_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxy.dialects import Dialect
    from proxy.errors import Field
    from proxy.model import Ending
    from proxy.relay.transform import StreamError
    from proxy.relay.typed import TypedEvents
    from proxy.upstream import UpstreamResponse

# What the model took, if the stream ends so; None where none was run.
Told: TypeAlias = "Callable[[Ending], Mapping[str, int | str] | None]"

_CONTENT_TYPE: Final[Field] = (b"Content-Type", b"text/event-stream")
# Something is added to the body. Its coding is not here: a body that is coded is refused, because nothing can be added.
_REPLACED: Final = OF_THE_BODY | {b"content-disposition"}


def readable_fields(response: UpstreamResponse) -> tuple[list[Field], bool]:
    """A response's fields as an `EventSource` needs them, and whether its body is an event stream already.

    Raises:
        UpstreamProtocolError: the body is compressed, though nobody asked for that; its connection is closed.
    """
    if is_encoded(response.index):
        response.abort()
        raise UpstreamProtocolError("The upstream compressed its answer, to which nothing can be added then.")
    is_stream = is_event_stream(response.index.get(b"content-type"))
    replaced = _REPLACED if is_stream else _REPLACED | {b"content-type"}
    fields = [field for field in to_client(response.fields, response.index) if fold(field[0]) not in replaced]
    if not is_stream:
        fields.append(_CONTENT_TYPE)
    return fields, is_stream


class ForEventSource:
    """An upstream's body, and how it ended.

    Args:
        id_: The exchange's.
        status: The upstream's, which the client is not shown as such.
        shape: How errors are worded.
        is_event_stream: Whether the body is one.
        told: What the event `end` says of usage.
    """

    allows_fast_path = False
    has_failed = False

    __slots__ = ("_has_begun", "_id", "_lines", "_observer", "_shape", "_status", "_told")

    def __init__(self, *, id_: str, status: int, shape: Dialect, is_event_stream: bool, told: Told) -> None:
        self._id = id_
        self._told = told
        self._status = status
        self._shape = shape
        self._observer = EventStreamObserver()
        self._has_begun = False
        self._lines = None if is_event_stream else DataLines()

    @property
    def events(self) -> int:
        """How many events the client was given, without the last."""
        return self._observer.events

    @property
    def at_boundary(self) -> bool:
        """Whether the stream is between two events."""
        return self._observer.at_boundary

    @property
    def allows_ping(self) -> bool:
        """After the upstream's first byte, and not within the one message that another kind of body becomes."""
        return self._has_begun and self._lines is None and self._observer.at_boundary

    def transform(self, data: bytes) -> bytes:
        """The same bytes, or lines of one message."""
        self._has_begun = True
        if self._lines is not None:
            data = self._lines.feed(data)
        self._observer.feed(data)
        return data

    def complete(self) -> Completion:
        """The event named `end`."""
        rest = b"" if self._lines is None else self._lines.end()
        self._observer.feed(rest)
        ending = ending_of_whole(self._status)
        end = end_event(self._id, ending, self._status, usage=self._told(ending))
        return Completion(ending, rest, self._after_last(end))

    def epilogue(self, ending: Ending, error: StreamError, *, is_behind: bool) -> Epilogue:
        """The error and the event named `end`, unless the client does not read; the body lacks its end."""
        if is_behind:
            return Epilogue(b"", is_clean=False)
        said = encode_event(self._shape.error_body(_BrokenOffError(*error)))
        events = said + end_event(self._id, ending, self._status, code=error.code, usage=self._told(ending))
        return Epilogue(self._after_last(events), is_clean=False)

    def _after_last(self, events: bytes) -> bytes:
        """Our own last events, none of which may become part of the upstream's last one."""
        if self._observer.at_boundary:
            return events
        return torn(in_line=self._observer.in_line) + events


class TypedForEventSource:
    """Typed events, after whose last one comes the event named `end`."""

    allows_fast_path = False

    __slots__ = ("_id", "_status", "_told", "_typed")

    def __init__(self, typed: TypedEvents, *, id_: str, status: int, told: Told) -> None:
        self._typed = typed
        self._told = told
        self._id = id_
        self._status = status

    @property
    def events(self) -> int:
        """How many typed events the client was given."""
        return self._typed.events

    @property
    def at_boundary(self) -> bool:
        """As of typed events."""
        return self._typed.at_boundary

    @property
    def allows_ping(self) -> bool:
        """As of typed events."""
        return self._typed.allows_ping

    @property
    def has_failed(self) -> bool:
        """As of typed events."""
        return self._typed.has_failed

    def transform(self, data: bytes) -> bytes:
        """The typed events that one read completes."""
        return self._typed.transform(data)

    def complete(self) -> Completion:
        """The last typed event, then the one named `end`."""
        ending, last, _, reason = self._typed.complete()
        return Completion(ending, last + self._end(ending, ERROR_FOR_ENDING.get(ending)), reason=reason)

    def epilogue(self, ending: Ending, error: StreamError, *, is_behind: bool) -> Epilogue:
        """The same."""
        data, is_clean = self._typed.epilogue(ending, error, is_behind=is_behind)
        return Epilogue(data + self._end(ending, error), is_clean)

    def _end(self, ending: Ending, error: StreamError | None) -> bytes:
        code = None if error is None else error.code
        return end_event(self._id, ending, self._status, code=code, usage=self._told(ending))


class _BrokenOffError(ProxyError):
    """A failure after the first byte, as an error that the dialects can word."""

    blame = "upstream"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = broken_stream_status(code)
