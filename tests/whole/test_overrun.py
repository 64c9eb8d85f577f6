"""`budget_overrun: cut`: a running stream that has used up a budget ends between two events, and says why."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from proxy.limits.redis.store import RedisStore
from proxy.model import Ending
from proxy.relay.overrun import OverrunWatch
from tests.conftest import token
from tests.limits.redis_support import RedisServer
from tests.peers import LAST, STREAM_HEAD, WAIT_S, chunk, read_events, request
from tests.whole.scenes import check_settled, fill
from tests.whole.token_scenes import BODY, DIALECTS, MODEL, PATHS, ask, begin, code_of, last_event, refused, run, sse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.conftest import Running
    from tests.peers import Peer, Upstream

CUT = "{budgets: [{tokens: 2000, every: day}], budget_overrun: cut}"
DOLLARS = "{budgets: [{usd: 0.01, every: day}], budget_overrun: cut}"
WORDS = "hello world " * 10
# An event of each dialect with text, and as many tokens so far as the vendor tells, if it does.
EVENTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "openai": lambda _: {"choices": [{"index": 0, "delta": {"content": WORDS}}]},
    "anthropic": lambda _: {"type": "content_block_delta", "delta": {"type": "text_delta", "text": WORDS}},
    "gemini": lambda told: {
        "candidates": [{"content": {"parts": [{"text": WORDS}]}}],
        "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": told},
    },
    "dashscope": lambda told: {"output": {"text": WORDS}, "usage": {"input_tokens": 100, "output_tokens": told}},
}
SPLIT = 70
MARK = sse({"id": "all has come"})
# So many of them are beyond the budget: 30 tokens each, as told or by a quarter of a token a byte.
ENOUGH = 100


def pieces(dialect: str, count: int = ENOUGH) -> list[bytes]:
    return [sse(EVENTS[dialect](30 * (number + 1))) for number in range(count)]


async def rest_of(client: Peer, *, is_clean: bool = False) -> bytes:
    """The body's data until its end, which is one in order or not."""
    data = await client.read_to_end() if not is_clean else await client.read_until(LAST)
    assert data.endswith(LAST) is is_clean
    body = b""
    while data and not data.startswith(LAST):
        size, _, data = data.partition(b"\r\n")
        body += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
    return body


def look_twice(proxy: Running) -> None:
    """Have every stream that is watched looked at twice, as after a second."""
    timers = proxy.service.timers
    for watch in [watch for watch in timers._watched if isinstance(watch, OverrunWatch)]:
        for later_s in (1.0, 2.0):
            watch.check(timers.now() + later_s)


def is_watched(proxy: Running) -> bool:
    """Whether a stream is still looked at."""
    return any(isinstance(watched, OverrunWatch) for watched in proxy.service.timers._watched)


async def check_cut(proxy: Running, **fields: Any) -> dict[str, Any]:
    await proxy.idle()
    assert not is_watched(proxy)
    return await check_settled(proxy, "stopped", status=200, code="insufficient_quota", usage="estimated", **fields)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_cut(start: Callable[..., Any], upstream: Upstream, dialect: str) -> None:
    """The stream ends within about a second, in the dialect's own words and without its end; the next is refused."""
    proxy = await run(start, dialect, CUT)
    client, vendor, _ = await begin(proxy, upstream, dialect)
    events = pieces(dialect)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    for piece in events:
        vendor.write(chunk(piece))
    body = await rest_of(client)

    assert loop.time() - began_s < 2
    last = body.removeprefix(b"".join(events))
    assert len(last) < len(body)
    ((_, said),) = read_events(last)
    assert code_of(dialect, said.encode()) == "insufficient_quota"
    assert b"\n\n" not in last[:-2]
    await vendor.closed()
    line = await check_cut(proxy, events=ENOUGH, model=MODEL)
    assert line["input_tokens"] + line["output_tokens"] > 2000
    answer = await refused(proxy, dialect)
    assert (answer.status, answer.get("x-forward-sse-code")) == (429, "insufficient_quota")


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_not_cut_within_an_event(start: Callable[..., Any], upstream: Upstream, dialect: str) -> None:
    """A stream that stands within an event goes on until the event has come whole."""
    proxy = await run(start, dialect, CUT)
    client, vendor, _ = await begin(proxy, upstream, dialect)
    events = pieces(dialect)
    vendor.write(chunk(b"".join(events[:-1]) + events[-1][:SPLIT]))
    await client.read_until(events[-1][:SPLIT] + b"\r\n")
    look_twice(proxy)
    vendor.write(chunk(events[-1][SPLIT:]))
    body = await rest_of(client)

    assert body.startswith(events[-1][SPLIT:])
    ((_, said),) = read_events(body.removeprefix(events[-1][SPLIT:]))
    assert code_of(dialect, said.encode()) == "insufficient_quota"
    await vendor.closed()
    await check_cut(proxy, events=ENOUGH)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_cut_typed(start: Callable[..., Any], upstream: Upstream, dialect: str) -> None:
    """A typed stream ends in order, with an `Error` of that code, and its connection can be used again."""
    proxy = await run(start, dialect, CUT)
    path = PATHS[dialect]
    client = await proxy.client()
    client.write(ask(dialect, f"{path}{'&' if '?' in path else '?'}events=typed"))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + b"".join(map(chunk, pieces(dialect))))
    await client.read_head()
    body = await rest_of(client, is_clean=True)

    *texts, last = [orjson.loads(data) for _, data in read_events(body)]
    assert {event["t"] for event in texts} == {"Text"}
    assert (last["t"], last["code"]) == ("Error", "insufficient_quota")
    await vendor.closed()
    await check_cut(proxy)
    client.write(request("/healthz", method="GET"))
    assert (await client.read_message()).status == 200


@pytest.mark.parametrize("is_typed", [False, True])
async def test_cut_of_a_ticket(start: Callable[..., Any], upstream: Upstream, is_typed: bool) -> None:
    """A ticket's stream gets the error, and `end` with the code."""
    proxy = await run(start, "openai", CUT)
    client = await proxy.client()
    client.write(ask("openai", "/forward-sse/tickets" + "?events=typed" * is_typed))
    made = await client.read_message()
    client.write(request(made.json["url"], method="GET"))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + b"".join(map(chunk, pieces("openai"))))
    await client.read_head()
    body = await rest_of(client, is_clean=is_typed)

    *_, (_, said), (name, end) = read_events(body)
    assert name == "end"
    told = orjson.loads(end)
    assert (told["ending"], told["code"], told["status"]) == ("stopped", "insufficient_quota", 200)
    assert orjson.loads(said).get("code") == "insufficient_quota" if is_typed else code_of("openai", said.encode())
    await vendor.closed()
    lines = [line for line in await proxy.settled(2) if line["method"] == "GET"]
    assert [(line["ending"], line["code"]) for line in lines] == [("stopped", "insufficient_quota")]
    assert proxy.leases_held == 0


async def test_cut_by_dollars(start: Callable[..., Any], upstream: Upstream) -> None:
    """A budget in dollars cuts by the model's price: 10 dollars a million tokens of output."""
    proxy = await run(start, "openai", DOLLARS)
    client, vendor, _ = await begin(proxy, upstream, "openai", max_tokens=100)
    vendor.write(b"".join(map(chunk, pieces("openai", 40))))
    line = await check_settled(proxy, "stopped") if (await rest_of(client)) else {}
    assert line["code"] == "insufficient_quota"
    assert float(line["cost_usd"]) > 0.01
    await vendor.closed()


@pytest.mark.parametrize(
    ("plan", "model"),
    [
        (DOLLARS, "nobody-knows"),
        (CUT.replace("cut", "finish"), MODEL),
        ("{tokens: [2000/1d], budget_overrun: cut}", MODEL),
    ],
    ids=["without a price", "finish", "a rate"],
)
async def test_goes_on(start: Callable[..., Any], upstream: Upstream, plan: str, model: str) -> None:
    """Money cuts nothing where no price is known, rates cut nothing, and by default a stream goes on."""
    proxy = await run(start, "openai", plan)
    client, vendor, _ = await begin(proxy, upstream, "openai", model=model)
    vendor.write(b"".join(map(chunk, [*pieces("openai"), MARK])))
    await client.read_until(MARK)
    look_twice(proxy)
    vendor.write(chunk(last_event(100, 50_000)) + LAST)
    await client.read_until(LAST)
    await check_settled(proxy, "complete", code=None)


async def test_goes_on_within_its_budget(start: Callable[..., Any], upstream: Upstream) -> None:
    """A stream that has not used up its budget is not cut, though its text alone would be estimated at more."""
    proxy = await run(start, "gemini", CUT)
    client, vendor, _ = await begin(proxy, upstream, "gemini")
    vendor.write(chunk(sse(EVENTS["gemini"](1700)) * ENOUGH) + chunk(MARK))
    await client.read_until(MARK)
    look_twice(proxy)
    assert is_watched(proxy)
    vendor.write(LAST)
    await client.read_until(LAST)
    await check_settled(proxy, "complete", code=None)
    assert not is_watched(proxy)


async def test_cut_of_streams_that_use_up_a_budget_together(start: Callable[..., Any], upstream: Upstream) -> None:
    """Streams of one user of which none has used up the budget alone are cut when all of them have; not another's."""
    proxy = await run(start, "openai", CUT)
    streams = [await begin(proxy, upstream, "openai", max_tokens=5) for _ in range(3)]
    other = await proxy.client()
    other.write(request(PATHS["openai"], BODY, token=token("bob")))
    others_vendor, _ = await upstream.take()
    others_vendor.write(STREAM_HEAD + b"".join(map(chunk, [*pieces("openai", 25), MARK])))
    for client, vendor, _ in streams:
        vendor.write(b"".join(map(chunk, [*pieces("openai", 25), MARK])))
        await client.read_until(MARK + b"\r\n")
    # Each has taken some 870 tokens: two are within the budget.
    for client, vendor, _ in streams:
        assert b"insufficient_quota" in await rest_of(client)
        await vendor.closed()
    assert is_watched(proxy)
    others_vendor.write(LAST)
    assert MARK in await other.read_until(LAST)
    lines = await proxy.settled(4)
    assert sorted(line["ending"] for line in lines) == ["complete", *["stopped"] * 3]
    assert proxy.leases_held == 0
    assert not proxy.service.overruns._users


@pytest.fixture(params=["memory", "redis"])
async def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """Each store, as the file names it."""
    if request.param == "memory":
        yield "limits: {store: memory}\n"
        return
    # A busy machine is no outage here.
    defaults = RedisStore.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "timeout_s", WAIT_S)
    server = RedisServer()
    await server.start()
    yield f"limits: {{store: 'unix://{server.path}'}}\n"
    server.close()


async def test_cut_when_others_are_charged(start: Callable[..., Any], upstream: Upstream, limits: str) -> None:
    """A running stream is cut when the user's other exchanges have used up the budget; the next one is refused."""
    proxy = await run(start, "openai", CUT, limits)
    client, vendor, _ = await begin(proxy, upstream, "openai", max_tokens=5)
    vendor.write(chunk(MARK))
    await client.read_until(MARK + b"\r\n")
    short, its_vendor, _ = await begin(proxy, upstream, "openai", max_tokens=5)
    its_vendor.write(chunk(last_event(100, 5000)) + LAST)
    await short.read_until(LAST)
    assert b"insufficient_quota" in await rest_of(client)
    await vendor.closed()
    assert sorted(line["ending"] for line in await proxy.settled(2)) == ["complete", "stopped"]
    answer = await refused(proxy, "openai")
    assert (answer.status, answer.get("x-forward-sse-code")) == (429, "insufficient_quota")
    assert proxy.leases_held == 0


async def test_not_cut_for_what_is_only_reserved(start: Callable[..., Any], upstream: Upstream) -> None:
    """What others have reserved and not taken ends no stream."""
    proxy = await run(start, "openai", CUT)
    other, its_vendor, _ = await begin(proxy, upstream, "openai", max_tokens=1500)
    client, vendor, head = await begin(proxy, upstream, "openai", max_tokens=5)
    assert int(head.get("x-ratelimit-remaining-tokens") or "") < 300
    vendor.write(b"".join(map(chunk, [*pieces("openai", 50), MARK])))
    await client.read_until(MARK)
    look_twice(proxy)
    vendor.write(LAST)
    await client.read_until(LAST)
    its_vendor.write(LAST)
    await other.read_until(LAST)
    assert [line["ending"] for line in await proxy.settled(2)] == ["complete"] * 2


async def test_cut_of_a_client_that_does_not_read(start: Callable[..., Any], upstream: Upstream) -> None:
    """A client that is behind is cut, too, and its vendor's connection closed at once."""
    proxy = await run(start, "openai", CUT)
    client = await proxy.client(receive_buffer=4096)
    client.write(request(PATHS["openai"], BODY, token=token()))
    vendor, _ = await upstream.take()
    piece = chunk(pieces("openai", 1)[0] * 50)
    with pytest.raises((ConnectionError, AssertionError)):  # the vendor's connection is lost while it writes
        assert await fill(vendor, piece=piece, limit=2**26) == 0
    await vendor.closed()
    await check_cut(proxy)
    await client.gone()


async def test_cut_of_a_client_of_http_1_0(start: Callable[..., Any], upstream: Upstream) -> None:
    """Where only the connection's end marks the body's, the connection is reset."""
    proxy = await run(start, "openai", CUT)
    client = await proxy.client()
    client.write(ask("openai").replace(b" HTTP/1.1", b" HTTP/1.0", 1))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + b"".join(map(chunk, pieces("openai"))))
    with pytest.raises(ConnectionError):
        await client.reader.read(-1)
    await vendor.closed()
    await check_cut(proxy)


async def test_stopped_by_somebody_is_told_apart(start: Callable[..., Any], upstream: Upstream) -> None:
    """A stream of such a plan that its user stops has no code, and a typed one ends in `Cancelled` as ever."""
    proxy = await run(start, "openai", CUT)
    client = await proxy.client()
    client.write(ask("openai", PATHS["openai"] + "?events=typed"))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(pieces("openai", 1)[0]))
    await client.read_head()
    await client.read_until(b'"Text"')
    assert proxy.service.exchanges.interrupt(Ending.STOPPED) == 1
    assert b'"Cancelled"' in await client.read_until(LAST)
    await vendor.closed()
    await check_settled(proxy, "stopped", code=None)
