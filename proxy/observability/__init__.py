"""Logs and metrics: `logging` writes JSON lines without blocking, `metrics` has every metric's name, unit and labels.

Events and observations enter; lines on standard output and the text of a scrape leave. The two modules are the room's
interface.
"""

__all__ = ["logging", "metrics"]

from proxy.observability import logging, metrics
