"""The exporter: a bounded queue of spans, and a thread of its own that sends them by OTLP over HTTP.

A worker must not wait for its collector. Spans are handed over by an append; what does not fit is dropped and counted,
whole exchanges at a time, so that no trace has half of them. Failures are counted and logged when they begin and end.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from proxy.observability.otlp_http import encode, new_session, post

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    from proxy.observability.gen_ai import Instrument, Reading
    from proxy.observability.otlp_http import Target
    from proxy.observability.tracing import Span, Value

    Counted = Sequence[tuple[Instrument, Sequence[Reading]]]

# A collector that does not answer delays the end of the process by no more than that.
CLOSE_S: Final = 2.0
# A queue that stays full, or a collector that stays away, is told of once in so long.
TELL_EVERY_S: Final = 30.0
# After so many spans the thread lets go of the interpreter for a moment: the loop has events to relay.
_AT_ONCE: Final = 32
_BREATH_S: Final = 0.0005
_MOST_TRIES: Final = 6
_LONGEST_BACKOFF_S: Final = 8.0


class Batching(NamedTuple):
    """How spans are gathered: the standard's names and defaults (OTEL_BSP_…)."""

    most_waiting: int = 2048
    most_in_batch: int = 512
    delay_s: float = 5.0


def _without_secrets(span: Span, redact: Callable[[bytes], bytes]) -> Span:
    attributes = {
        name: None if value is None else _clean_value(value, redact) for name, value in span.attributes.items()
    }
    return span._replace(name=_clean(span.name, redact), state=redact(span.state), attributes=attributes)


def _clean_value(value: Value, redact: Callable[[bytes], bytes]) -> Value:
    if isinstance(value, str):
        return _clean(value, redact)
    if isinstance(value, bool | int | float):
        return value
    return [_clean(item, redact) for item in value]


def _clean(text: str, redact: Callable[[bytes], bytes]) -> str:
    return redact(text.encode("utf-8", "replace")).decode("utf-8", "replace")


class Exporter:
    """Sends spans and metrics from its own thread; `open` in the process that uses it, after any fork.

    `put`, `replace_metrics` and `collect` are for the loop's thread and never block.
    """

    def __init__(
        self,
        *,
        traces: Target | None,
        metrics: Target | None,
        batching: Batching,
        resource: Mapping[str, Value],
        version: str,
        schema_url: str = "",
        redact: Callable[[bytes], bytes] = bytes,
    ) -> None:
        """`redact` takes secrets out of a text, should one have got there."""
        self._targets = {"traces": traces, "metrics": metrics}
        self._batching = batching
        self._resource = resource
        self._version = version
        self._schema_url = schema_url
        self._redact = redact
        self._waiting: deque[Sequence[Span]] = deque()
        self._counted: Counted | None = None
        self._since_ns = time.time_ns()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._end_s = float("inf")
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        # Each number is written by one thread: spans taken and dropped by the loop's, the others by ours.
        self._taken = self._dropped = 0
        self._begun = self._exported = self._failed = self._pushed = self._push_failures = 0
        self._told_dropped = 0
        self._tell_at_s: dict[str, float] = {}
        self._failing: set[str] = set()

    def open(self) -> None:
        """Load the libraries and start the thread.

        Raises:
            ImportError: the extra `otel` is not installed.
        """
        from proxy.observability import otlp  # noqa: PLC0415 - 6 MiB with `requests`, which only those pay who export

        self._otlp = otlp
        self._sessions = {kind: new_session() for kind, target in self._targets.items() if target is not None}
        self._thread.start()

    def put(self, spans: Sequence[Span]) -> None:
        """Queue an exchange's spans, or drop them where too many wait."""
        waiting = self.waiting + len(spans)
        if waiting > self._batching.most_waiting:
            self._dropped += len(spans)
            return
        # In this order: the thread takes what is counted.
        self._waiting.append(spans)
        self._taken += len(spans)
        if self._taken - self._begun >= self._batching.most_in_batch and not self._wake.is_set():
            self._wake.set()

    def replace_metrics(self, counted: Counted) -> None:
        """Send what was counted; where the last of it still waits, in its place."""
        self._counted = counted
        self._wake.set()

    @property
    def waiting(self) -> int:
        """How many spans wait, those included that are being sent."""
        return self._taken - self._exported - self._failed

    def collect(self) -> Iterator[Metric]:
        """What became of spans and metrics, for the registry."""
        spans = CounterMetricFamily(
            "forward_sse_telemetry_spans_total", "Spans, by what became of them.", labels=["outcome"]
        )
        for outcome, count in (("exported", self._exported), ("failed", self._failed), ("dropped", self._dropped)):
            spans.add_metric([outcome], count)
        pushes = CounterMetricFamily(
            "forward_sse_telemetry_metric_pushes_total", "Pushes of metrics, by how they came out.", labels=["outcome"]
        )
        for outcome, count in (("exported", self._pushed), ("failed", self._push_failures)):
            pushes.add_metric([outcome], count)
        yield from (spans, pushes)
        yield GaugeMetricFamily(
            "forward_sse_telemetry_spans_waiting", "Spans that wait for export.", value=self.waiting
        )

    def close(self) -> None:
        """Send what waits, for at most `CLOSE_S`. Blocks: not for the loop's thread."""
        self._end_s = time.monotonic() + CLOSE_S
        self._closing.set()
        self._wake.set()
        self._thread.join(CLOSE_S)
        lost = self.waiting
        if lost or self._dropped > self._told_dropped:
            self._tell_dropped(self._dropped - self._told_dropped + lost)

    # The thread's.

    def _run(self) -> None:
        while True:
            self._wake.wait(self._batching.delay_s)
            self._wake.clear()
            is_last = self._closing.is_set()
            self._send_all()
            if is_last:
                return

    def _send_all(self) -> None:
        self._send_metrics()
        # What comes meanwhile waits for the next time: else a busy worker's would leave by twos and threes.
        end = self._taken
        while self._begun < end and time.monotonic() < self._end_s:
            self._send_spans()
            self._send_metrics()
        self._tell_of_drops()

    def _send_spans(self) -> None:
        batch: list[Span] = []
        while self._waiting and len(batch) < self._batching.most_in_batch:
            batch += self._waiting.popleft()
        self._begun += len(batch)
        try:
            data = self._encode(batch)
            if self._redact(data) != data:
                # A client has sent a secret of the operator's, as a path or as a model's name.
                data = self._encode([_without_secrets(span, self._redact) for span in batch])
        except (TypeError, ValueError):
            # A defect of ours, which must not end the thread.
            self._failed += len(batch)
            self._tell_failed("traces", "not_encoded")
            return
        if self._send("traces", data):
            self._exported += len(batch)
        else:
            self._failed += len(batch)

    def _encode(self, batch: Sequence[Span]) -> bytes:
        message = self._otlp.trace_request(self._version, self._resource, self._schema_url)
        for number, span in enumerate(batch, 1):
            self._otlp.add_span(message, span)
            if number % _AT_ONCE == 0:
                time.sleep(_BREATH_S)
        data: bytes = message.SerializeToString()
        return data

    def _send_metrics(self) -> None:
        counted, self._counted = self._counted, None
        if counted is None:
            return
        message = self._otlp.metrics_request(
            counted,
            version=self._version,
            resource=self._resource,
            schema_url=self._schema_url,
            since_ns=self._since_ns,
            at_ns=time.time_ns(),
        )
        if self._send("metrics", message.SerializeToString()):
            self._pushed += 1
        else:
            self._push_failures += 1

    def _send(self, kind: str, data: bytes) -> bool:
        """Send a message, again where that may help, until its timeout; whether it has arrived."""
        target = self._targets[kind]
        assert target is not None  # nothing is put in for which there is no target
        body, fields = encode(target, data, self._version)
        end_s = min(time.monotonic() + target.timeout_s, self._end_s)
        problem = "timeout"
        for attempt in range(_MOST_TRIES):
            timeout_s = max(0.05, min(end_s, self._end_s) - time.monotonic())
            problem, wait_s = post(self._sessions[kind], target, body, fields, timeout_s)
            if not problem:
                self._tell_regained(kind)
                return True
            if wait_s is None:
                break
            wait_s = wait_s or min(2.0**attempt, _LONGEST_BACKOFF_S) * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load
            if time.monotonic() + wait_s >= end_s or self._closing.wait(wait_s):
                break
        self._tell_failed(kind, problem)
        return False

    # What the log is told of.

    def _tell_failed(self, kind: str, problem: str) -> None:
        self._failing.add(kind)
        if self._is_time(f"failed {kind}"):
            structlog.get_logger().warning("telemetry.export_failed", signal=kind, reason=problem)

    def _tell_regained(self, kind: str) -> None:
        if kind in self._failing:
            self._failing.discard(kind)
            self._tell_at_s.pop(f"failed {kind}", None)
            structlog.get_logger().info("telemetry.export_regained", signal=kind)

    def _tell_of_drops(self) -> None:
        dropped = self._dropped - self._told_dropped
        if dropped and not self._closing.is_set() and self._is_time("dropped"):
            self._told_dropped += dropped
            self._tell_dropped(dropped)

    def _tell_dropped(self, spans: int) -> None:
        structlog.get_logger().warning("telemetry.spans_dropped", spans=spans)

    def _is_time(self, what: str) -> bool:
        now_s = time.monotonic()
        if now_s < self._tell_at_s.get(what, 0.0):
            return False
        self._tell_at_s[what] = now_s + TELL_EVERY_S
        return True
