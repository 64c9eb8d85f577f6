"""The file of what a worker runs: whose lines become rows, and whose do not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from proxy.ledger.file import LedgerFile
from proxy.ledger.running import SLOT_BYTES, SLOTS, RunningFile
from tests.ledger.rows import NOON_MS
from tests.ledger.test_file import kept
from tests.ledger.test_log_lines import raw

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "[a] ledger?.db"


def running(path: Path) -> RunningFile:
    return RunningFile(path.with_name(f"{path.name}-running-"), lambda: LedgerFile(path, has_totals=True))


def files(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*-running-*"))


def line(number: int, **changes: object) -> bytes:
    return raw(id=f"r{number}", row_id=f"{NOON_MS:012x}{number:020x}", **changes)


def left(path: Path, *lines: bytes) -> None:
    """A file of a process that was killed, with these lines in its slots."""
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.ledger.test_running import running\n"
        "file = running(Path(sys.argv[1]))\n"
        "file.open()\n"
        "for one in sys.argv[2:]:\n"
        "    file.put(file.take(), os.fsencode(one))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path), *map(os.fsdecode, lines)], check=False)
    assert done.returncode < 0


def test_lines_of_a_killed_process(path: Path) -> None:
    """They become rows, once; what is no line of an exchange's is passed over, and the file is gone."""
    left(path, line(1), b"{", line(2), line(3)[:40], line(4, user=None))
    file = running(path)
    assert file.open() == [line(1), line(2)]
    assert [row.id for row in kept(path)] == ["r1", "r2"]
    assert len(files(path)) == 1
    other = running(path)
    assert other.open() == []
    other.close()
    file.close()
    assert files(path) == []


def test_file_of_a_process_that_lives(path: Path) -> None:
    """Nobody takes what a living worker has, and what it has cleared is nobody's."""
    living = running(path)
    living.open()
    slots = [living.take() for _ in range(3)]
    for number, slot in enumerate(slots):
        assert slot is not None
        living.put(slot, line(number))
    assert slots[1] is not None
    living.clear(slots[1])
    other = running(path)
    assert other.open() == []
    assert len(files(path)) == 2
    # As its process would at its end, however it ends.
    os.close(living._descriptor)
    assert running(path).open() == [line(0), line(2)]
    other.close()


def test_ledger_that_takes_no_rows(path: Path) -> None:
    """A file whose rows cannot be inserted stays for a later start."""
    left(path, line(1))
    path.write_bytes(b"no database, and longer than nothing " * 40)
    assert running(path).open() == []
    path.unlink()
    assert running(path).open() == [line(1)]
    assert [row.id for row in kept(path)] == ["r1"]


def test_bounds(path: Path) -> None:
    """Slots are used again, there are so many, and a line that fits into none is not kept."""
    file = running(path)
    file.open()
    slots = [file.take() for _ in range(SLOTS)]
    assert sorted(slot for slot in slots if slot is not None) == list(range(SLOTS))
    assert file.take() is None
    file.clear(7)
    assert file.take() == 7
    file.put(7, b"x" * SLOT_BYTES)
    assert files(path)[0].stat().st_size <= 8 * SLOT_BYTES
    file.close()
    assert file.take() is None


def test_disk_that_is_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails costs its line; a file that cannot be made costs all, and is told."""
    file = running(path)
    file.open()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    file.put(0, line(0))
    file.clear(0)
    file.close()
    with pytest.raises(OSError, match="No such file"):
        running(path / "none" / "ledger.db").open()
