"""What the upstream sent is what the client gets: the same bytes in the same order, however they were cut."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import VENDOR_KEY, token
from tests.peers import LAST, WAIT_S, Message, Peer, Upstream, chunk, event, request
from tests.whole.scenes import BODY, OK, check_settled, serves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Running

EVENTS = b"".join(event(f"word {number}") for number in range(40)) + b"data: [DONE]\n\n"

BODIES: dict[str, tuple[str, bytes]] = {
    "sse-lf": ("text/event-stream", EVENTS),
    "sse-crlf": ("text/event-stream; charset=utf-8", EVENTS.replace(b"\n", b"\r\n")),
    "sse-cr": ("text/event-stream", EVENTS.replace(b"\n", b"\r")),
    "sse-mixed": ("text/event-stream", b"data: a\r\n\ndata: b\n\r\ndata: c\r\r\ndata: d\r\ndata: e\n\n\n\r\r\n"),
    "sse-bom": ("text/event-stream", b"\xef\xbb\xbf" + EVENTS + b"\xef\xbb\xbfdata: later\n\n"),
    "sse-odd-fields": ("text/event-stream", b": hi\n\nid: 1\0\nretry: x\nevent: error\nunknown\ndata\ndata:\n\n:\n"),
    "sse-invalid-utf8": ("text/event-stream", b"data: \xff\xc3\x28\xe2\x82\n\ndata: \0\n\n"),
    "sse-split-utf8": ("text/event-stream", "data: 你好 世界 🎉 é\n\n".encode() * 20),
    "sse-unfinished": ("text/event-stream", EVENTS + b"data: half an ev"),
    "sse-no-done": ("text/event-stream", event("only")),
    "sse-latin1": ("text/event-stream; charset=latin-1", b"data: caf\xe9\n\n"),
    "looks-like-chunks": ("text/event-stream", b"5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
    "json": ("application/json", json.dumps({"choices": [{"message": {"content": "x" * 5000}}]}).encode()),
    "ndjson": ("application/x-ndjson", b'{"a":1}\n' * 200),
    "binary": ("application/octet-stream", random.Random(1).randbytes(5000)),
    "empty": ("application/json", b""),
}


def head(type_: str, *lines: bytes) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 200 OK", b"Content-Type: " + type_.encode(), *lines)) + b"\r\n\r\n"


CHUNKED = b"Transfer-Encoding: chunked"


def cut(data: bytes, dice: random.Random, largest: int) -> Iterator[bytes]:
    while data:
        size = dice.randint(1, largest)
        yield data[:size]
        data = data[size:]


async def answered(proxy: Running, upstream: Upstream) -> tuple[Peer, Peer]:
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    return client, vendor


async def dribble(vendor: Peer, wire: bytes, dice: random.Random, largest: int) -> None:
    """Write in pieces, each in a turn of the loop of its own, so that most arrive alone."""
    for piece in cut(wire, dice, largest):
        vendor.write(piece)
        await asyncio.sleep(0)


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("name", BODIES)
async def test_bytes_whatever_the_body_and_framing(proxy: Running, upstream: Upstream, name: str, framing: str) -> None:
    """Any body arrives unchanged, with its type verbatim, whichever way its end was marked and wherever it was cut."""
    type_, body = BODIES[name]
    dice = random.Random(f"{name} {framing}")
    client, vendor = await answered(proxy, upstream)
    if framing == "chunked":
        wire = head(type_, CHUNKED) + b"".join(chunk(piece) for piece in cut(body, dice, 50)) + LAST
    elif framing == "length":
        wire = head(type_, b"Content-Length: %d" % len(body)) + body
    else:
        wire = head(type_) + body
    sending = asyncio.create_task(dribble(vendor, wire, dice, 30))
    if framing == "close":
        sending.add_done_callback(lambda _: vendor.close())

    answer = await client.read_message()

    await sending
    assert (answer.status, answer.is_whole, answer.body) == (200, True, body)
    assert answer.all("content-type") == [type_]
    assert answer.get("content-length") == (str(len(body)) if framing == "length" else None)
    assert answer.get("connection") is None
    await check_settled(proxy, "complete", bytes=len(body))
    await serves(proxy)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", ["sse-crlf", "sse-split-utf8", "sse-mixed", "sse-bom"])
async def test_bytes_one_at_a_time(proxy: Running, upstream: Upstream, name: str, size: int) -> None:
    """Pieces of a byte or three, each its own chunk and its own write, arrive unchanged."""
    type_, body = BODIES[name]
    client, vendor = await answered(proxy, upstream)

    async def send() -> None:
        vendor.write(head(type_, CHUNKED))
        for at in range(0, len(body), size):
            await vendor.send(chunk(body[at : at + size]))
        vendor.write(LAST)

    sending = asyncio.create_task(send())
    answer = await client.read_message()

    await sending
    assert (answer.is_whole, answer.body) == (True, body)


async def test_bytes_in_random_cuts(proxy: Running, upstream: Upstream) -> None:
    """However the upstream's wire is cut, head and chunk sizes included, the client's bytes are the same."""
    dice = random.Random(20260303)
    client = await proxy.client()
    vendor: Peer | None = None
    expected = hashlib.sha256(EVENTS).digest()
    for _ in range(50):
        # One user's plan lasts for sixty requests in ten seconds.
        client.write(request(body=BODY, token=token()))
        if vendor is None:
            vendor, _ = await upstream.take()
        else:
            await vendor.read_message()
        wire = head("text/event-stream", CHUNKED) + b"".join(map(chunk, cut(EVENTS, dice, 300))) + LAST
        sending = asyncio.create_task(dribble(vendor, wire, dice, dice.choice([20, 200, 2000])))
        answer = await client.read_message()
        await sending
        assert hashlib.sha256(answer.body).digest() == expected
    assert len(upstream.peers) == 1


@pytest.mark.parametrize("size", [10 * 2**20])
@pytest.mark.parametrize("framing", ["chunked", "length"])
async def test_bytes_of_a_huge_event(proxy: Running, upstream: Upstream, framing: str, size: int) -> None:
    """An event of ten megabytes without a line's end passes, and is counted as one."""
    body = b"data: " + random.Random(2).randbytes(size).translate(None, b"\r\n") + b"\n\n"
    client, vendor = await answered(proxy, upstream)
    if framing == "chunked":
        vendor.write(head("text/event-stream", CHUNKED) + chunk(body) + LAST)
    else:
        vendor.write(head("text/event-stream", b"Content-Length: %d" % len(body)) + body)

    answer = await client.read_message()

    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(body).digest()
    await check_settled(proxy, "complete", events=1, bytes=len(body))


async def test_bytes_encoded_in_spite_of_identity(proxy: Running, upstream: Upstream) -> None:
    """A compressed answer passes as it is, with its coding; it is neither inflated nor looked into."""
    packed = gzip.compress(EVENTS)
    client = await proxy.client()
    client.write(request(body=BODY, token=token(), fields=(("Accept-Encoding", "gzip, br"),)))
    vendor, received = await upstream.take()
    vendor.write(head("text/event-stream", b"Content-Encoding: gzip", CHUNKED) + chunk(packed) + LAST)

    answer = await client.read_message()

    assert received.all("accept-encoding") == ["identity"]
    assert (answer.body, answer.get("content-encoding")) == (packed, "gzip")
    await check_settled(proxy, "complete", events=0, bytes=len(packed))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 12\r\n\r\n",
    ],
)
async def test_answer_without_a_body(proxy: Running, upstream: Upstream, answer: bytes) -> None:
    """204 and 304 have no body and no chunks, and both connections go on."""
    client, vendor = await answered(proxy, upstream)
    vendor.write(answer)

    received = await client.read_message()
    client.write(request(body=BODY, token=token()))
    await vendor.read_message()
    vendor.write(OK)

    assert received.status == int(answer[9:12])
    assert received.get("transfer-encoding") is None
    assert (await client.read_message()).body == b"ok"


async def test_interim_answers_are_discarded(proxy: Running, upstream: Upstream) -> None:
    """Interim answers, their fields too, are not the answer and reach nobody."""
    client, vendor = await answered(proxy, upstream)
    vendor.write(b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 20 + OK)

    answer = await client.read_message()

    assert (answer.status, answer.body, answer.get("link")) == (200, b"ok", None)
    client.write(request(body=BODY, token=token()))
    await vendor.read_message()


async def test_interim_answers_without_end(proxy: Running, upstream: Upstream) -> None:
    """A storm of interim answers is bounded in bytes, before any clock."""
    client, vendor = await answered(proxy, upstream)
    vendor.write(b"HTTP/1.1 103 Early Hints\r\nX-Padding: %b\r\n\r\n" % (b"x" * 100) * 2000)

    answer = await client.read_message()

    assert (answer.status, answer.get("x-forward-sse-code")) == (502, "upstream_protocol_error")
    await vendor.closed()


@pytest.mark.parametrize("how", ["whole", "reset", "short"])
async def test_http_1_0_client(proxy: Running, upstream: Upstream, how: str) -> None:
    """HTTP/1.0 gets a body that ends with the connection; one that broke off ends with a reset, never clean."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token()).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    vendor, _ = await upstream.take()
    vendor.write(head("text/event-stream", CHUNKED) + chunk(event("one")))
    answer = await client.read_head()
    assert await client.read_exactly(len(event("one"))) == event("one")

    if how == "whole":
        vendor.write(LAST)
        rest = await client.reader.read()
    else:
        (Peer.reset if how == "reset" else Peer.close)(vendor)
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(WAIT_S):
                await client.reader.read()
        rest = b""

    assert rest == b""
    assert answer.get("transfer-encoding") is None
    await check_settled(proxy, "complete" if how == "whole" else "upstream_closed")


@pytest.mark.parametrize("sent", [0, 1, 9])
async def test_body_shorter_than_its_length(proxy: Running, upstream: Upstream, sent: int) -> None:
    """A body that breaks off before its length ends short for the client too."""
    client, vendor = await answered(proxy, upstream)
    vendor.write(head("application/json", b"Content-Length: 10") + b"x" * sent)
    answer = await client.read_head()
    assert await client.read_exactly(sent) == b"x" * sent
    vendor.close()

    assert answer.get("content-length") == "10"
    assert await client.read_to_end() == b""
    await check_settled(proxy, "upstream_closed", bytes=sent)


async def test_answer_before_the_request_was_read(proxy: Running, upstream: Upstream) -> None:
    """An upstream that answers 200 and streams before it has read the request is passed on."""
    client = await proxy.client()
    client.write(request("/main/v1/chat/completions", b"x" * 10_000_000, token=token()))
    vendor = await upstream.accept()
    await vendor.read_head()
    vendor.write(head("text/event-stream", CHUNKED) + chunk(EVENTS) + LAST)

    answer = await client.read_message()

    assert (answer.status, answer.body) == (200, EVENTS)
    await check_settled(proxy, "complete")


async def test_fields_that_do_not_reach_the_client(proxy: Running, upstream: Upstream) -> None:
    """Hop-by-hop fields, what `Connection` names, cookies, CORS, and what only the upstream should say do not pass."""
    client, vendor = await answered(proxy, upstream)
    dropped = {
        "X-Secret": "named",
        "Keep-Alive": "timeout=5",
        "Trailer": "X-T",
        "Proxy-Authenticate": "Basic",
        "Set-Cookie": "a=b",
        "Server": "vendor/1",
        "Alt-Svc": 'h3=":443"',
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Expose-Headers": "*",
        "Upgrade": "h2c",
        "X-Accel-Redirect": "/internal",
    }
    lines = [f"{name}: {value}".encode() for name, value in dropped.items()]
    vendor.write(
        head(
            "text/event-stream",
            b"Connection: x-secret, keep-alive",
            *lines,
            b"Set-Cookie: c=d",
            b"X-Kept: 1",
            b"X-Kept: 2",
            b"X-Forward-Sse-Id: forged",
            b"X-Accel-Buffering: yes",
            b"Cache-Control: public",
            b"X-RateLimit-Remaining-Requests: 3",
            CHUNKED,
        )
        + chunk(b"data: x\n\n")
        + b"0\r\nX-Trailer: dropped\r\nSet-Cookie: e=f\r\n\r\n"
    )

    answer = await client.read_message()

    assert {name: answer.all(name) for name in dropped if answer.all(name)} == {}
    assert answer.all("x-kept") == ["1", "2"]
    assert answer.get("x-forward-sse-id") != "forged"
    assert answer.get("x-accel-buffering") == "no"
    assert answer.get("cache-control") == "no-cache, no-transform"
    assert answer.get("x-upstream-ratelimit-remaining-requests") == "3"
    assert answer.all("transfer-encoding") == ["chunked"]
    # Up to the last chunk and not a byte more: the trailers would stand before this answer.
    assert b"Trailer" not in client.seen
    client.write(request("/healthz", method="GET"))
    assert (await client.read_message()).status == 200


@pytest.mark.parametrize(
    "flood",
    [
        b"0\r\n" + b"X-Trailer: y\r\n" * 20_000,
        b"0\r\nX-Trailer: " + b"y" * 300_000,
        b"5;" + b"x" * 300_000,
    ],
    ids=["trailers", "trailer", "extension"],
)
async def test_overhead_of_an_answer_is_bounded(proxy: Running, upstream: Upstream, flood: bytes) -> None:
    """Trailers or a chunk extension without an end break the answer off, visibly."""
    client, vendor = await answered(proxy, upstream)
    vendor.write(head("text/event-stream", CHUNKED) + chunk(event("one")))
    await client.read_until(event("one") + b"\r\n")
    vendor.write(flood)

    rest = await client.read_to_end()

    assert not rest.endswith(LAST)
    await vendor.closed()
    await check_settled(proxy, "upstream_closed", events=1)


@pytest.mark.parametrize("broken", [b"zz\r\n", b"5\r\nhelloXX", b"-1\r\n", b"fffffffffffffffff\r\n", b"5\nhello"])
async def test_broken_chunk_of_an_answer(proxy: Running, upstream: Upstream, broken: bytes) -> None:
    """What came before a malformed chunk is passed; then the answer breaks off, visibly."""
    client, vendor = await answered(proxy, upstream)
    vendor.write(head("text/event-stream", CHUNKED) + chunk(event("one")) + chunk(b"data: half"))
    await client.read_until(b"data: half\r\n")
    vendor.write(broken)

    rest = await client.read_to_end()

    assert b"upstream" not in rest  # no error event inside an event
    assert not rest.endswith(LAST)
    await vendor.closed()
    await check_settled(proxy, "upstream_closed")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok",
        b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: a\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 999 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Encoding: br\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=lambda answer: repr(answer[:60]),
)
async def test_answer_that_is_not_http(proxy: Running, upstream: Upstream, answer: bytes) -> None:
    """A head that two readers might read differently is a 502; nothing of it reaches the client."""
    client, vendor = await answered(proxy, upstream)
    vendor.write(answer)

    refusal = await client.read_message()

    assert (refusal.status, refusal.get("x-forward-sse-code")) == (502, "upstream_protocol_error")
    assert VENDOR_KEY.encode() not in client.seen
    await vendor.closed()
    await check_settled(proxy, "upstream_error", status=502)


@pytest.mark.parametrize("status", [300, 301, 307, 400, 418, 500, 529, 599])
async def test_status_of_the_upstreams_passes(proxy: Running, upstream: Upstream, status: int) -> None:
    """Whatever status the upstream gives comes through with its body; a redirect is not followed."""
    client, vendor = await answered(proxy, upstream)
    vendor.write(
        b"HTTP/1.1 %d Some\xff Reason\r\nLocation: http://169.254.169.254/\r\nContent-Length: 2\r\n\r\nno" % status
    )

    answer: Message = await client.read_message()

    assert (answer.status, answer.body) == (status, b"no")
    assert answer.get("location") == "http://169.254.169.254/"
    assert len(upstream.peers) == 1


async def test_answer_of_a_slow_upload(start: Callable[..., Any], upstream: Upstream) -> None:
    """An upstream that takes a large body slowly gets every byte of it."""
    proxy = await start()
    data = random.Random(3).randbytes(8 * 2**20)
    client = await proxy.client()
    client.write(request("/main/v1/chat/completions", data, token=token()))
    vendor = await upstream.accept()
    received = await vendor.read_head()
    digest = hashlib.sha256()
    left = int(received.get("content-length") or 0)
    while left:
        piece = await asyncio.wait_for(vendor.reader.read(min(left, 50_000)), WAIT_S)
        digest.update(piece)
        left -= len(piece)
    vendor.write(OK)

    assert (await client.read_message()).status == 200
    assert digest.digest() == hashlib.sha256(data).digest()
