"""What may be written in place of, or beside, the bytes of an upstream's body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from proxy.model import COMPLETE, Ending

if TYPE_CHECKING:
    from collections.abc import Mapping

# RFC 9110 §15: the error classes.
_FIRST_ERROR: Final = 400

# RFC 9110 §7.7, §8: what describes the bytes of the upstream's body, and is wrong of any others.
OF_THE_BODY: Final = frozenset(
    {
        b"accept-ranges",
        b"content-digest",
        b"content-md5",
        b"content-range",
        b"digest",
        b"etag",
        b"last-modified",
        b"repr-digest",
    }
)


class StreamError(NamedTuple):
    """What the last event of a stream that ends before its end says."""

    code: str
    message: str


# The code and message of the error event, where an ending has one. A client that has left, or does not read, gets no
# event; what ends before the response begins has a status. All cases: docs/life-of-a-request.md#how-a-stream-ends
ERROR_FOR_ENDING: Final[Mapping[Ending, StreamError]] = {
    Ending.UPSTREAM_CLOSED: StreamError("upstream_unreachable", "The upstream closed the stream before its end."),
    Ending.TIMEOUT_IDLE: StreamError("upstream_timeout", "The upstream fell silent (clock: idle)."),
    Ending.TIMEOUT_TOTAL: StreamError("upstream_timeout", "The stream took too long (clock: total)."),
    Ending.DRAINED: StreamError("draining", "The proxy is shutting down."),
    Ending.STOPPED: StreamError("stopped", "The stream was stopped."),
}
# Of a stream that the proxy stops because its user has nothing left.
BUDGET_USED_UP: Final = StreamError("insufficient_quota", "This stream has used up your budget.")


class Epilogue(NamedTuple):
    """The last bytes of a body, and whether the body then ends in order, with its last chunk."""

    data: bytes
    is_clean: bool


class Completion(NamedTuple):
    """How the exchange ended, what still has to be written of the body, what is added behind it, and why it failed."""

    ending: Ending
    rest: bytes = b""
    added: bytes = b""
    reason: str | None = None


class Transform(Protocol):
    """How one body is passed on. Pure: bytes in, bytes out; never raises."""

    @property
    def allows_fast_path(self) -> bool:
        """Whether the next event may be written as it came, without `transform`, if it comes whole."""
        ...

    @property
    def events(self) -> int:
        """How many events the client has been given, those of the fast path not counted."""
        ...

    @property
    def at_boundary(self) -> bool:
        """Whether an event of ours may be written here without touching one of the upstream's."""
        ...

    @property
    def allows_ping(self) -> bool:
        """Whether a comment may be written here."""
        ...

    @property
    def has_failed(self) -> bool:
        """Whether the stream is of no more use: the vendor said so in it, or it cannot be read."""
        ...

    def transform(self, data: bytes) -> bytes:
        """The bytes to write for one read of the body."""
        ...

    def complete(self) -> Completion:
        """The body has come whole, or is of no more use."""
        ...

    def epilogue(self, ending: Ending, error: StreamError, *, is_behind: bool) -> Epilogue:
        """The body ends before its end; `is_behind` means that the client has not taken what was written before."""
        ...


def ending_of_whole(status: int) -> Ending:
    """How an exchange ended whose response the client has been given whole."""
    return COMPLETE if status < _FIRST_ERROR else Ending.UPSTREAM_ERROR
