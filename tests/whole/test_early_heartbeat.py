"""Early heartbeats: a stream that begins before its vendor says anything, and everything that can become of it then."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CONFIG, token
from tests.peers import LAST, STREAM_HEAD, Message, Peer, Upstream, chunk, event, read_events, request
from tests.whole.scenes import BODY, check_secrets, check_settled, fill, serves

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running

PING = chunk(b": ping\n\n")
MARK = b"\xef\xbb\xbf"
OTHERS = """
  anthropic: {{url: "{url}", dialect: anthropic, api_key: {key}}}
  dashscope: {{url: "{url}", dialect: dashscope, api_key: {key}}}
  gemini: {{url: "{url}", dialect: gemini, api_key: {key}}}
  raw: {{url: "{url}", dialect: raw, path: /chat, api_key: {key}}}
  own: {{url: "{url}", dialect: openai, api_key: client}}
default_upstream"""
PLAIN = CONFIG.replace("\ndefault_upstream", OTHERS) + 'envelope: {{targets: [{{url: "{url}/*"}}]}}\n'
EARLY = PLAIN + "early_heartbeat: true\nheartbeat: 50ms\n"
CHAT = "/v1/chat/completions"
PATHS = {
    "openai": "/main/v1/chat/completions",
    "responses": "/main/v1/responses",
    "anthropic": "/anthropic/v1/messages",
    "dashscope": "/dashscope/api/v1/services/aigc/text-generation/generation",
    "raw": "/raw/chat",
}
ASKING = (("X-DashScope-SSE", "enable"), ("Accept", "text/event-stream"))


@pytest.fixture
async def early(start: Callable[..., Any]) -> Running:
    """A proxy that begins streams early."""
    return await start(config=EARLY)  # type: ignore[no-any-return]  # the factory's options are open


async def begin(
    proxy: Running, upstream: Upstream, path: str = PATHS["openai"], body: dict[str, Any] = BODY
) -> tuple[Peer, Peer, Message]:
    """A request whose vendor is silent, and the client's answer, which has begun all the same."""
    client = await proxy.client()
    client.write(request(path, body=body, token=token(), fields=ASKING))
    vendor, _ = await upstream.take()
    head = await client.read_head()
    assert (head.status, head.get("content-type")) == (200, "text/event-stream")
    assert await client.read_exactly(len(PING)) == PING
    return client, vendor, head


def without_pings(data: bytes) -> bytes:
    return data.replace(PING, b"")


async def rest_of(client: Peer) -> bytes:
    """What comes after the first ping, heartbeats left out, until the connection ends."""
    return without_pings(await client.read_to_end())


def content(chunked: bytes) -> bytes:
    """The data of chunks, of which the last may be missing."""
    data = b""
    while chunked and not chunked.startswith(LAST):
        size, _, chunked = chunked.partition(b"\r\n")
        data, chunked = data + chunked[: int(size, 16)], chunked[int(size, 16) + 2 :]
    return data


async def test_early_stream(early: Running, upstream: Upstream) -> None:
    """After heartbeats come the vendor's bytes as ever, and the connection serves another request."""
    client, vendor, head = await begin(early, upstream)
    assert head.get("x-forward-sse-id")
    assert head.get("ratelimit")
    assert head.get("cache-control") == "no-cache, no-transform"
    assert head.get("x-accel-buffering") == "no"
    assert await client.read_exactly(2 * len(PING)) == 2 * PING
    vendor.write(STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nX-Request-Id: r\r\n\r\n") + chunk(event("one")))
    await client.read_until(chunk(event("one")))
    vendor.write(chunk(event("two")) + LAST)
    assert without_pings(await client.read_until(LAST)) == chunk(event("two")) + LAST

    client.write(request("/healthz", method="GET"))
    assert (await client.read_message()).status == 200
    await check_settled(early, "complete", status=200, bytes=len(event("one") + event("two")), events=2, code=None)


async def test_early_stream_that_comes_whole(early: Running, upstream: Upstream) -> None:
    """An answer that is there whole, with a length, is framed as the head has said."""
    client, vendor, _ = await begin(early, upstream)
    body = event("one") + event("two")
    vendor.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    assert content(without_pings(await client.read_until(LAST))) == body
    await check_settled(early, "complete", status=200, events=2)


async def test_early_vendor_in_time(start: Callable[..., Any], upstream: Upstream) -> None:
    """A vendor that answers before the first heartbeat is passed on as if there were none, its status too."""
    proxy = await start(config=EARLY.replace("50ms", "30s"))
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(b"HTTP/1.1 429 Slow\r\nX-Request-Id: r\r\nContent-Length: 2\r\n\r\nno")
    answer = await client.read_message()

    assert (answer.status, answer.get("x-request-id"), answer.body) == (429, "r", b"no")
    await check_settled(proxy, "upstream_error", status=429)


@pytest.mark.parametrize(
    ("config", "path", "body"),
    [
        pytest.param(EARLY, PATHS["openai"], {"model": "gpt-x"}, id="stream not asked for"),
        pytest.param(EARLY, PATHS["openai"], {"model": "gpt-x", "stream": False}, id="stream false"),
        pytest.param(EARLY, "/gemini/v1/models/m:streamGenerateContent?alt=sse", BODY, id="gemini"),
        pytest.param(PLAIN + "heartbeat: 50ms\n", PATHS["openai"], BODY, id="off by default"),
        pytest.param(
            EARLY.replace("  raw:", "  quiet: {{url: '{url}', dialect: openai, api_key: k, heartbeat: off}}\n  raw:"),
            "/quiet/v1/chat/completions",
            BODY,
            id="upstream without a heartbeat",
        ),
    ],
)
async def test_early_not(
    start: Callable[..., Any], upstream: Upstream, config: str, path: str, body: dict[str, Any]
) -> None:
    """Where no stream was asked for, or none may have heartbeats, the vendor's silence has its own status."""
    proxy = await start(config=config + "timeouts: {{first_byte: 300ms}}\n")
    client = await proxy.client()
    client.write(request(path, body=body, token=token()))
    await upstream.take()

    assert (await client.read_message()).status == 504


async def test_early_not_for_http_1_0(start: Callable[..., Any], upstream: Upstream) -> None:
    """A client of HTTP/1.0 could not be told that an answer breaks off."""
    proxy = await start(config=EARLY + "timeouts: {{first_byte: 300ms}}\n")
    client = await proxy.client()
    client.write(request(body=BODY, token=token()).replace(b"HTTP/1.1", b"HTTP/1.0"))
    await upstream.take()

    assert (await client.read_message()).status == 504


ERRORS = {
    "openai": lambda data: json.loads(data.removeprefix(b"data: "))["error"],
    "responses": lambda data: json.loads(data.removeprefix(b"event: error\ndata: ")),
    "anthropic": lambda data: json.loads(data.removeprefix(b"event: error\ndata: "))["error"],
    "dashscope": lambda data: json.loads(data.partition(b"\ndata:")[2]),
}


@pytest.mark.parametrize("dialect", ERRORS)
@pytest.mark.parametrize(
    ("fault", "code", "ending", "reason"),
    [
        pytest.param(Peer.close, "upstream_unreachable", "upstream_error", "closed", id="closes"),
        pytest.param(Peer.reset, "upstream_unreachable", "upstream_error", "reset", id="resets"),
        pytest.param(b"garbage\r\n", "upstream_protocol_error", "upstream_error", "not_http", id="garbage"),
        pytest.param(
            b"HTTP/1.1 401 No\r\nContent-Length: 3\r\n\r\nkey",
            "upstream_credentials_exhausted",
            "upstream_error",
            "credentials_refused",
            id="refuses our key",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
            "upstream_protocol_error",
            "upstream_error",
            None,
            id="no stream",
        ),
        pytest.param(
            b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
            "upstream_protocol_error",
            "upstream_error",
            None,
            id="redirects",
        ),
        pytest.param(
            STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + chunk(b"\x1f\x8b"),
            "upstream_protocol_error",
            "upstream_error",
            None,
            id="compresses",
        ),
        pytest.param(b"", "upstream_timeout", "timeout_first_byte", None, id="stays silent"),
        pytest.param(STREAM_HEAD, "upstream_timeout", "timeout_idle", None, id="stays silent after its head"),
    ],
)
async def test_early_fault(
    start: Callable[..., Any],
    upstream: Upstream,
    dialect: str,
    fault: bytes | Callable[[Peer], None],
    code: str,
    ending: str,
    reason: str | None,
) -> None:
    """What goes wrong is an error event in the dialect, and the body lacks its end; the line has the true ending."""
    proxy = await start(config=EARLY + "timeouts: {{first_byte: 400ms, idle: 200ms}}\n")
    client, vendor, _ = await begin(proxy, upstream, PATHS[dialect])
    if isinstance(fault, bytes):
        vendor.write(fault)
    else:
        fault(vendor)
    rest = await rest_of(client)

    assert not rest.endswith(LAST)
    assert ERRORS[dialect](content(rest))["code"] == code
    if b"Content-Length" not in (fault if isinstance(fault, bytes) else b""):
        # Else the answer has come whole, and its connection is kept.
        await vendor.closed()
    await check_settled(proxy, ending, status=200, code=code, reason=reason)
    check_secrets(proxy, rest)


async def test_early_fault_of_a_raw_upstream(early: Running, upstream: Upstream) -> None:
    """Where a dialect has no word for errors the body just breaks off."""
    client, vendor, _ = await begin(early, upstream, PATHS["raw"])
    vendor.reset()

    assert await rest_of(client) == b""
    await check_settled(early, "upstream_error", status=200, reason="reset")


def answered(status: int, body: bytes, *fields: bytes) -> bytes:
    lines = [b"HTTP/1.1 %d Error" % status, b"Content-Length: %d" % len(body), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


OPENAI_ERROR = {"error": {"message": "slow down", "type": "tokens", "param": None, "code": "rate_limit_exceeded"}}
ANTHROPIC_ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
DASHSCOPE_ERROR = {"request_id": "1", "code": "Throttling", "message": "slow down"}


@pytest.mark.parametrize(
    ("dialect", "error", "expected"),
    [
        ("openai", OPENAI_ERROR, b"data: %b\n\n"),
        ("responses", OPENAI_ERROR, b"data: %b\n\n"),
        ("anthropic", ANTHROPIC_ERROR, b"event: error\ndata: %b\n\n"),
        ("dashscope", DASHSCOPE_ERROR, b"event:error\n:HTTP_STATUS/429\nstatus:429\ndata:%b\n\n"),
    ],
)
async def test_early_vendors_error(
    early: Running, upstream: Upstream, dialect: str, error: dict[str, Any], expected: bytes
) -> None:
    """The vendor's own error is told in its own words, on one line, in the dialect."""
    client, vendor, _ = await begin(early, upstream, PATHS[dialect])
    vendor.write(answered(429, json.dumps(error, indent=2).encode(), b"Content-Type: application/json"))
    rest = await rest_of(client)

    assert content(rest) == expected % json.dumps(error, separators=(",", ":")).encode()
    assert not rest.endswith(LAST)
    await check_settled(early, "upstream_error", status=200, code=None, reason=None)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(answered(503, b"<html>down</html>"), id="no JSON"),
        pytest.param(answered(503, b'{"detail":[1]}'), id="JSON of nobody's"),
        pytest.param(answered(503, b"[]"), id="JSON that is no object"),
        pytest.param(answered(503, b""), id="nothing"),
        pytest.param(answered(503, b"\x1f\x8b", b"Content-Encoding: gzip"), id="compressed"),
        pytest.param(answered(503, b'{"error":{"message":"' + b"x" * 20_000 + b'"}}'), id="too large"),
        pytest.param(
            answered(503, b"", b"Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b""), id="cut"
        ),
    ],
)
async def test_early_vendors_error_that_cannot_be_read(early: Running, upstream: Upstream, answer: bytes) -> None:
    """An error in words that the dialect does not have is told in ours, with its status."""
    client, vendor, _ = await begin(early, upstream)
    vendor.write(answer)
    if answer.endswith(b"chunked\r\n\r\n"):
        vendor.close()
    error = ERRORS["openai"](content(await rest_of(client)))

    assert error["code"] == "upstream_error"
    assert "503" in error["message"]
    await check_settled(early, "upstream_error", status=200, code=None)


@pytest.mark.parametrize(
    ("fault", "last", "ending"),
    [
        pytest.param(Peer.close, {"t": "Error", "code": "upstream_unreachable"}, "upstream_error", id="closes"),
        pytest.param(
            answered(429, json.dumps(OPENAI_ERROR).encode()),
            {"t": "Error", "code": "rate_limit_exceeded", "r": "slow down"},
            "upstream_error",
            id="vendor's error",
        ),
        pytest.param(answered(500, b"<html>"), {"t": "Error", "code": "upstream_error"}, "upstream_error", id="html"),
        pytest.param(
            answered(200, b"{}", b"Content-Type: application/json"),
            {"t": "Error", "code": "upstream_protocol_error"},
            "upstream_error",
            id="no stream",
        ),
        pytest.param(
            STREAM_HEAD + chunk(MARK + event("one") + b"data: [DONE]\n\n") + LAST, {"t": "End"}, "complete", id="stream"
        ),
    ],
)
async def test_early_typed(
    early: Running,
    upstream: Upstream,
    fault: bytes | Callable[[Peer], None],
    last: dict[str, str],
    ending: str,
) -> None:
    """A typed stream that began early ends in order like any other, and its connection is used again."""
    client, vendor, _ = await begin(early, upstream, "/forward-sse?events=typed")
    if isinstance(fault, bytes):
        vendor.write(fault)
    else:
        fault(vendor)
    events = read_events(content(without_pings(await client.read_until(LAST))))

    said = json.loads(events[-1][1])
    assert {name: said[name] for name in last} == last
    assert len(events) == (2 if ending == "complete" else 1)
    client.write(request("/healthz", method="GET"))
    assert (await client.read_message()).status == 200
    await check_settled(early, ending, status=200)


@pytest.mark.parametrize(
    ("sent", "passed"),
    [
        pytest.param([MARK + event("one")], event("one"), id="mark and event"),
        pytest.param([MARK[:1], MARK[1:2], MARK[2:] + event("one")], event("one"), id="mark in pieces"),
        pytest.param([MARK[:2], event("one")], MARK[:2] + event("one"), id="half a mark"),
        pytest.param([b"d", event("one")[1:]], event("one"), id="no mark, in pieces"),
        pytest.param([b"\n"], b"\n", id="less than a mark"),
        pytest.param([], b"", id="nothing"),
    ],
)
async def test_early_byte_order_mark(early: Running, upstream: Upstream, sent: list[bytes], passed: bytes) -> None:
    """A byte order mark may stand at a stream's very beginning only, where heartbeats stand now: it is left out."""
    client, vendor, _ = await begin(early, upstream)
    vendor.write(STREAM_HEAD)
    for piece in sent:
        await client.read_until(PING)
        vendor.write(chunk(piece))
    await client.read_until(PING)
    vendor.write(LAST)

    rest = without_pings(client.seen.partition(PING)[2] + await client.read_until(LAST))
    assert content(rest) == passed
    await check_settled(early, "complete", bytes=len(passed))


async def test_early_byte_order_mark_without_heartbeats(start: Callable[..., Any], upstream: Upstream) -> None:
    """Where the vendor is in time, no byte is left out."""
    proxy = await start(config=EARLY.replace("50ms", "30s"))
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(MARK + event("one")) + LAST)

    assert (await client.read_message()).body == MARK + event("one")


@pytest.mark.parametrize("head", [b"", STREAM_HEAD], ids=["before the head", "before the first byte"])
@pytest.mark.parametrize("leave", [Peer.close, Peer.reset])
async def test_early_client_leaves(
    early: Running, upstream: Upstream, head: bytes, leave: Callable[[Peer], None]
) -> None:
    """A client that leaves closes the vendor's connection, as in every phase."""
    client, vendor, _ = await begin(early, upstream)
    vendor.write(head)
    await client.read_until(PING)

    leave(client)

    await vendor.closed()
    await check_settled(early, "client_closed", status=200)
    await serves(early)


@pytest.mark.parametrize("head", [b"", STREAM_HEAD], ids=["before the head", "before the first byte"])
@pytest.mark.parametrize("is_typed", [False, True], ids=["raw", "typed"])
async def test_early_stopped(early: Running, upstream: Upstream, head: bytes, *, is_typed: bool) -> None:
    """A user stops a stream that has only heartbeats yet."""
    client, vendor, answer = await begin(early, upstream, "/forward-sse" + "?events=typed" * is_typed)
    vendor.write(head)
    await client.read_until(PING)
    stopping = await early.client()
    stopping.write(request(f"/forward-sse/streams/{answer.get('x-forward-sse-id')}", method="DELETE", token=token()))
    assert (await stopping.read_message()).status == 204

    await vendor.closed()
    if is_typed:
        data = content(without_pings(await client.read_until(LAST)))
        assert json.loads(read_events(data)[-1][1])["t"] == "Cancelled"
    else:
        assert ERRORS["openai"](content(await rest_of(client)))["code"] == "stopped"
    (line,) = [line for line in await early.settled(2) if line["method"] == "POST"]
    assert (line["ending"], line["status"]) == ("stopped", 200)
    assert early.leases_held == 0


async def test_early_drained(early: Running, upstream: Upstream) -> None:
    """A drain that is over ends a stream that has only heartbeats yet, with the word for it."""
    client, vendor, _ = await begin(early, upstream)
    await early.server.drain(0.1)

    assert ERRORS["openai"](content(await rest_of(client)))["code"] == "draining"
    await vendor.closed()
    await check_settled(early, "drained", status=200)


async def use_ticket(proxy: Running, upstream: Upstream, query: str = "") -> tuple[Peer, Peer]:
    maker = await proxy.client()
    maker.write(request(f"/forward-sse/tickets{query}", {"model": "gpt-x"}, token=token()))
    url = (await maker.read_message()).json["url"]
    client = await proxy.client()
    client.write(request(url, method="GET"))
    vendor, _ = await upstream.take()
    assert (await client.read_head()).status == 200
    assert await client.read_exactly(len(PING)) == PING
    return client, vendor


@pytest.mark.parametrize(
    ("fault", "status", "code", "ending"),
    [
        pytest.param(Peer.close, 502, "upstream_unreachable", "upstream_error", id="closes"),
        pytest.param(
            answered(429, json.dumps(OPENAI_ERROR).encode()), 429, None, "upstream_error", id="vendor's error"
        ),
        pytest.param(STREAM_HEAD + chunk(MARK + event("one")) + LAST, 200, None, "complete", id="stream"),
        pytest.param(answered(200, b'{"a":1}'), 200, None, "complete", id="no stream"),
        pytest.param(b"", 504, "upstream_timeout", "timeout_first_byte", id="stays silent"),
    ],
)
@pytest.mark.parametrize("query", ["", "?events=typed"], ids=["raw", "typed"])
async def test_early_ticket(
    start: Callable[..., Any],
    upstream: Upstream,
    query: str,
    fault: bytes | Callable[[Peer], None],
    status: int,
    code: str | None,
    ending: str,
) -> None:
    """A ticket's answer begins early without being asked to; its last event says how it ended, and it is whole."""
    proxy = await start(config=PLAIN + "heartbeat: 50ms\ntimeouts: {{first_byte: 300ms}}\n")
    client, vendor = await use_ticket(proxy, upstream, query)
    if isinstance(fault, bytes):
        vendor.write(fault)
    else:
        fault(vendor)
    events = read_events(content(without_pings(await client.read_until(LAST))))

    name, data = events[-1]
    said = json.loads(data)
    if query and status == 200 and b"chunked" in fault:  # type: ignore[operator]  # bytes, where the status is 200
        # The vendor has not said that its answer is whole.
        ending, code = "upstream_closed", "upstream_unreachable"
    assert (name, said["status"], said.get("code"), said["ending"]) == ("end", status, code, ending)
    (line,) = [line for line in await proxy.settled(2) if line["method"] == "GET"]
    assert (line["ending"], line["status"]) == (ending, 200)
    assert proxy.leases_held == 0


async def test_early_back_pressure(early: Running, upstream: Upstream) -> None:
    """A client that does not read slows the vendor down behind heartbeats, too."""
    client = await early.client(receive_buffer=4096)
    client.write(request(PATHS["openai"], body=BODY, token=token()))
    vendor, _ = await upstream.take()
    await client.read_until(PING)

    assert await fill(vendor, limit=64 * 1024 * 1024) < 32 * 1024 * 1024
    client.reset()
    await vendor.closed()
    await check_settled(early, "client_closed")


@pytest.mark.parametrize("leave", [Peer.close, Peer.reset])
async def test_early_client_leaves_before_the_first_heartbeat(
    start: Callable[..., Any], upstream: Upstream, leave: Callable[[Peer], None]
) -> None:
    """A client that leaves before anything was sent closes the vendor's connection, too."""
    proxy = await start(config=EARLY.replace("50ms", "30s"))
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()

    leave(client)

    await vendor.closed()
    await check_settled(proxy, "client_closed", status=None)
