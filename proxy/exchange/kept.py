"""Keeps the answer that a request has moved on from, for the case that no other vendor gives a better one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from proxy.errors import ProxyError
    from proxy.model import Route
    from proxy.upstream import UpstreamResponse

# An error has some hundred bytes. The rest of what is longer stays with the vendor.
MAX_KEPT_BYTES: Final = 64 * 1024


class KeptAnswer:
    """An answer whose body is read while others are asked, up to `MAX_KEPT_BYTES`.

    A vendor in trouble closes its connections: what has come by then is not lost with them, and a connection whose
    answer is complete goes back to the pool at once. One that has a `failure` by the time it is wanted is no answer.

    Attributes:
        route: That of its request.
    """

    allows_fast_path = False

    def __init__(self, answer: UpstreamResponse, route: Route) -> None:
        self.answer = answer
        self.route = route
        self._data = bytearray()
        answer.attach(self)
        # `attach` lets the upstream be read, after it has given what was held.
        self._pause_when_full()

    def give_back(self) -> UpstreamResponse:
        """Return the answer as it was before, with what has been read; it has no sink, and is not read."""
        answer = self.answer
        answer.pause()
        answer.sink = None
        answer.held = bytes(self._data)
        return answer

    def event(self, data: bytes, payload_bytes: int) -> None:
        """Never called: `allows_fast_path` is False."""

    def body(self, data: bytes, *, is_last: bool = False) -> None:  # noqa: ARG002 - the answer knows
        """Take one read."""
        self._data += data
        self._pause_when_full()

    def failed(self, error: ProxyError) -> None:
        """The body broke off, which the answer remembers."""

    def _pause_when_full(self) -> None:
        if len(self._data) >= MAX_KEPT_BYTES:
            self.answer.pause()
