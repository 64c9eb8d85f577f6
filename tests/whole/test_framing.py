"""Requests whose framing two servers could read differently, or nobody can read (RFC 9112)."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import VENDOR_KEY, token
from tests.peers import Peer, Upstream, chunk, request
from tests.whole.scenes import BODY, OK, check_secrets, check_settled, head, serves

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running

SMUGGLED = b"POST /forward-sse HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = "Transfer-Encoding: chunked"
END = b"0\r\n\r\n"
EXTRA = END + SMUGGLED


async def check_refused(
    proxy: Running, upstream: Upstream, hostile: bytes, secret: str, *, settled: bool = True
) -> None:
    """One quiet 400, the connection closed, nothing upstream, and the proxy well."""
    client = await proxy.client()
    client.write(hostile)

    answer = await client.read_message()
    rest = await client.read_to_end()

    assert answer.status == 400
    assert answer.json["error"]["code"] == answer.get("x-forward-sse-code") == "invalid_request"
    assert answer.get("connection") == "close"
    assert rest == b""
    assert upstream.is_untouched
    if settled:
        await check_settled(proxy, "refused", status=400, code="invalid_request")
    check_secrets(proxy, client.seen, secrets=(secret, "canary"))
    await serves(proxy)


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        # CL.TE and TE.CL: whichever of the two a server believes, the other one saw a second request.
        pytest.param((f"Content-Length: {len(EXTRA)}", CHUNKED), EXTRA, id="cl-te"),
        pytest.param((CHUNKED, "Content-Length: 4"), EXTRA, id="te-cl"),
        pytest.param(("Transfer-Encoding: chunked, gzip",), EXTRA, id="te-chunked-gzip"),
        pytest.param(("Transfer-Encoding: gzip, chunked",), EXTRA, id="te-gzip-chunked"),
        pytest.param(("Transfer-Encoding: chunked, chunked",), EXTRA, id="te-chunked-chunked"),
        pytest.param((CHUNKED, CHUNKED), EXTRA, id="te-twice"),
        pytest.param((CHUNKED, "Transfer-Encoding: identity"), EXTRA, id="te-chunked-then-identity"),
        pytest.param(("Transfer-Encoding: identity", CHUNKED), EXTRA, id="te-identity-then-chunked"),
        pytest.param(("Transfer-Encoding: xchunked",), EXTRA, id="te-xchunked"),
        pytest.param(("Transfer-Encoding: chunked, identity",), EXTRA, id="te-chunked-identity"),
        pytest.param(("Transfer-Encoding: identity",), EXTRA, id="te-identity"),
        pytest.param(("Transfer-Encoding: chunked\x0b",), EXTRA, id="te-vertical-tab"),
        pytest.param(("Transfer-Encoding: \x0bchunked",), EXTRA, id="te-leading-vertical-tab"),
        pytest.param(("Transfer-Encoding: chunked;q=1",), EXTRA, id="te-parameter"),
        pytest.param(('Transfer-Encoding: "chunked"',), EXTRA, id="te-quoted"),
        pytest.param(("Transfer-Encoding:",), EXTRA, id="te-empty"),
        pytest.param((" Transfer-Encoding: chunked",), EXTRA, id="te-leading-space"),
        pytest.param(("Transfer-Encoding : chunked",), EXTRA, id="te-space-before-colon"),
        pytest.param(("Content-Length: 2", "Content-Length: 2"), b"{}", id="cl-twice"),
        pytest.param(("Content-Length: 2", "Content-Length: 3"), b"{} ", id="cl-two-values"),
        pytest.param(("Content-Length: 2, 2",), b"{}", id="cl-list"),
        pytest.param(("Content-Length: +2",), b"{}", id="cl-plus"),
        pytest.param(("Content-Length: -2",), b"{}", id="cl-minus"),
        pytest.param(("Content-Length: 0_2",), b"{}", id="cl-underscore"),
        pytest.param(("Content-Length: 0x2",), b"{}", id="cl-hex"),
        pytest.param(("Content-Length: 2 2",), b"{}", id="cl-space"),
        pytest.param(("Content-Length:",), b"{}", id="cl-empty"),
        pytest.param((b"Content-Length: \xd9\xa2",), b"{}", id="cl-arabic"),
        pytest.param((f"Content-Length: {'9' * 5000}",), b"{}", id="cl-5000-digits"),
        pytest.param((f"Content-Length: {'0' * 5000}2",), b"{}", id="cl-5000-zeros"),
        pytest.param(("Content-Length: 18446744073709551618",), b"{}", id="cl-over-64-bits"),
        pytest.param((b"X: a\r\n b",), b"", id="obs-fold"),
        pytest.param((b"X: a\nY: b",), b"", id="bare-lf"),
        pytest.param((b"X: a\rY: b",), b"", id="bare-cr"),
        pytest.param((b"X: a\0b",), b"", id="nul"),
        pytest.param((b"X: a\x01b",), b"", id="control"),
        pytest.param((b"X : a",), b"", id="space-before-colon"),
        pytest.param((b": a",), b"", id="empty-name"),
        pytest.param((b"X(y: a",), b"", id="name-no-token"),
        pytest.param((b"X\xff: a",), b"", id="name-non-ascii"),
        pytest.param((b"no colon",), b"", id="no-colon"),
        pytest.param(tuple(f"X-{number}: y" for number in range(200)), b"", id="200-fields"),
    ],
)
async def test_framing_hostile_field(
    proxy: Running, upstream: Upstream, lines: tuple[str | bytes, ...], body: bytes
) -> None:
    """A head that two servers could read differently is a 400 that repeats nothing, and the connection's last."""
    secret = token()
    await check_refused(proxy, upstream, head(f"Authorization: Bearer {secret}", *lines) + body, secret)


@pytest.mark.parametrize(
    "lines",
    [
        ("Host: a", "Host: a"),
        (),
        ("Host:",),
        ("Host: a:99999",),
        ("Host: a:b",),
        ("Host: a@b",),
        ("Host: [::1",),
        ("Host: a/b",),
        ("Host: a b",),
        ("Host: x/healthz?",),
        (b"Host: a\xff",),
    ],
    ids=repr,
)
async def test_framing_hostile_host(proxy: Running, upstream: Upstream, lines: tuple[str | bytes, ...]) -> None:
    """HTTP/1.1 needs exactly one Host, and a plain one (RFC 9112 §3.2)."""
    secret = token()
    await check_refused(proxy, upstream, head(f"Authorization: Bearer {secret}", *lines, host=False), secret)


@pytest.mark.parametrize(
    "line",
    [
        "POST /forward-sse HTTP/2.0",
        "POST /forward-sse HTTP/1.9",
        "POST /forward-sse HTTP/0.9",
        "POST /forward-sse HTTP/3.0",
        "POST /forward-sse http/1.1",
        "POST /forward-sse HTTP/1.1 x",
        "POST /forward-sse",
        "GET /healthz",
        "GET /forward-sse?a=canary HTTP/2.0",
        "POST\t/forward-sse\tHTTP/1.1",
        " POST /forward-sse HTTP/1.1",
        "post /forward-sse HTTP/1.1",
        "PoST /forward-sse HTTP/1.1",
        "CANARY /forward-sse HTTP/1.1",
        "A" * 100_000 + " /forward-sse HTTP/1.1",
        b"GET\0 /forward-sse HTTP/1.1",
        "POST /forward-sse#canary HTTP/1.1",
        "POST forward-sse HTTP/1.1",
        "POST proxy.test:80 HTTP/1.1",
        "POST ftp://proxy.test/forward-sse HTTP/1.1",
        "POST http:///forward-sse HTTP/1.1",
        "POST http://a@b/forward-sse HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "CONNECT canary.example:443 HTTP/1.1",
        b"POST /forward-sse\x00 HTTP/1.1",
        b"POST /forward-sse\x7f HTTP/1.1",
    ],
    ids=lambda line: repr(line[:40]),
)
async def test_framing_hostile_request_line(proxy: Running, upstream: Upstream, line: str | bytes) -> None:
    """A request line that is not HTTP/1.x for an origin server is a 400 that repeats nothing."""
    secret = token()
    await check_refused(proxy, upstream, head(f"Authorization: Bearer {secret}", start=line), secret)


async def test_framing_http2_preface(proxy: Running, upstream: Upstream) -> None:
    """A client that speaks HTTP/2 could not read an answer of HTTP/1 (RFC 9113 §3.4): the connection is closed."""
    client = await proxy.client()
    client.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))

    assert await client.read_to_end() == b""
    assert upstream.is_untouched
    await serves(proxy)


@pytest.mark.parametrize(
    "hostile",
    [
        b"Bearer canary",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03canary",
        b"Authorization: Bearer canary\r\n\r\n",
        b"POST /forward-sse HTTP/1.1\r\nAuthorization: Bearer canary\r\nHost: a\r\n broken: canary\r\n\r\n",
        b"SSH-2.0-canary\r\n",
    ],
    ids=repr,
)
async def test_framing_error_page_repeats_nothing(proxy: Running, upstream: Upstream, hostile: bytes) -> None:
    """What stands where a request line should be, a credential even, is in neither the answer nor the log."""
    await check_refused(proxy, upstream, hostile, "Bearer")


@pytest.mark.parametrize("method", ["TRACE", "PURGE", "PROPFIND", "GET", "DELETE", "OPTIONS"])
async def test_framing_method_of_no_use(proxy: Running, upstream: Upstream, method: str) -> None:
    """A method that means nothing here is a 405; a TRACE is not echoed."""
    secret = token()
    client = await proxy.client()
    client.write(request(method=method, token=secret, fields=(("X-A", "canary"),)))

    answer = await client.read_message()

    assert (answer.status, answer.get("allow")) == (405, "POST")
    assert upstream.is_untouched
    await check_settled(proxy, "refused", status=405, code="method_not_allowed")
    check_secrets(proxy, client.seen, secrets=(secret, "canary"))


@pytest.mark.parametrize(
    "broken",
    [
        b"-1\r\n",
        b"+5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b" 5\r\nhello\r\n",
        b"5;\nhello\r\n",
        b"5\nhello\r\n",
        b"10000000000000000\r\n",
        b"fffffffffffffffff\r\n",
        b"\r\n",
        b"\n",
        b"g\r\n",
        b"5\r\nhelloX",
        b"5\r\nhello\n",
        b"5;a=\x00\r\nhello\r\n",
        b"0\r\nX: a\r\n b\r\n\r\n",
        b"0\r\nX : a\r\n\r\n",
        b"0\r\nContent-Length: 3\r\n\r\n",
        b"0\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
    ],
    ids=lambda broken: repr(broken[:24]),
)
@pytest.mark.parametrize("comes", ["with the head", "after the head"])
async def test_framing_broken_chunk(proxy: Running, upstream: Upstream, broken: bytes, comes: str) -> None:
    """A malformed chunk is a 400 at once, whether it comes with the head or later; the body is not waited for."""
    secret = token()
    client = await proxy.client()
    first = head(f"Authorization: Bearer {secret}", CHUNKED) + chunk(b'{"model":')
    if comes == "with the head":
        client.write(first + broken + SMUGGLED)
    else:
        # The proxy's own 100 tells that it reads the body: what follows comes after the head for certain.
        client.write(first.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n", 1))
        assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.write(broken + SMUGGLED)

    answer = await client.read_message()
    await client.closed()

    assert (answer.status, answer.get("x-forward-sse-code")) == (400, "invalid_request")
    assert answer.get("connection") == "close"
    assert upstream.is_untouched
    await check_settled(proxy, "refused", status=400, code="invalid_request")
    check_secrets(proxy, client.seen, secrets=(secret,))


async def test_framing_broken_chunk_of_a_pipelined_request(proxy: Running, upstream: Upstream) -> None:
    """A request behind a running one breaks alone: the first gets its answer, the second its 400."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    await client.send(head(f"Authorization: Bearer {token()}", CHUNKED) + chunk(b"{"))
    await serves(proxy)
    await client.send(b"no size\r\n")
    await serves(proxy)
    vendor.write(OK)

    first = await client.read_message()
    second = await client.read_message()
    await client.closed()

    assert (first.status, first.body) == (200, b"ok")
    assert (second.status, second.get("x-forward-sse-code")) == (400, "invalid_request")
    assert [line["status"] for line in await proxy.settled(2)] == [200, 400]
    assert len(upstream.peers) == 1


async def test_framing_garbage_behind_a_request(proxy: Running, upstream: Upstream) -> None:
    """What follows a good request does not spoil it; then it is refused, and the connection closed."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    await client.send(b"canary\r\n\r\n")
    await serves(proxy)
    vendor.write(OK)

    first = await client.read_message()
    second = await client.read_message()
    await client.closed()

    assert (first.status, second.status) == (200, 400)
    assert [line["code"] for line in await proxy.settled(2)] == [None, "invalid_request"]
    check_secrets(proxy, client.seen, secrets=("canary",))


@pytest.mark.parametrize(
    "piece", [b"5;" + b"x" * 1_000_000, b"0\r\nX: " + b"x" * 1_000_000], ids=["extension", "trailer"]
)
async def test_framing_overhead_is_bounded(proxy: Running, upstream: Upstream, piece: bytes) -> None:
    """A chunk extension or a trailer without an end is cut off, long before any clock."""
    client = await proxy.client()
    client.write(head(f"Authorization: Bearer {token()}", CHUNKED, "Expect: 100-continue"))
    await client.read_until(b"100 Continue\r\n\r\n")
    client.write(piece)

    await client.closed()

    assert b" 200 " not in client.seen
    assert upstream.is_untouched
    await check_settled(proxy, "refused", status=400, code="invalid_request")


async def test_framing_tiny_chunks(proxy: Running, upstream: Upstream) -> None:
    """A body of 100,000 one-byte chunks, with extensions and trailers, is a body; the upstream gets its bytes alone."""
    client = await proxy.client()
    client.write(head(f"Authorization: Bearer {token()}", "X-Upstream: main", CHUNKED))
    client.write(b"1;a=b\r\nx\r\n" * 100_000 + b"0\r\nAuthorization: Bearer x\r\nX-Trailer: y\r\n\r\n")
    vendor, received = await upstream.take()
    vendor.write(OK)

    assert (await client.read_message()).status == 200
    assert received.body == b"x" * 100_000
    assert received.get("content-length") == "100000"
    assert received.get("transfer-encoding") is None
    assert received.all("authorization") == [f"Bearer {VENDOR_KEY}"]
    assert received.get("x-trailer") is None
    await check_settled(proxy, "complete")


async def test_framing_http_1_0_with_chunks(proxy: Running, upstream: Upstream) -> None:
    """HTTP/1.0 knows no chunks (RFC 9112 §6.1)."""
    secret = token()
    start = "POST /forward-sse HTTP/1.0"
    await check_refused(proxy, upstream, head(f"Authorization: Bearer {secret}", CHUNKED, start=start) + EXTRA, secret)


@pytest.mark.parametrize(
    "line",
    ["POST http://elsewhere.example/forward-sse HTTP/1.1", "POST HTTPS://elsewhere.example:1/forward-sse?a=b HTTP/1.1"],
)
async def test_framing_absolute_form(proxy: Running, upstream: Upstream, line: str) -> None:
    """An absolute target is routed by our rules; its origin goes nowhere (RFC 9112 §3.2.2)."""
    client = await proxy.client()
    client.write(head(f"Authorization: Bearer {token()}", "Content-Length: 17", start=line) + b'{"model":"gpt-x"}')
    vendor, received = await upstream.take()
    vendor.write(OK)

    assert (await client.read_message()).status == 200
    assert received.start.startswith("POST /v1/chat/completions")
    assert received.get("host") == f"127.0.0.1:{upstream.address[1]}"


@pytest.mark.parametrize("value", [b"caf\xc3\xa9", b"caf\xe9", b"\xff\xfe", b"a\tb"])
async def test_framing_values_beyond_ascii(proxy: Running, upstream: Upstream, value: bytes) -> None:
    """Bytes above ASCII in a field's value, even invalid UTF-8, pass unchanged and harm no log."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token()).replace(b"\r\n", b"\r\nX-Name: " + value + b"\r\n", 1))
    vendor, received = await upstream.take()
    vendor.write(OK)

    assert (await client.read_message()).status == 200
    name = received.get("x-name")
    assert name is not None
    assert name.encode("latin-1") == value
    await check_settled(proxy, "complete")


@pytest.mark.parametrize(
    "path",
    ["/forward-sse?x=/healthz", "/main/healthz", "/healthz/../forward-sse", "/healthz%00", "//healthz", "/healthz//"],
)
async def test_framing_path_that_looks_open(proxy: Running, upstream: Upstream, path: str) -> None:
    """Only the exact health paths are open; whatever merely resembles them gets nothing without a token."""
    client = await proxy.client()
    client.write(request(path, body=BODY))

    assert (await client.read_message()).status in {400, 401, 404}
    assert upstream.is_untouched


async def test_framing_fuzz_never_harms(start: Callable[..., Any], upstream: Upstream) -> None:
    """A good request with bytes changed at random is answered or closed, never with a 500, and the proxy stays well."""
    proxy = await start("client_timeouts: {header: 100ms, body: 100ms, keep_alive: 100ms}\n")
    upstream._server.close()
    await upstream._server.wait_closed()
    good = head(f"Authorization: Bearer {token()}", CHUNKED) + chunk(b'{"model":"gpt-x"}') + END
    dice = random.Random(20260101)

    async def attack(hostile: bytes) -> bytes:
        client: Peer = await proxy.client()
        client.write(hostile)
        return await client.read_to_end()

    for _ in range(6):
        attacks = []
        for _ in range(50):
            hostile = bytearray(good)
            for _ in range(dice.randint(1, 3)):
                at = dice.randrange(len(hostile))
                hostile[at : at + dice.randint(0, 2)] = bytes(
                    dice.choices(b"\r\n\0 :;,chunked0159\xff\t", k=dice.randint(0, 3))
                )
            attacks.append(attack(bytes(hostile)))
        for seen in await asyncio.gather(*attacks):
            # What cannot be parsed is answered as HTTP/1.0: its version is unknown (RFC 9110 §2.5).
            assert seen == b"" or seen[:12] in {
                b"HTTP/1.%d %d" % (minor, status) for minor in (0, 1) for status in (400, 401, 404, 405, 408, 502)
            }
    await proxy.idle()
    await serves(proxy)
    # The upstream is away on purpose, and that is noticed.
    assert {line["event"] for line in proxy.lines()} <= {"exchange.settled", "upstream.out"}
