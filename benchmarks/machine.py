"""What a run was made on: the machine, the tools, the revision."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.peers.peer import REPOSITORY, first_line


def describe(
    *, descriptors: int, proxy_cores: frozenset[int] | None, load_cores: frozenset[int] | None
) -> dict[str, Any]:
    """The machine, as the JSON keeps it. No name of it, of its user, or of any path."""
    load = os.getloadavg()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _field(Path("/proc/cpuinfo"), "model name"),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "system": _system(),
        "python": platform.python_version(),
        "compiler": first_line([os.environ.get("CC") or shutil.which("cc") or "cc", "--version"]),
        "descriptors": descriptors,
        "proxy_cores": None if proxy_cores is None else sorted(proxy_cores),
        "load_cores": None if load_cores is None else sorted(load_cores),
        "load_average_before": round(load[0], 2),
        "revision": _git("rev-parse", "--short=12", "HEAD"),
        "is_modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def split_cores(*, pin: bool) -> tuple[frozenset[int] | None, frozenset[int] | None]:
    """A core for the proxy, the others for load and upstream; neither when there is only one, or pinning is off."""
    cores = sorted(os.sched_getaffinity(0))
    if not pin or len(cores) == 1:
        return None, None
    return frozenset(cores[-1:]), frozenset(cores[:-1])


def _git(*words: str) -> str:
    """What git says of the repository; empty outside one."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False, timeout=30, cwd=REPOSITORY)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


def _field(path: Path, name: str) -> str:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
