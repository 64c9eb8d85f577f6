"""Token rates and budgets, seen by their users: what is reserved, what is refused, what is charged in the end."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from proxy.errors import InsufficientQuotaError, LimitsUnavailableError
from proxy.limits.memory import MemoryStore
from proxy.model import Amounts, Budget, Ending, Plan, Principal
from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, chunk, only, read_events, request
from tests.whole.token_scenes import (
    BODY_BYTES,
    DAY,
    DIALECTS,
    EVENTS,
    MODEL,
    TOOK,
    ask,
    begin,
    code_of,
    complete,
    last_event,
    left,
    message_of,
    refused,
    run,
    sse,
    take_all,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.limits import Admission
    from tests.conftest import Running
    from tests.peers import Peer, Upstream

# By a quarter of a token a byte.
INPUT = round(BODY_BYTES / 4)
LIMIT = 100_000
# Each admits one exchange of `TOOK`, and not another.
KINDS = {
    "rate": ("{requests: [100/1h], tokens: [200/1h]}", "rate_limit_exceeded", "200 tokens per 1 h"),
    "budget": ("{requests: [100/1h], budgets: [{tokens: 200, every: day}]}", "insufficient_quota", "200 tokens a day"),
    "dollars": (
        "{requests: [100/1h], budgets: [{usd: 0.001, every: month}]}",
        "insufficient_quota",
        "0.001 USD a month",
    ),
}
LONGEST_S = {"rate": 3600, "budget": 86_400, "dollars": 31 * 86_400}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", KINDS)
async def test_refused(start: Callable[..., Any], upstream: Upstream, kind: str, dialect: str) -> None:
    """What does not fit is 429 in the dialect, which names the rule and the wait; it is not sent, and costs nothing."""
    plan, code, rule = KINDS[kind]
    proxy = await run(start, dialect, plan)
    head = await complete(proxy, upstream, dialect)
    assert head.get("x-ratelimit-remaining-requests") == "99"

    answer = await refused(proxy, dialect)

    assert (answer.status, answer.get("x-forward-sse-code")) == (429, code)
    assert code_of(dialect, answer.body) == code
    wait_s = int(answer.get("retry-after") or "")
    assert 0 < wait_s <= LONGEST_S[kind]
    assert answer.get("x-should-retry") == "false"
    assert rule in message_of(dialect, answer.body)
    assert f"try again in {wait_s} s" in message_of(dialect, answer.body)
    assert answer.get("x-ratelimit-remaining-requests") == "99"
    if kind != "dollars":
        assert answer.get("x-ratelimit-limit-tokens") == "200"
        assert answer.get("x-ratelimit-remaining-tokens") == str(200 - TOOK)
        assert 'qu="tokens"' in (answer.get("ratelimit") or "")
    assert len(upstream.peers) == 1
    _, line = await proxy.settled(2)
    assert (line["ending"], line["code"], line["status"], line["upstream"]) == ("refused", code, 429, dialect)
    assert "usage" not in line
    assert proxy.leases_held == 0


async def test_refused_while_another_runs(start: Callable[..., Any], upstream: Upstream) -> None:
    """Of a budget that only a running stream has reserved the message says so, and no SDK waits for it."""
    proxy = await run(start, "openai", KINDS["budget"][0])
    running = await proxy.client()
    running.write(ask("openai"))
    peer, _ = await upstream.take()
    answer = await refused(proxy, "openai")

    assert (answer.status, code_of("openai", answer.body)) == (429, "insufficient_quota")
    assert answer.get("x-should-retry") == "false"
    assert "is reserved for your requests that run" in message_of("openai", answer.body)
    await running.gone()
    await peer.closed()
    assert {line["ending"] for line in await proxy.settled(2)} == {"refused", "client_closed"}
    assert proxy.leases_held == 0


async def test_refused_in_the_stream_of_a_ticket(start: Callable[..., Any], upstream: Upstream) -> None:
    """Making a ticket reserves nothing; using it does, and the refusal is told in its stream."""
    proxy = await run(start, "openai", KINDS["budget"][0])
    await complete(proxy, upstream, "openai")
    client = await proxy.client()
    client.write(ask("openai", "/forward-sse/tickets"))
    made = await client.read_message()
    assert made.status == 201
    client.write(request(made.json["url"], method="GET"))
    answer = await client.read_message()

    assert answer.status == 200
    (name, said), (last, end) = read_events(answer.body)
    assert (name, last, code_of("openai", said.encode())) == ("message", "end", "insufficient_quota")
    told = orjson.loads(end)
    assert (told["status"], told["code"], told["ending"]) == (429, "insufficient_quota", "refused")
    assert 0 < told["retry_after"] <= 86_400
    assert answer.get("x-ratelimit-remaining-requests") == "99"
    assert len(upstream.peers) == 1
    assert proxy.leases_held == 0


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("bound", [None, 40, 30_000])
async def test_reserved(start: Callable[..., Any], upstream: Upstream, dialect: str, bound: int | None) -> None:
    """The answer tells what is left beside the reservation: input by its bytes, output by the smallest bound."""
    proxy = await run(start, dialect, DAY, "usage: {reserve_output: 5000}\n")
    names: dict[str, dict[str, Any]] = {
        "openai": {"max_completion_tokens": bound},
        "anthropic": {"max_tokens": bound},
        "gemini": {"generationConfig": {"maxOutputTokens": bound}},
        "dashscope": {"parameters": {"max_tokens": bound}},
    }
    members: dict[str, Any] = {} if bound is None else names[dialect]
    size = len(ask(dialect, **members).partition(b"\r\n\r\n")[2])
    client, vendor, head = await begin(proxy, upstream, dialect, **members)

    reserved = round(size / 4) + min(5000, bound or 5000)
    assert head.get("x-ratelimit-limit-tokens") == str(LIMIT)
    assert head.get("x-ratelimit-remaining-tokens") == str(LIMIT - reserved)
    assert re.search(rf';r={LIMIT - reserved};t=\d+;qu="tokens"', head.get("ratelimit") or "")
    assert await left(proxy) == LIMIT - reserved
    await client.gone()
    await vendor.closed()
    await proxy.idle()
    assert await left(proxy) == LIMIT - round(size / 4)


async def test_reserved_by_what_was_learned(start: Callable[..., Any], upstream: Upstream) -> None:
    """Once the model has answered, what it usually writes is reserved, whatever the body allows."""
    proxy = await run(start, "openai", DAY)
    await complete(proxy, upstream, "openai", max_tokens=32_000)
    client, vendor, head = await begin(proxy, upstream, "openai", max_tokens=32_000)
    reserved = LIMIT - TOOK - int(head.get("x-ratelimit-remaining-tokens") or "")
    assert 50 < reserved < 50 + INPUT + 10
    await client.gone()
    await vendor.closed()
    await proxy.idle()


async def test_reserved_is_nothing_where_no_model_is_run(start: Callable[..., Any], upstream: Upstream) -> None:
    """A list of models takes nothing, and is there for users who are deep in debt."""
    proxy = await run(start, "openai", DAY)
    await take_all(proxy, upstream, LIMIT, LIMIT)
    client = await proxy.client()
    client.write(request("/openai/v1/models", method="GET", token=token()))
    vendor, _ = await upstream.take()
    vendor.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    answer = await client.read_message()
    assert (answer.status, answer.get("x-ratelimit-remaining-tokens")) == (200, "0")


@pytest.mark.parametrize(
    ("dialect", "path"),
    [
        ("openai", "/openai/v1/responses/input_tokens"),
        ("anthropic", "/anthropic/v1/messages/count_tokens?beta=true"),
        ("gemini", "/gemini/v1beta/models/my-model:countTokens"),
    ],
)
async def test_count_of_tokens_takes_none(
    start: Callable[..., Any], upstream: Upstream, dialect: str, path: str
) -> None:
    """To count a text's tokens is free with the vendors, so it is here: nothing is reserved, and nothing is charged."""
    proxy = await run(start, dialect, "{budgets: [{tokens: 100, every: day}]}")
    await complete(proxy, upstream, dialect)
    client = await proxy.client()
    client.write(ask(dialect, path))
    vendor, _ = await upstream.take()
    vendor.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 19\r\n\r\n{"input_tokens":11}')
    assert (await client.read_message()).status == 200
    line = (await proxy.settled(2))[-1]
    assert (line["usage"], line["input_tokens"], line["model"]) == ("none", 0, MODEL)


async def test_debt(start: Callable[..., Any], upstream: Upstream) -> None:
    """A full allowance admits a request of any size; what it took beyond is debt, and the next is refused."""
    proxy = await run(start, "openai", "{tokens: [1000/1h]}")
    await take_all(proxy, upstream, 400, 1600, max_tokens=1_000_000)
    assert await left(proxy) == 0
    answer = await refused(proxy, "openai")
    assert answer.get("x-forward-sse-code") == "rate_limit_exceeded"
    # 1000 are owed, and the room for the next one is to be gained: 3.6 s a token.
    assert int(answer.get("retry-after") or "") > 3600


async def ended(proxy: Running, upstream: Upstream, how: str) -> None:
    """An exchange that ends so."""
    client = await proxy.client()
    client.write(ask("openai"))
    vendor, _ = await upstream.take()
    first, second = (chunk(sse(event)) for event in EVENTS["openai"])
    if how == "client gone before the first byte":
        await client.gone()
    elif how == "unanswered":
        await vendor.gone()
    elif how == "error status":
        vendor.write(b"HTTP/1.1 500 X\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    elif how == "key refused":
        vendor.write(b"HTTP/1.1 401 X\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    elif how == "whole JSON":
        body = orjson.dumps(EVENTS["openai"][1])
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        vendor.write(head % len(body) + body)
    else:
        vendor.write(STREAM_HEAD + first)
        await client.read_until(first)
        await in_mid_stream(proxy, client, vendor, how, second)
    if how.startswith("client gone") or how in {"drained", "stopped"}:
        await vendor.closed()
    else:
        await client.read_message() if how in {"whole JSON", "error status", "key refused"} else None
    await proxy.idle()


async def in_mid_stream(proxy: Running, client: Peer, vendor: Peer, how: str, second: bytes) -> None:
    if how == "complete":
        vendor.write(second + LAST)
        await client.read_until(LAST)
    elif how == "client gone in mid-stream":
        await client.gone()
    elif how == "upstream broke":
        await vendor.gone()
        await client.read_to_end()
    elif how == "drained":
        await asyncio.create_task(proxy.server.drain(timeout_s=0))
    elif how == "stopped":
        assert proxy.service.exchanges.interrupt(Ending.STOPPED) == 1


ENDINGS = {
    "complete": ("complete", TOOK),
    "whole JSON": ("complete", TOOK),
    "client gone before the first byte": ("client_closed", INPUT),
    "client gone in mid-stream": ("client_closed", INPUT + 12),
    "upstream broke": ("upstream_closed", INPUT + 12),
    "drained": ("drained", INPUT + 12),
    "stopped": ("stopped", INPUT + 12),
    "unanswered": ("upstream_error", 0),
    "error status": ("upstream_error", 0),
    "key refused": ("upstream_error", 0),
}


@pytest.mark.parametrize("how", ENDINGS)
async def test_settled(start: Callable[..., Any], upstream: Upstream, how: str) -> None:
    """However an exchange ends, what it took is charged, once, and nothing stays reserved."""
    proxy = await run(start, "openai", DAY)
    ending, took = ENDINGS[how]

    await ended(proxy, upstream, how)

    line = only(await proxy.settled(), "exchange.settled")
    assert (line["ending"], line["input_tokens"] + line["output_tokens"]) == (ending, took)
    assert proxy.leases_held == 0
    if how == "drained":
        plan = Plan("default", budgets=(Budget("tokens", LIMIT, "day"),))
        (budget,) = await proxy.service.store.limits(Principal("tests", "alice", plan))
        assert (budget.used, budget.reserved) == (took, 0)
    else:
        assert await left(proxy) == LIMIT - took


async def test_settled_before_the_vendor_was_reached(start: Callable[..., Any], upstream: Upstream) -> None:
    """A client that leaves while its vendor is still being connected to has taken nothing."""
    proxy = await run(start, "openai", DAY, url=upstream.url.replace("http:", "https:"))
    client = await proxy.client()
    client.write(ask("openai"))
    # It accepts, and says nothing of TLS.
    vendor = await upstream.accept()
    await client.gone()
    await vendor.closed()
    (line,) = await proxy.settled()
    assert (line["ending"], line["usage"], line["input_tokens"]) == ("client_closed", "none", 0)
    assert await left(proxy) == LIMIT
    assert proxy.leases_held == 0


class SlowStore(MemoryStore):
    """A store that is asked for a reservation, and answers when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def reserve(self, admission: Admission, estimate: Amounts) -> None:
        self.asked.set()
        await self.answer
        await super().reserve(admission, estimate)


async def with_slow_store(start: Callable[..., Any]) -> tuple[Running, SlowStore]:
    proxy, store = await run(start, "openai", DAY), SlowStore()
    proxy.service.store = store
    proxy.service.rules = replace(proxy.service.rules, store=store)
    return proxy, store


async def test_client_leaves_while_the_store_is_asked(start: Callable[..., Any], upstream: Upstream) -> None:
    """A client that leaves before its reservation is there has reserved and taken nothing, and nothing was sent."""
    proxy, store = await with_slow_store(start)
    client = await proxy.client()
    client.write(ask("openai"))
    await store.asked.wait()
    await client.gone()
    (line,) = await proxy.settled()
    assert (line["ending"], line["code"], line["status"]) == ("client_closed", None, None)
    assert "usage" not in line
    assert upstream.is_untouched
    assert proxy.leases_held == 0
    assert await left(proxy) == LIMIT


async def test_store_that_cannot_be_asked(start: Callable[..., Any], upstream: Upstream) -> None:
    """A request whose reservation nobody can judge is 503, is not sent, and is refunded."""
    proxy, store = await with_slow_store(start)
    store.answer.set_exception(LimitsUnavailableError())
    answer = await refused(proxy, "openai")
    assert (answer.status, answer.get("x-forward-sse-code")) == (503, "limits_unavailable")
    assert answer.get("x-ratelimit-remaining-requests") == "100"
    assert upstream.is_untouched
    (line,) = await proxy.settled()
    assert (line["ending"], line["code"]) == ("refused", "limits_unavailable")
    assert proxy.leases_held == 0
    assert await left(proxy) == LIMIT


AGENTS = 200
BUDGET = 2_000_000


async def refused_by_bounds() -> int:
    """How many of the agents' requests the same budget refuses where each reserves its input and its own bound."""
    store, count = MemoryStore(), 0
    user = Principal("tests", "alice", Plan("default", budgets=(Budget("tokens", BUDGET, "day"),)))
    first = await store.admit(user)
    await store.reserve(first, Amounts(1))
    first.settle(Amounts(BUDGET * 2 // 100))
    for _ in range(AGENTS):
        admission = await store.admit(user)
        try:
            await store.reserve(admission, Amounts(32_000 + INPUT))
        except InsufficientQuotaError:
            admission.release()
            count += 1
    return count


async def test_agents_with_a_large_bound_are_admitted(
    start: Callable[..., Any], upstream: Upstream, record_property: Callable[[str, object], None]
) -> None:
    """200 short requests at once with `max_tokens: 32000` are let in by a budget of 2,000,000 of which 2 % is used."""
    proxy = await run(start, "openai", f"{{budgets: [{{tokens: {BUDGET}, every: day}}]}}")
    for _ in range(80):
        await take_all(proxy, upstream, 130, 370, max_tokens=32_000)
    assert BUDGET - await left(proxy) == BUDGET * 2 // 100

    clients = [await proxy.client() for _ in range(AGENTS)]
    for client in clients:
        client.write(ask("openai", max_tokens=32_000))
    vendors = [(await upstream.take())[0] for _ in range(AGENTS)]
    reserved = BUDGET * 98 // 100 - await left(proxy)
    for vendor in vendors:
        vendor.write(STREAM_HEAD + chunk(last_event(130, 370)) + LAST)
    answers = [await client.read_message() for client in clients]

    assert [answer.status for answer in answers] == [200] * AGENTS
    by_bounds = AGENTS * (32_000 + INPUT)
    turned_away = await refused_by_bounds()
    record_property("reserved", reserved)
    record_property("reserved_by_bounds", by_bounds)
    record_property("refused_by_bounds", turned_away)
    assert reserved < AGENTS * 600 < BUDGET < by_bounds
    assert turned_away == AGENTS - 61
    await proxy.idle()
    assert BUDGET - await left(proxy) == BUDGET * 2 // 100 + AGENTS * 500
    assert proxy.leases_held == 0
