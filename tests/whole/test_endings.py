"""Every ending, seen from outside: what the client saw, upstream closed, lease free, the one log line."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from proxy.timers import LONG_S
from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, WAIT_S, Message, Peer, Upstream, chunk, event, only, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running

BODY = {"model": "gpt-x", "stream": True, "messages": []}
# Long, because the machine may be busy: the tests assert what closes, not how soon.
CANCEL_S = 5.0


async def begin(proxy: Running, upstream: Upstream, *, first: bytes = b"") -> tuple[Peer, Peer, Message]:
    """A stream that runs: client and upstream connected, the first bytes relayed, the answer's head read."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + (chunk(first) if first else b""))
    head = await client.read_head()
    if first:
        await client.read_until(first + b"\r\n")
    return client, vendor, head


async def check_ending(proxy: Running, ending: str, **fields: Any) -> dict[str, Any]:
    """Lease free, one line, and that line's fields."""
    line = only(await proxy.settled(), "exchange.settled")
    assert line["ending"] == ending
    assert proxy.leases_held == 0
    assert proxy.service.timers.watched_count <= len(proxy.server.connections) + 1
    for name, value in fields.items():
        assert line[name] == value, name
    return line


async def test_complete_passes_bytes_and_keeps_the_connection(proxy: Running, upstream: Upstream) -> None:
    """A whole stream arrives byte for byte, and both connections are used again."""
    client, vendor, head = await begin(proxy, upstream, first=event("one"))
    vendor.write(chunk(event("two")))
    await client.read_until(event("two") + b"\r\n")
    vendor.write(chunk(b"data: [DONE]\n\n") + LAST)
    await client.read_until(LAST)

    line = await check_ending(proxy, "complete", status=200, events=3, user="alice", plan="default", upstream="main")

    assert head.status == 200
    assert head.get("content-type") == "text/event-stream"
    assert head.get("connection") is None
    assert line["bytes"] == len(event("one") + event("two") + b"data: [DONE]\n\n")
    assert line["ttfb_ms"] is not None
    client.write(request(body=BODY, token=token()))
    assert (await vendor.read_message()).start.startswith("POST /v1/chat/completions")


async def test_relay_forwards_each_piece_when_it_comes(proxy: Running, upstream: Upstream) -> None:
    """A piece is with the client before the upstream sends the next, wherever it was split."""
    client, vendor, _ = await begin(proxy, upstream)
    for byte in event("split"):
        vendor.write(chunk(bytes([byte])))
        assert await client.read_exactly(6) == chunk(bytes([byte]))


@pytest.mark.parametrize("leave", [Peer.close, Peer.reset])
async def test_client_closed_while_the_upstream_is_silent(
    proxy: Running, upstream: Upstream, leave: Callable[[Peer], None]
) -> None:
    """A client that leaves during a silence closes the upstream's connection at once."""
    client, vendor, _ = await begin(proxy, upstream, first=event("one"))

    leave(client)

    began_s = time.monotonic()
    await vendor.closed()
    assert time.monotonic() - began_s < CANCEL_S
    await check_ending(proxy, "client_closed", status=200, events=1)


async def test_client_closed_before_the_first_byte(proxy: Running, upstream: Upstream) -> None:
    """A client that leaves before the answer began closes the upstream's connection."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()

    client.reset()

    await vendor.closed()
    await check_ending(proxy, "client_closed", status=None, bytes=0)


async def test_client_closed_while_sending_its_body(proxy: Running, upstream: Upstream) -> None:
    """A body that breaks off is never forwarded."""
    client = await proxy.client()
    await client.send(request(body=b"x" * 100, token=token())[:-50])
    client.close()

    await client.closed()
    await check_ending(proxy, "client_closed", status=None)
    assert upstream.is_untouched


async def test_client_closed_while_blocked_on_it(start: Callable[..., Any], upstream: Upstream) -> None:
    """A client that stopped reading and leaves is noticed, though megabytes wait."""
    proxy = await start()
    client = await proxy.client(receive_buffer=4096)
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    await fill(vendor)

    client.reset()

    await vendor.closed()
    await check_ending(proxy, "client_closed", status=200)


async def fill(vendor: Peer) -> int:
    """Send until nobody takes any more, and say how much was taken."""
    vendor.write(STREAM_HEAD)
    piece = chunk(event("x" * 8000))
    sent = 0
    vendor.writer.transport.set_write_buffer_limits(high=0)
    try:
        while True:
            vendor.write(piece)
            async with asyncio.timeout(0.5):
                await vendor.writer.drain()
            sent += len(piece)
    except TimeoutError:
        return sent


@pytest.mark.parametrize("at_boundary", [True, False])
@pytest.mark.parametrize("leave", [Peer.close, Peer.reset])
async def test_upstream_closed_in_mid_stream(
    proxy: Running, upstream: Upstream, leave: Callable[[Peer], None], *, at_boundary: bool
) -> None:
    """A broken stream ends without its last chunk; one error event says why, but never inside an event."""
    first = event("one") if at_boundary else event("one")[:-1]
    client, vendor, _ = await begin(proxy, upstream, first=first)

    leave(vendor)
    rest = await client.read_to_end()

    if at_boundary:
        assert b'data: {"error":' in rest
        assert rest.endswith(b"\n\n\r\n")
    else:
        assert rest == b""
    assert b"[DONE]" not in rest
    assert not rest.endswith(LAST)
    await check_ending(proxy, "upstream_closed", status=200)


async def test_upstream_error_passes_with_status_fields_and_body(proxy: Running, upstream: Upstream) -> None:
    """An upstream's own error comes through whole; its rate limit fields under a name that is not ours."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    body = b'{"error":{"message":"slow down","code":"rate_limit"}}'
    vendor.write(
        b"HTTP/1.1 429 Whatever\r\nContent-Type: application/json\r\nRetry-After: 7\r\n"
        b"x-ratelimit-limit-requests: 3\r\nSet-Cookie: a=b\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )

    answer = await client.read_message()

    assert (answer.status, answer.body) == (429, body)
    assert answer.get("retry-after") == "7"
    assert answer.get("x-upstream-ratelimit-limit-requests") == "3"
    assert answer.get("x-ratelimit-limit-requests") == "60"
    assert answer.get("set-cookie") is None
    await check_ending(proxy, "upstream_error", status=429, code=None)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Type: text/event-stream\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(300)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000,
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_upstream_protocol_error_is_a_502(proxy: Running, upstream: Upstream, answer: bytes) -> None:
    """An answer that two readers might read differently is refused whole, and its connection closed."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(answer)

    refusal = await client.read_message()

    await vendor.closed()
    assert (refusal.status, refusal.json["error"]["code"]) == (502, "upstream_protocol_error")
    assert refusal.get("x-forward-sse-code") == "upstream_protocol_error"
    await check_ending(proxy, "upstream_error", status=502, code="upstream_protocol_error")


async def test_upstream_unreachable_is_a_502(start: Callable[..., Any], upstream: Upstream) -> None:
    """A refused connection is answered with a 502, and the connection to the client stays."""
    proxy = await start("")
    upstream._server.close()
    await upstream._server.wait_closed()
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))

    refusal = await client.read_message()

    assert (refusal.status, refusal.json["error"]["code"]) == (502, "upstream_unreachable")
    await check_ending(proxy, "upstream_error", status=502, code="upstream_unreachable")


async def test_upstream_closed_before_its_answer_is_a_502_and_no_second_request(
    proxy: Running, upstream: Upstream
) -> None:
    """A request that was written is never sent again."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.close()

    refusal = await client.read_message()

    assert refusal.status == 502
    assert len(upstream.peers) == 1
    await check_ending(proxy, "upstream_error", code="upstream_unreachable")


TIMEOUTS = "timeouts: {connect: 1s, first_byte: 500ms, idle: 500ms, total: TOTAL}\n"


async def test_timeout_first_byte_is_a_504(start: Callable[..., Any], upstream: Upstream) -> None:
    """An upstream that trickles its head, or sends interim answers, does not hold the clock up."""
    proxy = await start(TIMEOUTS.replace("TOTAL", '"off"'))
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-")

    refusal = await client.read_message()

    await vendor.closed()
    assert (refusal.status, refusal.json["error"]["code"]) == (504, "upstream_timeout")
    assert "first_byte" in refusal.json["error"]["message"]
    await check_ending(proxy, "timeout_first_byte", status=504, code="upstream_timeout")


@pytest.mark.parametrize("long_s", [LONG_S, 0.4], ids=["short clocks", "long clocks"])
async def test_timeout_idle_breaks_the_stream(
    start: Callable[..., Any], upstream: Upstream, monkeypatch: pytest.MonkeyPatch, long_s: float
) -> None:
    """A silence after the head ends the stream: an event says which clock, the last chunk is missing."""
    monkeypatch.setattr("proxy.relay.timeouts.LONG_S", long_s)
    proxy = await start(TIMEOUTS.replace("TOTAL", '"off"'))
    client, vendor, _ = await begin(proxy, upstream, first=event("one"))

    rest = await client.read_to_end()

    await vendor.closed()
    assert b"clock: idle" in rest
    assert not rest.endswith(LAST)
    await check_ending(proxy, "timeout_idle", status=200)


async def test_timeout_total_ends_a_lively_stream(start: Callable[..., Any], upstream: Upstream) -> None:
    """The total clock does not care how lively the stream is."""
    proxy = await start(TIMEOUTS.replace("TOTAL", "1s"))
    client, vendor, _ = await begin(proxy, upstream, first=event("one"))
    reading = asyncio.create_task(client.read_to_end())
    closing = asyncio.create_task(vendor.closed())
    while not closing.done():
        vendor.write(chunk(event("more")))
        await asyncio.wait((closing,), timeout=0.02)

    assert not (await reading).endswith(LAST)
    await check_ending(proxy, "timeout_total", status=200)


async def test_timeout_write_frees_what_a_stuck_client_holds(start: Callable[..., Any], upstream: Upstream) -> None:
    """A client that does not read holds little, slows the upstream, and is let go."""
    proxy = await start("client_timeouts: {write: 400ms}\n")
    client = await proxy.client(receive_buffer=4096)
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    filling = asyncio.create_task(fill(vendor))

    line = await check_ending_of_stuck(proxy)

    await vendor.closed()
    filling.cancel()
    assert line["ending"] == "timeout_write"
    assert proxy.leases_held == 0
    client.close()


async def check_ending_of_stuck(proxy: Running) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while not proxy.service.exchanges.live():  # noqa: ASYNC110 - the exchange begins in this very loop
            await asyncio.sleep(0)
        return only(await proxy.settled(), "exchange.settled")


async def test_drained_stream_ends_visibly(proxy: Running, upstream: Upstream) -> None:
    """A drain lets streams run, refuses new requests, and in the end breaks off what is left."""
    client, vendor, _ = await begin(proxy, upstream, first=event("one"))
    kept = await proxy.client()
    kept.write(request("/healthz", method="GET"))
    assert (await kept.read_message()).status == 200

    draining = asyncio.create_task(proxy.server.drain(timeout_s=0.3))
    await asyncio.sleep(0)
    kept.write(request(body=BODY, token=token()))
    refusal = await kept.read_message()
    vendor.write(chunk(event("two")))
    await client.read_until(event("two"))
    await draining
    rest = await client.read_to_end()

    assert (refusal.status, refusal.json["error"]["code"]) == (503, "draining")
    assert refusal.get("retry-after") == "1"
    assert not rest.endswith(LAST)
    await vendor.closed()
    lines = await proxy.settled(2)
    assert sorted(line["ending"] for line in lines) == ["drained", "refused"]
    assert proxy.leases_held == 0


async def test_drain_serves_who_came_in_before(proxy: Running, upstream: Upstream) -> None:
    """Who connected before the listener closed is served, the one that nobody had accepted yet, too; nobody after."""
    early = await proxy.client()
    waiting = socket.create_connection(proxy.address)  # the system answers; the loop has not turned
    draining = asyncio.create_task(proxy.server.drain(timeout_s=30))
    await asyncio.sleep(0)  # one step: the drain has begun when it first waits
    clients = [early, Peer(*await asyncio.open_connection(sock=waiting))]
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*proxy.address)
    for client in clients:
        client.write(request(body=BODY, token=token()))
        vendor, _ = await upstream.take()
        vendor.write(STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + LAST)
        assert (await client.read_message()).status == 200
    async with asyncio.timeout(WAIT_S):
        await draining
    await clients[1].gone()

    assert [line["ending"] for line in await proxy.settled(2)] == ["complete"] * 2


async def test_stopped_by_the_admin(proxy: Running, upstream: Upstream) -> None:
    """An operator sees a live stream and stops it by its id."""
    client, vendor, head = await begin(proxy, upstream, first=event("one"))
    admin = await proxy.admin()
    admin.write(request("/admin/streams", method="GET"))
    streams = (await admin.read_message()).json["streams"]

    admin.write(request(f"/admin/streams/{streams[0]['id']}", method="DELETE"))
    assert (await admin.read_message()).status == 204
    rest = await client.read_to_end()

    assert streams[0]["id"] == head.get("x-forward-sse-id")
    assert (streams[0]["user"], streams[0]["events"]) == ("alice", 1)
    assert not rest.endswith(LAST)
    await vendor.closed()
    await check_ending(proxy, "stopped")


async def test_refused_is_logged_with_its_code(proxy: Running, upstream: Upstream) -> None:
    """A refusal is an exchange like any other."""
    client = await proxy.client()
    client.write(request(body=BODY))

    refusal = await client.read_message()

    assert (refusal.status, refusal.json["error"]["code"]) == (401, "missing_token")
    assert refusal.get("www-authenticate") == 'Bearer realm="forward-sse"'
    await check_ending(proxy, "refused", status=401, code="missing_token", user=None)
    assert upstream.is_untouched


async def test_stopped_by_its_own_user(proxy: Running, upstream: Upstream) -> None:
    """A user stops their own stream by its id, and nobody else's; it ends visibly, and frees its lease."""
    client, vendor, head = await begin(proxy, upstream, first=event("one"))
    other = await proxy.client()
    path = f"/forward-sse/streams/{head.get('x-forward-sse-id')}"
    other.write(request(path, method="DELETE"))
    assert (await other.read_message()).status == 401
    other.write(request(path, method="DELETE", token=token("mallory")))
    assert (await other.read_message()).get("x-forward-sse-code") == "not_found"
    other.write(request(path, method="GET", token=token()))
    assert (await other.read_message()).get("allow") == "DELETE"

    other.write(request(path, method="DELETE", token=token()))
    assert (await other.read_message()).status == 204
    rest = await client.read_to_end()

    assert not rest.endswith(LAST)
    await vendor.closed()
    lines = await proxy.settled(5)
    assert [line["ending"] for line in lines if line["method"] == "POST"] == ["stopped"]
    assert proxy.leases_held == 0
