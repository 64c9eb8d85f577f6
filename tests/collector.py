"""A fake OpenTelemetry collector: takes OTLP over HTTP, decodes it, and keeps every byte."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.peers import WAIT_S, until

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

    from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

SERVER, CLIENT = 2, 3
ERROR = 2


def values(attributes: Any) -> dict[str, Any]:
    """Attributes as plain values."""
    found: dict[str, Any] = {}
    for pair in attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


@dataclass
class Seen:
    """A span as it arrived, with its sender's attributes."""

    raw: SpanMessage
    resource: dict[str, Any]
    attributes: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.attributes = values(self.raw.attributes)

    @property
    def trace_id(self) -> str:
        return self.raw.trace_id.hex()

    @property
    def span_id(self) -> str:
        return self.raw.span_id.hex()

    @property
    def parent_id(self) -> str:
        return self.raw.parent_span_id.hex()

    @property
    def is_error(self) -> bool:
        return self.raw.status.code == ERROR

    @property
    def events(self) -> list[str]:
        return [event.name for event in self.raw.events]


class Collector:
    """Listens on a free port; `status` is what it answers with, `hold` keeps it from answering at all."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.spans: list[Seen] = []
        self.metrics: dict[str, Metric] = {}
        self.bodies: list[bytes] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.status = 200
        self.changed = asyncio.Condition()
        self._held: asyncio.Event | None = None
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, on the same port as before where there was one."""
        app = web.Application()
        app.add_routes([web.post("/v1/traces", self._traces), web.post("/v1/metrics", self._metrics)])
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Be gone."""
        if self._held is not None:
            self._held.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def hold(self) -> None:
        """Take requests from now on, and answer none."""
        self._held = asyncio.Event()

    async def wait(self, count: int) -> list[Seen]:
        """The spans so far, once there are so many."""
        await until(lambda: len(self.spans) >= count, self.changed)
        return self.spans

    async def asked(self, count: int) -> None:
        """Wait until so many requests came, answered or not."""
        await until(lambda: len(self.requests) >= count, self.changed)

    async def wait_metric(self, name: str) -> Metric:
        """A metric as it was pushed last."""
        await until(lambda: name in self.metrics, self.changed)
        return self.metrics[name]

    async def _take(self, request: web.Request) -> bytes:
        body = await request.read()
        async with self.changed:
            self.requests.append((request.path, dict(request.headers)))
            self.bodies.append(body)
            self.changed.notify_all()
        if self._held is not None:
            await asyncio.wait_for(self._held.wait(), WAIT_S)
        return body

    async def _traces(self, request: web.Request) -> web.Response:
        body = await self._take(request)
        if self.status == 200:
            message = ExportTraceServiceRequest.FromString(body)
            async with self.changed:
                for whole in message.resource_spans:
                    resource = values(whole.resource.attributes)
                    self.spans += [Seen(span, resource) for scope in whole.scope_spans for span in scope.spans]
                self.changed.notify_all()
        return web.Response(status=self.status)

    async def _metrics(self, request: web.Request) -> web.Response:
        message = ExportMetricsServiceRequest.FromString(await self._take(request))
        async with self.changed:
            for whole in message.resource_metrics:
                for scope in whole.scope_metrics:
                    self.metrics |= {metric.name: metric for metric in scope.metrics}
            self.changed.notify_all()
        return web.Response(status=self.status)


def tree(spans: list[Seen]) -> dict[str, list[Seen]]:
    """The spans by their parents' ids."""
    found: dict[str, list[Seen]] = {}
    for span in spans:
        found.setdefault(span.parent_id, []).append(span)
    return found
