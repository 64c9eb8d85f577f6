"""Logs, metrics, traces: `logging` writes JSON lines without blocking, `metrics` has every metric's name, unit, labels.

`tracing` has an exchange's place in its trace, `gen_ai` the histograms of OpenTelemetry's conventions, `exporter` the
thread that sends both; what that loads is loaded only where it runs. `redaction` cuts what clients wrote.

Events, observations and spans enter; lines on standard output, the text of a scrape and OTLP messages leave. The
modules named in `__all__` are the room's interface.
"""

__all__ = ["gen_ai", "logging", "metrics", "redaction", "tracing"]

from proxy.observability import gen_ai, logging, metrics, redaction, tracing
