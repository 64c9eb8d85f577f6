"""The exporter: what it does with a collector that is away, slow or refuses, and with more spans than it may keep."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from proxy.observability import exporter as room
from proxy.observability.exporter import Batching, Exporter
from proxy.observability.otlp_http import Target
from proxy.observability.tracing import Span
from tests.peers import WAIT_S
from tests.proxies import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

LINES: list[dict[str, object]] = []


class Answers(HTTPServer):
    """A collector that answers with one status after the other, the last for ever; `gate` holds it."""

    def __init__(self, port: int = 0, *statuses: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.statuses = list(statuses) or [200]
        self.bodies: list[bytes] = []
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Semaphore(0)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/traces"

    def close(self) -> None:
        self.gate.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def spans(self) -> int:
        messages = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return sum(len(message.resource_spans[0].scope_spans[0].spans) for message in messages)


class _Handler(BaseHTTPRequestHandler):
    server: Answers

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.release()
        self.server.gate.wait(WAIT_S)
        statuses = self.server.statuses
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        if status == 200:
            self.server.bodies.append(body)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture(autouse=True)
def lines() -> Iterator[list[dict[str, object]]]:
    """What is logged, whichever thread does it."""
    LINES.clear()

    def keep(_logger: object, _name: str, event: MutableMapping[str, Any]) -> NoReturn:
        LINES.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    yield LINES
    structlog.reset_defaults()


def span(number: int = 1, path: str = "/x") -> Span:
    return Span(f"{number:032x}", f"{number:016x}", None, 1, b"", "x", True, 1, 2, {"url.path": path})


def exporter(url: str, *, timeout_s: float = 5.0, batching: Batching = Batching(delay_s=0.01)) -> Exporter:  # noqa: B008 - a constant
    made = Exporter(traces=Target(url, timeout_s=timeout_s), metrics=None, batching=batching, resource={}, version="1")
    made.open()
    return made


def counts(one: Exporter) -> dict[str, float]:
    """The numbers of the scrape."""
    return {
        f"{sample.name.removeprefix('forward_sse_telemetry_')} {sample.labels.get('outcome', '')}".strip(): sample.value
        for family in one.collect()
        for sample in family.samples
    }


def until(condition: str, one: Exporter, value: float) -> None:
    """Wait for a number of the scrape: the thread tells nobody."""
    end_s = time.monotonic() + WAIT_S
    while counts(one)[condition] != value:
        assert time.monotonic() < end_s, counts(one)
        time.sleep(0.005)


def test_all_arrive() -> None:
    """What was put in is sent, in batches, and at the end what waits."""
    server = Answers()
    one = exporter(server.url, batching=Batching(most_in_batch=10, delay_s=60))
    for number in range(1, 26):
        one.put([span(number), span(number + 100)])
    one.close()
    server.close()
    assert server.spans() == 50
    assert len(server.bodies) == 5
    assert counts(one) | {"spans_total exported": 50, "spans_total dropped": 0, "spans_waiting": 0} == counts(one)
    assert LINES == []


def test_what_comes_meanwhile_waits() -> None:
    """What comes while spans are sent leaves with what comes later, not by ones and twos."""
    server = Answers()
    server.gate.clear()
    one = exporter(server.url, batching=Batching(most_in_batch=4, delay_s=60))
    one.put([span()] * 4)
    assert server.asked.acquire(timeout=WAIT_S)
    one.put([span()])
    one.put([span()])
    server.gate.set()
    until("spans_total exported", one, 4)
    # The thread waits now, or will: not before this is a message full.
    one.put([span()] * 2)
    until("spans_total exported", one, 8)
    one.close()
    server.close()
    sent = [ExportTraceServiceRequest.FromString(body) for body in server.bodies]
    assert [len(message.resource_spans[0].scope_spans[0].spans) for message in sent] == [4, 4]


def test_full_queue_drops() -> None:
    """Behind a collector that does not answer, what does not fit is dropped, counted, and told once."""
    server = Answers()
    server.gate.clear()
    one = exporter(server.url, batching=Batching(most_waiting=10, most_in_batch=2, delay_s=0.01))
    one.put([span(), span()])
    assert server.asked.acquire(timeout=WAIT_S)
    begin_s = time.monotonic()
    for _ in range(1000):
        one.put([span(), span(), span()])
    assert time.monotonic() - begin_s < WAIT_S / 2
    assert counts(one)["spans_waiting"] == 8
    # The two that are being sent count, too: they are kept.
    assert counts(one)["spans_total dropped"] == 3 * 1000 - 6
    server.gate.set()
    until("spans_total exported", one, 8)
    one.close()
    server.close()
    assert [line["spans"] for line in LINES if line["event"] == "telemetry.spans_dropped"] == [2994]


def test_collector_away_and_back() -> None:
    """Failures are counted, and logged when they begin and end; what comes afterwards arrives."""
    port = free_port()
    one = exporter(f"http://127.0.0.1:{port}/v1/traces", timeout_s=0.2)
    for _ in range(3):
        failed = counts(one)["spans_total failed"]
        one.put([span()])
        until("spans_total failed", one, failed + 1)
    server = Answers(port)
    one.put([span()])
    until("spans_total exported", one, 1)
    one.close()
    server.close()
    events = [(line["event"], line.get("reason")) for line in LINES]
    assert events == [("telemetry.export_failed", "unreachable"), ("telemetry.export_regained", None)]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_retried(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the standard says may be tried again is, and arrives once."""
    monkeypatch.setattr(room, "_LONGEST_BACKOFF_S", 0.01)
    server = Answers(0, status, status, 200)
    one = exporter(server.url)
    one.put([span()])
    until("spans_total exported", one, 1)
    one.close()
    server.close()
    assert server.spans() == 1
    assert LINES == []


@pytest.mark.parametrize("status", [400, 401, 404, 500, 302])
def test_refused_for_good(status: int) -> None:
    """Any other answer is a failure at once; the log has the status, and nothing that the collector said."""
    server = Answers(0, status)
    one = exporter(server.url)
    one.put([span()])
    until("spans_total failed", one, 1)
    one.close()
    server.close()
    assert [line.get("reason") for line in LINES] == [f"status {status}"]


@pytest.mark.parametrize("is_silent", [True, False])
def test_close_is_bounded(is_silent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that is gone, or never answers, delays the end by no more than the bound."""
    monkeypatch.setattr(room, "CLOSE_S", 0.3)
    server = Answers()
    server.gate.clear()
    url = server.url if is_silent else f"http://127.0.0.1:{free_port()}/v1/traces"
    one = exporter(url, timeout_s=WAIT_S)
    one.put([span()] * 5)
    if is_silent:
        assert server.asked.acquire(timeout=WAIT_S)
    begin_s = time.monotonic()
    one.close()
    assert time.monotonic() - begin_s < WAIT_S / 2
    server.close()
    events = [line["event"] for line in LINES]
    assert "telemetry.spans_dropped" in events or "telemetry.export_failed" in events


def test_secret_in_a_path() -> None:
    """A configured secret is taken out of whatever a client or a vendor chooses, and half a character is no fault."""
    server = Answers()
    one = Exporter(
        traces=Target(server.url), metrics=None, batching=Batching(delay_s=0.01), resource={}, version="1",
        redact=lambda text: text.replace(b"canary", b"[redacted]"),
    )  # fmt: skip
    one.open()
    one.put([span(path="/a/canary/b"), span(path="/\ud800")])
    one.put([span()._replace(name="chat canary", state=b"a=canary")])
    one.put([span()._replace(attributes={"reasons": ["stop", "canary"], "count": 3, "stream": True, "usd": 0.5})])
    one.close()
    server.close()
    assert b"canary" not in b"".join(server.bodies)
    assert b"/a/[redacted]/b" in b"".join(server.bodies)
    assert b"chat [redacted]" in b"".join(server.bodies)
    assert b"a=[redacted]" in b"".join(server.bodies)
    assert counts(one)["spans_total exported"] == 4


def test_headers_are_not_shown() -> None:
    """What a collector is shown stands in no text of the target."""
    assert "canary" not in repr(Target("http://x", (("authorization", "canary"),)))
