"""Metrics of the process itself: which version it runs, and what it takes of the machine.

prometheus_client's own `ProcessCollector` has no label that tells workers apart, so its figures of several workers
would be summed; and it lists every open descriptor at each scrape, which are tens of thousands under load.
"""

from __future__ import annotations

import platform
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from proxy import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

_STATM: Final = Path("/proc/self/statm")
_DESCRIPTORS: Final = Path("/proc/self/fd")


class ProcessMetrics:
    """One worker's process, read when it is asked for.

    Resident memory and open descriptors need Linux's `/proc`, and are left out without it.
    """

    def __init__(self, worker: str, *, workers: int, is_alone: bool) -> None:
        """`worker` is its name, `workers` how many are configured; `is_alone` where nobody else counts them."""
        self._worker = worker
        self._workers = workers
        self._is_alone = is_alone

    def collect(self) -> Iterator[Metric]:
        """The figures of now; called by the registry."""
        build = GaugeMetricFamily(
            "forward_sse_build_info", "The version that runs; always 1.", labels=["version", "python"]
        )
        build.add_metric([__version__, platform.python_version()], 1)
        yield build
        yield GaugeMetricFamily(
            "forward_sse_workers_configured", "Workers that the configuration wants.", value=self._workers
        )
        if self._is_alone:
            workers = GaugeMetricFamily(
                "forward_sse_workers", "Workers, by whether they answered this scrape.", labels=["state"]
            )
            workers.add_metric(["answering"], 1)
            workers.add_metric(["silent"], 0)
            yield workers
        cpu = CounterMetricFamily(
            "forward_sse_worker_cpu_seconds_total", "CPU time of the worker's process.", labels=["worker"]
        )
        cpu.add_metric([self._worker], time.process_time())
        yield cpu
        yield self._gauge("max_fds", "Descriptors that the worker may open.", _most_descriptors())
        for name, documentation, value in (
            ("resident_memory_bytes", "Memory of the worker's process that is in RAM.", _resident_bytes()),
            ("open_fds", "Descriptors that the worker has open.", _open_descriptors()),
        ):
            if value is not None:
                yield self._gauge(name, documentation, value)

    def _gauge(self, name: str, documentation: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"forward_sse_worker_{name}", documentation, labels=["worker"])
        family.add_metric([self._worker], value)
        return family


def _most_descriptors() -> float:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if soft == resource.RLIM_INFINITY else soft


def _resident_bytes() -> int | None:
    try:
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return None


def _open_descriptors() -> int | None:
    try:
        # Linux 6.2 and later have their number there; before, it is 0.
        return _DESCRIPTORS.stat().st_size or sum(1 for _ in _DESCRIPTORS.iterdir())
    except OSError:
        return None
