"""What the kernel says a process tree has cost: CPU, memory, descriptors. Linux only; reads /proc, changes nothing."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_PROC = Path("/proc")
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_KIB = 1024
# Places in /proc/PID/stat, counted after the command's closing parenthesis (proc(5) numbers them from 3 there).
_PPID, _UTIME, _STIME, _CUTIME, _CSTIME = 1, 11, 12, 13, 14
# Place in the first line of /proc/stat, the line's name included (proc(5)).
_STEAL = 8


def tree(roots: Iterable[int]) -> list[int]:
    """The living processes of the trees that begin at `roots`, roots first."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            children.setdefault(int(fields[_PPID]), []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid for pid in roots if (_PROC / str(pid)).exists()]
    while waiting:
        pid = waiting.pop(0)
        if pid not in found:
            found.append(pid)
            waiting += children.get(pid, [])
    return found


def cpu_ns(roots: Iterable[int]) -> int:
    """Nanoseconds that the trees have been on a CPU since they began.

    The scheduler counts each living thread to the nanosecond. Threads and children that have ended are only in the
    process's own counts, to the tick: the larger of the two is the nearer to the truth, as both are lower bounds.
    """
    return sum(_process_cpu_ns(pid) for pid in tree(roots))


def stolen_ns() -> int:
    """Nanoseconds of all cores that the host has taken away from this virtual machine; 0 where it does not tell."""
    try:
        fields = (_PROC / "stat").read_text().partition("\n")[0].split()
        return int(fields[_STEAL]) * _TICK_NS
    except (OSError, IndexError, ValueError):
        return 0


def pss_bytes(roots: Iterable[int]) -> int:
    """Memory of the trees: what is theirs alone, and their share of what they share."""
    return sum(_pss_bytes(pid) for pid in tree(roots))


def descriptors(roots: Iterable[int]) -> int:
    """Open descriptors of the trees."""
    total = 0
    for pid in tree(roots):
        try:
            total += len(os.listdir(_PROC / str(pid) / "fd"))  # noqa: PTH208 - names suffice, and there are thousands
        except OSError:
            continue
    return total


def raise_descriptor_limit() -> int:
    """Lift the soft limit of this process, and so of those it starts, to the hard one; gives it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _process_cpu_ns(pid: int) -> int:
    fields = _stat(pid)
    if fields is None:
        return 0
    own = (int(fields[_UTIME]) + int(fields[_STIME])) * _TICK_NS
    ended_children = (int(fields[_CUTIME]) + int(fields[_CSTIME])) * _TICK_NS
    return max(own, _threads_ns(pid)) + ended_children


def _threads_ns(pid: int) -> int:
    """What the scheduler has counted for the living threads; 0 on a kernel that does not tell."""
    total = 0
    try:
        threads = list((_PROC / str(pid) / "task").iterdir())
    except OSError:
        return 0
    for thread in threads:
        try:
            total += int((thread / "schedstat").read_text().split()[0])
        except (OSError, IndexError, ValueError):
            continue
    return total


def _pss_bytes(pid: int) -> int:
    try:
        text = (_PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * _KIB for line in text.splitlines() if line.startswith("Pss:"))


def _stat(pid: int) -> list[str] | None:
    """The fields after the command's name, which may hold spaces and parentheses itself."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
