"""Says on standard error how far the run is: a bar on a terminal, a line a step elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

_BAR = 28
_PERCENT = 100


class Progress:
    """Counts steps; knows nothing of what they are."""

    def __init__(self, total: int, out: TextIO = sys.stderr) -> None:
        self._total = max(total, 1)
        self._out = out
        self._done = 0
        self._began = time.monotonic()
        self._is_terminal = out.isatty()

    def add(self, steps: int) -> None:
        """More, or fewer, are to come than was thought."""
        self._total += steps

    def now(self, text: str) -> None:
        """What is being done."""
        if self._is_terminal:
            filled = _BAR * self._done // self._total
            line = f"[{'#' * filled}{'-' * (_BAR - filled)}] {self._share():3d} %  {self._left():>7}  {text}"
            width = shutil.get_terminal_size().columns - 1
            self._out.write("\r\x1b[2K" + line[:width])
        else:
            self._out.write(f"{self._share():3d} %  {text}\n")
        self._out.flush()

    def step(self) -> None:
        """One step is done."""
        self._done = min(self._done + 1, self._total)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._out.write(("\r\x1b[2K" if self._is_terminal else "") + text + "\n")
        self._out.flush()

    def close(self) -> None:
        """Leave the terminal's line as it was found."""
        if self._is_terminal:
            self._out.write("\r\x1b[2K")
            self._out.flush()

    def _share(self) -> int:
        return _PERCENT * self._done // self._total

    def _left(self) -> str:
        if not self._done:
            return ""
        seconds = (time.monotonic() - self._began) / self._done * (self._total - self._done)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
