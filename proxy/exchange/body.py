"""A request's body, whole and within its bounds.

It is held whole because the route may depend on it, and because the upstream is told its length.
"""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from proxy.errors import BodyTooLargeError, InvalidRequestError, RequestTimeoutError

if TYPE_CHECKING:
    from proxy.model import RequestHead
    from proxy.timers import DeadlineTimer

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


async def expect_later(_request: web.Request) -> None:
    """Aiohttp's `expect_handler` that does nothing: `read_body` answers `Expect` once the head has been accepted."""


def check_length(head: RequestHead, *, max_bytes: int) -> None:
    """Refuse a body by the length that its head announces.

    Raises:
        BodyTooLargeError: it is longer than `max_bytes`.
    """
    length = head.index.get(b"content-length")
    if length is not None and int(length) > max_bytes:
        raise BodyTooLargeError


async def read_body(
    request: web.Request, head: RequestHead, *, max_bytes: int, timeout_s: float | None, timers: DeadlineTimer
) -> bytes:
    """Read the body to its end, after `100 Continue` where the client waits for that (RFC 9110 §10.1.1).

    Holds at most `max_bytes` and one read more, in one buffer: joining the pieces of a large body at its end would hold
    the loop, and all of it twice. `timeout_s` is the longest silence. Cancelling is safe.

    Raises:
        BodyTooLargeError: more than `max_bytes` came.
        RequestTimeoutError: nothing came for `timeout_s`.
        InvalidRequestError: the chunks are malformed, or the client expects something else.
    """
    content = request.content
    if b"expect" in head.index:
        await answer_expectation(request)
    if content.is_eof():
        # It came with the head, or while the request waited for its turn, as nearly all do.
        data = content.read_nowait()
        if len(data) > max_bytes:
            raise BodyTooLargeError
        return data
    connection = request.protocol
    watch_body = getattr(connection, "watch_body", None)
    if watch_body is not None:
        watch_body(content)
    data = await _read(request, max_bytes, timeout_s, timers)
    if getattr(connection, "is_malformed", False):
        raise InvalidRequestError("The body is malformed.")
    return data


def check_expectation(request: web.Request) -> None:
    """Refuse what a client may expect besides `100 Continue` (RFC 9110 §10.1.1).

    Raises:
        InvalidRequestError: it expects something else.
    """
    expectations = request.headers.getall(hdrs.EXPECT, ())
    if any(expectation.lower() != "100-continue" for expectation in expectations) or len(expectations) > 1:
        raise InvalidRequestError("The only expectation understood here is 100-continue.")


async def answer_expectation(request: web.Request) -> None:
    """Have a client send the body that it holds back, by `100 Continue`.

    Raises:
        InvalidRequestError: it expects something else.
    """
    check_expectation(request)
    # RFC 9110 §15.2: no interim response to HTTP/1.0.
    if request.body_exists and request.version >= (1, 1):
        writer = request.writer
        await writer.write(_CONTINUE)
        # As aiohttp's own handler does: an interim response is not the beginning of the final one.
        writer.output_size = 0


class _Silence:
    """The body's deadline: cancels the reading task when nothing came for too long."""

    __slots__ = ("deadline_s", "has_fired", "task", "timeout_s")

    def __init__(self, task: asyncio.Task[object], timeout_s: float, now_s: float) -> None:
        self.task = task
        self.timeout_s = timeout_s
        self.deadline_s = now_s + timeout_s
        self.has_fired = False

    def check(self, now_s: float) -> None:
        if now_s >= self.deadline_s and not self.has_fired:
            self.has_fired = True
            self.task.cancel()


async def _read(request: web.Request, max_bytes: int, timeout_s: float | None, timers: DeadlineTimer) -> bytes:
    content = request.content
    task = asyncio.current_task()
    silence = None if timeout_s is None or task is None else _Silence(task, timeout_s, timers.now())
    # Gives its content without copying it.
    received = BytesIO()
    size = 0
    if silence is not None:
        timers.add(silence)
    try:
        while piece := await content.readany():
            size += len(piece)
            if size > max_bytes:
                raise BodyTooLargeError
            received.write(piece)
            if silence is not None:
                silence.deadline_s = timers.now() + silence.timeout_s
    except asyncio.CancelledError:
        # Both the deadline and a leaving client cancel; when both did, the leaving counts.
        if silence is not None and silence.has_fired and silence.task.uncancel() == 0:
            # Nothing more of it is waited for, as aiohttp would before it closes.
            content.feed_eof()
            raise RequestTimeoutError from None
        raise
    except web.RequestPayloadError:
        raise InvalidRequestError("The body is malformed.") from None
    finally:
        if silence is not None:
            timers.discard(silence)
    return received.getvalue()
