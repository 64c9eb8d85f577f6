"""Spans as a collector gets them: one trace an exchange, whatever became of it, and nothing of what was said."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from typing import TYPE_CHECKING, Any

import pytest

from proxy.app import make_app
from proxy.model import Ending
from proxy.settings.loading import load
from tests.collector import CLIENT, SERVER, Collector, Seen
from tests.conftest import CONFIG, SECRET, VENDOR_KEY, token
from tests.peers import LAST, STREAM_HEAD, chunk, event, request, secret_free
from tests.proxies import free_port
from tests.settings_builder import settings
from tests.whole.scenes import fill

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from pytest_aiohttp.plugin import AiohttpClient

    from tests.conftest import Running
    from tests.peers import Upstream

    Start = Callable[..., Any]

AT_ONCE = {"OTEL_BSP_SCHEDULE_DELAY": "20"}
BODY = {"model": "gpt-x", "stream": True, "messages": [{"role": "user", "content": "prompt-canary-90af"}]}
ANSWER = event("answer-canary-17be")
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
FAILED = b"HTTP/1.1 %d X\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    """A collector that answers."""
    async with Collector() as collector:
        yield collector


def traced(collector: Collector, more: str = "", **telemetry: object) -> str:
    """The part of the configuration that turns tracing on."""
    keys = {"otlp": collector.url, "traces": "true"} | telemetry
    return f"telemetry: {{{', '.join(f'{key}: {value}' for key, value in keys.items())}}}\n{more}"


def parent(flags: str = "01") -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{TRACE}-{CALLER}-{flags}"), ("tracestate", "a=1"))


def sorted_spans(spans: list[Seen]) -> tuple[Seen, list[Seen]]:
    """The exchange's span, and those of its requests to vendors; they are one trace, with the right parents."""
    servers = [span for span in spans if span.raw.kind == SERVER]
    assert len(servers) == 1
    clients = [span for span in spans if span.raw.kind == CLIENT]
    assert len(clients) == len(spans) - 1
    assert {span.trace_id for span in spans} == {servers[0].trace_id}
    assert all(span.parent_id == servers[0].span_id for span in clients)
    for span in clients:
        assert servers[0].raw.start_time_unix_nano <= span.raw.start_time_unix_nano
        assert span.raw.start_time_unix_nano <= span.raw.end_time_unix_nano <= servers[0].raw.end_time_unix_nano
    return servers[0], clients


async def ask(
    proxy: Running, *, body: dict[str, Any] | bytes | None = None, path: str = "/forward-sse", **more: Any
) -> Any:
    client = await proxy.client()
    client.write(request(path, body=body or BODY, **({"token": token()} | more)))
    return client


async def test_complete_stream(start: Start, upstream: Upstream, collector: Collector) -> None:
    """A stream that ends well is one trace of two spans, with what is known of both sides, and the caller above."""
    proxy = await start(traced(collector), environ=AT_ONCE)
    client = await ask(proxy, body=BODY | {"max_tokens": 12}, fields=(*parent(), ("baggage", "user=secret")))
    vendor, asked = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(ANSWER))
    await client.read_until(ANSWER)
    last = b'data: {"id":"c-1","model":"gpt-x-1","choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    usage = b'{"prompt_tokens":3,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":2}}'
    vendor.write(chunk(last + b'data: {"id":"c-1","model":"gpt-x-1","choices":[],"usage":%b}\n\n' % usage) + LAST)
    await client.read_until(LAST)
    line = (await proxy.settled())[0]
    server, (attempt,) = sorted_spans(await collector.wait(2))

    assert (server.trace_id, server.parent_id) == (TRACE, CALLER)
    assert (line["trace_id"], line["span_id"]) == (TRACE, server.span_id)
    assert asked.get("traceparent") == f"00-{TRACE}-{attempt.span_id}-01"
    assert asked.get("tracestate") == "a=1"
    assert asked.get("baggage") is None
    assert server.raw.trace_state == attempt.raw.trace_state == "a=1"
    assert server.raw.name == "POST /forward-sse"
    assert server.attributes == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "url.path": "/forward-sse",
        "http.route": "/forward-sse",
        "http.response.status_code": 200,
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
        "forward_sse.id": line["id"],
        "forward_sse.ending": "complete",
        "forward_sse.plan": "default",
        "forward_sse.upstream": "main",
        "forward_sse.attempts": 1,
        "forward_sse.bytes": line["bytes"],
        "forward_sse.events": 3,
        **(gen_ai := {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-x",
            "gen_ai.request.stream": True,
            "gen_ai.request.max_tokens": 12,
            "gen_ai.response.id": "c-1",
            "gen_ai.response.model": "gpt-x-1",
            "gen_ai.response.finish_reasons": ["stop"],
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 5,
            "gen_ai.usage.cache_read.input_tokens": 2,
            "forward_sse.usage": "reported",
        }),
    }  # fmt: skip
    assert attempt.raw.name == "chat gpt-x"
    assert attempt.attributes == gen_ai | {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": upstream.address[1],
        "forward_sse.upstream": "main",
        "forward_sse.key": hashlib.sha256(VENDOR_KEY.encode()).hexdigest()[:8],
        "forward_sse.ending": "complete",
    }
    assert server.events == attempt.events == ["forward_sse.first_byte", "forward_sse.end"]
    assert [server.is_error, attempt.is_error] == [False, False]
    first, end = server.raw.events
    assert server.raw.start_time_unix_nano <= first.time_unix_nano <= end.time_unix_nano
    assert end.time_unix_nano == server.raw.end_time_unix_nano


async def test_nothing_of_what_was_said(start: Start, upstream: Upstream, collector: Collector) -> None:
    """No prompt, answer, token, key, query or user is in any byte that was exported, of spans and metrics."""
    proxy = await start(traced(collector, metrics="true"), environ=AT_ONCE)
    credential = token()
    client = await ask(proxy, path="/main/v1/chat/completions?secret=query-canary", token=credential)
    vendor, _ = await upstream.take()
    choices = b'[{"message":{"content":"answer-canary-17be"},"finish_reason":"stop"}]'
    whole = b'{"id":"x","choices":%b,"usage":{"prompt_tokens":1,"completion_tokens":2}}' % choices
    vendor.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(whole), whole)
    )
    await client.read_message()
    # A credential where the path should be, in a request that is refused.
    await (await ask(proxy, path=f"/main/{credential}", token=credential)).read_message()
    # A secret of the operator's.
    await (await ask(proxy, path=f"/main/{VENDOR_KEY}")).read_message()
    await proxy.settled(3)
    await proxy.close()
    server, (attempt,) = sorted_spans(
        [span for span in collector.spans if span.trace_id == collector.spans[0].trace_id]
    )
    assert server.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert server.attributes["http.route"] == "/main/{path}"
    assert attempt.attributes["gen_ai.usage.output_tokens"] == 2
    assert len(collector.spans) == 4
    canaries = ("canary", "alice", credential, SECRET)
    for body in collector.bodies:
        assert secret_free(body, *canaries)
    assert {path for path, _ in collector.requests} == {"/v1/traces", "/v1/metrics"}


async def end_refused(proxy: Running, upstream: Upstream) -> None:
    assert (await (await ask(proxy, token="x")).read_message()).status == 401


async def end_client_closed(proxy: Running, upstream: Upstream) -> None:
    client, _ = await running(proxy, upstream)
    await client.gone()


async def end_client_closed_early(proxy: Running, upstream: Upstream) -> None:
    client = await ask(proxy)
    await upstream.take()
    await client.gone()


async def end_upstream_closed(proxy: Running, upstream: Upstream) -> None:
    client, vendor = await running(proxy, upstream)
    vendor.reset()
    await client.read_to_end()


async def end_no_answer(proxy: Running, upstream: Upstream) -> None:
    client = await ask(proxy)
    vendor, _ = await upstream.take()
    vendor.reset()
    assert (await client.read_message()).status == 502


async def end_vendor_500(proxy: Running, upstream: Upstream) -> None:
    await vendors_own(proxy, upstream, 500)


async def end_vendor_429(proxy: Running, upstream: Upstream) -> None:
    await vendors_own(proxy, upstream, 429)


async def end_first_byte(proxy: Running, upstream: Upstream) -> None:
    assert (await (await ask(proxy)).read_message()).status == 504


async def end_idle(proxy: Running, upstream: Upstream) -> None:
    client, _ = await running(proxy, upstream)
    await client.read_to_end()


async def end_total(proxy: Running, upstream: Upstream) -> None:
    client, _ = await running(proxy, upstream)
    await client.read_to_end()


async def end_write(proxy: Running, upstream: Upstream) -> None:
    client = await proxy.client(receive_buffer=4096)
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    with contextlib.suppress(ConnectionError):
        await fill(vendor)


async def end_unreachable(proxy: Running, upstream: Upstream) -> None:
    upstream._server.close()
    assert (await (await ask(proxy)).read_message()).status == 502


async def end_stopped(proxy: Running, upstream: Upstream) -> None:
    client, _ = await running(proxy, upstream)
    assert proxy.service.exchanges.interrupt(Ending.STOPPED) == 1
    await client.read_to_end()


async def end_drained(proxy: Running, upstream: Upstream) -> None:
    client, _ = await running(proxy, upstream)
    await proxy.server.drain(timeout_s=0)
    await client.read_to_end()


async def running(proxy: Running, upstream: Upstream) -> tuple[Any, Any]:
    client = await ask(proxy)
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(ANSWER))
    await client.read_until(ANSWER)
    return client, vendor


async def vendors_own(proxy: Running, upstream: Upstream, status: int) -> None:
    client = await ask(proxy)
    vendor, _ = await upstream.take()
    vendor.write(FAILED % status)
    assert (await client.read_message()).status == status


CLOCKS = "timeouts: {first_byte: 300ms, idle: 300ms}\n"
# How it ends; the configuration; the ending; status and error of the exchange's span, then of the vendor's.
ENDINGS: list[tuple[Any, str, str, int | None, str | None, tuple[int | None, str | None] | None]] = [
    (end_refused, "", "refused", 401, None, None),
    (end_client_closed, "", "client_closed", 200, None, (200, None)),
    (end_client_closed_early, "", "client_closed", None, None, (None, None)),
    (end_upstream_closed, "", "upstream_closed", 200, "upstream_closed", (200, "upstream_closed")),
    (end_no_answer, "", "upstream_error", 502, "502", (None, "upstream_error")),
    (end_vendor_500, "", "upstream_error", 500, "500", (500, "500")),
    (end_vendor_429, "", "upstream_error", 429, None, (429, "429")),
    (end_first_byte, CLOCKS, "timeout_first_byte", 504, "504", (None, "timeout_first_byte")),
    (end_idle, CLOCKS, "timeout_idle", 200, "timeout_idle", (200, "timeout_idle")),
    (end_total, "timeouts: {total: 300ms}\n", "timeout_total", 200, "timeout_total", (200, "timeout_total")),
    (end_write, "client_timeouts: {write: 300ms}\n", "timeout_write", 200, None, (200, None)),
    (end_unreachable, "", "upstream_error", 502, "502", (None, "upstream_error")),
    (end_stopped, "", "stopped", 200, None, (200, None)),
    (end_drained, "", "drained", 200, "drained", (200, "drained")),
]


@pytest.mark.parametrize(
    ("end", "more", "ending", "status", "error", "attempted"), ENDINGS, ids=[case[0].__name__ for case in ENDINGS]
)
async def test_ending(  # noqa: PLR0917 - the cases' columns
    start: Start,
    upstream: Upstream,
    collector: Collector,
    end: Any,
    more: str,
    ending: str,
    status: int | None,
    error: str | None,
    attempted: tuple[int | None, str | None] | None,
) -> None:
    """However it ends, there is one trace; its spans say how, and are errors where the conventions want that."""
    proxy = await start(traced(collector, more), environ=AT_ONCE)
    await end(proxy, upstream)
    line = (await proxy.settled())[0]
    server, attempts = sorted_spans(await collector.wait(1 if attempted is None else 2))
    assert line["ending"] == ending == server.attributes["forward_sse.ending"]
    assert server.attributes.get("http.response.status_code") == status == line["status"]
    assert server.attributes.get("forward_sse.code") == line["code"]
    assert (server.is_error, server.attributes.get("error.type")) == (error is not None, error)
    assert server.raw.events[-1].name == "forward_sse.end"
    assert ("forward_sse.first_byte" in server.events) == (line["ttfb_ms"] is not None)
    assert len(attempts) == (attempted is not None)
    if attempted is not None:
        found = attempts[0].attributes
        assert (found.get("http.response.status_code"), found.get("error.type")) == attempted
        assert attempts[0].is_error is (attempted[1] is not None)
        assert found["forward_sse.ending"] == ending
        assert found.get("forward_sse.reason") == line["reason"]
    assert proxy.leases_held == 0


ROUTES = """
  other:
    url: {url}
    dialect: openai
    api_key: other-key
routes:
  - {{models: ["gpt-*"], upstreams: [main, {{name: other, model: gpt-other}}], retry: {{}}}}
"""


async def test_failover(start: Start, upstream: Upstream, collector: Collector) -> None:
    """Two attempts are two spans below one, in order, each with its own id at its vendor, and the second linked."""
    config = CONFIG.replace("default_upstream", ROUTES.strip("\n") + "\ndefault_upstream")
    proxy = await start(traced(collector), config=config, environ=AT_ONCE)
    client = await ask(proxy)
    vendor, first = await upstream.take()
    vendor.write(FAILED % 500)
    vendor, second = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(ANSWER) + LAST)
    await client.read_until(LAST)
    server, attempts = sorted_spans(await collector.wait(3))
    sent = [f"00-{server.trace_id}-{attempt.span_id}-01" for attempt in attempts]
    assert [first.get("traceparent"), second.get("traceparent")] == sent
    assert [attempt.raw.name for attempt in attempts] == ["chat gpt-x", "chat gpt-other"]
    assert [attempt.attributes["forward_sse.upstream"] for attempt in attempts] == ["main", "other"]
    assert [attempt.attributes.get("http.request.resend_count") for attempt in attempts] == [None, 1]
    assert [attempt.attributes.get("error.type") for attempt in attempts] == ["500", None]
    assert [attempt.is_error for attempt in attempts] == [True, False]
    assert [[link.span_id.hex() for link in attempt.raw.links] for attempt in attempts] == [[], [attempts[0].span_id]]
    assert "gen_ai.response.model" not in attempts[0].attributes
    assert server.attributes["forward_sse.attempts"] == 2
    assert server.attributes["gen_ai.request.model"] == "gpt-other"
    assert not server.is_error


async def test_failover_has_its_reason(start: Start, upstream: Upstream, collector: Collector) -> None:
    """Why a vendor that could not be reached was left stands in its span: the line has the reason of the end alone."""
    config = CONFIG.replace("default_upstream", ROUTES.strip("\n") + "\ndefault_upstream")
    config = config.replace("url: {url}", f"url: http://127.0.0.1:{free_port()}", 1)
    proxy = await start(traced(collector), config=config, environ=AT_ONCE)
    client = await ask(proxy)
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(ANSWER) + LAST)
    await client.read_until(LAST)
    server, attempts = sorted_spans(await collector.wait(3))
    assert [attempt.attributes.get("forward_sse.reason") for attempt in attempts] == ["refused", None]
    assert "forward_sse.reason" not in server.attributes
    assert (await proxy.settled())[0]["reason"] is None


@pytest.mark.parametrize(
    ("sample", "environ", "flags", "is_recorded"),
    [
        ("1.0", {}, None, True),
        ("0", {}, None, False),
        ("0", {}, "01", True),
        ("1", {}, "00", False),
        (None, {"OTEL_TRACES_SAMPLER": "always_off"}, "01", False),
        (None, {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1.0"}, "00", True),
        (None, {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, None, False),
        ("1", {"OTEL_TRACES_SAMPLER": "always_off"}, None, True),
    ],
)
async def test_sampling(
    start: Start,
    upstream: Upstream,
    collector: Collector,
    sample: str | None,
    environ: dict[str, str],
    flags: str | None,
    is_recorded: bool,
) -> None:
    """The caller's decision counts, else the share; what is not recorded is sent on with the flag 00."""
    more = {} if sample is None else {"sample": sample}
    proxy = await start(traced(collector, **more), environ=AT_ONCE | environ)
    client = await ask(proxy, fields=() if flags is None else parent(flags))
    vendor, asked = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(ANSWER) + LAST)
    await client.read_until(LAST)
    line = (await proxy.settled())[0]
    version, trace_id, span_id, sent_flags = (asked.get("traceparent") or "").split("-")
    assert (version, trace_id, sent_flags) == ("00", line["trace_id"], "01" if is_recorded else "00")
    assert trace_id == TRACE if flags is not None else trace_id != TRACE
    assert span_id not in {CALLER, line["span_id"]}
    await proxy.close()
    assert len(collector.spans) == (2 if is_recorded else 0)


async def test_off_passes_untouched(start: Start, upstream: Upstream, collector: Collector) -> None:
    """Without tracing the fields pass as they came, and a valid `traceparent` is named in the line."""
    proxy = await start()
    sent = (*parent("00"), ("baggage", "a=b"))
    client = await ask(proxy, fields=sent)
    vendor, asked = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(ANSWER) + LAST)
    await client.read_until(LAST)
    line = (await proxy.settled())[0]
    assert [(name, asked.get(name)) for name, _ in sent] == list(sent)
    assert (line["trace_id"], line["span_id"]) == (TRACE, CALLER)
    assert collector.bodies == []


@pytest.mark.parametrize("text", [None, "00-0-0-01", f"00-{TRACE.upper()}-{CALLER}-01"])
async def test_off_names_no_invalid_trace(proxy: Running, upstream: Upstream, text: str | None) -> None:
    """What is no valid `traceparent` passes too, and is not named."""
    client = await ask(proxy, fields=() if text is None else (("traceparent", text),))
    vendor, asked = await upstream.take()
    vendor.write(STREAM_HEAD + LAST)
    await client.read_until(LAST)
    line = (await proxy.settled())[0]
    assert asked.get("traceparent") == text
    assert not {"trace_id", "span_id"} & set(line)


async def test_sdk_disabled(start: Start, upstream: Upstream, collector: Collector) -> None:
    """The standard's switch turns all of it off."""
    proxy = await start(traced(collector, metrics="true"), environ={"OTEL_SDK_DISABLED": "true"})
    client = await ask(proxy, fields=parent("00"))
    vendor, asked = await upstream.take()
    vendor.write(STREAM_HEAD + LAST)
    await client.read_until(LAST)
    assert asked.get("traceparent") == parent("00")[0][1]
    await proxy.close()
    assert collector.bodies == []


USER_KEY = "a key of sixteen bytes or more"


@pytest.mark.parametrize("user", ["none", "hashed", "keyed", "plain"])
async def test_user(start: Start, upstream: Upstream, collector: Collector, user: str) -> None:
    """A user is named only as the operator wants it, and only in the exchange's own span."""
    more = {"user": "hashed", "user_key": f'"{USER_KEY}"'} if user == "keyed" else {"user": user}
    proxy = await start(traced(collector, **more), environ=AT_ONCE)
    client, vendor = await running(proxy, upstream)
    vendor.write(LAST)
    await client.read_until(LAST)
    server, (attempt,) = sorted_spans(await collector.wait(2))
    name = b"tests\0alice"
    expected = {
        "none": {},
        "hashed": {"enduser.pseudo.id": hashlib.sha256(name).hexdigest()[:32]},
        "keyed": {"enduser.pseudo.id": hmac.digest(USER_KEY.encode(), name, "sha256").hex()[:32]},
        "plain": {"enduser.id": "alice"},
    }[user]
    assert {name: value for name, value in server.attributes.items() if name.startswith("enduser")} == expected
    assert not [name for name in attempt.attributes if "user" in name]


@pytest.mark.parametrize(
    ("given", "environ", "is_latest"),
    [
        ('"1.41"', {"OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental"}, False),
        (None, {"OTEL_SEMCONV_STABILITY_OPT_IN": "http, gen_ai_latest_experimental"}, True),
        ("latest", {}, True),
        (None, {}, False),
    ],
)
async def test_semconv(
    start: Start,
    upstream: Upstream,
    collector: Collector,
    given: str | None,
    environ: dict[str, str],
    is_latest: bool,
) -> None:
    """Names that moved are those of the conventions asked for, in spans and in metrics."""
    more = {} if given is None else {"semconv": given}
    proxy = await start(traced(collector, metrics="true", **more), environ=AT_ONCE | environ)
    client, vendor = await running(proxy, upstream)
    usage = b'{"prompt_tokens":9,"completion_tokens":5,"prompt_tokens_details":{"cache_creation_input_tokens":4}}'
    vendor.write(chunk(b'data: {"choices":[],"usage":%b}\n\n' % usage) + LAST)
    await client.read_until(LAST)
    server, _ = sorted_spans(await collector.wait(2))
    written = {True: "gen_ai.usage.cache_write.input_tokens", False: "gen_ai.usage.cache_creation.input_tokens"}
    assert server.attributes[written[is_latest]] == 4
    assert written[not is_latest] not in server.attributes
    assert ("gen_ai.response.time_to_first_chunk" in server.attributes) is is_latest
    await proxy.close()
    old = {"gen_ai.client.operation.duration", "gen_ai.client.token.usage"}
    new = {"gen_ai.client.inference.duration", "gen_ai.client.inference.usage.cache_write.input_tokens"}
    both = {"gen_ai.server.time_to_first_token", "gen_ai.server.time_per_output_token"}
    assert (new if is_latest else old) | both <= set(collector.metrics)
    assert not (old if is_latest else new) & set(collector.metrics)


async def test_request_that_cannot_be_read(start: Start, collector: Collector) -> None:
    """A head that is no HTTP, and one that is refused, are traces of one span."""
    proxy = await start(traced(collector), environ=AT_ONCE)
    client = await proxy.client()
    client.write(b"GARBAGE\r\n\r\n")
    assert (await client.read_message()).status == 400
    client = await proxy.client()
    client.write(b"POST * HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    assert (await client.read_message()).status == 400
    spans = await collector.wait(2)
    assert len({span.trace_id for span in spans}) == 2
    assert all(span.attributes["http.response.status_code"] == 400 and not span.is_error for span in spans)


async def test_resource_and_headers(start: Start, upstream: Upstream, collector: Collector) -> None:
    """What the variables say of the service and to the collector is sent, and the header is nowhere in the log."""
    environ = AT_ONCE | {
        "OTEL_SERVICE_NAME": "edge",
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=other,deployment.environment.name=test%20bed",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"{collector.url}/",
        "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Basic%20collector-canary-1",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
    }
    proxy = await start("telemetry: {traces: true}\n", environ=environ)
    client, vendor = await running(proxy, upstream)
    vendor.write(LAST)
    await client.read_until(LAST)
    await (await ask(proxy, path="/main/collector-canary-1")).read_message()
    spans = await collector.wait(2)
    resource = spans[0].resource
    assert resource["service.name"] == "edge"
    assert resource["deployment.environment.name"] == "test bed"
    assert {"service.version", "service.instance.id", "process.pid"} <= set(resource)
    assert {fields["Authorization"] for _, fields in collector.requests} == {"Basic collector-canary-1"}
    assert {fields["Content-Encoding"] for _, fields in collector.requests} == {"gzip"}
    await proxy.settled(2)
    assert b"collector-canary" not in proxy.log_bytes()


async def test_embedded(aiohttp_client: AiohttpClient, upstream: Upstream, collector: Collector) -> None:
    """An application that somebody else runs traces, too, and has sent everything when it is closed."""
    made = settings(upstream.url, telemetry={"otlp": collector.url, "traces": True})
    client = await aiohttp_client(make_app(made))
    asking = asyncio.create_task(client.post("/forward-sse", json=BODY, headers={"Authorization": f"Bearer {token()}"}))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(ANSWER) + LAST)
    assert await (await asking).read() == ANSWER
    await client.close()
    server, attempts = sorted_spans(collector.spans)
    assert server.attributes["forward_sse.ending"] == "complete"
    assert len(attempts) == 1


async def test_reload_keeps_telemetry(start: Start, upstream: Upstream, collector: Collector, tmp_path: Path) -> None:
    """A reload says that telemetry needs a restart, and the spans of streams that run meanwhile arrive."""
    proxy = await start(traced(collector), environ=AT_ONCE)
    client, vendor = await running(proxy, upstream)
    path = tmp_path / "proxy.yaml"
    path.write_text(path.read_text().replace("traces: true", "traces: false"))
    await proxy.server.reload(load(path, {}))
    vendor.write(LAST)
    await client.read_until(LAST)
    assert len(await collector.wait(2)) == 2
    await proxy.settled()
    assert [line["needs_restart"] for line in proxy.lines() if line["event"] == "configuration.reloaded"] == [
        ["telemetry"]
    ]
