"""An upstream's answer, between the connection that it comes from and the sink that takes its body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Protocol

from proxy.exchange import FieldIndex

if TYPE_CHECKING:
    from proxy.errors import Field, ProxyError
    from proxy.upstream.lane import Lane

Framing = Literal["none", "length", "chunked", "close"]
_NO_FIELDS: Final = FieldIndex(())


class Source(Protocol):
    """What an answer needs of its connection."""

    def pause_reading(self) -> None:
        """Stop reading."""
        ...

    def resume_reading(self) -> None:
        """Read on."""
        ...

    def stream_to(self, sink: Sink) -> None:
        """Read on, for `sink`."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


class Sink(Protocol):
    """Where an answer's body goes. Called from the connection's own callback; must not block or raise."""

    @property
    def lane(self) -> Lane | None:
        """Where whole events may pass it by; None where each read is to be taken by `body`."""
        ...

    def body(self, data: bytes, *, is_last: bool = False) -> None:
        """Take the body bytes of one read; none only with the last."""
        ...

    def failed(self, error: ProxyError) -> None:
        """The body ended before its end; nothing follows."""
        ...


class Answer:
    """An upstream's answer: its head, and its body while it arrives.

    `index` is the head's fields by name. `length` is None where the head does not tell it.
    Until a sink is attached at most one read is held, and the upstream is not read.
    """

    __slots__ = (
        "_connection",
        "_held",
        "failure",
        "fields",
        "framing",
        "index",
        "is_complete",
        "length",
        "sink",
        "status",
    )

    def __init__(
        self,
        connection: Source,
        status: int,
        fields: list[Field],
        index: FieldIndex,
        framing: Framing,
        length: int | None,
        *,
        is_complete: bool,
    ) -> None:
        self._connection: Source | None = connection
        self._held = b""
        self.status = status
        self.fields = fields
        self.index = index
        self.framing = framing
        self.length = length
        self.is_complete = is_complete
        self.failure: ProxyError | None = None
        self.sink: Sink | None = None

    def let_head_go(self) -> None:
        """Forget the head's fields: streams are held by the thousand."""
        self.fields = []
        self.index = _NO_FIELDS

    @property
    def has_body_waiting(self) -> bool:
        """Whether `attach` will call the sink before it returns."""
        return bool(self._held) or self.is_complete

    def attach(self, sink: Sink) -> None:
        """Send what has arrived and all that follows to `sink`, the first bytes before this returns."""
        held, self._held = self._held, b""
        self.sink = sink
        if self.is_complete:
            sink.body(held, is_last=True)
            return
        if held:
            sink.body(held)
        if self.failure is not None:
            sink.failed(self.failure)
        elif self._connection is not None:
            self._connection.stream_to(sink)

    def pause(self) -> None:
        """Stop reading the upstream, because the client does not keep up."""
        if self._connection is not None:
            self._connection.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume_reading()

    def abort(self) -> None:
        """Close the upstream's connection at once, unless the answer is complete and it has gone back to the pool."""
        if self._connection is not None:
            self._connection.abort()

    def deliver(self, data: bytes, *, is_last: bool) -> None:
        """Called by the connection: body bytes of one read."""
        if is_last:
            self.is_complete = True
            self._connection = None
        if self.sink is not None:
            self.sink.body(data, is_last=is_last)
        else:
            self._held += data

    def fail(self, error: ProxyError) -> None:
        """Called by the connection: it broke before the body's end."""
        self._connection = None
        self.failure = error
        if self.sink is not None:
            self.sink.failed(error)
