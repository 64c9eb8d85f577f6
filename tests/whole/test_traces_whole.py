"""Traces over whole services: real commands in a row, several workers, a collector that dies or never answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.collector import SERVER, Collector, tree
from tests.conftest import CONFIG, SECRET, VENDOR_KEY, token
from tests.peers import LAST, STREAM_HEAD, WAIT_S, chunk, connect, event, request
from tests.proxies import free_port
from tests.whole.several import several
from tests.whole.test_commands import Served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from tests.peers import Peer, Upstream

BODY = {"model": "gpt-x", "stream": True}
Address = tuple[str, int]


def telemetry(url: str, *more: str) -> str:
    return f"telemetry: {{{', '.join((f'otlp: {url}', 'traces: true', *more))}}}\n"


@contextlib.asynccontextmanager
async def serve(
    folder: Path, vendor: str, more: str, *, config: str = CONFIG, **environ: str
) -> AsyncIterator[tuple[Served, Address, Address]]:
    """The command on free ports, which exports at once: where clients come in, and the operator."""
    path = folder.with_suffix(".yaml")
    path.write_text(config.format(secret=SECRET, url=vendor, key=VENDOR_KEY) + more)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "serve", "--config", str(path)),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"OTEL_BSP_SCHEDULE_DELAY": "20", "OTEL_EXPORTER_OTLP_TIMEOUT": "300"} | environ,
    )
    try:
        served = Served(process, path)
        started = await served.line("server.started")
        yield served, address(started["listen"]), address(started["admin_listen"])
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


async def stream(at: Address, upstream: Upstream, credential: str | None = None) -> Any:
    """A whole stream: what its vendor was asked."""
    async with await connect(at) as client:
        client.write(request(body=BODY, token=credential or token()))
        vendor, asked = await upstream.take()
        await answer(client, vendor)
        return asked


async def answer(client: Peer, vendor: Peer) -> None:
    # Not to be used again: each stream is another connection to the vendor.
    vendor.write(STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + chunk(event("one")) + LAST)
    await client.read_until(LAST)


async def scrape(at: Address, accept: str = "") -> str:
    async with await connect(at) as admin:
        admin.write(request("/metrics", method="GET", fields=(("Accept", accept),) if accept else ()))
        return (await admin.read_message()).body.decode()


async def counted(at: Address, line: str) -> None:
    """Wait until the scrape has a line: the exporter's thread tells nobody."""
    async with asyncio.timeout(WAIT_S):
        while line not in (await scrape(at)).splitlines():  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def gateway(to: Address) -> AsyncIterator[str]:
    """The URL of a hop that takes `Via` away: two proxies of one pseudonym would take each other for a loop."""
    pumps: set[asyncio.Task[None]] = set()
    ends: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65536):
                writer.write(piece)
        writer.close()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        further, onward = await asyncio.open_connection(*to)
        ends.append(onward)
        onward.write(re.sub(rb"\r\nVia: [^\r]*", b"", head))
        pumps.update((asyncio.create_task(pump(reader, onward)), asyncio.create_task(pump(further, writer))))

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for end in ends:
            end.transport.abort()
            with contextlib.suppress(OSError):
                await end.wait_closed()
        await asyncio.gather(*pumps, return_exceptions=True)


async def test_two_proxies_in_a_row(tmp_path: Path, upstream: Upstream) -> None:
    """One request through two services is one trace: caller, service, its request, service, its request; the vendor."""
    # To the outer one, its vendor's key is the inner one's token.
    front = CONFIG.replace("api_key: {key}", f"api_key: {token()}\n    path: /forward-sse\n    allow_paths: all")
    async with (
        Collector() as collector,
        serve(tmp_path / "inner", upstream.url, telemetry(collector.url)) as (_, inner, _inner_admin),
        gateway(inner) as between,
        serve(tmp_path / "outer", between, telemetry(collector.url), config=front) as (_, outer, _outer_admin),
        await connect(outer) as client,
    ):
        parent = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        client.write(request(body=BODY, token=token(), fields=(parent, ("tracestate", "a=1"))))
        vendor, asked = await upstream.take()
        await answer(client, vendor)
        spans = await collector.wait(4)
    assert len(spans) == 4
    assert {span.trace_id for span in spans} == {"0af7651916cd43dd8448eb211c80319c"}
    below, chain, at = tree(spans), [], "b7ad6b7169203331"
    while at in below:
        (span,) = below[at]
        chain.append(span)
        at = span.span_id
    assert [span.raw.kind == SERVER for span in chain] == [True, False, True, False]
    assert asked.get("traceparent") == f"00-{chain[0].trace_id}-{at}-01"
    assert asked.get("tracestate") == "a=1"
    pids = [span.resource["process.pid"] for span in chain]
    assert pids[0] == pids[1] != pids[2] == pids[3]
    assert [span.attributes["forward_sse.ending"] for span in chain] == ["complete"] * 4


async def test_collector_dies(tmp_path: Path, upstream: Upstream) -> None:
    """While the collector is away requests are served as ever, what cannot be sent is counted, and told once."""
    async with (
        Collector() as collector,
        serve(tmp_path / "a", upstream.url, telemetry(collector.url)) as (served, at, admin),
    ):
        await stream(at, upstream)
        await collector.wait(2)
        await collector.stop()
        for _ in range(3):
            await stream(at, upstream)
        await counted(admin, 'forward_sse_telemetry_spans_total{outcome="failed"} 6.0')
        assert (await served.line("telemetry.export_failed"))["reason"] == "unreachable"
        await collector.start()
        await stream(at, upstream)
        spans = await collector.wait(4)
        await served.line("telemetry.export_regained")
        served.signal(signal.SIGTERM)
        lines = await served.rest()
    assert served.process.returncode == 0
    assert len({span.trace_id for span in spans}) == 2
    names = [line["event"] for line in lines]
    assert (names.count("exchange.settled"), names.count("telemetry.export_failed")) == (5, 1)
    assert not {"library.reported", "exchange.failed"} & set(names)


async def test_silent_collector_holds_nobody(tmp_path: Path, upstream: Upstream) -> None:
    """A collector that takes and never answers: streams go on, what is too much is dropped, SIGTERM ends it soon."""
    never = {"OTEL_EXPORTER_OTLP_TIMEOUT": "60000", "OTEL_BSP_MAX_QUEUE_SIZE": "5"}
    async with Collector() as collector:
        collector.hold()
        more = telemetry(collector.url)
        async with serve(tmp_path / "a", upstream.url, more, **never) as (served, at, admin):
            await stream(at, upstream)
            await collector.asked(1)
            for _ in range(3):
                await stream(at, upstream)
            # Two are being sent, two wait, and four were too much.
            lines_now = (await scrape(admin)).splitlines()
            assert 'forward_sse_telemetry_spans_total{outcome="dropped"} 4.0' in lines_now
            assert "forward_sse_telemetry_spans_waiting 4.0" in lines_now
            begin_s = asyncio.get_running_loop().time()
            served.signal(signal.SIGTERM)
            lines = await served.rest()
            took_s = asyncio.get_running_loop().time() - begin_s
    assert served.process.returncode == 0
    # The drain's own second, the bound of two, and a machine that is busy.
    assert took_s < WAIT_S / 2
    assert [line["event"] for line in lines].count("exchange.settled") == 4
    assert sum(line["spans"] for line in lines if line["event"] == "telemetry.spans_dropped") == 8


async def test_drained_stream_is_exported(tmp_path: Path, upstream: Upstream) -> None:
    """The spans of a stream that ends with the process arrive: what runs last is what one looks for."""
    async with Collector() as collector:
        more = telemetry(collector.url) + "drain_timeout: 100ms\n"
        async with serve(tmp_path / "a", upstream.url, more) as (served, at, _admin), await connect(at) as client:
            client.write(request(body=BODY, token=token()))
            vendor, _ = await upstream.take()
            vendor.write(STREAM_HEAD + chunk(event("one")))
            await client.read_until(event("one"))
            served.signal(signal.SIGTERM)
            await served.rest()
        spans = await collector.wait(2)
    assert {span.attributes["forward_sse.ending"] for span in spans} == {"drained"}
    assert all(span.is_error for span in spans)


async def test_several_workers(tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker exports its own exchanges after the fork; the scrape is the sum, with exemplars of all of them."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    async with Collector() as collector:
        more = "plans: {default: {}}\n" + telemetry(collector.url, "metrics: true")
        async with several(tmp_path, upstream, more, workers=2) as served:
            seen: set[int] = set()
            streams = 0
            async with asyncio.timeout(WAIT_S):
                while len(seen) < 2:
                    await stream(served.address, upstream)
                    streams += 1
                    spans = await collector.wait(2 * streams)
                    seen = {span.resource["process.pid"] for span in spans}
            assert seen == set(served.pids.values())
            assert len({span.trace_id for span in spans}) == streams
            text = await scrape(served.admin_address, "application/openmetrics-text")
            lines = (await scrape(served.admin_address)).splitlines()
        pushed = await collector.wait_metric("gen_ai.client.operation.duration")
    families = {family.name: family for family in text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]  # the library's
    operations = families["gen_ai_client_operation_duration_seconds"].samples
    assert [sample.value for sample in operations if sample.name.endswith("_count")] == [streams]
    exemplars = [sample.exemplar for sample in operations if sample.exemplar is not None]
    assert exemplars
    assert {exemplar.labels["trace_id"] for exemplar in exemplars} <= {span.trace_id for span in spans}
    exported = f'forward_sse_telemetry_spans_total{{outcome="exported"}} {2 * streams}.0'
    assert exported in lines
    assert pushed.histogram.data_points[0].count <= streams


async def test_free_port_is_no_collector(tmp_path: Path, upstream: Upstream) -> None:
    """A collector that was never there keeps nothing from starting, serving and ending."""
    url = f"http://127.0.0.1:{free_port()}"
    async with serve(tmp_path / "a", upstream.url, telemetry(url, "metrics: true")) as (served, at, _admin):
        await stream(at, upstream)
        served.signal(signal.SIGTERM)
        lines = await served.rest()
    assert served.process.returncode == 0
    assert [line["event"] for line in lines].count("exchange.settled") == 1
