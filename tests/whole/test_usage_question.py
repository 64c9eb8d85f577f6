"""What was used and what is left, asked of a whole service: of the real ledger, the real limits, any worker."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, WAIT_S, Message, chunk, connect, request
from tests.whole.several import several
from tests.whole.test_usage_whole import BODY, CONFIG, EVENTS, MODEL, PATHS, sse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.conftest import Running
    from tests.peers import Upstream

PLAN = """
plans: {default: {requests: [100/1d], tokens: [100000/1d], budgets: [{usd: 50, every: month}]}}
"""
# What one exchange takes.
TOOK = {"input_tokens": 100, "output_tokens": 50, "cached_tokens": 40, "reasoning_tokens": 0}


async def run(start: Callable[..., Any], tmp_path: Path) -> Running:
    config = CONFIG.replace("DIALECT", "openai").replace("IDLE", "30s")
    ledger = f"usage: {{ledger: 'sqlite:///{tmp_path}/ledger.db'}}\n"
    proxy: Running = await start(PLAN + ledger, config=config)
    return proxy


async def exchange(address: tuple[str, int], upstream: Upstream, user: str = "alice", **members: Any) -> None:
    """One that takes `TOOK`."""
    async with await connect(address) as client:
        client.write(request(PATHS["openai"], BODY | members, token=token(user)))
        vendor, _ = await upstream.take()
        vendor.write(STREAM_HEAD + b"".join(chunk(sse(event)) for event in EVENTS["openai"]) + LAST)
        await client.read_until(LAST)
        await vendor.gone()


async def told(address: tuple[str, int], query: str = "", user: str = "alice") -> dict[str, Any]:
    async with await connect(address) as client:
        client.write(request(f"/forward-sse/usage{query}", method="GET", token=token(user)))
        answer = await client.read_message()
    assert answer.status == 200, answer
    said = answer.json
    assert isinstance(said, dict)
    return said


async def until(ask: Callable[[], Awaitable[list[dict[str, Any]]]], count: int) -> list[dict[str, Any]]:
    """The rows about a model, once so many requests are in them: a row is there within a second."""
    async with asyncio.timeout(WAIT_S):
        while True:
            rows = [row for row in await ask() if row.get("model")]
            if sum(row["requests"] for row in rows) >= count:
                return rows
            await asyncio.sleep(0.02)


async def test_own_usage(start: Callable[..., Any], upstream: Upstream, tmp_path: Path) -> None:
    """A user is told what they used, by what they ask for, and what is left of each limit; others have their own."""
    proxy = await run(start, tmp_path)
    for model in (MODEL, MODEL, "nobody-knows"):
        await exchange(proxy.address, upstream, model=model)
    await exchange(proxy.address, upstream, "bob")

    async def rows() -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = (await told(proxy.address, "?by=model,upstream"))["rows"]
        return answer

    priced, unpriced = await until(rows, 3)
    twice = {name: 2 * tokens for name, tokens in TOOK.items()}
    assert priced == {
        "model": MODEL,
        "upstream": "openai",
        "requests": 2,
        **twice,
        "unpriced": 0,
        "cost_usd": "0.00132",
    }
    assert unpriced == {
        "model": "nobody-knows", "upstream": "openai", "requests": 1, **TOOK, "unpriced": 1, "cost_usd": "0",
    }  # fmt: skip

    said = await told(proxy.address)
    assert (said["user"], said["plan"]) == ("alice", "default")
    limits = {(limit["kind"], limit["name"]): limit for limit in said["limits"]}
    assert {name: (limit["limit"], limit["used"], limit["reserved"]) for name, limit in limits.items()} == {
        ("requests", "100-per-1d"): (100, 3, 0),
        ("tokens", "100000-tokens-per-1d"): (100000, 450, 0),
        ("usd", "50-usd-per-month"): ("50", "0.00132", "0"),
    }
    assert limits["usd", "50-usd-per-month"]["resets_at"].endswith("-01T00:00:00Z")

    async def others() -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = (await told(proxy.address, user="bob"))["rows"]
        return answer

    (other,) = await until(others, 1)
    assert other["input_tokens"] == 100
    assert proxy.leases_held == 0


async def test_own_usage_while_a_stream_runs(start: Callable[..., Any], upstream: Upstream, tmp_path: Path) -> None:
    """What a running stream may still take is told as reserved, not as used."""
    proxy = await run(start, tmp_path)
    client = await proxy.client()
    client.write(request(PATHS["openai"], BODY | {"max_tokens": 500}, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(sse(EVENTS["openai"][0])))
    await client.read_until(b"hello")

    limits = {limit["kind"]: limit for limit in (await told(proxy.address))["limits"]}
    assert (limits["tokens"]["used"], limits["usd"]["used"]) == (0, "0")
    assert limits["tokens"]["reserved"] > 500
    assert float(limits["usd"]["reserved"]) > 0.005

    await client.gone()
    await vendor.closed()
    await proxy.idle()
    assert {limit["reserved"] for limit in (await told(proxy.address))["limits"]} == {0, "0"}


async def test_everybodys_usage(start: Callable[..., Any], upstream: Upstream, tmp_path: Path) -> None:
    """An operator is told of all users, or of the one they ask for."""
    proxy = await run(start, tmp_path)
    for user in ("alice", "bob", "bob"):
        await exchange(proxy.address, upstream, user)

    async def ask(query: str) -> Message:
        admin = await proxy.admin()
        admin.write(request(f"/admin/usage{query}", method="GET"))
        return await admin.read_message()

    async def rows() -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = (await ask("")).json["rows"]
        return answer

    assert [(row["user"], row["model"], row["requests"]) for row in await until(rows, 3)] == [
        ("bob", MODEL, 2),
        ("alice", MODEL, 1),
    ]
    (bob,) = (await ask("?by=issuer,ending&user=bob&since=1h")).json["rows"]
    assert (bob["issuer"], bob["ending"], bob["output_tokens"]) == ("tests", "complete", 100)
    assert (await ask("?user=bob&issuer=others")).json["rows"] == []
    assert (await ask("?by=user&to=1h")).status == 400


@pytest.mark.skipif(sys.platform != "linux", reason="the arbiter is Linux's")
async def test_any_worker_answers(tmp_path: Path, upstream: Upstream) -> None:
    """Whichever worker is asked, by a user or by an operator, knows what all of them have served."""
    more = f"plans: {{default: {{}}}}\nusage: {{ledger: 'sqlite:///{tmp_path}/ledger.db'}}\n"
    async with several(tmp_path, upstream, more) as served:
        for _ in range(12):
            async with await connect(served.address) as client:
                client.write(request(body={"model": MODEL, "stream": True}, token=token()))
                vendor, _ = await upstream.take()
                vendor.write(STREAM_HEAD + chunk(sse(EVENTS["openai"][1])) + LAST)
                await client.read_until(LAST)
                await vendor.gone()

        async def rows() -> list[dict[str, Any]]:
            answer: list[dict[str, Any]] = (await served.ask("/admin/usage?by=model")).json["rows"]
            return answer

        await until(rows, 12)
        for _ in range(8):
            (row,) = [row for row in await rows() if row["model"]]
            assert (row["model"], row["requests"], row["output_tokens"]) == (MODEL, 12, 600)
            (row,) = [row for row in (await told(served.address, "?by=model"))["rows"] if row["model"]]
            assert (row["model"], row["requests"], row["output_tokens"]) == (MODEL, 12, 600)
