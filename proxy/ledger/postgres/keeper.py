"""Who keeps the shipper running: of all workers on the node the one that has the lock.

The lock is one of the file's (`flock`), and the shipper inherits it: it is held for as long as the shipper lives, no
matter what becomes of the worker. Whichever worker finds the lock free starts a shipper. No signal and no arbiter takes
part, so it works under any runner.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog

import proxy

if TYPE_CHECKING:
    from proxy.ledger.postgres.place import SpoolPlace

TRY_S: Final = 1.0
# How long a shipper whose worker ends ships what is there.
END_S: Final = 3.0
_POLL_S: Final = 0.02
# One that dies at once is started ever more seldom.
_MAX_PAUSE_S: Final = 30.0
_LIVED_S: Final = 10.0
# A line has less than PIPE_BUF.
_MAX_UNREAD_BYTES: Final = 64 * 1024
_LEVELS: Final = frozenset({"info", "warning", "error"})


class Keeper:
    """Starts a shipper where none runs on the node, and another one when it dies; writes its lines to the log.

    Attributes:
        waiting: How many rows are in the spool, as far as the worker knows that keeps the shipper.
    """

    def __init__(self, place: SpoolPlace, url: str, retention_s: float) -> None:
        self.waiting = 0
        self._place = place
        self._url = url
        self._retention_s = retention_s
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._shipper: subprocess.Popen[bytes] | None = None
        self._unread = b""
        # Of shippers that ended, and of the one that runs.
        self._errors = self._errors_now = 0
        self._pause_s = TRY_S / 2
        self._started_s = 0.0
        self._problem: str | None = None

    @property
    def errors(self) -> int:
        """How often this worker's shippers failed to ship."""
        return self._errors + self._errors_now

    @property
    def pid(self) -> int | None:
        """The shipper that this worker keeps."""
        return None if self._shipper is None else self._shipper.pid

    def open(self) -> None:
        """Begin to try."""
        self._task = asyncio.create_task(self._run())

    def set_retention(self, retention_s: float) -> None:
        """Have the shipper delete rows that are older than this, from now on."""
        self._retention_s = retention_s
        if self._shipper is not None:
            self._send(self._shipper, {"retention_s": retention_s})

    async def close(self) -> None:
        """Let the shipper ship what is there, for at most some seconds, and see it end; at once when cancelled."""
        self._closing.set()
        until_s = time.monotonic() + END_S + 1.0
        try:
            if self._task is not None:
                await self._task
            if self._shipper is not None:
                assert self._shipper.stdin is not None
                self._shipper.stdin.close()
                while self._shipper.poll() is None and time.monotonic() < until_s:  # noqa: ASYNC110 - as above: no SIGCHLD
                    await asyncio.sleep(_POLL_S)
        finally:
            if self._shipper is not None:
                # What is not shipped waits in the spool.
                self._shipper.kill()
                self._shipper.wait()
                self._ended(self._shipper)

    async def _run(self) -> None:
        while not self._closing.is_set():
            shipper = self._shipper
            if shipper is None:
                # Not in the loop: it waits until the new process has begun.
                await self._start()
            elif shipper.poll() is not None:
                self._ended(shipper)
                structlog.get_logger().warning("ledger.shipper_died", status=shipper.returncode, again_s=self._pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self._pause_s if self._shipper is None else TRY_S)

    async def _start(self) -> None:
        try:
            shipper = await asyncio.to_thread(_start, self._place.lock)
        except OSError as exc:
            self._errors += 1
            if self._problem is None:
                self._problem = exc.strerror or str(exc)
                structlog.get_logger().warning("ledger.shipper_failed", reason=self._problem)
            return
        self._problem = None
        if shipper is None:
            # Another worker has it, and knows how many wait.
            self.waiting = 0
            return
        self._shipper, self._started_s = shipper, time.monotonic()
        # Not as arguments, which every user of the machine sees.
        self._send(shipper, {"url": self._url, "spool": str(self._place.directory), "retention_s": self._retention_s})
        assert shipper.stdout is not None
        asyncio.get_running_loop().add_reader(shipper.stdout.fileno(), self._read, shipper)

    def _send(self, shipper: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
        assert shipper.stdin is not None
        # One that died is noticed at the next look.
        with contextlib.suppress(OSError):
            os.write(shipper.stdin.fileno(), orjson.dumps(message) + b"\n")

    def _read(self, shipper: subprocess.Popen[bytes]) -> None:
        assert shipper.stdout is not None
        try:
            data = os.read(shipper.stdout.fileno(), _MAX_UNREAD_BYTES)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(shipper.stdout.fileno())
            return
        *lines, unread = (self._unread + data).split(b"\n")
        self._unread = unread[-_MAX_UNREAD_BYTES:]
        for line in lines:
            # What is no message is of an interpreter that could not start.
            with contextlib.suppress(ValueError, LookupError, TypeError):
                self._hear(orjson.loads(line))

    def _hear(self, message: dict[str, Any]) -> None:
        if "event" in message:
            level = message.pop("level")
            if level in _LEVELS:
                getattr(structlog.get_logger(), level)(**message)
        else:
            self.waiting, self._errors_now = int(message["waiting"]), int(message["errors"])

    def _ended(self, shipper: subprocess.Popen[bytes]) -> None:
        assert shipper.stdin is not None
        assert shipper.stdout is not None
        self._read(shipper)
        asyncio.get_running_loop().remove_reader(shipper.stdout.fileno())
        shipper.stdin.close()
        shipper.stdout.close()
        self._errors, self._errors_now = self._errors + self._errors_now, 0
        self._shipper, self._unread = None, b""
        has_lived = time.monotonic() - self._started_s > _LIVED_S
        self._pause_s = TRY_S if has_lived else min(2 * self._pause_s, _MAX_PAUSE_S)


def _start(lock: Path) -> subprocess.Popen[bytes] | None:
    """Start a shipper that has the lock; None where somebody has it. Blocks for some milliseconds.

    Raises:
        OSError: the lock's file cannot be opened, or no process started.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        # This package, wherever it was found; not what the working directory happens to have.
        path = os.pathsep.join(filter(None, (str(Path(proxy.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        shipper = subprocess.Popen(
            [sys.executable, "-P", "-m", "proxy.ledger.ship"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(descriptor,),
            env=os.environ | {"PYTHONPATH": path},
            # A terminal's interrupt is the worker's to handle.
            start_new_session=True,
            bufsize=0,
        )
    finally:
        os.close(descriptor)
    assert shipper.stdout is not None
    os.set_blocking(shipper.stdout.fileno(), False)
    return shipper
