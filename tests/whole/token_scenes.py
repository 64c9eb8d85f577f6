"""Scenes of plans with token limits: what a user has left, and exchanges that take a known amount."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, Message, Peer, chunk, request
from tests.whole import test_usage_whole as usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running
    from tests.peers import Upstream

PATHS, EVENTS, BODY, MODEL, DIALECTS, sse = (
    usage.PATHS,
    usage.EVENTS,
    usage.BODY,
    usage.MODEL,
    usage.DIALECTS,
    usage.sse,
)
# What the last event of each dialect tells: 100 of input, 50 of output, and what those cost.
TOOK = 150
BODY_BYTES = len(request(body=BODY).partition(b"\r\n\r\n")[2])
DAY = "{requests: [100/1h], budgets: [{tokens: 100000, every: day}]}"


async def run(start: Callable[..., Any], dialect: str, plan: str, more: str = "", *, url: str = "{url}") -> Running:
    """A proxy whose only plan this is."""
    config = usage.CONFIG.replace("DIALECT", dialect).replace("IDLE", "30s").replace("{url}", url)
    proxy: Running = await start(f"plans: {{default: {plan}}}\n{more}", config=config)
    return proxy


def ask(dialect: str, path: str | None = None, **members: Any) -> bytes:
    return request(path or PATHS[dialect], BODY | members, token=token())


async def begin(proxy: Running, upstream: Upstream, dialect: str, **members: Any) -> tuple[Peer, Peer, Message]:
    """A stream that runs, with the client's head read."""
    client = await proxy.client()
    client.write(ask(dialect, **members))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD)
    return client, vendor, await client.read_head()


def last_event(tokens_in: int, tokens_out: int) -> bytes:
    """An OpenAI-shaped stream's last event."""
    return sse({"choices": [], "usage": {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}})


async def complete(proxy: Running, upstream: Upstream, dialect: str, **members: Any) -> Message:
    """An exchange that takes `TOOK`, and the head of its answer."""
    client, vendor, head = await begin(proxy, upstream, dialect, **members)
    first, second = EVENTS[dialect]
    vendor.write(chunk(sse(first)) + chunk(sse(second)) + LAST)
    await client.read_until(LAST)
    await proxy.idle()
    await vendor.gone()
    await client.gone()
    return head


async def take_all(proxy: Running, upstream: Upstream, tokens_in: int, tokens_out: int, **members: Any) -> None:
    """An exchange with an OpenAI-shaped vendor that takes so much."""
    client, vendor, _ = await begin(proxy, upstream, "openai", **members)
    vendor.write(chunk(last_event(tokens_in, tokens_out)) + LAST)
    await client.read_until(LAST)
    await proxy.idle()
    await vendor.gone()
    await client.gone()


async def refused(proxy: Running, dialect: str, **members: Any) -> Message:
    """The answer to a request that does not reach the vendor."""
    client = await proxy.client()
    client.write(ask(dialect, **members))
    return await client.read_message()


async def left(proxy: Running) -> int:
    """The tokens that the user has left, as any answer of the proxy's tells."""
    client = await proxy.client()
    client.write(request("/nobody/x", method="GET", token=token()))
    answer = await client.read_message()
    assert answer.status == 404
    return int(answer.get("x-ratelimit-remaining-tokens") or "")


def code_of(dialect: str, body: bytes) -> str:
    """The code, where the dialect has it."""
    said = orjson.loads(body)
    code = {
        "openai": lambda: said["error"]["code"],
        "anthropic": lambda: said["error"]["code"],
        "gemini": lambda: said["error"]["details"][0]["reason"],
        "dashscope": lambda: said["code"],
    }[dialect]()
    assert isinstance(code, str)
    return code


def message_of(dialect: str, body: bytes) -> str:
    said = orjson.loads(body)
    return str(said["message"] if dialect == "dashscope" else said["error"]["message"])
