"""Programs that the benchmark starts: their logs, when they are ready, and that every one of them ends.

Each runs in a session of its own, so that whatever it starts ends with it, and is told by the kernel to end should the
benchmark be killed outright.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

_POLL_S = 0.02
_END_S = 5.0
_TAIL_LINES = 15
# Below the usual ephemeral range: thousands of held connections must not sit on a port that a restart needs.
_PORTS = range(20_000, 32_000)


class StartFailed(Exception):  # noqa: N818 - what happened, not an error of ours
    """A program did not become ready; the message has the tail of its log."""


class Program:
    """One running program, with its output in a file. Ended by `end`, on every path."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._log = log

    @property
    def has_ended(self) -> bool:
        """Whether it ran out by itself."""
        return self._process.poll() is not None

    def tail(self) -> str:
        """The last lines of its log."""
        try:
            lines = self._log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_TAIL_LINES:])

    def wait_for_port(self, port: int, *, deadline_s: float) -> None:
        """Return once the port accepts.

        Raises:
            StartFailed: the program ended, or the deadline passed.
        """
        until = time.monotonic() + deadline_s
        while time.monotonic() < until:
            if self.has_ended:
                raise StartFailed(f"it ended with {self._process.returncode}:\n{self.tail()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(_POLL_S)
        raise StartFailed(f"port {port} did not open within {deadline_s:.0f} s:\n{self.tail()}")

    def end(self, *, grace_s: float = _END_S) -> None:
        """End it and all that it started: asked first, then made to."""
        if not self.has_ended:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        # Its session may outlive it.
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class Programs:
    """Starts programs, and ends those that still run when it is left."""

    def __init__(self, *, cores: frozenset[int] | None = None) -> None:
        self._cores = cores
        self._running: list[Program] = []

    def start(
        self, name: str, command: Sequence[str | Path], directory: Path, env: Mapping[str, str] | None = None
    ) -> Program:
        """Start a program in a directory, its output in NAME.log there.

        Raises:
            StartFailed: there is no such program.
        """
        log = directory / f"{name}.log"
        with log.open("wb") as output, pinned(self._cores):
            process = spawn(command, cwd=directory, env=env, stdout=output, stderr=subprocess.STDOUT)
        program = Program(process, log)
        self._running.append(program)
        return program

    def end(self, *programs: Program) -> None:
        """End these now."""
        for program in programs:
            program.end()
            self._running.remove(program)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C while these end must not leave the rest running.
        with interrupts_held():
            while self._running:
                self._running.pop().end()


def spawn(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: IO[bytes] | int = subprocess.PIPE,
    stderr: IO[bytes] | int = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    """Start a command in its own session; the kernel ends it if this process dies.

    Raises:
        StartFailed: there is no such program.
    """
    # setpriv becomes the command by exec: the identifier is the command's own. TERM, so that it ends its children too.
    guard = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
    try:
        return subprocess.Popen(
            [*guard, *map(str, command)],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    except OSError as exc:
        raise StartFailed(f"{command[0]}: {exc.strerror or exc}") from exc


@contextlib.contextmanager
def pinned(cores: frozenset[int] | None) -> Iterator[None]:
    """What is started within runs on those cores only; a new process keeps the affinity it was born with."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the block is through."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def free_port() -> int:
    """A loopback port that nothing listens on, outside the range from which connections get theirs.

    Raises:
        OSError: none of those tried is free.
    """
    for port in random.sample(_PORTS, 100):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")
