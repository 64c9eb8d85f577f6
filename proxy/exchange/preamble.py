"""Holds back a stream's beginning until it is known whether there is an answer in it.

What is held is passed on byte for byte. Nothing of it is kept once the first event with output has come.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal

from proxy.dialects.preamble import judge
from proxy.errors import UpstreamTimeoutError
from proxy.failover.policy import Outcome
from proxy.protocol.event_stream import EventStreamDecoder
from proxy.protocol.sse_observer import is_event_stream

if TYPE_CHECKING:
    from proxy.dialects import Dialect
    from proxy.errors import ProxyError
    from proxy.upstream import UpstreamResponse

# What is longer is passed on, whatever it is.
MAX_HELD_BYTES: Final = 64 * 1024

# A moment in the loop's time, and the clock that runs out then.
Deadline = tuple[float, Literal["first_output", "idle", "total"]]


def can_be_held(answer: UpstreamResponse) -> bool:
    """Whether an answer is a successful event stream that can be read."""
    is_success = 200 <= answer.status < 300  # noqa: PLR2004 - RFC 9110 §15.3
    encoding = answer.index.get(b"content-encoding", b"identity").strip().lower()
    is_stream = answer.framing != "none" and is_event_stream(answer.index.get(b"content-type"))
    return is_success and is_stream and encoding in {b"", b"identity"}


async def hold(
    answer: UpstreamResponse, dialect: Dialect, *, deadlines: list[Deadline], idle_s: float | None
) -> Outcome:
    """Read the beginning of a stream, and return whether it is an answer: `OK` or `ERROR_EVENT`.

    The bytes stay in the answer, for whoever takes its body. Comments and pings restart `idle_s` only. Cancelling is
    safe; the caller closes the answer, then as in every other case.

    Raises:
        UpstreamTimeoutError: one of the deadlines came, or `idle_s` passed without a byte.
        UpstreamUnreachableError, UpstreamProtocolError: the connection was lost, or the body is malformed.
    """
    beginning = _Beginning(answer, dialect)
    now = asyncio.get_running_loop().time
    while not beginning.done.done():
        ends: list[Deadline] = [*deadlines] if idle_s is None else [*deadlines, (beginning.received_s + idle_s, "idle")]
        first = min(ends, default=None)
        left_s = None if first is None else first[0] - now()
        if first is not None and left_s is not None and left_s <= 0:
            raise UpstreamTimeoutError(first[1])
        await asyncio.wait([beginning.done], timeout=left_s)
    answer.sink = None
    answer.held = bytes(beginning.data)
    if beginning.outcome is None:
        assert answer.failure is not None  # it ended without a verdict
        raise answer.failure
    return beginning.outcome


class _Beginning:
    """Takes a stream until its beginning can be judged; then the upstream is not read."""

    allows_fast_path = False

    def __init__(self, answer: UpstreamResponse, dialect: Dialect) -> None:
        loop = asyncio.get_running_loop()
        self.data = bytearray()
        self.done: asyncio.Future[None] = loop.create_future()
        self.outcome: Outcome | None = None
        self.received_s = loop.time()
        self._now = loop.time
        self._answer = answer
        self._dialect = dialect
        self._decoder = EventStreamDecoder(max_event_bytes=MAX_HELD_BYTES)
        self._has_event = False
        answer.attach(self)
        if self.done.done():
            # `attach` lets the upstream be read, after it has given what was held.
            answer.pause()

    def event(self, data: bytes, payload_bytes: int) -> None:
        """Never called: `allows_fast_path` is False."""

    def body(self, data: bytes, *, is_last: bool = False) -> None:
        """Take one read."""
        self.data += data
        self.received_s = self._now()
        if self.outcome is None:
            self.outcome = self._judge(data, is_last=is_last)
        if self.outcome is not None:
            self._answer.pause()
            self._finish()

    def failed(self, error: ProxyError) -> None:  # noqa: ARG002 - the answer keeps it
        """The body broke off."""
        self._finish()

    def _judge(self, data: bytes, *, is_last: bool) -> Outcome | None:
        for event in self._decoder.feed(data):
            verdict = judge(self._dialect, event)
            if verdict == "output":
                return Outcome.OK
            if verdict == "error":
                return Outcome.ERROR_EVENT
            self._has_event = self._has_event or verdict == "preamble"
        if len(self.data) >= MAX_HELD_BYTES:
            return Outcome.OK
        if is_last:
            # The vendor has said something, if not much: that is its answer.
            return Outcome.OK if self._has_event else Outcome.ERROR_EVENT
        return None

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
