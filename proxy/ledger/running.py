"""The file in which a worker keeps the lines of what runs, for whoever finds it dead.

A worker holds a lock on its file. A file without one is of a worker that was killed: the next worker that starts on the
node inserts its rows, and removes it. The file's content survives the process, not the machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
from glob import escape
from typing import TYPE_CHECKING, Final

from proxy.ledger.log_lines import read_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from proxy.ledger.file import LedgerFile
    from proxy.ledger.row import Row

# A line has some 700 bytes; what is longer than a slot is not kept.
SLOT_BYTES: Final = 2048
# Of one worker. What runs beyond them is not kept.
SLOTS: Final = 8192


class RunningFile:
    """A file of slots, each with the line of an exchange that runs; zeros where none is.

    A slot is written by one call, which the kernel has taken when it returns: nothing is lost with the process, and
    nothing waits for a disk. A disk that is full costs lines, nothing else.
    """

    def __init__(self, prefix: Path, ledger_file: Callable[[], LedgerFile]) -> None:
        """`prefix` is what all workers' files begin with; `ledger_file` is where rows go."""
        self._prefix = prefix
        self._ledger_file = ledger_file
        self._path: Path | None = None
        self._descriptor = -1
        self._free: list[int] = []
        self._used = 0

    def open(self) -> list[bytes]:
        """Insert the rows of dead workers, and return their lines; then begin a file of one's own. Blocks.

        Raises:
            OSError: There can be no file; then nothing is kept.
        """
        lines: list[bytes] = []
        for path in self._prefix.parent.glob(f"{escape(self._prefix.name)}*"):
            lines += self._recover(path)
        path = self._prefix.with_name(f"{self._prefix.name}{os.getpid()}-{secrets.token_hex(4)}")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._path, self._descriptor = path, descriptor
        return lines

    def close(self) -> None:
        """Remove the file: everything has been settled."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._path, self._descriptor = None, -1

    def take(self) -> int | None:
        """A slot that nobody uses; None where there is none."""
        if self._path is None:
            return None
        if self._free:
            return self._free.pop()
        if self._used >= SLOTS:
            return None
        self._used += 1
        return self._used - 1

    def put(self, slot: int, line: bytes) -> None:
        """Write the line of a slot."""
        if self._path is not None and len(line) < SLOT_BYTES:
            with contextlib.suppress(OSError):
                os.pwrite(self._descriptor, line.ljust(SLOT_BYTES, b"\0"), slot * SLOT_BYTES)

    def clear(self, slot: int) -> None:
        """Give a slot back: its exchange has been settled."""
        self._free.append(slot)
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._descriptor, b"\0", slot * SLOT_BYTES)

    def _recover(self, path: Path) -> list[bytes]:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            # Another worker was faster.
            return []
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(descriptor).st_nlink:
                return []
            data = os.pread(descriptor, SLOTS * SLOT_BYTES, 0)
            slots = (data[start : start + SLOT_BYTES] for start in range(0, len(data), SLOT_BYTES))
            lines = [slot.rstrip(b"\0") for slot in slots if slot[:1] != b"\0"]
            rows = {line: row for line in lines if (row := read_line(line)) is not None}
            if rows:
                self._insert(list(rows.values()))
            path.unlink()
        except (OSError, sqlite3.Error):
            # It lives, or the ledger does not take its rows now: a later start does.
            return []
        finally:
            os.close(descriptor)
        return list(rows)

    def _insert(self, rows: list[Row]) -> None:
        file = self._ledger_file()
        try:
            file.add(rows)
        finally:
            file.close()
