"""What a client is told of usage in the stream itself: a typed `End`, a ticket's `end`; the log says the same."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, chunk, read_events, request
from tests.typed_streams import read
from tests.whole import token_scenes
from tests.whole.test_admin_whole import samples
from tests.whole.test_usage_whole import BODY, DIALECTS, EVENTS, MODEL, PATHS, TOLD, run, sse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Running
    from tests.peers import Peer, Upstream

# By which each dialect says that its answer is whole.
FINISH: dict[str, bytes] = {
    "openai": b"data: [DONE]\n\n",
    "anthropic": sse({"type": "message_stop"}),
    "gemini": sse({"candidates": [{"finishReason": "STOP"}]}),
    "dashscope": b"",
}
COST = "0.00066"


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the ledger's relative path leads."""
    monkeypatch.chdir(tmp_path)


def typed(path: str) -> str:
    return path + ("&" if "?" in path else "?") + "events=typed"


def log_says(line: dict[str, Any]) -> dict[str, Any]:
    """The figures of a log line as an `end` has them."""
    cost = {} if line["cost_usd"] is None else {"cost_usd": line["cost_usd"]}
    tokens_in, tokens_out = line["input_tokens"], line["output_tokens"]
    return {"input": tokens_in, "output": tokens_out, "total": tokens_in + tokens_out, **cost, "source": line["usage"]}


async def line_of(proxy: Running, ending: str, *, count: int = 1) -> dict[str, Any]:
    """The line of the exchange with the vendor; the one before it, of `count`, made the ticket."""
    line = (await proxy.settled(count))[-1]
    assert line["ending"] == ending
    assert proxy.leases_held == 0
    return line


async def use_ticket(proxy: Running, dialect: str, *, query: str = "", model: str = MODEL) -> Peer:
    client = await proxy.client()
    client.write(request(f"/forward-sse/tickets?upstream={dialect}{query}", BODY | {"model": model}, token=token()))
    client.write(request((await client.read_message()).json["url"], method="GET"))
    return client


def end_of(body: bytes) -> dict[str, Any]:
    name, data = read_events(body)[-1]
    assert name == "end"
    said = json.loads(data)
    assert isinstance(said, dict)
    return said


async def answer_whole(upstream: Upstream, dialect: str, *events: dict[str, Any]) -> None:
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + b"".join(chunk(sse(event)) for event in events))
    if FINISH[dialect]:
        vendor.write(chunk(FINISH[dialect]))
    vendor.write(LAST)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_typed_end(start: Callable[..., Any], upstream: Upstream, dialect: str) -> None:
    """`End` has the log line's figures and their cost: cache reads are input, thoughts output, nothing is a sum."""
    proxy = await run(start, dialect)
    client = await proxy.client()
    client.write(request(typed(PATHS[dialect]), BODY, token=token()))
    await answer_whole(upstream, dialect, *EVENTS[dialect])
    last = read((await client.read_message()).body)[-1]
    line = await line_of(proxy, "complete")
    assert last == {"t": "End", "r": "", "usage": {"input": 100, "output": 50, "total": 150, "cost_usd": COST}}
    assert log_says(line) == last["usage"] | {"source": "reported"}


async def test_typed_end_without_a_price(start: Callable[..., Any], upstream: Upstream) -> None:
    """Where the model's price is unknown, `End` has no cost."""
    proxy = await run(start, "openai")
    client = await proxy.client()
    client.write(request(typed(PATHS["openai"]), BODY | {"model": "nobody-knows"}, token=token()))
    await answer_whole(upstream, "openai", *EVENTS["openai"])
    assert read((await client.read_message()).body)[-1]["usage"] == {"input": 100, "output": 50, "total": 150}


async def test_typed_end_that_was_told_nothing(start: Callable[..., Any], upstream: Upstream) -> None:
    """Where the vendor says nothing, neither does `End`, though the log estimates."""
    proxy = await run(start, "openai")
    client = await proxy.client()
    client.write(request(typed(PATHS["openai"]), BODY, token=token()))
    await answer_whole(upstream, "openai", EVENTS["openai"][0])
    assert read((await client.read_message()).body)[-1] == {"t": "End", "r": ""}
    line = await line_of(proxy, "complete")
    assert line["usage"] == "estimated"
    assert line["output_tokens"] > 0


async def test_typed_client_leaves_behind_its_end(start: Callable[..., Any], upstream: Upstream) -> None:
    """What `End` has told stands in the log, though the client left before the vendor's last chunk."""
    proxy = await run(start, "openai")
    client = await proxy.client()
    client.write(request(typed(PATHS["openai"]), BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(sse(EVENTS["openai"][1]) + FINISH["openai"]))
    await client.read_until(b'"total":150')
    await client.gone()
    await vendor.closed()
    line = await line_of(proxy, "client_closed")
    assert log_says(line) == {"input": 100, "output": 50, "total": 150, "cost_usd": COST, "source": "reported"}


@pytest.mark.parametrize("query", ["", "&events=typed"], ids=["plain", "typed"])
@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name != "gemini"])
async def test_ticket_end(start: Callable[..., Any], upstream: Upstream, dialect: str, query: str) -> None:
    """A ticket's `end` has them too, and where they are from."""
    proxy = await run(start, dialect)
    client = await use_ticket(proxy, dialect, query=query)
    await answer_whole(upstream, dialect, *EVENTS[dialect])
    body = (await client.read_message()).body
    usage = end_of(body)["usage"]
    assert usage == {"input": 100, "output": 50, "total": 150, "cost_usd": COST, "source": "reported"}
    assert log_says(await line_of(proxy, "complete", count=2)) == usage
    if query:
        assert json.loads(read_events(body)[-2][1])["usage"] == {
            name: value for name, value in usage.items() if name != "source"
        }


@pytest.mark.parametrize("query", ["", "&events=typed"], ids=["plain", "typed"])
@pytest.mark.parametrize("how", ["upstream_closed", "timeout_idle", "drained", "stopped"])
async def test_ticket_ended_in_mid_stream(start: Callable[..., Any], upstream: Upstream, how: str, query: str) -> None:
    """A stream that broke off cost something as well: its `end` has the estimate that the log has."""
    proxy = await run(start, "openai", idle="1s" if how == "timeout_idle" else "30s")
    client = await use_ticket(proxy, "openai", query=query)
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(sse(EVENTS["openai"][0])))
    head = await client.read_head()
    if how == "upstream_closed":
        await client.read_until(b"hello")
        await vendor.gone()
    elif how == "drained":
        await client.read_until(b"hello")
        await asyncio.create_task(proxy.server.drain(timeout_s=0.05))
    elif how == "stopped":
        await client.read_until(b"hello")
        stopper = await proxy.client()
        stopper.write(request(f"/forward-sse/streams/{head.get('x-forward-sse-id')}", method="DELETE", token=token()))
        assert (await stopper.read_message()).status == 204
    rest = await client.read_until(b'"source":"estimated"}}')
    lines = await proxy.settled(3 if how == "stopped" else 2)
    (line,) = (line for line in lines if line["ending"] == how)
    assert line["output_tokens"] == TOLD["openai"][1]
    assert json.loads(rest.rpartition(b"data: ")[2])["usage"] == log_says(line)


@pytest.mark.parametrize("query", ["", "&events=typed"], ids=["plain", "typed"])
async def test_ticket_that_used_up_a_budget(start: Callable[..., Any], upstream: Upstream, query: str) -> None:
    """A stream that is cut because it used up a budget says what it took, as the log does."""
    proxy = await token_scenes.run(start, "openai", "{budgets: [{tokens: 200, every: day}], budget_overrun: cut}")
    client = await use_ticket(proxy, "openai", query=query)
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + b"".join(chunk(sse(EVENTS["openai"][0])) for _ in range(20)))
    rest = await client.read_until(b'"source":"estimated"}}')
    await vendor.closed()
    said = json.loads(rest.rpartition(b"data: ")[2])
    line = await line_of(proxy, "stopped", count=2)
    assert (said["code"], line["code"]) == ("insufficient_quota", "insufficient_quota")
    assert said["usage"] == log_says(line)
    assert said["usage"]["total"] > 200


async def test_ticket_whose_vendor_is_late(start: Callable[..., Any], upstream: Upstream) -> None:
    """A vendor that never answered has perhaps read the request: the input is told, as the log has it."""
    proxy: Running = await start("timeouts: {first_byte: 300ms}\n")
    client = await use_ticket(proxy, "main")
    vendor, _ = await upstream.take()
    said = end_of((await client.read_message()).body)
    await vendor.closed()
    line = await line_of(proxy, "timeout_first_byte", count=2)
    assert said["usage"] == log_says(line)
    assert (said["usage"]["output"], said["usage"]["source"]) == (0, "estimated")


@pytest.mark.parametrize("reaches", [True, False])
async def test_ticket_without_a_model_run(start: Callable[..., Any], upstream: Upstream, *, reaches: bool) -> None:
    """A vendor's own error, or one that was not reached, took nothing: no usage is told."""
    proxy = await run(start, "openai")
    client = await use_ticket(proxy, "openai")
    vendor, _ = await upstream.take()
    if reaches:
        body = b'{"error": {"message": "slow down"}}'
        vendor.write(
            b"HTTP/1.1 429 X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
    else:
        await vendor.gone()
    assert "usage" not in end_of((await client.read_message()).body)
    assert (await line_of(proxy, "upstream_error", count=2))["usage"] == "none"


async def test_told_is_counted_once(start: Callable[..., Any], upstream: Upstream) -> None:
    """A stream whose client was told twice, in `End` and in `end`, counts in the metrics as often as any other."""
    proxy = await run(start, "openai")
    client = await use_ticket(proxy, "openai", query="&events=typed")
    await answer_whole(upstream, "openai", *EVENTS["openai"])
    await client.read_message()
    await line_of(proxy, "complete", count=2)
    admin = await proxy.admin()
    admin.write(request("/metrics", method="GET"))
    counted = samples((await admin.read_message()).body.decode())
    assert counted['forward_sse_tokens_total{kind="output",upstream="openai"}'] == 50
