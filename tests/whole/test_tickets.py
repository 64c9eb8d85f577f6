"""Tickets over real sockets: what an `EventSource` gets, once; and what it cannot see, told where it can read it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from proxy.limits.memory.store import MemoryStore
from proxy.limits.store import MAX_OPEN_TICKETS
from proxy.tickets.ticket import MAX_MAKING
from tests.conftest import SECRET, VENDOR_KEY, token
from tests.peers import LAST, STREAM_HEAD, WAIT_S, Message, Peer, chunk, event, read_events, request, secret_free
from tests.whole.scenes import BODY, fill

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running
    from tests.peers import Upstream

ORIGIN = "https://app.example.com"
CORS = f"cors: {{origins: [{ORIGIN!r}], credentials: true}}\n"
# As Chromium sends it.
EVENT_SOURCE = (("Accept", "text/event-stream"), ("Cache-Control", "no-cache"), ("Origin", ORIGIN))


async def make(
    proxy: Running, body: Any = BODY, *, query: str = "", bearer: str | None = None, **options: Any
) -> Message:
    """The answer to a request for a ticket."""
    client = await proxy.client()
    client.write(request(f"/forward-sse/tickets{query}", body, token=bearer or token(), **options))
    return await client.read_message()


async def ticket_url(proxy: Running, *arguments: Any, **options: Any) -> str:
    answer = await make(proxy, *arguments, **options)
    assert answer.status == 201, answer
    url = answer.json["url"]
    assert isinstance(url, str)
    return url


def get(url: str, *, fields: tuple[tuple[str, str], ...] = ()) -> bytes:
    return request(url, method="GET", fields=EVENT_SOURCE + fields)


async def use(proxy: Running, url: str, *, fields: tuple[tuple[str, str], ...] = ()) -> Peer:
    client = await proxy.client()
    client.write(get(url, fields=fields))
    return client


def end_of(answer: Message) -> dict[str, Any]:
    """What the last event says, which is `end`."""
    name, data = read_events(answer.body)[-1]
    assert name == "end", answer.body
    said = json.loads(data)
    assert isinstance(said, dict)
    assert said.pop("id") == answer.get("x-forward-sse-id")
    # See `test_usage_told`.
    said.pop("usage", None)
    return said


def is_readable(answer: Message) -> bool:
    """Whether an `EventSource` of another origin may read it."""
    return (
        answer.status == 200
        and answer.get("content-type") == "text/event-stream"
        and answer.get("access-control-allow-origin") == ORIGIN
        and answer.get("access-control-allow-credentials") == "true"
    )


async def line_of_get(proxy: Running, *, count: int = 2) -> dict[str, Any]:
    """The one line of the one GET that was no repetition; nothing is held any more."""
    lines = [line for line in await proxy.settled(count) if line["method"] == "GET" and line["status"] != 204]
    assert len(lines) == 1, lines
    assert proxy.leases_held == 0
    assert not [line for line in proxy.lines() if line["event"] in {"exchange.failed", "library.reported"}]
    return lines[0]


class Clock:
    """A monotonic clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def tickets(start: Callable[..., Any]) -> Running:
    """An app for the pages of another origin."""
    return await start(CORS)  # type: ignore[no-any-return]  # the factory's options are open


async def test_large_ticket_is_held_once(tickets: Running, upstream: Upstream) -> None:
    """A large body is in the process once while its ticket is made, and once again when it is used."""
    size = 16 * 2**20
    whole = request("/forward-sse/tickets", {**BODY, "messages": ["x" * size]}, token=token())
    client = await tickets.client()
    tracemalloc.start()
    try:
        for start in range(0, len(whole), 2**18):
            # So that little of it waits in this process, on its way.
            await client.send(whole[start : start + 2**18])
        made = await client.read_message()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made.status == 201
    # The growth of its buffer takes an eighth; what is on its way the rest.
    assert peak < 1.5 * size
    other = await tickets.client()
    other.write(request(made.json["url"], method="GET"))
    vendor, asked = await upstream.take()
    assert len(asked.body) > size
    vendor.write(STREAM_HEAD + LAST)
    assert (await other.read_message()).status == 200


async def test_ticket_answer(tickets: Running, upstream: Upstream) -> None:
    """A ticket is told once, in a body that nobody keeps, and is one word; the upstream is not asked yet."""
    answer = await make(tickets, fields=(("Origin", ORIGIN),))

    assert answer.status == 201
    assert answer.get("content-type") == "application/json"
    assert answer.get("cache-control") == "no-store"
    assert answer.get("access-control-allow-origin") == ORIGIN
    ticket = answer.json["ticket"]
    assert answer.json == {"ticket": ticket, "url": f"/forward-sse?ticket={ticket}", "expires_in": 60}
    assert answer.get("location") is None
    assert upstream.is_untouched
    line = (await tickets.settled())[0]
    assert (line["status"], line["ending"], line["user"], line["upstream"]) == (201, "complete", "alice", "main")
    assert tickets.leases_held == 0


async def test_ticket_streams_bytes_then_end(tickets: Running, upstream: Upstream) -> None:
    """What the upstream sends arrives byte for byte, as it is sent; then one event named `end`, and the body's end."""
    url = await ticket_url(tickets, {"model": "gpt-x", "stream": True}, query="?upstream=main&trace=%75")
    client = await use(tickets, url)
    vendor, asked = await upstream.take()
    vendor.write(STREAM_HEAD)
    head = await client.read_head()
    for text in ("one", "two"):
        vendor.write(chunk(event(text)))
        assert await client.read_exactly(len(chunk(event(text)))) == chunk(event(text))
    vendor.write(chunk(b"data: [DONE]\n\n") + LAST)
    rest = await client.read_until(LAST)

    assert is_readable(head)
    assert head.get("connection") is None
    assert head.get("cache-control") == "no-cache, no-transform"
    usage = {"input": 8, "output": 2, "total": 10, "source": "estimated"}
    end = json.dumps(
        {"id": head.get("x-forward-sse-id"), "ending": "complete", "status": 200, "usage": usage},
        separators=(",", ":"),
    ).encode()
    assert rest == chunk(b"data: [DONE]\n\n") + chunk(b"event: end\ndata: " + end + b"\n\n") + LAST
    # The POST's own request: its method, query, fields and body, with the vendor's key.
    assert asked.start == "POST /v1/chat/completions?trace=%75 HTTP/1.1"
    assert asked.json == {"model": "gpt-x", "stream": True}
    assert asked.get("authorization") == f"Bearer {VENDOR_KEY}"
    assert asked.get("origin") is None
    line = await line_of_get(tickets)
    assert (line["path"], line["status"], line["ending"], line["events"]) == ("/forward-sse", 200, "complete", 3)
    assert line["bytes"] == len(event("one") + event("two") + b"data: [DONE]\n\n")
    assert (line["user"], line["plan"], line["upstream"]) == ("alice", "default", "main")
    # Both connections are used again.
    client.write(request(body=BODY, token=token()))
    assert (await vendor.read_message()).start.startswith("POST /v1/chat/completions")


@pytest.mark.parametrize("fields", [(), (("Last-Event-ID", "7"),)])
async def test_reconnect_is_told_to_stay_away(
    tickets: Running, upstream: Upstream, fields: tuple[tuple[str, str], ...]
) -> None:
    """A browser that comes back after the end, as browsers do, gets 204 and starts no second call."""
    url = await ticket_url(tickets)
    client = await use(tickets, url)
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")) + LAST)
    await client.read_until(LAST)
    for _ in range(3):
        client.write(get(url, fields=fields))
        answer = await client.read_message()
        assert answer.status == 204
        assert answer.get("access-control-allow-origin") == ORIGIN
        assert answer.get("content-length") is None
    await tickets.settled(5)
    assert len(upstream.peers) == 1


async def test_reconnect_while_the_stream_runs(tickets: Running, upstream: Upstream) -> None:
    """A ticket that is being used is spent; the stream that runs goes on."""
    url = await ticket_url(tickets)
    client = await use(tickets, url)
    vendor, _ = await upstream.take()
    again = await use(tickets, url, fields=(("Last-Event-ID", "1"),))
    assert (await again.read_message()).status == 204

    vendor.write(STREAM_HEAD + chunk(event("one")) + LAST)

    assert end_of(await client.read_message()) == {"ending": "complete", "status": 200}


async def test_race_starts_one_call(tickets: Running, upstream: Upstream) -> None:
    """Of twenty who come with one ticket at the same moment one is answered; the upstream is asked once."""
    url = await ticket_url(tickets)
    clients = [await tickets.client() for _ in range(20)]
    for client in clients:
        client.write(get(url))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")) + LAST)

    answers = await asyncio.gather(*(client.read_message() for client in clients))

    assert sorted(answer.status for answer in answers) == [200] + [204] * 19
    await tickets.settled(21)
    assert len(upstream.peers) == 1
    assert tickets.leases_held == 0


async def test_lapsed_and_made_up_tickets(tickets: Running, upstream: Upstream) -> None:
    """After its time an unused ticket is as unknown as one that never was; a spent one is remembered for longer."""
    clock = Clock()
    tickets.service.rules = replace(tickets.service.rules, store=MemoryStore(clock))
    late, early = await ticket_url(tickets), await ticket_url(tickets)
    clock.now += 59.9
    client = await use(tickets, early)
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + LAST)
    await client.read_message()
    clock.now += 0.2
    for url in (
        late,
        late[:-1],
        "/forward-sse?ticket=made-up",
        f"/forward-sse?ticket={'A' * 64}",
        "/forward-sse?ticket=",
    ):
        client.write(get(url))
        answer = await client.read_message()
        assert (answer.status, answer.get("x-forward-sse-code")) == (404, "not_found")
        assert answer.json["error"]["code"] == "not_found"
        assert answer.get("access-control-allow-origin") == ORIGIN
    client.write(get(early))
    assert (await client.read_message()).status == 204
    assert len(upstream.peers) == 1


async def test_key_of_another_ticket(tickets: Running, upstream: Upstream) -> None:
    """The right id with a wrong key opens nothing."""
    url = await ticket_url(tickets)
    client = await use(tickets, url[:-4] + ("AAAA" if not url.endswith("AAAA") else "BBBB"))
    assert (await client.read_message()).status == 404
    assert upstream.is_untouched


async def test_requests_that_are_no_use_of_a_ticket(tickets: Running, upstream: Upstream) -> None:
    """Another method spends nothing, and two tickets are none."""
    url = await ticket_url(tickets)
    client = await tickets.client()
    for raw, status in (
        (request(url, method="HEAD"), 405),
        (request(f"{url}&ticket=x", method="GET"), 400),
        (request("/forward-sse", method="GET"), 405),
        (request("/forward-sse/tickets", method="GET"), 405),
    ):
        client.write(raw)
        answer = await client.read_message(has_body=not raw.startswith(b"HEAD"))
        assert answer.status == status
    _, answer = await serve(tickets, upstream, url)
    assert end_of(answer)["ending"] == "complete"


async def serve(proxy: Running, upstream: Upstream, url: str) -> tuple[Peer, Message]:
    """Use a ticket for a short whole stream."""
    client = await use(proxy, url)
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")) + LAST)
    return vendor, await client.read_message()


@pytest.mark.parametrize(
    ("body", "query", "bearer", "status", "code"),
    [
        (b"no json", "", None, 400, "invalid_request"),
        (b'{"model": 3}', "", None, 400, "invalid_request"),
        ({"targetUrl": "https://example.com/"}, "", None, 403, "target_not_allowed"),
        (BODY, "?upstream=nobody", None, 404, "unknown_upstream"),
        (BODY, "", "forged", 401, "invalid_token"),
    ],
)
async def test_ticket_refused_when_it_is_made(
    tickets: Running, upstream: Upstream, body: Any, query: str, bearer: str | None, status: int, code: str
) -> None:
    """What would be refused of a POST is refused of the ticket, with the same words, and charges nothing."""
    answer = await make(tickets, body, query=query, bearer=bearer)

    assert (answer.status, answer.get("x-forward-sse-code")) == (status, code)
    assert answer.json["error"]["code"] == code
    line = (await tickets.settled())[0]
    assert (line["ending"], line["code"]) == ("refused", code)
    assert upstream.is_untouched
    assert tickets.leases_held == 0


async def test_ticket_without_a_credential(tickets: Running) -> None:
    """Nobody makes a ticket who could not ask."""
    client = await tickets.client()
    client.write(request("/forward-sse/tickets", BODY))
    answer = await client.read_message()
    assert (answer.status, answer.get("www-authenticate")) == (401, 'Bearer realm="forward-sse"')


async def test_ticket_body_too_large(start: Callable[..., Any]) -> None:
    """A ticket's body is held to `max_body`, announced or not."""
    proxy = await start("max_body: 1KiB\n")
    assert (await make(proxy, b"x" * 2000)).status == 413
    client = await proxy.client()
    head = request("/forward-sse/tickets", token=token(), fields=(("Transfer-Encoding", "chunked"),))
    client.write(head + chunk(b"x" * 2000) + LAST)
    assert (await client.read_message()).status == 413


LIMITED = CORS + "plans: {{default: {{requests: [2/1h], concurrent_streams: 1}}}}\n".replace("{{", "{").replace(
    "}}", "}"
)


async def test_limits_are_charged_when_it_is_used(start: Callable[..., Any], upstream: Upstream) -> None:
    """Making tickets charges nothing; using one does, and one too many is told in the stream, then `end`."""
    proxy = await start(LIMITED)
    answers = [await make(proxy) for _ in range(3)]
    assert [answer.get("x-ratelimit-remaining-requests") for answer in answers] == ["2", "2", "2"]
    urls = [answer.json["url"] for answer in answers]
    vendor, answer = await serve(proxy, upstream, urls[0])
    assert answer.get("x-ratelimit-remaining-requests") == "1"
    client = await use(proxy, urls[1])
    await vendor.read_message()
    vendor.write(STREAM_HEAD + LAST)
    assert (await client.read_message()).get("x-ratelimit-remaining-requests") == "0"

    client.write(get(urls[2]))
    refused = await client.read_message()

    assert is_readable(refused)
    assert refused.get("x-forward-sse-code") == "rate_limit_exceeded"
    said = end_of(refused)
    wait_s = said.pop("retry_after")
    assert 1700 < wait_s <= 1800
    assert said == {"ending": "refused", "status": 429, "code": "rate_limit_exceeded"}
    name, data = read_events(refused.body)[0]
    error = json.loads(data)["error"]
    assert (name, error["code"]) == ("message", "rate_limit_exceeded")
    assert error["message"].startswith(f"2 requests per 1 h used up; try again in {wait_s} s (")
    # Even so it was used, for a browser comes back by itself: whoever tries again makes a new one, which is no charge.
    client.write(get(urls[2]))
    assert (await client.read_message()).status == 204
    await ticket_url(proxy)
    lines = [line for line in await proxy.settled(8) if line["ending"] == "refused"]
    assert [(line["status"], line["code"]) for line in lines] == [(200, "rate_limit_exceeded")]
    assert len(upstream.peers) == 1
    assert proxy.leases_held == 0


async def test_too_many_streams_is_told_in_the_stream(start: Callable[..., Any], upstream: Upstream) -> None:
    """A lease is needed when the ticket is used, not when it is made."""
    proxy = await start(CORS + "plans: {default: {concurrent_streams: 1}}\n")
    running = await use(proxy, await ticket_url(proxy))
    vendor, _ = await upstream.take()

    refused = await (await use(proxy, await ticket_url(proxy))).read_message()

    assert is_readable(refused)
    assert end_of(refused)["code"] == "too_many_streams"
    vendor.write(STREAM_HEAD + LAST)
    assert end_of(await running.read_message())["ending"] == "complete"
    assert proxy.leases_held == 0


async def test_token_that_expired_meanwhile(start: Callable[..., Any], upstream: Upstream) -> None:
    """The user is checked again when the ticket is used: by the token's own end."""
    proxy = await start(CORS)
    now = time.time()
    authenticator = proxy.service.rules.authenticator
    url = await ticket_url(proxy, bearer=token(exp=int(now) + 30))
    authenticator._now = lambda: now + 120

    answer = await (await use(proxy, url)).read_message()

    assert is_readable(answer)
    assert end_of(answer) == {"ending": "refused", "status": 401, "code": "expired_token"}
    assert json.loads(read_events(answer.body)[0][1])["error"]["type"] == "authentication_error"
    assert upstream.is_untouched
    line = await line_of_get(proxy)
    assert (line["ending"], line["code"], line["user"]) == ("refused", "expired_token", None)


async def test_user_who_was_removed_meanwhile(start: Callable[..., Any], upstream: Upstream) -> None:
    """The user is checked again when the ticket is used: by the configuration of that moment."""
    proxy = await start(CORS)
    urls = [await ticket_url(proxy) for _ in range(2)]
    other = await start(CORS + "plans: {default: {upstreams: []}}\n")
    store = proxy.service.rules.store
    proxy.service.rules = replace(other.service.rules, store=store)
    answer = await (await use(proxy, urls[0])).read_message()
    assert end_of(answer)["code"] == "upstream_not_allowed"

    stranger = await start(CORS, config=STRANGERS)
    proxy.service.rules = replace(stranger.service.rules, store=store)
    answer = await (await use(proxy, urls[1])).read_message()
    assert end_of(answer) == {"ending": "refused", "status": 401, "code": "invalid_token"}
    assert upstream.is_untouched
    assert proxy.leases_held == 0


STRANGERS = """
listen: 127.0.0.1:0
admin_listen: off
auth: {{jwt: [{{issuer: tests, audience: llm, algorithms: [HS256], secret: "rotated-{secret}"}}]}}
upstreams: {{main: {{url: {url}, dialect: openai, api_key: {key}}}}}
default_upstream: main
"""


@pytest.mark.parametrize("status", [400, 429, 500])
async def test_upstreams_own_error(tickets: Running, upstream: Upstream, status: int) -> None:
    """An upstream's error is a message with its own words, then `end` with its status; the connections stay."""
    url = await ticket_url(tickets)
    client = await use(tickets, url)
    vendor, _ = await upstream.take()
    body = b'{\r\n  "error": {"message": "no"}\r\n}\n'
    vendor.write(
        b"HTTP/1.1 %d Whatever\r\nContent-Type: application/json\r\nContent-Length: %d\r\nETag: x\r\n"
        b"x-request-id: req-1\r\n\r\n%b" % (status, len(body), body)
    )

    answer = await client.read_message()

    assert is_readable(answer)
    assert answer.is_whole
    assert read_events(answer.body)[0] == ("message", '{\n  "error": {"message": "no"}\n}\n')
    assert end_of(answer) == {"ending": "upstream_error", "status": status}
    assert len(read_events(answer.body)) == 2
    assert answer.get("x-request-id") == "req-1"
    assert answer.get("etag") is None
    line = await line_of_get(tickets)
    assert (line["status"], line["ending"], line["upstream"]) == (200, "upstream_error", "main")
    client.write(request(body=BODY, token=token()))
    assert (await vendor.read_message()).start.startswith("POST /v1/chat/completions")


async def test_upstreams_error_as_an_event_stream(tickets: Running, upstream: Upstream) -> None:
    """An error that is an event stream already (DashScope's) passes byte for byte."""
    client = await use(tickets, await ticket_url(tickets))
    vendor, _ = await upstream.take()
    said = b'id:1\nevent:error\n:HTTP_STATUS/400\ndata:{"code":"Arrearage"}\n\n'
    vendor.write(
        b"HTTP/1.1 400 X\r\nContent-Type: text/event-stream;charset=UTF-8\r\nContent-Length: %d\r\n\r\n" % len(said)
        + said
    )

    answer = await client.read_message()

    assert answer.get("content-type") == "text/event-stream;charset=UTF-8"
    assert answer.body.startswith(said + b"event: end\n")
    assert end_of(answer) == {"ending": "upstream_error", "status": 400}


async def test_answer_that_is_no_stream(tickets: Running, upstream: Upstream) -> None:
    """A request that forgot `stream` was paid for, too: its answer is one message."""
    client = await use(tickets, await ticket_url(tickets))
    vendor, _ = await upstream.take()
    vendor.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n" + b'{"a":')
    await client.read_until(b'data: {"a":\r\n')
    vendor.write(b"1234}")

    rest = await client.read_until(LAST)

    assert b"1234}\n\n\r\n" in rest
    assert b'"ending":"complete","status":200,"usage":' in rest


async def test_upstream_unreachable(start: Callable[..., Any], upstream: Upstream) -> None:
    """An upstream that is not there is told in the stream."""
    proxy = await start(CORS)
    url = await ticket_url(proxy)
    await upstream.__aexit__(None, None, None)

    answer = await (await use(proxy, url)).read_message()

    assert is_readable(answer)
    assert end_of(answer) == {"ending": "upstream_error", "status": 502, "code": "upstream_unreachable"}
    line = await line_of_get(proxy)
    assert (line["status"], line["ending"], line["code"]) == (200, "upstream_error", "upstream_unreachable")


async def test_upstream_compresses(tickets: Running, upstream: Upstream) -> None:
    """An answer that nothing readable can be added to is refused, and its connection closed."""
    client = await use(tickets, await ticket_url(tickets))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD[:-2] + b"Content-Encoding: gzip\r\n\r\n")

    assert end_of(await client.read_message())["code"] == "upstream_protocol_error"
    await vendor.closed()
    await line_of_get(tickets)


@pytest.mark.parametrize("torn", [b"", b"data: {", b"data: whole line\n"])
async def test_upstream_breaks_off(tickets: Running, upstream: Upstream, torn: bytes) -> None:
    """A stream that breaks is told so: the whole events, an error as a message, `end`, and no last chunk."""
    client = await use(tickets, await ticket_url(tickets))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")) + (chunk(torn) if torn else b""))
    await client.read_head()
    came = await client.read_until((torn or event("one")) + b"\r\n")
    assert event("one") in came

    vendor.reset()

    rest = await client.read_to_end()
    assert not rest.endswith(LAST)
    ours = rest.split(b"\r\n", 1)[1]
    events = read_events(event("one") + torn + ours[: ours.rindex(b"\r\n")])
    assert [name for name, _ in events] == ["message", *(["torn"] if torn else []), "message", "end"]
    assert json.loads(events[-2][1])["error"]["code"] == "upstream_unreachable"
    said = json.loads(events[-1][1])
    assert (said["ending"], said["code"]) == ("upstream_closed", "upstream_unreachable")
    line = await line_of_get(tickets)
    assert (line["ending"], line["events"]) == ("upstream_closed", 1)
    again = await use(tickets, "/forward-sse?ticket=made-up")
    assert (await again.read_message()).status == 404


async def test_whole_body_with_half_an_event(tickets: Running, upstream: Upstream) -> None:
    """An upstream that ends within an event: the half is no message of anybody's, as the standard wants it."""
    client = await use(tickets, await ticket_url(tickets))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one") + b"data: half") + LAST)

    answer = await client.read_message()

    assert answer.body.startswith(event("one") + b"data: half")
    assert [name for name, _ in read_events(answer.body)] == ["message", "torn", "end"]
    assert end_of(answer)["ending"] == "complete"


async def test_timeouts(start: Callable[..., Any], upstream: Upstream) -> None:
    """The clocks run for tickets too: before the answer, and between its events."""
    proxy = await start(CORS + "timeouts: {first_byte: 500ms, idle: 500ms}\n")
    answer = await (await use(proxy, await ticket_url(proxy))).read_message()
    assert end_of(answer) == {"ending": "timeout_first_byte", "status": 504, "code": "upstream_timeout"}
    silent, _ = await upstream.take()
    await silent.closed()

    client = await use(proxy, await ticket_url(proxy))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    answer = await client.read_message()
    assert not answer.is_whole
    assert b'"ending":"timeout_idle"' in answer.body
    await vendor.closed()
    endings = [line["ending"] for line in await proxy.settled(4) if line["method"] == "GET"]
    assert endings == ["timeout_first_byte", "timeout_idle"]
    assert proxy.leases_held == 0


@pytest.mark.parametrize("leave", [Peer.close, Peer.reset])
async def test_client_leaves(tickets: Running, upstream: Upstream, leave: Callable[[Peer], None]) -> None:
    """A page that is closed closes the upstream's connection; its browser's return starts nothing."""
    url = await ticket_url(tickets)
    client = await use(tickets, url)
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    await client.read_until(event("one"))

    leave(client)

    await vendor.closed()
    again = await use(tickets, url)
    assert (await again.read_message()).status == 204
    line = await line_of_get(tickets, count=3)
    assert (line["ending"], line["events"]) == ("client_closed", 1)
    assert len(upstream.peers) == 1


async def test_client_leaves_before_the_answer(tickets: Running, upstream: Upstream) -> None:
    """So does one that is closed while the upstream is thinking."""
    client = await use(tickets, await ticket_url(tickets))
    vendor, _ = await upstream.take()

    client.reset()

    await vendor.closed()
    assert (await line_of_get(tickets))["ending"] == "client_closed"


async def test_slow_client_slows_the_upstream(start: Callable[..., Any], upstream: Upstream) -> None:
    """Back pressure and the write clock hold for tickets."""
    proxy = await start(CORS + "client_timeouts: {write: 1s}\n")
    url = await ticket_url(proxy)
    client = await proxy.client(receive_buffer=4096)
    client.write(get(url))
    vendor, _ = await upstream.take()

    sent = await fill(vendor)

    assert sent < 2**24
    await vendor.closed()
    assert (await line_of_get(proxy))["ending"] == "timeout_write"


async def test_stopped_and_drained(tickets: Running, upstream: Upstream) -> None:
    """Who stops a stream ends it readably; while draining, a ticket is refused in the stream and not used up."""
    client = await use(tickets, await ticket_url(tickets))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    head = await client.read_head()
    stopper = await tickets.client()
    stopper.write(request(f"/forward-sse/streams/{head.get('x-forward-sse-id')}", method="DELETE", token=token()))
    assert (await stopper.read_message()).status == 204
    assert b'"ending":"stopped"' in await client.read_to_end()
    await vendor.closed()

    url = await ticket_url(tickets)
    kept = await tickets.client()
    kept.write(request("/forward-sse/streams/none", method="DELETE", token=token()))
    assert (await kept.read_message()).status == 404
    await tickets.idle()
    tickets.service.is_draining = True
    kept.write(get(url))
    answer = await kept.read_message()
    assert is_readable(answer)
    assert answer.get("connection") == "close"
    assert end_of(answer) == {"ending": "refused", "status": 503, "code": "draining", "retry_after": 1}
    stopper.write(request("/forward-sse/tickets", body=BODY, token=token()))
    assert (await stopper.read_message()).status == 503
    tickets.service.is_draining = False
    assert end_of((await serve(tickets, upstream, url))[1])["ending"] == "complete"


async def test_old_client_is_told_too(tickets: Running, upstream: Upstream) -> None:
    """HTTP/1.0 has no chunks: the events tell it all, and the connection's end is the body's."""
    url = await ticket_url(tickets)
    client = await tickets.client()
    client.write(f"GET {url} HTTP/1.0\r\n\r\n".encode())
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")) + LAST)

    answer = await client.read_message()

    assert answer.get("transfer-encoding") is None
    assert answer.body.startswith(event("one") + b"event: end\n")
    assert end_of(answer)["ending"] == "complete"


async def test_open_tickets_are_bounded(tickets: Running, upstream: Upstream) -> None:
    """One user has so many open and is told when to come back; others are not kept from theirs."""
    urls = [await ticket_url(tickets) for _ in range(MAX_OPEN_TICKETS)]

    refused = await make(tickets)

    assert (refused.status, refused.get("x-forward-sse-code")) == (429, "rate_limit_exceeded")
    assert 0 < int(refused.get("retry-after") or 0) <= 60
    assert refused.json["error"]["message"] == (
        f"All of your 32 tickets at a time are open; use one, or try again in {refused.get('retry-after')} s."
    )
    await ticket_url(tickets, bearer=token("bob"))
    await serve(tickets, upstream, urls[0])
    await ticket_url(tickets)


async def test_bodies_on_their_way_are_bounded(tickets: Running) -> None:
    """One user sends so many bodies at a time; each that ends, or leaves, makes room."""
    whole = request("/forward-sse/tickets", BODY, token=token())
    senders = [await tickets.client() for _ in range(MAX_MAKING)]
    for sender in senders:
        sender.write(whole[:-1])
    async with asyncio.timeout(WAIT_S):
        while sum(tickets.service.ticket_makers._making.values()) < MAX_MAKING:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.005)
    refused = await make(tickets)
    assert (refused.status, refused.get("retry-after")) == (429, "1")
    assert refused.json["error"]["message"].startswith("All of your 8 ticket bodies at a time are on their way;")
    await ticket_url(tickets, bearer=token("bob"))

    senders[0].write(whole[-1:])
    assert (await senders[0].read_message()).status == 201
    senders[1].reset()
    for _ in range(2):
        await ticket_url(tickets)
    for sender in senders[2:]:
        sender.write(whole[-1:])
        assert (await sender.read_message()).status == 201
    await tickets.idle()
    assert not tickets.service.ticket_makers._making


async def test_secrets_stay_out_of_the_log_and_the_upstream(tickets: Running, upstream: Upstream) -> None:
    """A ticket is a secret: no line holds it, wherever a client puts it; nor does the upstream see it or the token."""
    mine = token()
    url = await ticket_url(tickets, {"model": "gpt-x", "messages": [{"content": "a question"}]}, bearer=mine)
    ticket = url.partition("=")[2]
    client = await use(tickets, url, fields=(("X-Request-Id", ticket), ("Referer", f"https://proxy.test{url}")))
    vendor, asked = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")) + LAST)
    answer = await client.read_message()
    client.write(get(url))
    await client.read_message()

    await tickets.settled(3)
    assert answer.get("x-forward-sse-id") != ticket
    for data in (tickets.log_bytes(), repr(asked).encode(), answer.body):
        assert secret_free(data, ticket, mine, SECRET)
    assert secret_free(tickets.log_bytes(), "a question")


async def test_keys_are_taken_in_turn(start: Callable[..., Any], upstream: Upstream) -> None:
    """A ticket that is made takes no key's turn: two calls by ticket use two keys."""
    proxy = await start(CORS, config=KEYS)
    used = []
    for _ in range(2):
        client = await use(proxy, await ticket_url(proxy))
        vendor, asked = await upstream.take()
        used.append(asked.get("authorization"))
        vendor.write(STREAM_HEAD.replace(b"Transfer", b"Connection: close\r\nTransfer") + LAST)
        await client.read_message()
    assert used == ["Bearer key-one", "Bearer key-two"]


KEYS = """
listen: 127.0.0.1:0
admin_listen: off
auth: none
upstreams: {{main: {{url: {url}, dialect: openai, api_keys: [key-one, key-two]}}}}
default_upstream: main
"""


async def test_envelope_by_its_passcode(start: Callable[..., Any], upstream: Upstream) -> None:
    """An envelope whose passcode is the credential can be set aside; the passcode is checked again when it is used."""
    proxy = await start(config=ENVELOPE.replace("DIGEST", DIGEST))
    envelope = {"targetUrl": f"{upstream.url}/v1/agent", "body": "{}", "passcode": API_KEY}
    client = await proxy.client()
    client.write(request("/forward-sse/tickets", envelope))
    answer = await client.read_message()
    assert answer.status == 201
    wrong = await proxy.client()
    wrong.write(request("/forward-sse/tickets", envelope | {"passcode": "no"}))
    assert (await wrong.read_message()).status == 401

    _, answer = await serve(proxy, upstream, answer.json["url"])

    assert end_of(answer)["ending"] == "complete"
    line = (await proxy.settled(3))[-1]
    assert (line["user"], line["upstream"]) == ("page", "envelope")


API_KEY = "fsse_the-pages-own-key"
DIGEST = hashlib.sha256(API_KEY.encode()).hexdigest()
ENVELOPE = """
listen: 127.0.0.1:0
admin_listen: off
auth:
  api_keys: [{{user: page, sha256: "DIGEST"}}]
  envelope_passcode: true
upstreams: {{main: {{url: {url}, dialect: openai, api_key: {key}}}}}
envelope:
  targets: [{{url: "{url}/v1/*"}}]
  allow_private: [127.0.0.0/8]
"""


async def test_preflight_of_a_reconnect(tickets: Running, upstream: Upstream) -> None:
    """A browser may send `Last-Event-ID` from another origin; asking whether it may uses no ticket."""
    url = await ticket_url(tickets)
    client = await tickets.client()
    asks = (
        ("Origin", ORIGIN),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "last-event-id"),
    )
    client.write(request(url, method="OPTIONS", fields=asks))
    answer = await client.read_message()
    assert answer.status == 204
    assert "last-event-id" in (answer.get("access-control-allow-headers") or "")
    assert end_of((await serve(tickets, upstream, url))[1])["ending"] == "complete"
