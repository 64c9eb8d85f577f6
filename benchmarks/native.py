"""The C half: built with the system's compiler, run on the cores that the proxy does not use."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import selectors
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.processes import StartFailed, free_port, interrupts_held, pinned, spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.peers.peer import Started
    from benchmarks.processes import Program, Programs

_HERE = Path(__file__).resolve().parent
_SOURCES = _HERE / "native"
_FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
_START_S = 10.0
_END_S = 5.0
_READ_BYTES = 65536


class LoadFailed(Exception):  # noqa: N818 - what happened, not an error of ours
    """The load did not report; no figure of its round counts."""


def build(directory: Path, *flags: str) -> tuple[Path, Path]:
    """Compile the upstream and the load, unless they are newer than their sources; gives where they are.

    Further flags of the compiler take another directory.

    Raises:
        StartFailed: there is no compiler, or it refused.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise StartFailed("there is no C compiler: install gcc or clang, or name one in CC")
    directory.mkdir(parents=True, exist_ok=True)
    made = (directory / "upstream", directory / "load")
    newest = max((path.stat().st_mtime for path in _SOURCES.glob("*.[ch]")), default=0.0)
    for binary in made:
        if binary.exists() and binary.stat().st_mtime > newest:
            continue
        # To a name of its own first: two runs at once must not start half a program.
        fresh = binary.with_suffix(f".{os.getpid()}")
        command = [compiler, *_FLAGS, *flags, "-o", str(fresh), str(_SOURCES / f"{binary.name}.c")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StartFailed(f"{' '.join(command)}\n{done.stderr}")
        fresh.replace(binary)
    return made


class Upstream:
    """The vendor that runs for the whole benchmark."""

    def __init__(self, program: Program, port: int) -> None:
        self.program = program
        self.port = port

    @classmethod
    def start(cls, programs: Programs, binary: Path, directory: Path) -> Upstream:
        """Start it on a port of its own.

        Raises:
            StartFailed: it did not come up.
        """
        port = free_port()
        program = programs.start("upstream", [binary, "--port", str(port)], directory)
        program.wait_for_port(port, deadline_s=_START_S)
        return cls(program, port)

    def stats(self) -> dict[str, Any]:
        """What it has counted since the last reset, and how late its own timers were."""
        counts: dict[str, Any] = self._ask("GET", "/bench/stats")
        return counts

    def closes(self) -> dict[int, int]:
        """When it saw each running stream close, by the stream's id, on the monotonic clock."""
        return {int(number): int(at_ns) for number, at_ns in self._ask("GET", "/bench/closes")}

    def reset(self) -> None:
        """Forget both."""
        self._ask("POST", "/bench/reset")

    def _ask(self, method: str, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, headers={"Connection": "close"})
            body = connection.getresponse().read()
        finally:
            connection.close()
        return json.loads(body) if body.strip() else None


class Load:
    """Runs the load against a peer; its processes never outlive a call."""

    def __init__(self, binary: Path, *, cores: frozenset[int] | None = None) -> None:
        self._binary = binary
        self._cores = cores

    def run(
        self,
        peer: Started,
        path: str,
        mode: str,
        options: Iterable[object],
        *,
        limit_s: float,
        on_line: Callable[[str], None] | None = None,
        on_tick: Callable[[], None] | None = None,
        tick_s: float = 0.1,
    ) -> dict[str, Any]:
        """One load, to its end; gives what it reports.

        Args:
            peer: Where to.
            path: The path of the requests.
            mode: One of the load's modes.
            options: What the mode needs besides.
            limit_s: When to give it up.
            on_line: Is told each line that comes before the report (`holding K`, `stalled K`).
            on_tick: Is called about every `tick_s` while it runs.
            tick_s: How often.

        Raises:
            LoadFailed: it ended without a report, or ran past its limit.
        """
        command: list[str | Path] = [
            self._binary,
            "--host",
            "127.0.0.1",
            "--port",
            str(peer.port),
            "--path",
            path,
            "--mode",
            mode,
        ]
        headers = [word for header in peer.headers for word in ("--header", header)]
        with pinned(self._cores):
            process = spawn([*command, *headers, *map(_word, options)])
        try:
            lines = self._lines(process, limit_s, on_tick, tick_s)
            report = None
            for line in lines:
                if line.startswith("{"):
                    report = json.loads(line)
                elif on_line is not None:
                    on_line(line)
            _, errors = process.communicate(timeout=_END_S)
            if report is None:
                tail = errors.decode(errors="replace").strip()[-500:]
                raise LoadFailed(f"the load ended with {process.returncode}: {tail}")
        except subprocess.TimeoutExpired as exc:
            raise LoadFailed("the load did not end") from exc
        finally:
            with interrupts_held():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        loaded: dict[str, Any] = report
        return loaded

    def _lines(
        self, process: subprocess.Popen[bytes], limit_s: float, on_tick: Callable[[], None] | None, tick_s: float
    ) -> Iterable[str]:
        """The lines of its standard output as they come; a small standard error waits in its pipe."""
        assert process.stdout is not None
        until = time.monotonic() + limit_s
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(tick_s):
                    data = os.read(process.stdout.fileno(), _READ_BYTES)
                    if not data:
                        break
                    *whole, rest = (rest + data).split(b"\n")
                    yield from (line.decode() for line in whole)
                if time.monotonic() > until:
                    raise LoadFailed(f"the load did not end within {limit_s:.0f} s")
                if on_tick is not None:
                    on_tick()
        if rest.strip():
            yield rest.decode()


def _word(option: object) -> str:
    return f"{option:g}" if isinstance(option, float) else str(option)
