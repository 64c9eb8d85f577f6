"""The log's writer, when there is nowhere to write."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

from proxy import logs
from proxy.logs import LineWriter

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(sys.platform != "linux", reason="writes to /dev/full")
def test_log_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines wait while the disk is full, and are written when there is room again."""
    monkeypatch.setattr(logs, "FULL_DISK_RETRY_S", 0.01)
    full = os.open("/dev/full", os.O_WRONLY)
    room = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    tried = 0
    write = os.write

    def counted(descriptor: int, data: bytes) -> int:
        nonlocal tried
        tried += descriptor == full
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", counted)
    writer = LineWriter(full)
    writer.write(b"while it was full")
    until_s = time.monotonic() + 10
    while tried < 3 and time.monotonic() < until_s:
        time.sleep(0.005)
    os.dup2(room, full)
    writer.write(b"afterwards")
    until_s = time.monotonic() + 10
    while b"afterwards" not in (tmp_path / "log").read_bytes() and time.monotonic() < until_s:
        time.sleep(0.005)
    writer.close()
    for descriptor in (full, room):
        os.close(descriptor)

    assert tried >= 3
    assert (tmp_path / "log").read_bytes().splitlines() == [b"while it was full", b"afterwards"]


@pytest.mark.skipif(sys.platform != "linux", reason="writes to /dev/full")
def test_log_full_disk_at_the_end() -> None:
    """A disk that stays full keeps no process from ending."""
    full = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(full)
    writer.write(b"nobody will read this")
    began_s = time.monotonic()
    writer.close()
    os.close(full)
    assert not writer._thread.is_alive()
    assert time.monotonic() - began_s < 2
