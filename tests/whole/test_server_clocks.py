"""The clocks towards a client, and who is told what before a body is asked for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import token
from tests.peers import WAIT_S, Upstream, chunk, only, request
from tests.whole.scenes import BODY, OK, check_settled, head, serves

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running

HEADER = "client_timeouts: {header: 500ms}\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
SHORT = "plans: {default: {requests: [1/1h], concurrent_streams: 8}}\n"


async def test_header_clock_cuts_a_silent_client(start: Callable[..., Any]) -> None:
    """A client that connects and says nothing is let go without a word, and leaves no line."""
    proxy = await start(HEADER)
    clients = [await proxy.client() for _ in range(20)]

    for client in clients:
        assert await client.read_to_end() == b""

    assert proxy.lines() == []
    assert not proxy.server.connections


@pytest.mark.parametrize("step", [b"X", b"X-Slow: 1\r\n"], ids=["one-byte", "one-field"])
async def test_header_clock_cuts_a_trickled_head(start: Callable[..., Any], upstream: Upstream, step: bytes) -> None:
    """A head that trickles does not hold the clock up: 408, closed at once, none of it repeated."""
    proxy = await start(HEADER)
    client = await proxy.client()
    client.write(b"POST /forward-sse HTTP/1.1\r\nAuthorization: Bearer canary\r\n")
    reading = asyncio.create_task(client.read_message())
    while not reading.done():
        client.write(step)
        await asyncio.wait((reading,), timeout=0.02)

    answer = reading.result()

    await client.closed()
    assert (answer.status, answer.json["error"]["code"]) == (408, "request_timeout")
    assert answer.get("x-forward-sse-code") == "request_timeout"
    assert answer.get("connection") == "close"
    assert b"canary" not in client.seen + proxy.log_bytes()
    await check_settled(proxy, "refused", status=408, code="request_timeout")
    assert upstream.is_untouched


async def test_header_clock_runs_anew_for_each_request(start: Callable[..., Any]) -> None:
    """After an answer the head's clock waits for the first byte of the next request, and then runs."""
    proxy = await start(HEADER)
    client = await proxy.client()
    client.write(request("/healthz", method="GET"))
    assert (await client.read_message()).status == 200
    other = await proxy.client()
    assert await other.read_to_end() == b""  # a whole header timeout later
    client.write(b"GET /healthz")

    answer = await client.read_message()

    assert answer.status == 408
    await client.closed()


async def test_keep_alive_closes_an_idle_connection(start: Callable[..., Any]) -> None:
    """An idle kept connection is closed after `keep_alive`, without a word."""
    proxy = await start("client_timeouts: {keep_alive: 100ms}\n")
    client = await proxy.client()
    client.write(request("/healthz", method="GET"))
    assert (await client.read_message()).status == 200

    assert await client.read_to_end() == b""
    assert not proxy.server.connections


async def test_keep_alive_does_not_cut_a_stream(start: Callable[..., Any], upstream: Upstream) -> None:
    """Neither the head's clock nor keep-alive runs while a request is served."""
    proxy = await start("client_timeouts: {header: 400ms, keep_alive: 400ms}\n")
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    idle = await proxy.client()
    assert await idle.read_to_end() == b""  # the head's clock has run out for another
    vendor.write(OK)

    assert (await client.read_message()).body == b"ok"


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(("Content-Length: 1000000", b"{"), id="length"),
        pytest.param(("Transfer-Encoding: chunked", chunk(b"{")), id="chunked"),
        pytest.param(("Transfer-Encoding: chunked", b"fff"), id="chunk-size"),
        pytest.param(("Content-Length: 5", b""), id="nothing"),
    ],
)
async def test_body_clock(
    start: Callable[..., Any], upstream: Upstream, begun: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that stops is a 408, and the connection is closed at once."""
    # For as long other refusals read on.
    monkeypatch.setattr("proxy.app.LINGER_S", 2 * WAIT_S)
    proxy = await start("client_timeouts: {body: 150ms}\n")
    client = await proxy.client()
    client.write(head(f"Authorization: Bearer {token()}", begun[0]) + begun[1])

    answer = await client.read_message()
    await client.closed()

    assert (answer.status, answer.json["error"]["code"]) == (408, "request_timeout")
    assert answer.get("connection") == "close"
    await check_settled(proxy, "refused", status=408, code="request_timeout")
    assert upstream.is_untouched


async def test_body_clock_bounds_silence_alone(start: Callable[..., Any], upstream: Upstream) -> None:
    """A body that keeps coming is not cut, however long it takes."""
    proxy = await start("client_timeouts: {body: 600ms}\n")
    client = await proxy.client()
    data = b'{"model":"gpt-x"' + b" " * 30 + b"}"
    client.write(head(f"Authorization: Bearer {token()}", f"Content-Length: {len(data)}"))
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    arriving = asyncio.create_task(upstream.take())
    for byte in data:
        client.write(bytes([byte]))
        await asyncio.wait((arriving,), timeout=0.03)

    vendor, received = await arriving

    assert loop.time() - began_s > 0.6
    assert received.body == data
    vendor.write(OK)
    assert (await client.read_message()).status == 200


@pytest.mark.parametrize(
    ("lines", "more", "status", "code"),
    [
        ((), "", 401, "missing_token"),
        (("Authorization: Bearer nonsense",), "", 401, "invalid_token"),
        (("GOOD",), "max_body: 100B\n", 413, "body_too_large"),
        (("GOOD", "X-Upstream: none-such"), "", 404, "unknown_upstream"),
    ],
)
async def test_expect_refused_before_the_body(
    start: Callable[..., Any], upstream: Upstream, lines: tuple[str, ...], more: str, status: int, code: str
) -> None:
    """What the head decides is answered without a 100, before a byte of the body was sent (RFC 9110 §10.1.1)."""
    proxy = await start(more)
    client = await proxy.client()
    fields = [line.replace("GOOD", f"Authorization: Bearer {token()}") for line in lines]
    client.write(head(*fields, "Expect: 100-continue", "Content-Length: 101"))

    answer = await client.read_message()

    assert (answer.status, answer.get("x-forward-sse-code")) == (status, code)
    # The client may send the body or leave it: nobody can tell, so the connection is not used again.
    assert answer.get("connection") == "close"
    assert await client.read_to_end() == b""
    await check_settled(proxy, "refused", status=status, code=code)
    assert upstream.is_untouched


@pytest.mark.parametrize("expect", ["Expect: 100-continue", "X-No-Expect: 1"])
async def test_limit_refused_before_the_body(start: Callable[..., Any], upstream: Upstream, expect: str) -> None:
    """A user over the limit is told so without the body being asked for, or waited for."""
    proxy = await start(SHORT)
    first = await proxy.client()
    first.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(OK)
    assert (await first.read_message()).status == 200
    client = await proxy.client()
    client.write(head(f"Authorization: Bearer {token()}", expect, "Content-Length: 101"))

    answer = await client.read_message()

    assert (answer.status, answer.get("x-forward-sse-code")) == (429, "rate_limit_exceeded")
    assert int(answer.get("retry-after") or 0) > 0
    await client.closed()
    assert len(upstream.peers) == 1
    assert proxy.leases_held == 0


@pytest.mark.parametrize("value", ["100-continue", "100-Continue"])
async def test_expect_good_request_streams(proxy: Running, upstream: Upstream, value: str) -> None:
    """A good request is told to go on, once, and then gets its answer; the upstream is not asked the same."""
    client = await proxy.client()
    data = b'{"model":"gpt-x"}'
    client.write(head(f"Authorization: Bearer {token()}", f"Expect: {value}", f"Content-Length: {len(data)}"))
    assert await client.read_until(b"\r\n\r\n") == CONTINUE
    assert upstream.is_untouched
    client.write(data)
    vendor, received = await upstream.take()
    vendor.write(OK)

    answer = await client.read_message()

    assert (answer.status, answer.body, received.body) == (200, b"ok", data)
    assert received.get("expect") is None
    assert answer.get("connection") is None


async def test_expect_of_http_1_0_is_ignored(proxy: Running, upstream: Upstream) -> None:
    """HTTP/1.0 knows no interim answer (RFC 9110 §10.1.1)."""
    client = await proxy.client()
    data = b'{"model":"gpt-x"}'
    start = "POST /forward-sse HTTP/1.0"
    client.write(
        head(f"Authorization: Bearer {token()}", "Expect: 100-continue", f"Content-Length: {len(data)}", start=start)
        + data
    )
    vendor, _ = await upstream.take()
    vendor.write(OK)

    assert (await client.read_head()).status == 200


async def test_expect_unknown(proxy: Running, upstream: Upstream) -> None:
    """An expectation that nobody knows is refused."""
    client = await proxy.client()
    client.write(head(f"Authorization: Bearer {token()}", "Expect: canary", "Content-Length: 2"))

    answer = await client.read_message()

    assert (answer.status, answer.get("x-forward-sse-code")) == (400, "invalid_request")
    await client.closed()
    assert b"canary" not in client.seen
    assert upstream.is_untouched


@pytest.mark.parametrize(
    ("lines", "status"), [((), 401), (("Authorization: Bearer x",), 401), (("Authorization: Bearer TOKEN",), 413)]
)
async def test_refused_while_the_client_uploads(
    start: Callable[..., Any], upstream: Upstream, lines: tuple[str, ...], status: int
) -> None:
    """A client that uploads megabytes regardless still sees why it was refused, not a reset."""
    proxy = await start("max_body: 1MiB\n")
    client = await proxy.client()
    fields = [line.replace("TOKEN", token()) for line in lines]
    client.write(head(*fields, "Content-Length: 8000000") + b"x" * 8_000_000)

    answer = await client.read_message()

    assert answer.status == status
    assert answer.is_whole
    await client.closed()
    assert upstream.is_untouched


@pytest.mark.parametrize("length", [10 * 2**30, 10**15 - 1])
async def test_body_too_large_by_its_length(proxy: Running, upstream: Upstream, length: int) -> None:
    """A declared length over the bound is refused before the body."""
    client = await proxy.client()
    client.write(head(f"Authorization: Bearer {token()}", f"Content-Length: {length}"))

    answer = await client.read_message()

    assert (answer.status, answer.get("x-forward-sse-code")) == (413, "body_too_large")
    await check_settled(proxy, "refused", status=413)
    assert upstream.is_untouched


async def test_body_too_large_in_chunks(start: Callable[..., Any], upstream: Upstream) -> None:
    """A body without a length is read up to the bound and no further; the very bound still passes."""
    proxy = await start("max_body: 100KiB\n")
    size = 100 * 1024
    client = await proxy.client()
    fields = (f"Authorization: Bearer {token()}", "X-Upstream: main", "Transfer-Encoding: chunked")
    client.write(head(*fields) + chunk(b"x" * size) + b"0\r\n\r\n")
    vendor, received = await upstream.take()
    vendor.write(OK)
    assert (await client.read_message()).status == 200
    assert len(received.body) == size

    client.write(head(*fields) + chunk(b"x" * size))
    await client.send(chunk(b"y"))
    answer = await client.read_message()

    assert (answer.status, answer.get("x-forward-sse-code")) == (413, "body_too_large")
    assert answer.get("connection") == "close"
    await client.closed()
    assert len(upstream.peers) == 1
    await serves(proxy)


async def test_body_cut_short_by_a_half_close(proxy: Running, upstream: Upstream) -> None:
    """A body that ends before its length never reaches the upstream."""
    client = await proxy.client()
    client.write(head(f"Authorization: Bearer {token()}", "Transfer-Encoding: chunked") + chunk(b'{"model":"gpt-x"}'))
    client.writer.write_eof()

    assert await client.read_to_end() == b""
    line = only(await proxy.settled(), "exchange.settled")
    assert line["ending"] == "client_closed"
    assert upstream.is_untouched
