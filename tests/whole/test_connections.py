"""Connections on both sides: who gets which answer, what is used again, and what is left when everybody has gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from proxy.limits.store import RateStatus
from tests.conftest import VENDOR_KEY, token
from tests.peers import LAST, STREAM_HEAD, WAIT_S, Peer, Upstream, chunk, event, request
from tests.whole.scenes import BODY, OK, begin, check_settled, serves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.limits.store import Admission, LimitState
    from proxy.model import Amounts, Principal, Route
    from proxy.upstream.addresses import Address
    from tests.conftest import Running

STOLEN = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen"
PLENTY = "plans: {default: {requests: [100000/1s], concurrent_streams: 1000}}\n"


async def ask(proxy: Running) -> Peer:
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    return client


async def kept(proxy: Running, upstream: Upstream, answer: bytes = OK) -> Peer:
    """A vendor's connection that served one request, and is or is not kept."""
    client = await ask(proxy)
    vendor, _ = await upstream.take()
    vendor.write(answer)
    assert (await client.read_message()).body == b"ok"
    await proxy.idle()
    return vendor


# The upstream's side.


@pytest.mark.parametrize("hurry", [True, False], ids=["unread", "read"])
@pytest.mark.parametrize("act", ["speaks", "whispers", "closes", "resets"])
async def test_kept_connection_that_spoke_or_ended(
    proxy: Running, upstream: Upstream, act: str, *, hurry: bool
) -> None:
    """A kept connection on which anything came unasked is dropped; the next user gets a fresh one."""
    vendor = await kept(proxy, upstream)
    if act in {"speaks", "whispers"}:
        vendor.write(STOLEN if act == "speaks" else b"\r\n")
    else:
        (Peer.close if act == "closes" else Peer.reset)(vendor)
    if not hurry:
        await vendor.closed()

    client = await ask(proxy)
    fresh, _ = await upstream.take()
    fresh.write(OK)
    answer = await client.read_message()

    assert fresh is not vendor
    assert answer.body == b"ok"
    await vendor.closed()
    await proxy.idle()
    assert proxy.service.pool.counts() == {("main", "idle"): 1}


@pytest.mark.parametrize("act", ["speaks", "ends"])
async def test_kept_connection_is_looked_at_in_the_last_moment(proxy: Running, upstream: Upstream, act: str) -> None:
    """What the loop has not read yet counts too: the system is asked when a connection is about to be used."""
    vendor = await kept(proxy, upstream)
    (connection,) = proxy.service.pool._open
    assert connection.is_usable()

    # Past the loop, and without a turn of it, so that only the system knows.
    sock = vendor.writer.get_extra_info("socket")
    if act == "speaks":
        os.write(sock.fileno(), b"x")
    else:
        with socket.socket(fileno=os.dup(sock.fileno())) as copy:
            copy.shutdown(socket.SHUT_WR)

    assert not connection.is_usable()


@pytest.mark.parametrize("extra", [STOLEN, b"x", b"0\r\n\r\n"], ids=repr)
@pytest.mark.parametrize(
    "answer",
    [OK, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"],
    ids=["length", "chunked"],
)
async def test_answer_with_extra_bytes(proxy: Running, upstream: Upstream, answer: bytes, extra: bytes) -> None:
    """Bytes behind an answer cost its connection, not the answer, and reach nobody."""
    vendor = await kept(proxy, upstream, answer + extra)

    client = await ask(proxy)
    fresh, _ = await upstream.take()
    fresh.write(OK)

    assert (await client.read_message()).body == b"ok"
    assert fresh is not vendor
    await vendor.closed()


async def test_kept_connection_lost_after_the_request_was_written(proxy: Running, upstream: Upstream) -> None:
    """A kept connection that ends when the request is on it is a 502: paid requests are not sent twice."""
    vendor = await kept(proxy, upstream)
    client = await ask(proxy)
    await vendor.read_message()
    vendor.close()

    answer = await client.read_message()

    assert (answer.status, answer.get("x-forward-sse-code")) == (502, "upstream_unreachable")
    assert len(upstream.peers) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
async def test_connection_of_an_upstream_that_will_close(proxy: Running, upstream: Upstream, answer: bytes) -> None:
    """A connection that the upstream said it will close is not used again."""
    vendor = await kept(proxy, upstream, answer)

    await vendor.closed()
    assert proxy.service.pool.counts() == {}


async def test_connection_with_an_unread_upload_is_not_kept(proxy: Running, upstream: Upstream) -> None:
    """An answer before the request was taken is passed on, and the rest of the request is not left for the next one."""
    client = await proxy.client()
    size = 20 * 2**20
    client.write(request("/main/v1/chat/completions", b"x" * size, token=token()))
    vendor = await upstream.accept()
    await vendor.read_head()
    vendor.write(b"HTTP/1.1 413 Too Much\r\nContent-Length: 2\r\n\r\nok")

    answer = await client.read_message()

    assert (answer.status, answer.body) == (413, b"ok")
    got = 0
    with contextlib.suppress(ConnectionError):
        while piece := await asyncio.wait_for(vendor.reader.read(2**16), WAIT_S):
            got += len(piece)
    assert got < size
    assert proxy.service.pool.counts() == {}


# The client's side.


async def test_pipelined_requests_are_answered_in_order(proxy: Running, upstream: Upstream) -> None:
    """Requests sent at once are served one after the other, each with its own answer."""
    client = await proxy.client()
    count = 40
    client.write(b"".join(request(f"/main/v1/models/{number}", method="GET", token=token()) for number in range(count)))
    vendor = await upstream.accept()
    for number in range(count):
        received = await vendor.read_message()
        assert received.start == f"GET /v1/models/{number} HTTP/1.1"
        vendor.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n%04d" % number)
        assert (await client.read_message()).body == b"%04d" % number
    assert len(upstream.peers) == 1


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_long_reads_arrive_whole_and_in_order(proxy: Running, upstream: Upstream, *, is_chunked: bool) -> None:
    """What comes in one long read is parsed a slice at a time: tiny chunks too, and the requests behind them."""
    bodies = [random.Random(number).randbytes(90_000) for number in range(4)]
    sent = b""
    for number, body in enumerate(bodies):
        if is_chunked:
            fields = (("Transfer-Encoding", "chunked"),)
            data = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + LAST
            sent += request(f"/main/v1/embeddings?{number}", token=token(), fields=fields) + data
        else:
            sent += request(f"/main/v1/embeddings?{number}", body, token=token())
    client = await proxy.client()
    client.write(sent)
    vendor = await upstream.accept()
    for number, body in enumerate(bodies):
        received = await vendor.read_message()
        assert received.start == f"POST /v1/embeddings?{number} HTTP/1.1"
        assert received.body == body
        if not number:
            await serves(proxy)
        vendor.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)
        assert (await client.read_message()).body == b"%d" % number
    assert proxy.service.exchanges.live() == []
    # The connection is read again.
    await client.send(request("/healthz", method="GET"))
    assert (await client.read_message()).status == 200


async def test_pipelined_request_waits_for_the_stream(proxy: Running, upstream: Upstream) -> None:
    """A request behind a running stream waits; nothing of it goes upstream before the stream's end."""
    client, vendor, _ = await begin(proxy, upstream, first=event("one"))
    await client.send(request("/main/v1/models", method="GET", token=token()))
    await serves(proxy)
    vendor.write(chunk(event("two")))
    await client.read_until(event("two") + b"\r\n")
    assert len(upstream.peers) == 1
    assert len(proxy.service.exchanges.live()) == 1

    vendor.write(LAST)
    await client.read_until(LAST)

    received = await vendor.read_message()
    assert received.start == "GET /v1/models HTTP/1.1"
    vendor.write(OK)
    assert (await client.read_message()).body == b"ok"


async def write_until_closed(vendor: Peer) -> None:
    """Send events until the proxy has closed the upstream: behind unread requests only a write sees a client's end."""
    closing = asyncio.create_task(vendor.closed())
    while not closing.done():
        vendor.write(chunk(event("more")))
        await asyncio.wait((closing,), timeout=0.05)
    await closing


async def test_pipelined_flood_is_not_held(proxy: Running, upstream: Upstream) -> None:
    """However much is pipelined behind a stream, the proxy stops reading it, and still sees the client leave."""
    client, vendor, _ = await begin(proxy, upstream, first=event("one"))
    flood = request("/healthz", method="GET") * 1000
    client.writer.transport.set_write_buffer_limits(high=0)
    sent = 0
    with contextlib.suppress(TimeoutError):
        for _ in range(2000):
            client.write(flood)
            async with asyncio.timeout(0.3):
                await client.writer.drain()
            sent += len(flood)
    # What the two kernels hold is theirs; far less than what was offered.
    assert sent < 30 * 2**20
    connection = next(iter(proxy.server.connections))
    # aiohttp stops at 32, and then reads no more.
    assert len(connection._messages) <= 33
    vendor.write(chunk(event("two")))
    await client.read_until(event("two") + b"\r\n")

    client.reset()

    await write_until_closed(vendor)
    await check_settled(proxy, "client_closed")


async def test_client_closed_behind_unread_requests(proxy: Running, upstream: Upstream) -> None:
    """A client's end that stands behind more requests than are read ahead is seen when the next events are written."""
    client, vendor, _ = await begin(proxy, upstream, first=event("one"))
    await client.send(request("/healthz", method="GET") * 1000)
    connection = next(iter(proxy.server.connections))
    await passes(lambda: connection.transport is not None and not connection.transport.is_reading())

    client.close()

    await write_until_closed(vendor)
    await check_settled(proxy, "client_closed")


async def test_pipelined_requests_take_turns(proxy: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that came in one read are not served in one turn of the loop, though none of them waits for anything."""
    loop = asyncio.get_running_loop()
    turn = 0
    served: list[int] = []

    def count() -> None:
        nonlocal turn
        turn += 1
        handle[0] = loop.call_soon(count)

    def problems() -> dict[str, list[str]]:
        served.append(turn)
        return {"reasons": []}

    handle = [loop.call_soon(count)]
    monkeypatch.setattr(proxy.service, "problems", problems)
    client = await proxy.client()
    client.write(request("/readyz", method="GET") * 50)
    for _ in range(50):
        assert (await client.read_message()).status == 200
    handle[0].cancel()

    assert len(served) == len(set(served)) == 50


async def test_pipelined_flood_is_answered(proxy: Running) -> None:
    """Thousands of requests sent at once are all answered, a few at a time."""
    client = await proxy.client()
    count = 3000
    sending = asyncio.create_task(client.send(request("/healthz", method="GET") * count))
    for _ in range(count):
        assert (await client.read_message()).status == 200
    await sending


async def test_head_has_no_body(proxy: Running, upstream: Upstream) -> None:
    """HEAD is passed on, and its answer has fields without a body, ours as well as the upstream's."""
    client = await proxy.client()
    client.write(request("/main/v1/models", method="HEAD", token=token()))
    vendor, received = await upstream.take()
    assert received.start == "HEAD /v1/models HTTP/1.1"
    vendor.write(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\nContent-Type: application/json\r\n\r\n")
    answer = await client.read_message(has_body=False)
    assert (answer.status, answer.get("content-length")) == (200, "12345")

    client.write(request("/main/v1/models", method="HEAD"))
    refusal = await client.read_message(has_body=False)
    assert refusal.status == 401
    assert int(refusal.get("content-length") or 0) > 0

    client.write(request("/healthz", method="HEAD"))
    assert (await client.read_message(has_body=False)).status == 200
    client.write(request("/healthz", method="GET"))
    assert (await client.read_message()).status == 200


@pytest.mark.parametrize("extra", [b"", b"hello", STOLEN], ids=["none", "body", "answer"])
@pytest.mark.parametrize("framing", [b"Content-Length: 5", b"Transfer-Encoding: chunked", b"X: y"])
async def test_head_answered_with_a_body(proxy: Running, upstream: Upstream, framing: bytes, extra: bytes) -> None:
    """An upstream that sends a body to HEAD does not get it through: it would be read as the next answer."""
    client = await proxy.client()
    client.write(request("/main/v1/models", method="HEAD", token=token()))
    vendor, _ = await upstream.take()
    vendor.write(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + extra)

    answer = await client.read_message(has_body=False)
    await proxy.idle()
    client.write(request("/healthz", method="GET"))

    assert answer.status == 200
    assert (await client.read_message()).json == {"status": "ok"}
    assert b"hello" not in client.seen
    assert b"stolen" not in client.seen
    await vendor.closed()


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_bodiless_answer_with_a_body(proxy: Running, upstream: Upstream, status: bytes) -> None:
    """Neither do bytes behind a 204 or a 304."""
    client = await proxy.client()
    client.write(request("/main/v1/models", method="GET", token=token()))
    vendor, _ = await upstream.take()
    vendor.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 5\r\n\r\nhello" + STOLEN)

    await client.read_message()
    await proxy.idle()
    client.write(request("/healthz", method="GET"))
    await client.read_message()

    assert b"hello" not in client.seen
    assert b"stolen" not in client.seen
    await vendor.closed()


async def test_options_without_cors_needs_a_token(proxy: Running, upstream: Upstream) -> None:
    """An OPTIONS that is no preflight is a request like any other."""
    client = await proxy.client()
    client.write(request("/main/v1/models", method="OPTIONS"))

    assert (await client.read_message()).status in {401, 405}
    assert upstream.is_untouched


async def test_get_with_a_body_and_post_without(proxy: Running, upstream: Upstream) -> None:
    """A body belongs to whatever method it came with; a POST without one says so to the upstream."""
    client = await proxy.client()
    client.write(request("/main/v1/models", b"abc", method="GET", token=token()))
    vendor, received = await upstream.take()
    vendor.write(OK)
    assert (await client.read_message()).status == 200
    assert (received.body, received.get("content-length")) == (b"abc", "3")

    client.write(request("/main/v1/chat/completions", method="POST", token=token()))
    received = await vendor.read_message()
    vendor.write(OK)
    assert (await client.read_message()).status == 200
    assert received.get("content-length") == "0"

    client.write(request(method="POST", token=token()))
    assert (await client.read_message()).get("x-forward-sse-code") == "invalid_request"


async def test_connection_field_removes_the_clients_fields_not_ours(proxy: Running, upstream: Upstream) -> None:
    """Fields named by `Connection` go (RFC 9110 §7.6.1), ours stay; other hop-by-hop and forwarding fields go too."""
    client = await proxy.client()
    gone = {
        "X-Secret": "named",
        "TE": "trailers",
        "Trailer": "X-T",
        "Keep-Alive": "timeout=5",
        "Proxy-Connection": "keep-alive",
        "Proxy-Authorization": "Basic eDp5",
        "Upgrade": "h2c",
        "HTTP2-Settings": "AAMAAABkAAQCAAAAAAIAAAAA",
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-Host": "evil",
        "X_Forwarded_For": "1.2.3.4",
        "Forwarded": "for=1.2.3.4",
        "X-Real-IP": "1.2.3.4",
        "Cookie": "=;".join('"@[]' for _ in range(1000)),
        "Origin": "https://app.example",
        "Referer": "https://app.example/secret",
        "Sec-Fetch-Mode": "cors",
    }
    fields = (
        ("Connection", "keep-alive, authorization, x-secret, x-request-id, host, via, accept-encoding, content-length"),
        ("X-Request-Id", "id-1"),
        ("X-Kept", "a"),
        ("X-Kept", "b"),
        ("Via", "1.0 fred"),
        ("X-HTTP-Method-Override", "DELETE"),
        *gone.items(),
    )
    client.write(request(body=BODY, token=token(), fields=fields))
    vendor, received = await upstream.take()
    vendor.write(OK)

    answer = await client.read_message()

    assert (answer.status, answer.get("x-forward-sse-id")) == (200, "id-1")
    assert received.start.startswith("POST ")
    assert received.get("authorization") == f"Bearer {VENDOR_KEY}"
    assert received.get("host") == f"127.0.0.1:{upstream.address[1]}"
    assert received.get("accept-encoding") == "identity"
    assert received.all("via")[-1] == "1.1 forward-sse"
    assert received.all("x-kept") == ["a", "b"]
    assert {name: received.all(name) for name in gone if received.all(name)} == {}
    assert received.get("connection") is None


@pytest.mark.parametrize("via", ["1.1 forward-sse", "1.0 fred, 1.1 Forward-SSE (x)"])
async def test_via_of_ours_is_a_loop(proxy: Running, upstream: Upstream, via: str) -> None:
    """A request that has been through this proxy is refused."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token(), fields=(("Via", via),)))

    assert (await client.read_message()).status == 400
    assert upstream.is_untouched


@pytest.mark.parametrize("upgrade", ["h2c", "TLS/1.0, HTTP/2.0", "websockets"])
async def test_upgrade_is_ignored(proxy: Running, upstream: Upstream, upgrade: str) -> None:
    """An upgrade is neither done nor passed on; the connection ends with the response, and says so."""
    for _ in range(2):
        client = await proxy.client()
        client.write(request(body=BODY, token=token(), fields=(("Connection", "upgrade"), ("Upgrade", upgrade))))
        received = await (await _vendor(upstream)).read_message()
        assert received.get("upgrade") is None
        upstream.peers[0].write(OK)
        answer = await client.read_message()
        assert (answer.status, answer.body, answer.get("connection")) == (200, b"ok", "close")
        await client.closed()


async def _vendor(upstream: Upstream) -> Peer:
    return upstream.peers[0] if upstream.peers else await upstream.accept()


async def test_half_close_is_leaving(proxy: Running, upstream: Upstream) -> None:
    """A client that closes its sending half while a stream runs has left."""
    client, vendor, _ = await begin(proxy, upstream, first=event("one"))

    client.writer.write_eof()

    await vendor.closed()
    await check_settled(proxy, "client_closed")


async def test_connect_and_reset(proxy: Running) -> None:
    """Clients that connect only to reset leave nothing behind."""
    for _ in range(10):
        clients = await asyncio.gather(*(proxy.client() for _ in range(20)))
        for client in clients:
            client.reset()
    await serves(proxy)
    await passes(lambda: len(proxy.server.connections) <= 1)
    assert proxy.lines() == []


# Leaving.


async def test_client_closed_while_the_name_is_looked_up(proxy: Running, upstream: Upstream) -> None:
    """A client that leaves before there is a connection ends the attempt."""
    asked, ended = asyncio.Event(), asyncio.Event()

    async def resolve(_: Route) -> Sequence[Address]:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ()

    proxy.service.rules = replace(proxy.service.rules, resolve=resolve)
    client = await ask(proxy)
    await asyncio.wait_for(asked.wait(), WAIT_S)

    client.reset()

    await asyncio.wait_for(ended.wait(), WAIT_S)
    await check_settled(proxy, "client_closed", status=None)
    assert upstream.is_untouched


class _Admission:
    def __init__(self, store: _Slow) -> None:
        self.store = store
        self.standing = RateStatus()
        self.fallback = None
        self.left = None
        self.is_held = True

    @property
    def lease(self) -> _Admission:
        return self

    def refund(self) -> None: ...

    def release(self) -> None:
        self.store.leases_held -= self.is_held
        self.is_held = False

    def settle(self, took: Amounts) -> None:
        self.release()


@dataclass
class _Slow:
    """A limits store that answers when it is told to; counts what it lent."""

    asked: asyncio.Event
    answer: asyncio.Event
    leases_held: int = 0
    is_serving = True

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def put_ticket(self, name: str, sealed: bytes, ttl_s: float, owner: Principal) -> None: ...
    async def take_ticket(self, name: str) -> None: ...
    async def reserve(self, admission: Admission, estimate: Amounts) -> None: ...
    def charge_dead(self, principal: Principal, took: Amounts, name: str) -> None: ...
    async def limits(self, principal: Principal) -> tuple[LimitState, ...]:
        return ()

    def fallback(self, principal: Principal) -> None: ...
    def problem(self) -> str | None:
        return None

    def standing(self, principal: Principal) -> RateStatus:
        return RateStatus()

    async def admit(self, principal: Principal) -> _Admission:
        self.asked.set()
        await self.answer.wait()
        self.leases_held += 1
        return _Admission(self)


@pytest.mark.parametrize("answers", ["never", "at once", "later"])
async def test_client_closed_while_the_store_is_asked(proxy: Running, upstream: Upstream, answers: str) -> None:
    """A client that leaves while the limits are asked holds no lease, whenever the store gets round to answering."""
    slow = _Slow(asyncio.Event(), asyncio.Event())
    proxy.service.rules = replace(proxy.service.rules, store=slow)
    client = await ask(proxy)
    await asyncio.wait_for(slow.asked.wait(), WAIT_S)

    client.reset()
    if answers == "at once":
        slow.answer.set()
    line = (await proxy.settled())[0]
    slow.answer.set()

    assert line["ending"] == "client_closed"
    assert slow.leases_held == 0
    await proxy.idle()
    assert slow.leases_held == 0
    for vendor in upstream.peers:
        await vendor.closed()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def passes(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it is so: sockets and tasks end without anybody being told."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")
async def test_clients_leaving_at_random_leave_nothing(start: Callable[..., Any], upstream: Upstream) -> None:
    """Of 200 clients that left in every phase no exchange, lease, clock, connection, task or descriptor is left."""
    proxy = await start(PLENTY)
    warm = await proxy.client()
    warm.write(request("/healthz", method="GET"))
    assert (await warm.read_message()).status == 200
    dice = random.Random(20260202)
    tasks_before, files_before = len(asyncio.all_tasks()), open_files()
    watched_before = proxy.service.timers.watched_count

    async def serve(vendor: Peer, behaviour: random.Random) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await vendor.read_message()
            if behaviour.random() < 0.3:
                await vendor.closed()
                return
            vendor.write(STREAM_HEAD)
            for _ in range(behaviour.randint(0, 5)):
                await vendor.send(chunk(event("x" * behaviour.choice([1, 100, 100_000]))))
            if behaviour.random() < 0.5:
                vendor.write(LAST)
            await vendor.closed()

    async def vendors() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                vendor = await upstream._waiting.get()
                group.create_task(serve(vendor, random.Random(dice.random())))

    async def visit(behaviour: random.Random) -> None:
        client = await proxy.client(receive_buffer=behaviour.choice([None, 4096]))
        data = request(body=BODY, token=token(f"user-{behaviour.randint(0, 9)}"))
        await client.send(
            data[: behaviour.choice([0, 10, 150, len(data) - 5, len(data), len(data), len(data), len(data)])]
        )
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(behaviour.random() * 0.1):
                await client.reader.readexactly(behaviour.choice([1, 500, 10_000, 300_000]))
        behaviour.choice([Peer.close, Peer.reset])(client)
        await client.gone()

    serving = asyncio.create_task(vendors())
    for _ in range(10):
        await asyncio.gather(*(visit(random.Random(dice.random())) for _ in range(20)))
    await proxy.idle()
    assert proxy.leases_held == 0
    assert {state: count for (_, state), count in proxy.service.pool.counts().items() if state == "active"} == {}
    proxy.service.pool.close()
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    for peer in upstream.peers:
        await peer.gone()
    upstream.peers.clear()
    await passes(lambda: len(proxy.server.connections) <= 1)
    assert proxy.service.timers.watched_count <= watched_before + 1
    await passes(lambda: len(asyncio.all_tasks()) <= tasks_before and open_files() <= files_before)
    assert not [line for line in proxy.lines() if line["event"] != "exchange.settled"]


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        ("Content-Length: 0", b""),
        ("Content-Length: 14", b'{"model": "m"}'),
        ("Transfer-Encoding: chunked", chunk(b'{"model": ') + chunk(b'"m"}') + LAST),
    ],
    ids=["empty", "length", "chunked"],
)
@pytest.mark.parametrize("cut", [None, 1, 7], ids=["in one", "byte by byte", "in sevens"])
async def test_body_behind_an_upgrade(
    proxy: Running, upstream: Upstream, framing: str, body: bytes, cut: int | None
) -> None:
    """A request that asks for another protocol is framed like any other: its body is no next request.

    What stands behind it is not served: the response says that the connection ends (RFC 9112 §9.6).
    """
    head = (
        f"POST /main/v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n"
        f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n{framing}\r\n\r\n"
    )
    client = await proxy.client()
    twice = (head.encode() + body) * 2
    size = cut or len(twice)
    for position in range(0, len(twice), size):
        await client.send(twice[position : position + size])
    received = await (await _vendor(upstream)).read_message()
    assert received.body == (b'{"model": "m"}' if body else b"")
    assert received.get("upgrade") is None
    upstream.peers[0].write(OK)
    answer = await client.read_message()
    assert (answer.body, answer.get("connection")) == (b"ok", "close")
    await client.closed()
    assert len(upstream.peers) == 1
    await passes(lambda: [line["status"] for line in proxy.lines() if line["event"] == "exchange.settled"] == [200])


async def test_upgrade_with_a_framing_of_its_own(proxy: Running, upstream: Upstream) -> None:
    """A framing that is refused is so behind an upgrade, too."""
    client = await proxy.client()
    fields = (("Connection", "upgrade"), ("Upgrade", "h2c"), ("Transfer-Encoding", "gzip"))
    client.write(request(method="POST", token=token(), fields=fields) + request("/healthz", method="GET"))

    assert (await client.read_message()).status == 400
    await client.closed()
    assert upstream.is_untouched


@pytest.mark.skipif(sys.platform != "linux", reason="other systems hand on other options")
async def test_client_sockets_have_the_listeners_options(proxy: Running) -> None:
    """A client that vanishes is noticed, and little is taken for one that hardly reads."""
    client = await proxy.client()
    client.write(request("/healthz", method="GET"))
    await client.read_message()

    connection = next(iter(proxy.server.connections))
    assert connection.transport is not None
    sock = connection.transport.get_extra_info("socket")

    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 65_536
