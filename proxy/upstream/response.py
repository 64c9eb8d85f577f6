"""An upstream's response, between its `Connection` and the `Sink` that takes its body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Protocol

from proxy.model import FieldIndex

if TYPE_CHECKING:
    from proxy.errors import Field, ProxyError
    from proxy.upstream.connection import Connection

Framing = Literal["none", "length", "chunked", "close"]
_NO_FIELDS: Final = FieldIndex(())


class Sink(Protocol):
    """The receiver of a response's body. Called from `data_received`; must not block or raise."""

    @property
    def allows_fast_path(self) -> bool:
        """Whether the next whole event may be passed to `event` instead of `body`."""
        ...

    def event(self, data: bytes, payload_bytes: int) -> None:
        """Take one whole event with its chunk's framing; `payload_bytes` is the event's size without it."""
        ...

    def body(self, data: bytes, *, is_last: bool = False) -> None:
        """Take the body bytes of one read; empty only with `is_last`."""
        ...

    def failed(self, error: ProxyError) -> None:
        """Take the error by which the body broke off; nothing follows."""
        ...


class UpstreamResponse:
    """An upstream's response: its head, and its body while it arrives.

    Until a sink is attached at most one read is held, and the upstream is not read.

    Attributes:
        index: The head's fields by name.
        length: None where the head does not tell it.
        source: Where the body comes from; None once all of it has come, or nothing more will.
        held: What has come of the body before there was a sink.
    """

    __slots__ = (
        "failure",
        "fields",
        "framing",
        "held",
        "index",
        "is_complete",
        "length",
        "sink",
        "source",
        "status",
    )

    def __init__(
        self,
        source: Connection | None,
        status: int,
        fields: list[Field],
        index: FieldIndex,
        framing: Framing,
        length: int | None,
    ) -> None:
        self.source = source
        self.held = b""
        self.status = status
        self.fields = fields
        self.index = index
        self.framing = framing
        self.length = length
        self.is_complete = source is None
        self.failure: ProxyError | None = None
        self.sink: Sink | None = None

    def drop_headers(self) -> None:
        """Free the parsed fields before a long stream starts."""
        self.fields = []
        self.index = _NO_FIELDS

    def attach(self, sink: Sink) -> None:
        """Send what has arrived and all that follows to `sink`, the first bytes before this returns."""
        held, self.held = self.held, b""
        if self.is_complete:
            sink.body(held, is_last=True)
            return
        self.sink = sink
        if held:
            sink.body(held)
        if self.failure is not None:
            sink.failed(self.failure)
        elif self.source is not None:
            self.source.stream_to(sink)

    def pause(self) -> None:
        """Stop reading the upstream, because the client does not keep up."""
        if self.source is not None:
            self.source.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self.source is not None:
            self.source.resume_reading()

    def abort(self) -> None:
        """Close the upstream's connection at once, unless the answer is complete and it has gone back to the pool."""
        self.sink = None
        if self.source is not None:
            self.source.abort()

    def deliver(self, data: bytes) -> None:
        """Pass the body bytes of one read to the sink; called by the connection, empty only at the response's end."""
        sink = self.sink
        if sink is None:
            self.held += data
            return
        if self.is_complete:
            # It holds the answer, too: both are let go at once, without the collector's help.
            self.sink = None
        sink.body(data, is_last=self.is_complete)

    def fail(self, error: ProxyError) -> None:
        """Fail the response: the connection was lost before the body's end. Called by the connection."""
        self.source = None
        self.failure = error
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.failed(error)


# Of no upstream: has no body, and nothing to pause or to close.
NOTHING: Final = UpstreamResponse(None, 200, [], _NO_FIELDS, "none", None)
