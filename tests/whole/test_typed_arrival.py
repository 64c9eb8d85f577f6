"""Typed events through real sockets: as they arrive, by every door, and what is left alone."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from proxy.mock.server import MockVendor
from tests.conftest import VENDOR_KEY, token
from tests.peers import LAST, STREAM_HEAD, Upstream, chunk, event, request
from tests.typed_streams import STREAMS, end, failed, mocked, read
from tests.whole.scenes import check_settled
from tests.whole.typed_scenes import ASKED, BODY, CLOSED, CONFIG, FINISH, PLAIN, line, rest_of, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running


@pytest.fixture
async def typing(start: Callable[..., Any]) -> Running:
    """A proxy with an upstream of every kind."""
    return await start(config=PLAIN)  # type: ignore[no-any-return]  # the factory's options are open


@pytest.mark.parametrize("name", list(STREAMS))
async def test_typed_arrives_event_by_event(typing: Running, upstream: Upstream, name: str) -> None:
    """What an event of the vendor's says is with the client before the vendor sends the next, in every dialect."""
    dialect, path, body, expected, _ = STREAMS[name]
    path += ("&" if "?" in path else "?") + "events=typed&events=5"
    client = await typing.client()
    client.write(request(f"/{dialect}{path}", body, token=token()))
    vendor, received = await upstream.take()
    vendor.write(STREAM_HEAD)
    await client.read_head()
    seen: list[dict[str, Any]] = []
    for piece in mocked(path.partition("events=typed")[0].rstrip("?"), body)[0]:
        vendor.write(chunk(piece))
        # Every piece of the mock's says one thing at most; its words tell which.
        following = expected[len(seen)]
        if following["t"] != "End" and json.dumps(following["r"], ensure_ascii=False).encode()[1:-1] in piece:
            await client.read_until(line(**following) + b"\r\n")
            seen.append(following)
    vendor.write(LAST)

    told = await rest_of(client) if expected[-1] not in seen else []

    assert [*seen, *told] == expected
    assert received.start == f"POST {path.replace('events=typed&', '')} HTTP/1.1"
    assert json.loads(received.body) == body
    await check_settled(typing, "complete", events=len(expected), status=200)
    # The vendor's connection was left in order, and is used again.
    client.write(request(f"/{dialect}{path}", body, token=token()))
    assert (await vendor.read_message()).start == received.start


@pytest.mark.parametrize("name", list(STREAMS))
async def test_typed_mock_vendor(start: Callable[..., Any], name: str) -> None:
    """The mock's own streams, whole and failing half way, with the vendor's error code."""
    dialect, path, body, expected, code = STREAMS[name]
    fields = (("X-Mock-Events", "3"), ("X-DashScope-SSE", "enable"), ("X-Forward", "1"))
    failing = (*fields, ("X-Mock-Fault", "error_event"), ("X-Mock-Fault-After", "3"))
    path += ("&" if "?" in path else "?") + "events=typed"
    async with MockVendor(VENDOR_KEY) as vendor:
        proxy = await start(config=PLAIN.replace("{url}", vendor.url))
        client = await proxy.client()
        client.write(request(f"/{dialect}{path}", body, token=token(), fields=fields))
        whole = await client.read_message()
        client.write(request(f"/{dialect}{path}", body, token=token(), fields=failing))
        failed_half_way = await client.read_message()

    assert read(whole.body) == expected
    assert read(failed_half_way.body)[-1] == failed(code)
    assert [settled["ending"] for settled in await proxy.settled(2)] == ["complete", "upstream_error"]
    assert proxy.leases_held == 0


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/forward-sse?events=typed", "/v1/chat/completions"),
        ("/forward-sse?upstream=openai&events=typed&events=5", "/v1/chat/completions?events=5"),
        ("/v1/chat/completions?%65vents=typed", "/v1/chat/completions"),
        ("/openai/v1/chat/completions?a=1&events=typed", "/v1/chat/completions?a=1"),
        ("/always/v1/chat/completions?events=5", "/v1/chat/completions?events=5"),
        ("/always/v1/chat/completions?events=typed", "/v1/chat/completions"),
    ],
)
async def test_typed_doors_and_fields(start: Callable[..., Any], upstream: Upstream, path: str, target: str) -> None:
    """By every door, under the configured names; the head describes what comes, not what the upstream sent."""
    proxy = await start(config=CONFIG)
    client = await proxy.client()
    client.write(request(path, BODY, token=token()))
    vendor, received = await upstream.take()
    stream = event("one") + FINISH
    vendor.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream;charset=UTF-8\r\nContent-Length: %d\r\n"
        b'ETag: "a"\r\nContent-MD5: x\r\nLast-Modified: x\r\nAccept-Ranges: bytes\r\nContent-Encoding: identity\r\n'
        b"Cache-Control: no-transform\r\nrequest-id: r1\r\n\r\n" % len(stream) + stream
    )

    answer = await client.read_message()

    assert received.start == f"POST {target} HTTP/1.1"
    name = "done" if "always" in path else "End"
    assert answer.body == line(t="text", r="one") + line(t=name, r="")
    assert answer.get("content-type") == "text/event-stream"
    assert answer.get("transfer-encoding") == "chunked"
    assert answer.get("request-id") == "r1"
    for dropped in ("content-length", "etag", "content-md5", "last-modified", "accept-ranges", "content-encoding"):
        assert answer.get(dropped) is None
    await check_settled(proxy, "complete", bytes=len(answer.body), events=2)


async def test_typed_envelope(typing: Running, upstream: Upstream) -> None:
    """An envelope's stream is typed where its target has an upstream, and so a dialect; elsewhere it is refused."""
    client = await typing.client()
    url = upstream.url + "/api/v1/apps/a/completion?events=typed"
    client.write(request(ASKED, {"targetUrl": url, "body": "{}"}, token=token()))
    vendor, received = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(b'data:{"output":{"text":"a","finish_reason":"stop"}}\n\n') + LAST)

    assert read((await client.read_message()).body) == [text("a"), end()]
    assert received.start == "POST /api/v1/apps/a/completion?events=typed HTTP/1.1"
    client.write(request(ASKED, {"targetUrl": upstream.url + "/own/x"}, token=token()))
    assert (await client.read_message()).json["error"]["code"] == "invalid_request"
    assert len(upstream.peers) == 1


@pytest.mark.parametrize("path", ["/other/run?events=typed", "/forward-sse?upstream=other&events=typed"])
async def test_typed_raw_upstream_is_refused(typing: Running, upstream: Upstream, path: str) -> None:
    """What nobody knows the meaning of is not typed."""
    client = await typing.client()
    client.write(request(path, BODY, token=token()))

    assert (await client.read_message()).json["error"]["code"] == "invalid_request"
    assert upstream.is_untouched
    await check_settled(typing, "refused", status=400)


@pytest.mark.parametrize(
    ("start_line", "content_type", "body", "ending"),
    [
        ("429 Too Many Requests", "application/json", b'{"error":{"message":"slow down"}}', "upstream_error"),
        ("400 Bad Request", "text/event-stream", b'event:error\ndata:{"code":"X","message":"m"}\n\n', "upstream_error"),
        ("200 OK", "application/json", b'{"choices":[]}', "complete"),
        ("200 OK", "text/plain", event("one"), "complete"),
        ("302 Found", "text/event-stream", event("one"), "complete"),
    ],
)
async def test_typed_leaves_other_answers_alone(
    typing: Running, upstream: Upstream, start_line: str, content_type: str, body: bytes, ending: str
) -> None:
    """An error, and what is no stream, come through to the byte, with status, type and length."""
    client = await typing.client()
    client.write(request(ASKED, BODY, token=token()))
    vendor, _ = await upstream.take()
    head = f'HTTP/1.1 {start_line}\r\nContent-Type: {content_type}\r\nETag: "a"\r\nContent-Length: {len(body)}\r\n\r\n'
    vendor.write(head.encode() + body)

    answer = await client.read_message()

    assert (answer.status, answer.body) == (int(start_line[:3]), body)
    assert answer.get("content-type") == content_type
    assert answer.get("content-length") == str(len(body))
    assert answer.get("etag") == '"a"'
    await check_settled(typing, ending)


async def test_typed_compressed_stream_is_a_502(typing: Running, upstream: Upstream) -> None:
    """What cannot be read is refused while there still is a status to say so."""
    client = await typing.client()
    client.write(request(ASKED, BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"))

    answer = await client.read_message()

    assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_protocol_error")
    await vendor.closed()
    await check_settled(typing, "upstream_error", status=502, code="upstream_protocol_error")


async def test_typed_http_1_0(typing: Running, upstream: Upstream) -> None:
    """Without chunks the connection's end is the body's, after the last event."""
    client = await typing.client()
    client.write(request(ASKED, BODY, token=token()).replace(b"HTTP/1.1", b"HTTP/1.0"))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    await client.read_until(line(t="Text", r="one"))
    vendor.close()

    assert read(await client.read_to_end()) == [CLOSED]
    await check_settled(typing, "upstream_closed")


async def test_typed_heartbeat(start: Callable[..., Any], upstream: Upstream) -> None:
    """With heartbeats on, the client's silence is filled, though the vendor sends what says nothing and is not idle."""
    proxy = await start("timeouts: {idle: 1s}\n", config=PLAIN)
    client = await proxy.client()
    client.write(request("/always/v1/chat/completions", BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(b"data: "))
    await client.read_head()
    ping = chunk(b": ping\n\n")
    reading = asyncio.create_task(client.read_exactly(6 * len(ping)))
    while not reading.done():
        vendor.write(chunk(b" "))
        await asyncio.wait((reading,), timeout=0.02)
    assert reading.result() == 6 * ping
    vendor.write(chunk(b"[DONE]\n\n"))
    await client.read_until(line(t="done", r="") + b"\r\n")
    vendor.write(LAST)

    assert await rest_of(client) == []
    await check_settled(proxy, "complete", events=1, bytes=len(line(t="done", r="")))
