"""What the kernel's accounting of a process tree counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import accounting

pytestmark = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the harness reads Linux's /proc")

_MS = 1_000_000
# A program that burns CPU, itself, in a child, or in a child that has ended; says how much, and stays.
_BUSY = """
import os, subprocess, sys, time
where = sys.argv[1]
if where == "itself":
    while time.process_time() < 0.3: pass
    print(time.process_time_ns(), flush=True)
    sys.stdin.read()
elif where == "thread":
    import threading
    def burn():
        while time.thread_time() < 0.3: pass
    one = threading.Thread(target=burn); one.start(); one.join()
    print(time.process_time_ns(), flush=True)
    sys.stdin.read()
else:
    child = subprocess.Popen([sys.executable, __file__, "itself"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    burnt = int(child.stdout.readline())
    if where == "ended child":
        child.communicate()
    print(burnt + time.process_time_ns(), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("where", ["itself", "thread", "child", "ended child"])
def test_accounting_busy_tree(where: str, tmp_path: Path) -> None:
    """What a tree has burnt is counted, wherever in the tree it was, and nothing else is."""
    script = tmp_path / "busy.py"
    script.write_text(_BUSY)
    with subprocess.Popen([sys.executable, script, where], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        burnt_ns = int(busy.stdout.readline())
        counted_ns = accounting.cpu_ns([busy.pid])
        again_ns = accounting.cpu_ns([busy.pid])
        busy.communicate()
    # Threads and children that have ended are counted in ticks of 10 ms, some of which a busy machine misses.
    # Starting an interpreter is a part that it does not see.
    assert burnt_ns - 90 * _MS <= counted_ns <= burnt_ns + 200 * _MS
    assert counted_ns <= again_ns <= counted_ns + 100 * _MS


def test_accounting_ended_process() -> None:
    """A process that is gone costs nothing and is no error."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert (accounting.cpu_ns([gone.pid]), accounting.pss_bytes([gone.pid]), accounting.tree([gone.pid])) == (0, 0, [])


@pytest.mark.parametrize(
    ("text", "ticks"),
    [("cpu  1 2 3 4 5 6 7 80 9 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n", 80), ("cpu  1 2 3 4\n", 0), ("", 0), (None, 0)],
)
def test_accounting_stolen(text: str | None, ticks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host took is read of all cores together; a kernel that does not tell took nothing."""
    if text is not None:
        (tmp_path / "stat").write_text(text)
    monkeypatch.setattr(accounting, "_PROC", tmp_path)
    assert accounting.stolen_ns() == ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def test_accounting_memory() -> None:
    """Memory that a process takes is seen as its own."""
    code = (
        "import sys; print(flush=True); sys.stdin.readline(); kept = b'x' * 2**25; print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as grower:
        assert grower.stdout is not None
        assert grower.stdin is not None
        grower.stdout.readline()
        before = accounting.pss_bytes([grower.pid])
        grower.stdin.write(b"\n")
        grower.stdin.flush()
        grower.stdout.readline()
        after = accounting.pss_bytes([grower.pid])
        assert accounting.descriptors([grower.pid]) >= 3
        grower.communicate()
    assert 2**25 * 0.95 < after - before < 2**25 * 1.1
