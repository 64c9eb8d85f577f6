"""The service's processes over time: memory, and whether it grows."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

SAMPLE_S = 2.0
_KIB_PER_MIB = 1024


def resident_mib(pid: int) -> float | None:
    """The memory of a process; None where there is none."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(found[0].split()[1]) / _KIB_PER_MIB if found else None


class Memory:
    """Samples of each process since it was first seen."""

    def __init__(self) -> None:
        self.samples: dict[int, list[tuple[float, float]]] = {}

    async def watch(self, pids: set[int]) -> None:
        """Sample these, whichever they are at the time, until cancelled."""
        while True:
            now_s = time.monotonic()
            for pid in pids:
                mib = resident_mib(pid)
                if mib is not None:
                    self.samples.setdefault(pid, []).append((now_s, mib))
            await asyncio.sleep(SAMPLE_S)

    def growth(self, pid: int, since_s: float) -> tuple[float, float, float] | None:
        """First and last memory in MiB, and MiB per minute by least squares over the samples from then on."""
        samples = [(at_s / 60, mib) for at_s, mib in self.samples.get(pid, []) if at_s >= since_s]
        if len(samples) < 3:
            return None
        middle_x = sum(x for x, _ in samples) / len(samples)
        middle_y = sum(y for _, y in samples) / len(samples)
        spread = sum((x - middle_x) ** 2 for x, _ in samples)
        return samples[0][1], samples[-1][1], sum((x - middle_x) * (y - middle_y) for x, y in samples) / spread
