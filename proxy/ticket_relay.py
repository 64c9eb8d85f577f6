"""The relay of a ticket's answer: the upstream's bytes as ever, and what an `EventSource` cannot see told in events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.dialects.base import broken_stream_status
from proxy.errors import ProxyError, UpstreamProtocolError
from proxy.phases.relay import BROKEN, LAST_CHUNK, Relay, ending_of_whole
from proxy.phases.typed_relay import TypedRelay
from proxy.protocol.fields import fold, to_client
from proxy.protocol.in_band import DataLines, end_event, torn
from proxy.protocol.sse import EventStreamObserver, encode_event, is_event_stream

if TYPE_CHECKING:
    import asyncio

    from proxy.dialects.typed.translator import Translator
    from proxy.errors import ErrorShape, Field
    from proxy.model import Ending
    from proxy.phases.relay import Framing, StreamClocks
    from proxy.upstream.answer import Answer

_CONTENT_TYPE: Field = (b"Content-Type", b"text/event-stream")
# RFC 9110 §7.7, §8: what describes the body that the upstream sent, to which something is added here.
_OF_THE_BODY = frozenset(
    {
        b"accept-ranges",
        b"content-digest",
        b"content-disposition",
        b"content-md5",
        b"content-range",
        b"digest",
        b"etag",
        b"last-modified",
        b"repr-digest",
    }
)


def readable(answer: Answer) -> tuple[list[Field], bool]:
    """An answer's fields as an `EventSource` needs them, and whether its body is an event stream already.

    Raises:
        UpstreamProtocolError: the body is compressed, though nobody asked for that: nothing can be said beside it. The
            answer's connection is closed.
    """
    encoding = answer.index.single(b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in {b"", b"identity"}:
        answer.abort()
        raise UpstreamProtocolError("The upstream compressed its answer, to which nothing can be added then.")
    is_stream = is_event_stream(answer.index.single(b"content-type"))
    replaced = _OF_THE_BODY if is_stream else _OF_THE_BODY | {b"content-type"}
    fields = [field for field in to_client(answer.fields, answer.index) if fold(field[0]) not in replaced]
    if not is_stream:
        fields.append(_CONTENT_TYPE)
    return fields, is_stream


class TicketRelay(Relay):
    """A `Relay` that says in the stream how it ended: an error as a plain message, then one event named `end`.

    An answer that is no event stream, an upstream's own error most of all, comes as one message. What the upstream's
    event streams say is not touched. A break still lacks the chunk that ends the body, for readers that can see it.

    Args:
        status: The upstream's, which the client is not shown as such.
        is_event_stream: Whether the answer is one.
        shape: How errors are worded.
        id_: The exchange's.
    """

    joins_head = False
    may_be_passed_by = False

    __slots__ = ("_has_ended_body", "_id", "_lines", "_shape", "_status", "_watch")

    def __init__(
        self,
        answer: Answer,
        transport: asyncio.Transport,
        head: bytes,
        *,
        framing: Framing,
        clocks: StreamClocks,
        status: int,
        is_event_stream: bool,
        shape: ErrorShape,
        id_: str,
    ) -> None:
        self._watch = EventStreamObserver()
        super().__init__(
            answer,
            transport,
            head,
            framing=framing,
            observer=self._watch,
            error_event=lambda _code, _message: None,
            clocks=clocks if is_event_stream else clocks._replace(heartbeat_s=None),
        )
        self._id = id_
        self._status = status
        self._shape = shape
        self._lines = None if is_event_stream else DataLines()
        self._has_ended_body = False

    @property
    def is_whole(self) -> bool:
        """True for an upstream's error, too."""
        return self._has_ended_body

    def body(self, data: bytes, *, is_last: bool = False) -> None:
        """Write one read's worth; after the last, the event that ends the stream."""
        if self.ending is not None:
            return
        if self._lines is not None:
            data = self._lines.feed(data) + (self._lines.end() if is_last else b"")
        super().body(data)
        if is_last:
            ending = ending_of_whole(self._status)
            self._part(end_event(self._id, ending, self._status))
            if self._is_chunked:
                self._transport.write(LAST_CHUNK)
            self._has_ended_body = True
            self._end(ending)

    def finish(self, ending: Ending) -> None:
        """End it before its end; idempotent. A client that left or does not read is not written to."""
        if self.ending is not None:
            return
        words = BROKEN.get(ending)
        if words is None or self._paused or self._transport.is_closing():
            super().finish(ending)
            return
        self._end(ending)
        self._answer.abort()
        error = _BrokenOffError(*words)
        self._part(
            encode_event(self._shape.error_body(error)) + end_event(self._id, ending, self._status, code=error.code)
        )
        self.ended_in_words = True

    def _part(self, events: bytes) -> None:
        """Write our own last events, none of which may become part of the upstream's last one."""
        if not self._watch.at_boundary:
            events = torn(in_line=self._watch.in_line) + events
        self._transport.write(b"%x\r\n%b\r\n" % (len(events), events) if self._is_chunked else events)


class TypedTicketRelay(TypedRelay):
    """A `TypedRelay` after whose last event comes the one named `end`."""

    __slots__ = ("_id", "_status")

    def __init__(
        self,
        translator: Translator,
        answer: Answer,
        transport: asyncio.Transport,
        head: bytes,
        *,
        framing: Framing,
        clocks: StreamClocks,
        id_: str,
        status: int,
    ) -> None:
        super().__init__(translator, answer, transport, head, framing=framing, clocks=clocks)
        self._id = id_
        self._status = status

    def _write_last(self, given: bytes) -> None:
        assert self.ending is not None
        words = BROKEN.get(self.ending)
        code = None if words is None else words[0]
        super()._write_last(given + end_event(self._id, self.ending, self._status, code=code))


class _BrokenOffError(ProxyError):
    """A failure after the first byte, as an error that the dialects can word."""

    blame = "upstream"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = broken_stream_status(code)
