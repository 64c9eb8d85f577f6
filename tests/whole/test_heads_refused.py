"""Heads that are refused with words of their own: a line that is too long, and a WebSocket handshake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from proxy.settings.loading import load
from tests.conftest import token
from tests.peers import Peer, Upstream, request
from tests.whole.scenes import BODY, OK, check_secrets, check_settled, head, serves

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Running

KIB = 1024
WEBSOCKET = (
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
)


async def too_large(proxy: Running, upstream: Upstream, data: bytes) -> str:
    """The message of the 431 that these bytes get, after all that holds for each of them was seen."""
    client = await proxy.client()
    client.write(data)

    answer = await client.read_message()
    rest = await client.read_to_end()

    assert (answer.status, rest) == (431, b"")
    assert answer.json["error"]["code"] == answer.get("x-forward-sse-code") == "header_too_large"
    assert answer.get("content-type") == "application/json"
    assert answer.get("connection") == "close"
    assert upstream.is_untouched
    await check_settled(proxy, "refused", status=431, code="header_too_large", user=None)
    check_secrets(proxy, client.seen, secrets=("canary",))
    await serves(proxy)
    return str(answer.json["error"]["message"])


@pytest.mark.parametrize(
    ("lines", "line", "what"),
    [
        ((f"Authorization: Bearer {'canary' * 3000}",), None, "The Authorization field"),
        ((f"cookie: {'canary' * 3000}",), None, "The Cookie field"),
        ((f"X-Canary: {'canary' * 3000}",), None, "A header field"),
        ((f"{'Canary' * 3000}: x",), None, "A header field"),
        ((f"X-Goog-Api-Key: {'canary' * 30_000}",), None, "The X-Goog-Api-Key field"),
        (("Host: x",), f"POST /{'canary' * 3000} HTTP/1.1", "The request line"),
        (("Host: x",), f"POST /{'canary' * 30_000} HTTP/1.1", "The request line"),
        (("Host: x",), f"GET /forward-sse?access_token={'canary' * 3000} HTTP/1.1", "The request line"),
    ],
    ids=["token", "cookie", "unknown", "name", "180 KiB", "target", "target of 180 KiB", "query"],
)
async def test_line_too_long(
    proxy: Running, upstream: Upstream, lines: tuple[str, ...], line: str | None, what: str
) -> None:
    """A line beyond 16 KiB is a 431 that says which line it is and how long it may be, and repeats nothing of it."""
    data = head(*lines) if line is None else head(*lines, start=line, host=False)

    assert await too_large(proxy, upstream, data) == f"{what} is longer than 16384 bytes."


async def test_head_too_large(proxy: Running, upstream: Upstream) -> None:
    """Many lines that are each within the bound are held to one for all of them."""
    lines = [f"X-{number}: {'canary' * 200}" for number in range(80)]

    message = await too_large(proxy, upstream, head(*lines))

    assert message == "The request line and the header fields are longer than 65536 bytes together."


@pytest.mark.parametrize("size", [11 * KIB, 15 * KIB])
async def test_line_within(proxy: Running, upstream: Upstream, size: int) -> None:
    """A field of less than 16 KiB is forwarded as it came."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token(), fields=(("X-Groups", "g" * size),)))
    vendor, received = await upstream.take()
    vendor.write(OK)

    assert (await client.read_message()).status == 200
    assert received.get("x-groups") == "g" * size


async def test_target_within(proxy: Running, upstream: Upstream) -> None:
    """So is a query."""
    client = await proxy.client()
    client.write(request(f"/forward-sse?a={'b' * 15 * KIB}", BODY, token=token()))
    vendor, received = await upstream.take()
    vendor.write(OK)

    assert (await client.read_message()).status == 200
    assert received.start == f"POST /v1/chat/completions?a={'b' * 15 * KIB} HTTP/1.1"


@pytest.mark.parametrize(("bound", "size", "status"), [("2KiB", 3000, 431), ("64KiB", 60_000, 200)])
async def test_max_header(start: Callable[..., Any], upstream: Upstream, bound: str, size: int, status: int) -> None:
    """`max_header` is the bound, on the operator's listener too."""
    proxy = await start(f"max_header: {bound}\n")
    for client in (await proxy.client(), await proxy.admin()):
        client.write(request("/healthz", method="GET", fields=(("X-Long", "x" * size),)))
        answer = await client.read_message()
        assert answer.status == status
    assert upstream.is_untouched


async def test_max_header_by_reload(proxy: Running, tmp_path: Path) -> None:
    """A reload changes the bound for the connections that come."""
    path = tmp_path / "proxy.yaml"
    path.write_text(path.read_text() + "max_header: 1KiB\n")
    long = request("/healthz", method="GET", fields=(("X-Long", "x" * 2000),))
    before = await proxy.client()
    before.write(long)
    assert (await before.read_message()).status == 200

    await proxy.server.reload(load(path, {}))

    after = await proxy.client()
    for client, status in ((before, 200), (after, 431)):
        client.write(long)
        assert (await client.read_message()).status == status


async def test_line_too_long_behind_a_request(proxy: Running, upstream: Upstream) -> None:
    """A request before it is served; the connection ends with the 431."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    # In one read with the request, aiohttp's parser would answer for both with the 431.
    client.write(head(f"Cookie: {'c' * 20 * KIB}"))
    vendor.write(OK)

    assert (await client.read_message()).status == 200
    assert (await client.read_message()).status == 431
    assert await client.read_to_end() == b""


# --- WebSockets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/main/v1/realtime?model=gpt-4o-realtime",
        "/main/v1/models",
        "/v1/realtime",
        "/v1/models",
        "/forward-sse",
        "/nobody/v1/realtime",
        "/",
    ],
)
@pytest.mark.parametrize("is_known", [True, False], ids=["user", "stranger"])
async def test_websocket(proxy: Running, upstream: Upstream, path: str, *, is_known: bool) -> None:
    """A handshake is a 501, to anybody and at any path: nothing is forwarded, nothing charged."""
    client = await proxy.client()
    client.write(request(path, method="GET", token=token() if is_known else None, fields=WEBSOCKET))

    answer = await client.read_message()

    assert (answer.status, answer.json["error"]["code"]) == (501, "upgrade_not_supported")
    assert answer.get("x-forward-sse-code") == "upgrade_not_supported"
    assert answer.get("upgrade") is None
    assert upstream.is_untouched
    await check_settled(proxy, "refused", status=501, code="upgrade_not_supported", user=None)


@pytest.mark.parametrize(
    "fields",
    [
        (("Connection", "upgrade"), ("Upgrade", "WebSocket")),
        (("Upgrade", "h2c, websocket/13"),),
        (("Connection", "keep-alive, Upgrade"), ("Sec-WebSocket-Key", "x")),
    ],
    ids=["any case", "in a list", "what a proxy left"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_websocket_spellings(
    proxy: Running, upstream: Upstream, method: str, fields: tuple[tuple[str, str], ...]
) -> None:
    """However it is spelled, and whatever the method; another request is served."""
    client: Peer = await proxy.client()
    client.write(request("/main/v1/models", method=method, token=token(), fields=fields))
    answer = await client.read_message()
    assert (answer.status, upstream.is_untouched) == (501, True)

    if answer.get("connection") == "close":
        await client.closed()
        client = await proxy.client()
    client.write(request("/main/v1/models", method="GET", token=token()))
    vendor, received = await upstream.take()
    vendor.write(OK)

    assert received.start == "GET /v1/models HTTP/1.1"
    assert (await client.read_message()).status == 200


async def test_websocket_in_the_dialect(start: Callable[..., Any], upstream: Upstream) -> None:
    """It is refused in the words of the upstream that was asked for."""
    proxy = await start(f'  claude: {{url: "{upstream.url}", dialect: anthropic, api_key: none}}\n', config=NAMED)
    client = await proxy.client()
    client.write(request("/claude/v1/messages", method="GET", fields=WEBSOCKET))

    assert (await client.read_message()).json["type"] == "error"


NAMED = """
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
auth: {{jwt: [{{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}"}}]}}
upstreams:
  main: {{url: "{url}", dialect: openai, api_key: {key}}}
"""
