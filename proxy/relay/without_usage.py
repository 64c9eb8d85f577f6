"""A stream without the event that tells usage: the proxy asked for it, the client did not.

Everything else is as the other transforms have it: this one stands before `Passthrough` or `ForEventSource`. The meter
sees the event, because it is fed before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.dialects.usage_event import UsageEventRemover, may_be_usage_event
from proxy.protocol.header_fields import fold
from proxy.relay.response import RelayResponse
from proxy.relay.transform import OF_THE_BODY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.errors import Field
    from proxy.model import Ending
    from proxy.relay.transform import Completion, Epilogue, StreamError, Transform


class WithoutUsage:
    """Passes to another transform what is left of the stream.

    Where the stream breaks off within an event that may yet be the one that tells usage, the beginning of that event is
    not passed: what the client has got then ends with a whole event, and the reason can follow in one.
    """

    __slots__ = ("_inner", "_remover")

    def __init__(self, inner: Transform) -> None:
        self._inner = inner
        self._remover = UsageEventRemover()

    @property
    def allows_fast_path(self) -> bool:
        """Only between two events of the upstream, and only of `ResponseWithoutUsage`, which looks at each of them."""
        return self._remover.is_between and self._inner.allows_fast_path

    @property
    def events(self) -> int:
        """How many events the client was given."""
        return self._inner.events

    @property
    def at_boundary(self) -> bool:
        """Whether what the client was given ends with an event; the upstream may have begun another."""
        return self._inner.at_boundary

    @property
    def allows_ping(self) -> bool:
        """As of the inner transform."""
        return self._inner.allows_ping

    @property
    def has_failed(self) -> bool:
        """As of the inner transform."""
        return self._inner.has_failed

    def transform(self, data: bytes) -> bytes:
        """The inner transform's bytes for what passes of one read."""
        left = self._remover.feed(data)
        return self._inner.transform(left) if left else b""

    def complete(self) -> Completion:
        """What was held comes first: a last event that lacks its blank line."""
        left = self._remover.end()
        rest = self._inner.transform(left) if left else b""
        completion = self._inner.complete()
        return completion._replace(rest=rest + completion.rest)

    def epilogue(self, ending: Ending, error: StreamError, *, is_behind: bool) -> Epilogue:
        """As of the inner transform."""
        return self._inner.epilogue(ending, error, is_behind=is_behind)


class ResponseWithoutUsage(RelayResponse):
    """The response for `WithoutUsage`: what may be the usage event leaves the fast path."""

    __slots__ = ()

    def event(self, data: bytes, payload_bytes: int) -> None:
        """Write one whole event in one whole chunk as it came, unless the transform has to look at it."""
        if may_be_usage_event(data):
            # Without the lines of its chunk.
            end = len(data) - len(b"\r\n")
            self.body(data[end - payload_bytes : end])
        else:
            super().event(data, payload_bytes)


def fields_without_usage(fields: Iterable[Field]) -> list[Field]:
    """A response's fields without those that describe the upstream's bytes."""
    return [field for field in fields if fold(field[0]) not in OF_THE_BODY]
