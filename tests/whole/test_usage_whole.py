"""The tokens of every exchange, each dialect and each ending: its one line, the metrics, the limits, its one row."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from proxy.model import Principal
from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, WAIT_S, chunk, only, request
from tests.whole.test_admin_whole import samples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Running
    from tests.peers import Peer, Upstream

CONFIG = """
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
auth:
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}"}}
timeouts: {{idle: IDLE}}
upstreams:
  DIALECT: {{url: "{url}", dialect: DIALECT, api_key: "{key}"}}
default_upstream: DIALECT
prices: {{my-model: {{input: 2, cached_input: 1, output: 10}}}}
"""
# Limits that nobody reaches, and a ledger.
KEPT = """
plans:
  default: {tokens: [1000000/366d], budgets: [{tokens: 1000000, every: month}, {usd: 1000, every: month}]}
usage: {ledger: "sqlite:///ledger.db"}
"""
MODEL = "my-model"
# Each dialect's path, and its events: what comes before any usage, with running totals (or not), and at the end.
PATHS = {
    "openai": "/openai/v1/chat/completions",
    "anthropic": "/anthropic/v1/messages",
    "gemini": f"/gemini/v1beta/models/{MODEL}:streamGenerateContent?alt=sse",
    "dashscope": "/dashscope/api/v1/services/aigc/text-generation/generation",
}
TEXT = "hello world " * 4
EVENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "openai": (
        {"choices": [{"index": 0, "delta": {"content": TEXT}}]},
        {
            "choices": [],
            "usage": {"prompt_tokens": 100, "completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 40}},
        },
    ),
    "anthropic": (
        {
            "type": "message_start",
            "message": {"usage": {"input_tokens": 60, "cache_read_input_tokens": 40, "output_tokens": 1}},
        },
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 50}},
    ),
    "gemini": (
        {
            "candidates": [{"content": {"parts": [{"text": TEXT}]}}],
            "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 5},
        },
        {
            "usageMetadata": {
                "promptTokenCount": 100,
                "candidatesTokenCount": 20,
                "thoughtsTokenCount": 30,
                "cachedContentTokenCount": 40,
            }
        },
    ),
    "dashscope": (
        {"output": {"text": TEXT}, "usage": {"input_tokens": 100, "output_tokens": 5}},
        {
            "output": {"finish_reason": "stop"},
            "usage": {"input_tokens": 100, "output_tokens": 50, "prompt_tokens_details": {"cached_tokens": 40}},
        },
    ),
}
REPORTED = {"input_tokens": 100, "output_tokens": 50, "cached_tokens": 40, "usage": "reported", "cost_usd": "0.00066"}
BODY = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "x" * 400}]}
# What is known of a stream that ended after its first event, by dialect: input and output.
TOLD = {"openai": (None, 12), "anthropic": (100, 0), "gemini": (100, 5), "dashscope": (100, 5)}
DIALECTS = sorted(EVENTS)


def sse(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


async def run(start: Callable[..., Any], dialect: str, idle: str = "30s") -> Running:
    proxy: Running = await start(KEPT, config=CONFIG.replace("DIALECT", dialect).replace("IDLE", idle))
    return proxy


async def begin(proxy: Running, upstream: Upstream, dialect: str, *, events: int = 1) -> tuple[Peer, Peer]:
    client = await proxy.client()
    client.write(request(PATHS[dialect], BODY, token=token()))
    vendor, _ = await upstream.take()
    if events:
        first = sse(EVENTS[dialect][0])
        vendor.write(STREAM_HEAD + chunk(first))
        await client.read_head()
        await client.read_until(first + b"\r\n")
    return client, vendor


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the ledger's relative path leads."""
    monkeypatch.chdir(tmp_path)


async def line_of(proxy: Running, ending: str) -> dict[str, Any]:
    """The one line, after a look at what goes with it: the lease, what the limits were charged, and the one row."""
    line = only(await proxy.settled(), "exchange.settled")
    assert line["ending"] == ending
    assert proxy.leases_held == 0
    await check_charged(proxy, line)
    await check_row(line)
    return line


async def check_charged(proxy: Running, line: dict[str, Any]) -> None:
    """The token rate and the budgets were charged what the line says, and nothing is reserved any more."""
    tokens, nano = line["input_tokens"] + line["output_tokens"], int(Decimal(line["cost_usd"] or 0) * 10**9)
    states = await proxy.service.store.limits(Principal("tests", "alice", proxy.service.rules.anonymous.plan))
    assert not [state for state in states if state.reserved]
    used = {state.name: state.used for state in states}
    rate, of_tokens, of_usd = (name for name, state in zip(used, states, strict=True) if state.kind != "requests")
    assert (used[of_tokens], used[of_usd]) == (tokens, nano)
    # It has been refilled for as long as the test took: a token in half a minute.
    assert tokens - 2 <= used[rate] <= tokens


async def check_row(line: dict[str, Any]) -> None:
    """The ledger has one row, which says what the line says."""
    async with asyncio.timeout(WAIT_S):
        # The ledger's own thread writes to a file; there is no event to wait for.
        while not (rows := read_rows()):  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.005)
    (row,) = rows
    names = ("id", "user", "plan", "upstream", "model", "status", "ending", "code", "bytes", "events", "usage")
    figures = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
    assert {name: row[name] for name in (*names, *figures)} == {name: line[name] for name in (*names, *figures)}
    assert row["cost_nano"] == (None if line["cost_usd"] is None else int(Decimal(line["cost_usd"]) * 10**9))


def read_rows() -> list[dict[str, Any]]:
    with closing(sqlite3.connect("ledger.db")) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM exchanges")]


def check_estimated(line: dict[str, Any], dialect: str) -> None:
    tokens_in, tokens_out = TOLD[dialect]
    assert line["usage"] == "estimated"
    assert line["model"] == MODEL
    # By a quarter of a token for each byte of the request, where the vendor has not said.
    assert line["input_tokens"] == tokens_in or (tokens_in is None and abs(line["input_tokens"] - 120) < 20)
    assert line["output_tokens"] == tokens_out
    assert line["cost_usd"] is not None


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_complete(start: Callable[..., Any], upstream: Upstream, dialect: str) -> None:
    """A stream that ended well: what the vendor said, priced, counted."""
    proxy = await run(start, dialect)
    client, vendor = await begin(proxy, upstream, dialect)
    vendor.write(chunk(sse(EVENTS[dialect][1])) + LAST)
    await client.read_until(LAST)
    line = await line_of(proxy, "complete")
    assert {name: line[name] for name in REPORTED} == REPORTED
    assert line["model"] == MODEL
    assert line["reasoning_tokens"] == (30 if dialect == "gemini" else 0)
    admin = await proxy.admin()
    admin.write(request("/metrics", method="GET"))
    counted = samples((await admin.read_message()).body.decode())
    label = f'upstream="{dialect}"'
    assert counted[f'forward_sse_tokens_total{{kind="input",{label}}}'] == 100
    assert counted[f'forward_sse_tokens_total{{kind="output",{label}}}'] == 50
    assert counted[f"forward_sse_cost_usd_total{{{label}}}"] == pytest.approx(0.00066)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("how", ["client_closed", "upstream_closed", "timeout_idle", "drained", "stopped"])
async def test_ended_in_mid_stream(start: Callable[..., Any], upstream: Upstream, dialect: str, how: str) -> None:
    """A stream that did not end well counts what was generated, as told so far or as its text shows."""
    proxy = await run(start, dialect, idle="1s" if how == "timeout_idle" else "30s")
    client, vendor = await begin(proxy, upstream, dialect)
    if how == "client_closed":
        await client.gone()
    elif how == "upstream_closed":
        await vendor.gone()
    elif how == "drained":
        await asyncio.create_task(proxy.server.drain(timeout_s=0.05))
    elif how == "stopped":
        admin = await proxy.admin()
        admin.write(request("/admin/streams", method="GET"))
        (stream,) = (await admin.read_message()).json["streams"]
        admin.write(request(f"/admin/streams/{stream['id']}", method="DELETE"))
        assert (await admin.read_message()).status == 204
    if how != "client_closed":
        await client.read_to_end()
    if how != "upstream_closed":
        await vendor.closed()
    check_estimated(await line_of(proxy, how), dialect)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_in_mid_event(start: Callable[..., Any], upstream: Upstream, dialect: str) -> None:
    """Half an event adds nothing, and half of a whole one is still whole."""
    proxy = await run(start, dialect)
    client, vendor = await begin(proxy, upstream, dialect, events=0)
    first, second = (sse(event) for event in EVENTS[dialect])
    vendor.write(STREAM_HEAD + chunk(first[:20]) + chunk(first[20:] + second[:30]))
    await client.read_until(second[:30])
    await client.gone()
    await vendor.closed()
    check_estimated(await line_of(proxy, "client_closed"), dialect)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_client_left_before_the_first_byte(start: Callable[..., Any], upstream: Upstream, dialect: str) -> None:
    """The vendor may have read the request: its input is estimated, its output nothing."""
    proxy = await run(start, dialect)
    client, vendor = await begin(proxy, upstream, dialect, events=0)
    await client.gone()
    await vendor.closed()
    line = await line_of(proxy, "client_closed")
    assert (line["usage"], line["output_tokens"], line["model"]) == ("estimated", 0, MODEL)
    assert line["input_tokens"] > 100


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_whole_json(start: Callable[..., Any], upstream: Upstream, dialect: str) -> None:
    """An answer that is no stream says its usage, too."""
    proxy = await run(start, dialect)
    client = await proxy.client()
    client.write(request(PATHS[dialect].partition("?")[0], BODY | {"stream": False}, token=token()))
    vendor, _ = await upstream.take()
    usage = EVENTS[dialect][1]
    if dialect == "anthropic":
        usage = {"usage": {"input_tokens": 60, "cache_read_input_tokens": 40, "output_tokens": 50}}
    body = orjson.dumps({"id": "x", "text": "y" * 100} | usage)
    vendor.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    assert (await client.read_message()).body == body
    line = await line_of(proxy, "complete")
    assert {name: line[name] for name in REPORTED} == REPORTED


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_error_status(start: Callable[..., Any], upstream: Upstream, dialect: str) -> None:
    """A vendor's own error took nothing, and costs nothing."""
    proxy = await run(start, dialect)
    client = await proxy.client()
    client.write(request(PATHS[dialect], BODY, token=token()))
    vendor, _ = await upstream.take()
    body = b'{"error": {"message": "slow down"}}'
    vendor.write(
        b"HTTP/1.1 429 X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    assert (await client.read_message()).status == 429
    line = await line_of(proxy, "upstream_error")
    assert (line["usage"], line["input_tokens"], line["output_tokens"], line["cost_usd"]) == ("none", 0, 0, None)


async def test_not_reached(start: Callable[..., Any], upstream: Upstream) -> None:
    """A vendor that answers nothing ran no model, as far as can be seen; a refusal before has no figures at all."""
    proxy = await run(start, "openai")
    client = await proxy.client()
    client.write(request(PATHS["openai"], BODY))
    assert (await client.read_message()).status == 401
    client = await proxy.client()
    client.write(request(PATHS["openai"], BODY, token=token()))
    vendor, _ = await upstream.take()
    await vendor.gone()
    assert (await client.read_message()).status == 502
    refused, unreachable = await proxy.settled(2)
    assert "usage" not in refused
    assert (unreachable["usage"], unreachable["model"]) == ("none", MODEL)


async def test_unpriced(start: Callable[..., Any], upstream: Upstream) -> None:
    """A model that nobody has a price of: no cost, and a metric says so."""
    proxy = await run(start, "openai")
    client = await proxy.client()
    client.write(request(PATHS["openai"], BODY | {"model": "nobody-knows"}, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(sse(EVENTS["openai"][1])) + LAST)
    await client.read_until(LAST)
    line = await line_of(proxy, "complete")
    assert (line["usage"], line["cost_usd"], line["output_tokens"]) == ("reported", None, 50)
    admin = await proxy.admin()
    admin.write(request("/metrics", method="GET"))
    counted = samples((await admin.read_message()).body.decode())
    assert counted['forward_sse_unpriced_exchanges_total{upstream="openai"}'] == 1


async def test_coded_stream_is_unknown(start: Callable[..., Any], upstream: Upstream) -> None:
    """A stream in a content coding is not read: estimated, without output."""
    proxy = await run(start, "openai")
    client = await proxy.client()
    client.write(request(PATHS["openai"], BODY, token=token()))
    vendor, _ = await upstream.take()
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    vendor.write(head + chunk(b"\x1f\x8b" + b"x" * 50) + LAST)
    await client.read_until(LAST)
    line = await line_of(proxy, "complete")
    assert (line["usage"], line["output_tokens"]) == ("estimated", 0)
