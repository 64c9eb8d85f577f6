"""How the arbiter logs: gunicorn's messages as lines like all others, written without a thread.

The arbiter forks, and a thread does not survive a fork. So it writes its few lines itself; when the reader is stuck it
waits a moment, then drops the line, because it must go on handling signals.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys

import structlog

from proxy.observability.logging import MAX_LINE_BYTES, shorten

WAIT_S = 1.0


class DirectWriter:
    """Writes each line at once, in one write of at most PIPE_BUF bytes, so that workers' lines do not mix with it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, line: bytes) -> None:
        """Write a line without its end, or drop it after `WAIT_S`."""
        if len(line) > MAX_LINE_BYTES:
            line = shorten(line)
        with contextlib.suppress(OSError):
            # A pipe that polls as writable takes PIPE_BUF bytes without waiting.
            if self._poll.poll(WAIT_S * 1000):
                os.write(self._descriptor, line + b"\n")

    def close(self) -> None:
        """Nothing waits."""


class ArbiterLog:
    """gunicorn's logger. The arbiter never sees a request, so its messages are safe to log."""

    def debug(self, message: str, *args: object, **_kwargs: object) -> None:
        """Log at level debug: only gunicorn's developers need it."""
        structlog.get_logger().debug("arbiter.reported", message=_text(message, args))

    # What matters of these is logged as events of our own, with fields.
    info = debug

    def warning(self, message: str, *args: object, **_kwargs: object) -> None:
        """Log at level warning."""
        structlog.get_logger().warning("arbiter.reported", message=_text(message, args))

    def error(self, message: str, *args: object, exc_info: bool = False, **_kwargs: object) -> None:
        """Log at level error; of an exception only its class and place."""
        fields: dict[str, object] = {}
        kind, _, trace = sys.exc_info()
        if exc_info and kind is not None and trace is not None:
            while trace.tb_next is not None:
                trace = trace.tb_next
            place = trace.tb_frame.f_code.co_filename.rpartition("/")[2]
            fields = {"error": kind.__name__, "at": f"{place}:{trace.tb_lineno}"}
        structlog.get_logger().error("arbiter.reported", message=_text(message, args), **fields)

    critical = error

    def exception(self, message: str, *args: object, **_kwargs: object) -> None:
        """Log the exception that is being handled."""
        self.error(message, *args, exc_info=True)

    def reopen_files(self) -> None:
        """Standard output is not opened again."""

    def close_on_exec(self) -> None:
        """Standard output stays open over an `exec`."""


def _text(message: str, args: tuple[object, ...]) -> str:
    return message % args if args else message
