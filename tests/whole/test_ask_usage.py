"""`ask_usage`: what the vendor is sent, what the client is given, and what the log says of it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI

from proxy.mock.reply import DEFAULT_PIECES, DEFAULT_TEXT
from tests.conftest import VENDOR_KEY, token
from tests.mock.mock_wire import vendor_of_tests
from tests.peers import LAST, STREAM_HEAD, WAIT_S, Message, Peer, Upstream, chunk, read_events, request
from tests.whole.scenes import check_settled

if TYPE_CHECKING:
    from collections.abc import Callable

    from openai.types.chat import ChatCompletionMessageParam

    from tests.conftest import Running

CONFIG = """
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
auth:
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}"}}
timeouts: {{idle: 30s}}
upstreams:
  main: {{url: "{url}", dialect: openai, api_key: "{key}", ask_usage: true}}
  plain: {{url: "{url}", dialect: openai, api_key: "{key}"}}
default_upstream: main
envelope:
  targets: [{{url: "{url}/*", upstream: main}}]
  allow_private: [127.0.0.0/8]
"""
CHAT = "/main/v1/chat/completions"
BODY = b'{ "model":"m",  "stream": true, "temperature": 1.0e0, "messages": [] }'
ASKED = BODY.replace(b"true", b'true,"stream_options":{"include_usage":true}')
FIRST = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hi"}}],"usage":null}\n\n'
STOP = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}\n\n'
TOLD = (
    b'data: {"id":"c","model":"m","choices":[],"usage":{"prompt_tokens":11,"completion_tokens":7,"total_tokens":18,'
    b'"prompt_tokens_details":{"cached_tokens":3}}}\n\n'
)
DONE = b"data: [DONE]\n\n"
STREAM = FIRST + FIRST + STOP + TOLD + DONE
LEFT = FIRST + FIRST + STOP + DONE
REPORTED = {"usage": "reported", "input_tokens": 11, "output_tokens": 7, "cached_tokens": 3}


async def begin(
    proxy: Running, upstream: Upstream, body: bytes = BODY, path: str = CHAT, **options: Any
) -> tuple[Peer, Peer, Message]:
    """A request on its way: the client, the vendor, and what the vendor received."""
    client = await proxy.client()
    client.write(request(path, body, token=token(), **options))
    vendor, received = await upstream.take()
    return client, vendor, received


async def metered(proxy: Running) -> None:
    """Wait until the meter of the one exchange has seen the usage event: nothing of it reaches the client."""
    [(exchange, _, _)] = proxy.service.exchanges.live()
    async with asyncio.timeout(WAIT_S):
        while exchange.meter is None or exchange.meter.counts.output is None:  # noqa: ASYNC110 - as said
            await asyncio.sleep(0)


@pytest.fixture
async def asking(start: Callable[..., Any]) -> Running:
    """A proxy whose upstream `main` is asked for usage."""
    return await start(config=CONFIG)  # type: ignore[no-any-return]  # the factory's options are open


async def test_ask_usage_event_by_event(asking: Running, upstream: Upstream) -> None:
    """The vendor gets the client's bytes and the member, the client the vendor's bytes as they come, but one event."""
    client, vendor, received = await begin(asking, upstream)
    assert received.body == ASKED
    assert received.get("content-length") == str(len(ASKED))
    vendor.write(STREAM_HEAD + chunk(FIRST))
    await client.read_head()
    assert await client.read_exactly(len(chunk(FIRST))) == chunk(FIRST)
    for event, seen in ((FIRST, FIRST), (STOP, STOP), (TOLD + DONE, DONE)):
        vendor.write(chunk(event))
        assert await client.read_exactly(len(chunk(seen))) == chunk(seen)
    vendor.write(LAST)
    assert await client.read_exactly(len(LAST)) == LAST
    await check_settled(asking, "complete", **REPORTED, bytes=len(LEFT), events=4)


async def test_ask_usage_alone_in_its_chunk(asking: Running, upstream: Upstream) -> None:
    """The event in a chunk of its own, as vendors send it, leaves no trace: neither a chunk nor a count."""
    client, vendor, _ = await begin(asking, upstream)
    vendor.write(STREAM_HEAD + chunk(FIRST))
    await client.read_until(chunk(FIRST))
    vendor.write(chunk(STOP))
    await client.read_exactly(len(chunk(STOP)))
    vendor.write(chunk(TOLD))
    await metered(asking)
    vendor.write(chunk(DONE))
    assert await client.read_exactly(len(chunk(DONE))) == chunk(DONE)
    vendor.write(LAST)
    assert await client.read_exactly(len(LAST)) == LAST
    await check_settled(asking, "complete", **REPORTED, bytes=len(FIRST + STOP + DONE), events=3)


@pytest.mark.parametrize("size", [1, 2, 5, 64, 100_000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
async def test_ask_usage_for_every_split(asking: Running, upstream: Upstream, size: int, end: bytes) -> None:
    """However the vendor's chunks split the stream, and with either line end, only that event is missing."""
    client, vendor, _ = await begin(asking, upstream)
    stream = STREAM.replace(b"\n", end)
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    vendor.write(STREAM_HEAD + b"".join(map(chunk, pieces)) + LAST)
    answer = await client.read_message()
    assert answer.is_whole
    assert answer.body == LEFT.replace(b"\n", end)
    await check_settled(asking, "complete", **REPORTED, events=4)


@pytest.mark.parametrize(
    "body",
    [
        BODY.replace(b"{", b'{"stream_options":{"include_usage":true},', 1),
        BODY.replace(b"{", b'{"stream_options":{"include_usage":false},', 1),
        BODY.replace(b"{", b'{"stream":true,', 1),
        b'{"model":"m","stream":false}',
        b'{"model":"m"',
    ],
)
async def test_ask_usage_where_the_client_has_decided(asking: Running, upstream: Upstream, body: bytes) -> None:
    """A body that has decided, is ambiguous or does not stream goes as it came, and so does its whole stream."""
    client, vendor, received = await begin(asking, upstream, body)
    assert received.body == body
    vendor.write(STREAM_HEAD + chunk(STREAM) + LAST)
    assert (await client.read_message()).body == STREAM
    await check_settled(asking, "complete", **REPORTED)


@pytest.mark.parametrize("path", ["/main/v1/responses", "/main/v1/embeddings", "/plain/v1/chat/completions"])
async def test_ask_usage_elsewhere(asking: Running, upstream: Upstream, path: str) -> None:
    """Neither another path nor an upstream without `ask_usage` is asked."""
    client, vendor, received = await begin(asking, upstream, path=path)
    assert received.body == BODY
    vendor.write(STREAM_HEAD + chunk(STREAM) + LAST)
    assert (await client.read_message()).body == STREAM


@pytest.mark.parametrize("path", ["/main/v1/completions", "/forward-sse", "/v1/chat/completions"])
async def test_ask_usage_on_every_way(asking: Running, upstream: Upstream, path: str) -> None:
    """Completions are asked too, and requests that name no upstream."""
    client, vendor, received = await begin(asking, upstream, path=path)
    assert received.body == ASKED
    vendor.write(STREAM_HEAD + chunk(STREAM) + LAST)
    assert (await client.read_message()).body == LEFT


async def test_ask_usage_of_bound_body(asking: Running, upstream: Upstream) -> None:
    """A body whose digest the client has sent along goes as it came."""
    fields = (("Content-Digest", "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"),)
    _, _, received = await begin(asking, upstream, fields=fields)
    assert received.body == BODY


async def test_ask_usage_with_a_length(asking: Running, upstream: Upstream) -> None:
    """A stream that came with its length and digests has neither any more, and is whole."""
    client, vendor, _ = await begin(asking, upstream)
    vendor.write(
        b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Own: a\r\nETag: "e"\r\nContent-MD5: m\r\n'
        b"Content-Encoding: identity\r\nContent-Length: %d\r\n\r\n%b" % (len(STREAM), STREAM)
    )
    answer = await client.read_message()
    assert answer.is_whole
    assert answer.body == LEFT
    assert answer.get("x-own") == "a"
    for name in ("content-length", "etag", "content-md5"):
        assert answer.get(name) is None
    await check_settled(asking, "complete", **REPORTED)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/event-stream\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n",
    ],
)
async def test_ask_usage_of_other_answers(asking: Running, upstream: Upstream, head: bytes) -> None:
    """An error, an answer that is no stream, and one in a content coding are passed whole, with their length."""
    client, vendor, _ = await begin(asking, upstream)
    vendor.write(head + b"Content-Length: %d\r\n\r\n%b" % (len(TOLD), TOLD))
    answer = await client.read_message()
    assert answer.body == TOLD
    assert answer.get("content-length") == str(len(TOLD))


@pytest.mark.parametrize("told", [TOLD, TOLD[:-1], TOLD[:-2]])
async def test_ask_usage_as_the_last_event(asking: Running, upstream: Upstream, told: bytes) -> None:
    """A stream that ends with the event, or within it but for its blank line, ends well without it."""
    client, vendor, _ = await begin(asking, upstream)
    vendor.write(STREAM_HEAD + chunk(FIRST))
    await client.read_head()
    await client.read_exactly(len(chunk(FIRST)))
    vendor.write(chunk(told) + LAST)
    assert await client.read_exactly(len(LAST)) == LAST
    await check_settled(asking, "complete", **REPORTED, bytes=len(FIRST), events=1)


async def test_ask_usage_cut_within_the_event(asking: Running, upstream: Upstream) -> None:
    """Where the vendor breaks off within the event, nothing of it is passed, and an error event says why it ends."""
    client, vendor, _ = await begin(asking, upstream)
    vendor.write(STREAM_HEAD + chunk(FIRST) + chunk(TOLD[:60]))
    await client.read_until(chunk(FIRST))
    vendor.close()
    rest = await client.read_to_end()
    assert TOLD[:20] not in rest
    assert rest.count(b"data: ") == 1
    assert b"upstream_unreachable" in rest
    assert LAST not in rest
    await check_settled(asking, "upstream_closed", usage="estimated", bytes=len(FIRST), events=1)


async def test_ask_usage_cut_within_another_event(asking: Running, upstream: Upstream) -> None:
    """Where the vendor breaks off within another event, its beginning was passed, and nothing follows it."""
    client, vendor, _ = await begin(asking, upstream)
    vendor.write(STREAM_HEAD + chunk(FIRST + STOP[:50]))
    await client.read_until(chunk(FIRST + STOP[:50]))
    vendor.close()
    assert await client.read_to_end() == b""
    await check_settled(asking, "upstream_closed", events=1)


async def test_ask_usage_heartbeat_within_an_event(start: Callable[..., Any], upstream: Upstream) -> None:
    """While a beginning is held the client is between two events: a heartbeat comes, and then the event whole."""
    proxy = await start(config=CONFIG + "heartbeat: 50ms\n")
    client, vendor, _ = await begin(proxy, upstream)
    vendor.write(STREAM_HEAD + chunk(FIRST) + chunk(STOP[:12]))
    await client.read_until(chunk(FIRST))
    await client.read_until(chunk(b": ping\n\n"))
    vendor.write(chunk(STOP[12:]) + LAST)
    rest = (await client.read_until(LAST)).replace(chunk(b": ping\n\n"), b"")
    assert rest == chunk(STOP) + LAST


async def test_ask_usage_keeps_what_is_not_it(asking: Running, upstream: Upstream) -> None:
    """Azure's first chunk, running totals beside choices, and an error without choices are the client's."""
    kept = (
        b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}\n\n'
        b": comment\n\n"
        b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":11}}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":11},"error":{"message":"overloaded"}}\n\n'
        b'data: {"choices":[{"index":0,"delta":{}}],"usage":{"prompt_tokens":11,"completion_tokens":2}}\n\n'
    )
    client, vendor, _ = await begin(asking, upstream)
    vendor.write(STREAM_HEAD + chunk(kept + TOLD) + chunk(TOLD + DONE) + LAST)
    assert (await client.read_message()).body == kept + DONE
    await check_settled(asking, "complete", **REPORTED, events=5)


async def test_ask_usage_typed(asking: Running, upstream: Upstream) -> None:
    """Typed events tell the usage, as they do wherever the vendor told it."""
    client, vendor, received = await begin(asking, upstream, path=CHAT + "?events=typed")
    assert received.body == ASKED
    vendor.write(STREAM_HEAD + chunk(STREAM) + LAST)
    answer = await client.read_message()
    last = json.loads(read_events(answer.body)[-1][1])
    assert last["t"] == "End"
    assert last["usage"]["output"] == 7
    await check_settled(asking, "complete", **REPORTED)


async def test_ask_usage_of_ticket(asking: Running, upstream: Upstream) -> None:
    """A ticket's request is asked when it is sent, and its `EventSource` is given the stream without the event."""
    client = await asking.client()
    client.write(request("/forward-sse/tickets", BODY, token=token()))
    url = (await client.read_message()).json["url"]
    client = await asking.client()
    client.write(request(url, method="GET", fields=(("Accept", "text/event-stream"),)))
    vendor, received = await upstream.take()
    assert received.body == ASKED
    vendor.write(STREAM_HEAD + chunk(STREAM[:-5]) + chunk(STREAM[-5:]) + LAST)
    answer = await client.read_message()
    assert answer.body.startswith(LEFT)
    assert [name for name, _ in read_events(answer.body.removeprefix(LEFT))] == ["end"]
    line = (await asking.settled(2))[-1]
    assert {name: line[name] for name in REPORTED} == REPORTED


async def test_ask_usage_of_envelope(asking: Running, upstream: Upstream) -> None:
    """An envelope whose target belongs to the upstream is asked as well."""
    envelope = {"targetUrl": upstream.url + "/v1/chat/completions", "method": "post", "body": {"stream": True}}
    client, vendor, received = await begin(asking, upstream, json.dumps(envelope).encode(), "/forward-sse")
    assert received.body == b'{"stream":true,"stream_options":{"include_usage":true}}'
    vendor.write(STREAM_HEAD + chunk(STREAM) + LAST)
    assert (await client.read_message()).body == LEFT


async def test_ask_usage_after_early_heartbeat(start: Callable[..., Any], upstream: Upstream) -> None:
    """A stream that began before the vendor's head is without the event, too, also where it comes in its own read."""
    proxy = await start(config=CONFIG + "early_heartbeat: true\nheartbeat: 50ms\n")
    client, vendor, _ = await begin(proxy, upstream)
    await client.read_until(chunk(b": ping\n\n"))
    seen = b""
    vendor.write(STREAM_HEAD + chunk(FIRST))
    seen += await client.read_until(FIRST + b"\r\n")
    vendor.write(chunk(STOP))
    seen += await client.read_until(STOP + b"\r\n")
    vendor.write(chunk(TOLD))
    await metered(proxy)
    vendor.write(chunk(DONE) + LAST)
    seen += await client.read_until(LAST)
    assert seen.replace(chunk(b": ping\n\n"), b"") == chunk(FIRST) + chunk(STOP) + chunk(DONE) + LAST
    await check_settled(proxy, "complete", **REPORTED)


async def test_ask_usage_of_old_client(asking: Running, upstream: Upstream) -> None:
    """A client of HTTP/1.0 is given the stream without the event, up to the connection's end."""
    client = await asking.client()
    client.write(request(CHAT, BODY, token=token()).replace(b" HTTP/1.1", b" HTTP/1.0", 1))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(STREAM[:100]) + chunk(STREAM[100:]) + LAST)
    assert (await client.read_to_end()).partition(b"\r\n\r\n")[2] == LEFT


async def test_ask_usage_with_the_sdk(start: Callable[..., Any]) -> None:
    """OpenAI's own client, which did not ask, never sees a chunk without choices; the log has the vendor's figures."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "say something"}]
    async with vendor_of_tests(key=VENDOR_KEY) as vendor:
        proxy = await start(config=CONFIG.replace("{url}", vendor.url))
        base = "http://{}:{}/main/v1".format(*proxy.address)
        async with AsyncOpenAI(api_key=token(), base_url=base, max_retries=0) as client:
            stream = await client.chat.completions.create(model="mock-1", messages=messages, stream=True)
            chunks = [chunk async for chunk in stream]
            assert all(len(chunk.choices) == 1 for chunk in chunks)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == DEFAULT_TEXT
            assert all(chunk.usage is None for chunk in chunks)
            asked = await client.chat.completions.create(
                model="mock-1", messages=messages, stream=True, stream_options={"include_usage": True}
            )
            assert [chunk async for chunk in asked][-1].usage is not None
        lines = await proxy.settled(2)
    assert [(line["usage"], line["output_tokens"]) for line in lines] == [("reported", len(DEFAULT_PIECES))] * 2
