"""Bodies as clients send them: routed where they must be read, forwarded byte for byte, refused by name."""

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import brotli
import pytest

from tests.conftest import token
from tests.peers import STREAM_HEAD, Upstream, chunk, event, request
from tests.whole.scenes import OK

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running
    from tests.peers import Message

CONFIG = """
listen: 127.0.0.1:0
admin_listen: off
max_body: 1MiB
auth:
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}"}}
upstreams:
  other: {{url: "{url}/other", dialect: openai, api_key: {key}, models: ["other-*"]}}
  main: {{url: "{url}/main", dialect: openai, api_key: {key}, models: ["gpt-*"]}}
envelope:
  targets: [{{url: "{url}/own"}}]
  allow_private: ["127.0.0.0/8"]
"""
CHAT = "/v1/chat/completions"
FRONT = "/forward-sse"
TEXT = b'{"messages":[],"model":"gpt-x"}'
CODED = {
    "gzip": gzip.compress(TEXT),
    "x-gzip": gzip.compress(TEXT),
    "gzip of two members": gzip.compress(TEXT[:9]) + gzip.compress(TEXT[9:]),
    "deflate": zlib.compress(TEXT),
    "deflate without its head": zlib.compress(TEXT, wbits=-15),
    "br": brotli.compress(TEXT),
    "zstd": zstd.compress(TEXT),
    "deflate, gzip": gzip.compress(zlib.compress(TEXT)),
    "identity": TEXT,
    "IDENTITY, GZip": gzip.compress(TEXT),
}
BOMB = TEXT + b" " * 2**21


@pytest.fixture
async def proxy(start: Callable[..., Any], upstream: Upstream) -> Running:
    """A proxy with two upstreams that are chosen by the model, and no default."""
    return await start(config=CONFIG)  # type: ignore[no-any-return]  # the factory's options are open


async def forwarded(proxy: Running, upstream: Upstream, path: str, body: bytes, *fields: tuple[str, str]) -> Message:
    """What the vendor got."""
    client = await proxy.client()
    client.write(request(path, body, token=token(), fields=fields))
    vendor, received = await upstream.take()
    vendor.write(OK)
    assert (await client.read_message()).status == 200
    await vendor.gone()
    return received


async def refused(proxy: Running, upstream: Upstream, path: str, body: bytes, *fields: tuple[str, str]) -> Message:
    """The refusal of a request that reached nobody."""
    client = await proxy.client()
    client.write(request(path, body, token=token(), fields=fields))
    answer = await client.read_message()
    assert upstream.is_untouched
    return answer


@pytest.mark.parametrize("path", [CHAT, FRONT])
@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"\\ud800","model":"gpt-x"}',
        b'{"a":[1e999,-1e999,0.1e-999],"model":"gpt-x"}',
        b'{"a":NaN,"b":[-Infinity],"model":"gpt-x"}',
        b'{"a":' + b"9" * 5000 + b',"model":"gpt-x"}',
        b'\xef\xbb\xbf{"model":"gpt-x"}',
        b'{"a":' + b'[{"b":' * 400 + b"1" + b"}]" * 400 + b',"model":"gpt-x"}',
        b' \r\n{ "model"\t: "gpt-x" } \n',
        b'{"a":"' + b"x" * 300_000 + b'","model":"gpt-x","b":{"model":"other-x"}}',
    ],
    ids=["half surrogate", "beyond a double", "nan", "integer", "bom", "800 levels", "white space", "large"],
)
async def test_body_goes_as_it_came(proxy: Running, upstream: Upstream, path: str, body: bytes) -> None:
    """What a vendor could judge is routed by its model, and goes there byte for byte."""
    received = await forwarded(proxy, upstream, path, body)

    assert received.start == "POST /main/v1/chat/completions HTTP/1.1"
    assert received.body == body


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b'{"model":"gpt-x","model":"other-x"}', "model"),
        (b'{"model":"gpt-x","mod\\u0065l":"other-x"}', "model"),
        (b'{"a":NaN,"model":"gpt-x","mod\\u0065l":"other-x"}', "model"),
        (b'{"model":["gpt-x"]}', "model"),
        (b'{"model":7}', "model"),
        (b'["model"]', "object"),
        (b"", "object"),
        (b'{"model":"gpt-x"}{}', "JSON"),
        (b'{"model":"gpt-x",/*"*/"model":"other-x"/*"*/}', "JSON"),
        (b"{'model':'gpt-x'}", "JSON"),
        (b'{"a":[},"model":"gpt-x"]}', "JSON"),
        (b'{"model":"gpt-x","mod\\el":"other-x"}', "name"),
        (b'{"a":"\xc0\xa2","model":"gpt-x"}', "UTF-8"),
        ('{"model":"gpt-x"}'.encode("utf-16"), "UTF-8"),
    ],
    ids=[
        "twice", "escaped", "escaped beside nan", "array", "number", "no object", "empty", "two", "comment",
        "single quotes", "brackets", "escape of no JSON", "overlong", "utf-16",
    ],
)  # fmt: skip
async def test_body_that_two_readers_read_differently(
    proxy: Running, upstream: Upstream, body: bytes, word: str
) -> None:
    """Where the body must be read, and another reader could find another model, it is refused with the reason."""
    for path in (CHAT, FRONT):
        answer = await refused(proxy, upstream, path, body)

        assert (answer.status, answer.get("x-forward-sse-code")) == (400, "invalid_request")
        assert word in answer.json["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"not json", b'{"model":1,"model":2}', b"\xff", b"[" * 200_000, CODED["br"]],
    ids=["empty", "no json", "twice", "no utf-8", "deep", "br"],
)
async def test_body_is_not_read_where_the_upstream_is_named(proxy: Running, upstream: Upstream, body: bytes) -> None:
    """Where nothing hangs on the body it goes as it came, whatever it is and claims to be."""
    for path in (FRONT + "?upstream=main", "/main/v1/chat/completions"):
        for coding in ((), (("Content-Encoding", "gzip"),), (("Content-Encoding", "snappy"),)):
            assert (await forwarded(proxy, upstream, path, body, *coding)).body == body


@pytest.mark.parametrize("path", [CHAT, FRONT])
@pytest.mark.parametrize("name", CODED)
async def test_coded_body_is_routed_and_goes_as_it_came(
    proxy: Running, upstream: Upstream, path: str, name: str
) -> None:
    """A known coding is undone for routing only."""
    coding = name.partition(" of ")[0].partition(" without ")[0]

    received = await forwarded(proxy, upstream, path, CODED[name], ("Content-Encoding", coding))

    assert received.start == "POST /main/v1/chat/completions HTTP/1.1"
    assert received.get("content-encoding") == coding
    assert received.body == CODED[name]


@pytest.mark.parametrize("coding", ["snappy", "compress", "gzip, aes128gcm", "gzip, gzip, gzip, gzip"])
async def test_unknown_coding(proxy: Running, upstream: Upstream, coding: str) -> None:
    """A coding that nobody knows here is 415 where the body must be read, and the answer tells those that are known."""
    for path in (CHAT, FRONT):
        answer = await refused(proxy, upstream, path, TEXT, ("Content-Encoding", coding))

        assert (answer.status, answer.get("x-forward-sse-code")) == (415, "unsupported_media_type")
        assert answer.get("accept-encoding") == "gzip, deflate, br, zstd"


@pytest.mark.parametrize(
    ("coding", "bomb"),
    [
        ("gzip", gzip.compress(BOMB)),
        ("deflate", zlib.compress(BOMB)),
        ("br", brotli.compress(BOMB)),
        ("zstd", zstd.compress(BOMB)),
        ("gzip, gzip", gzip.compress(gzip.compress(BOMB))),
    ],
    ids=["gzip", "deflate", "br", "zstd", "twice"],
)
async def test_coded_body_that_is_too_large(proxy: Running, upstream: Upstream, coding: str, bomb: bytes) -> None:
    """What is larger than `max_body` without its coding is 413."""
    answer = await refused(proxy, upstream, CHAT, bomb, ("Content-Encoding", coding))

    assert (answer.status, answer.get("x-forward-sse-code")) == (413, "body_too_large")


@pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("damage", ["cut", "followed", "other"])
async def test_coded_body_that_is_broken(proxy: Running, upstream: Upstream, name: str, damage: str) -> None:
    """A body that is not what its coding makes is a malformed request."""
    body = {"cut": CODED[name][:-2], "followed": CODED[name] + b"more", "other": TEXT}[damage]

    answer = await refused(proxy, upstream, CHAT, body, ("Content-Encoding", name))

    assert (answer.status, answer.get("x-forward-sse-code")) == (400, "invalid_request")
    assert name in answer.json["error"]["message"]


@pytest.mark.parametrize("path", [FRONT, FRONT + "?upstream=main"])
async def test_coded_envelope(proxy: Running, upstream: Upstream, path: str) -> None:
    """An envelope may be coded like any other body; what it asks for is not."""
    body = gzip.compress(json.dumps({"targetUrl": upstream.url + "/own", "body": {"a": 1}}).encode())

    received = await forwarded(proxy, upstream, path, body, ("Content-Encoding", "gzip"))

    assert (received.start, received.body) == ("POST /own HTTP/1.1", b'{"a":1}')
    assert received.get("content-encoding") is None


async def test_coded_body_makes_a_ticket(proxy: Running, upstream: Upstream) -> None:
    """A ticket takes what the POST takes."""
    client = await proxy.client()
    client.write(request(FRONT + "/tickets", CODED["zstd"], token=token(), fields=(("Content-Encoding", "zstd"),)))
    ticket = (await client.read_message()).json["url"]

    client.write(request(ticket, method="GET", token=token()))
    vendor, received = await upstream.take()
    vendor.write(OK)
    await client.read_message()
    await vendor.gone()

    assert received.body == CODED["zstd"]
    assert received.get("content-encoding") == "zstd"


async def test_body_is_let_go_before_the_stream(proxy: Running, upstream: Upstream) -> None:
    """While a stream runs nothing keeps its request's body: streams are held for hours, by the thousand."""
    size = 1_000_000
    client = await proxy.client()
    tracemalloc.start()
    try:
        client.write(request("/main/v1/embeddings", b"x" * size, token=token()))
        vendor = await upstream.accept()
        received = await vendor.read_message()
        assert len(received.body) == size
        vendor.write(STREAM_HEAD + chunk(event("one")))
        await client.read_until(event("one"))
        del received
        vendor.seen = b""
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < size / 2
