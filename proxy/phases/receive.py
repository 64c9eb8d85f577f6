"""Receive: the request's body, whole, within its bounds.

The body is held whole because the route may depend on it, and because the upstream is told its length.
"""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import TYPE_CHECKING

from proxy.errors import BodyTooLargeError, InvalidRequestError, RequestTimeoutError

if TYPE_CHECKING:
    from proxy.clocks import Clocks
    from proxy.request_body import RequestBody


class _Silence:
    """The body clock: cancels the reading task when nothing came for too long."""

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


def take(body: RequestBody, length: int | None, *, max_bytes: int) -> bytes:
    """A body that is here as a whole: it came with the head, or while the request waited for its turn.

    Raises:
        BodyTooLargeError: it is longer than `max_bytes`.
        InvalidRequestError: it broke, or is shorter than announced.
    """
    data = body.take()
    return _checked(data, len(data), length, max_bytes)


async def receive(
    body: RequestBody,
    length: int | None,
    *,
    max_bytes: int,
    timeout_s: float | None,
    clocks: Clocks,
) -> bytes:
    """Read the body to its end.

    Holds at most `max_bytes` and one read more, in one buffer: joining the pieces of a large body at its end would hold
    the loop, and all of it twice. `timeout_s` is the longest silence. Cancelling is safe.

    Raises:
        BodyTooLargeError: more than `max_bytes` came.
        RequestTimeoutError: nothing came for `timeout_s`.
        InvalidRequestError: the chunks are malformed or shorter than announced.
    """
    task = asyncio.current_task()
    assert task is not None
    silence = None if timeout_s is None else _Silence(task, timeout_s, clocks.now())
    # Gives its content without copying it.
    received = BytesIO()
    size = 0
    if silence is not None:
        clocks.watch(silence)
    try:
        while piece := await body.read():
            size += len(piece)
            if size > max_bytes:
                raise BodyTooLargeError
            received.write(piece)
            if silence is not None:
                silence.deadline_s = clocks.now() + silence.timeout_s
            if size == length:
                break
    except asyncio.CancelledError:
        # Both the clock and a leaving client cancel; when both did, the leaving counts.
        if silence is not None and silence.has_fired and task.uncancel() == 0:
            raise RequestTimeoutError from None
        raise
    finally:
        if silence is not None:
            clocks.forget(silence)
    return _checked(received.getvalue(), size, length, max_bytes)


def _checked(data: bytes, size: int, length: int | None, max_bytes: int) -> bytes:
    if size > max_bytes:
        raise BodyTooLargeError
    if length is not None and size != length:
        raise InvalidRequestError("The body is shorter than its length says.")
    return data
