"""How the arbiter logs: gunicorn's words as lines like all others, written without a thread.

The arbiter forks, and a thread does not survive that. So it writes its few lines itself; when the reader is stuck it
waits a moment, then lets the line go, because it must go on obeying signals.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
import time
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 1.0
_RETRY_S = 0.002


class DirectWriter:
    """Writes each line at once, taking turns with the workers by the lock of the file `turn`."""

    def __init__(self, descriptor: int, turn: int) -> None:
        self._descriptor = descriptor
        self._turn = turn
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._is_torn = False

    def write(self, line: bytes) -> None:
        """Write a line without its end, or give up after `WAIT_S`."""
        data = memoryview((b"\n" if self._is_torn else b"") + line + b"\n")
        size = len(data)
        until_s = time.monotonic() + WAIT_S
        with contextlib.suppress(OSError), self._in_turn(until_s):
            while data and self._poll.poll(max(0.0, until_s - time.monotonic()) * 1000):
                # A pipe that polls as writable takes this much without waiting.
                data = data[os.write(self._descriptor, data[: select.PIPE_BUF]) :]
            self._is_torn = 0 < len(data) < size

    def close(self) -> None:
        """Nothing waits."""

    @contextlib.contextmanager
    def _in_turn(self, until_s: float) -> Iterator[None]:
        while True:
            try:
                fcntl.lockf(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                # A worker writes; one that is stuck holds the lock for as long.
                if time.monotonic() >= until_s:
                    raise
                time.sleep(_RETRY_S)
        try:
            yield
        finally:
            fcntl.lockf(self._turn, fcntl.LOCK_UN)


class ArbiterLog:
    """What gunicorn takes for its logger. It never sees a request, so its texts are safe to repeat."""

    def debug(self, message: str, *args: object, **_kwargs: object) -> None:
        """Log for who debugs gunicorn."""
        structlog.get_logger().debug("arbiter.reported", message=_text(message, args))

    # What matters of these has lines of its own, which say it in fields.
    info = debug

    def warning(self, message: str, *args: object, **_kwargs: object) -> None:
        """Log what is not as it should be."""
        structlog.get_logger().warning("arbiter.reported", message=_text(message, args))

    def error(self, message: str, *args: object, exc_info: bool = False, **_kwargs: object) -> None:
        """Log what went wrong; of an exception only what kind and where."""
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
        """Standard output is not ours to open."""

    def close_on_exec(self) -> None:
        """Standard output is handed on."""


def _text(message: str, args: tuple[object, ...]) -> str:
    return message % args if args else message
