"""Routes to an upstream: where a request goes, what it is refused with, and what its response says."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from tests.auth import auth_support
from tests.conftest import VENDOR_KEY
from tests.handlers.conftest import CHAT, STREAM, as_user
from tests.peers import WAIT_S, event

if TYPE_CHECKING:
    from pytest_aiohttp.plugin import AiohttpServer

    from tests.handlers.conftest import Client, Serve, Vendor


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/forward-sse", "/v1/chat/completions"),
        ("/forward-sse/", "/v1/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/embeddings", "/v1/embeddings"),
        ("/main/v1/chat/completions", "/v1/chat/completions"),
        ("/main/v1/chat/completions?a=%26b&a", "/v1/chat/completions?a=%26b&a"),
    ],
)
async def test_forward_route(client: Client, vendor: Vendor, path: str, target: str) -> None:
    """Each way to an upstream leads to its path, with the vendor's key in place of the user's token."""
    async with client.post(path, json=CHAT, headers=as_user()) as response:
        assert (response.status, await response.read()) == (200, STREAM)
    asked = vendor.only
    assert (asked.method, asked.target, asked.json) == ("POST", target, CHAT)
    assert asked.headers["authorization"] == f"Bearer {VENDOR_KEY}"


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "code"),
    [
        pytest.param("POST", "/forward-sse", {}, CHAT, 401, "missing_token", id="no token"),
        pytest.param("POST", "/forward-sse", {"Authorization": "Bearer x"}, CHAT, 401, "invalid_token", id="no JWT"),
        pytest.param("POST", "/nobody/v1/models", as_user(), CHAT, 404, "unknown_upstream", id="unknown upstream"),
        pytest.param("POST", "/main/v1/files", as_user(), CHAT, 403, "path_not_allowed", id="path"),
        pytest.param("GET", "/forward-sse", as_user(), None, 405, "method_not_allowed", id="method"),
        pytest.param("POST", "/forward-sse", as_user(Upgrade="websocket"), CHAT, 501, None, id="WebSocket"),
    ],
)
async def test_forward_refused(
    client: Client,
    vendor: Vendor,
    method: str,
    path: str,
    headers: dict[str, str],
    body: Any,
    status: int,
    code: str | None,
) -> None:
    """What is refused has its own status and code, in the dialect's shape, and reaches no vendor."""
    if "Upgrade" in headers:
        headers |= {"Connection": "upgrade", "Sec-WebSocket-Key": "x"}
    async with client.request(method, path, json=body, headers=headers) as response:
        error = (await response.json())["error"]
        assert response.status == status
    assert code is None or error["code"] == code
    assert not vendor.asked


async def test_forward_body_too_large(serve: Serve, vendor: Vendor) -> None:
    """A body above the bound is refused by what comes, also where its length is not announced."""
    client = await serve(max_body="1KiB")

    async def pieces() -> Any:
        for _ in range(4):
            yield b"x" * 512

    for data in (b"x" * 2048, pieces()):
        async with client.post("/forward-sse", data=data, headers=as_user()) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (413, "body_too_large")
    assert not vendor.asked


@pytest.mark.parametrize("status", [400, 429, 500])
async def test_forward_vendor_error(client: Client, vendor: Vendor, status: int) -> None:
    """A vendor's error is the vendor's: its status and its body."""
    vendor.status = status
    async with client.post("/forward-sse", json=CHAT, headers=as_user()) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (status, "c")


async def test_forward_unreachable(serve: Serve) -> None:
    """A vendor that nobody can reach is 502."""
    client = await serve(main={"url": "http://127.0.0.1:1"})
    async with client.post("/forward-sse", json=CHAT, headers=as_user()) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (502, "upstream_unreachable")


async def test_forward_response_fields(client: Client) -> None:
    """A stream has the vendor's fields, our id, and no buffering on its way; nobody says which server this is."""
    async with client.post("/forward-sse", json=CHAT, headers=as_user()) as response:
        headers = response.headers
        await response.read()
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["Cache-Control"] == "no-cache, no-transform"
    assert headers["X-Accel-Buffering"] == "no"
    assert headers["X-Request-Id"] == "vendor-1"
    assert headers["X-Forward-Sse-Id"]
    assert "Server" not in headers


async def test_forward_refusal_fields(client: Client) -> None:
    """A refusal has an id, too, is not stored, and says how to authenticate."""
    async with client.post("/forward-sse", json=CHAT) as response:
        headers = response.headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Forward-Sse-Id"]
    assert headers["WWW-Authenticate"].startswith("Bearer")
    assert "Server" not in headers


async def test_forward_rate_limit(serve: Serve, vendor: Vendor) -> None:
    """What is left is told with each response, and after the last one when to come back; users do not share."""
    client = await serve(plans={"default": {"requests": ["2/1h"]}})
    seen = []
    for user in ("alice", "alice", "alice", "bob"):
        async with client.post("/forward-sse", json=CHAT, headers=as_user(user)) as response:
            await response.read()
            remaining = response.headers["RateLimit"].partition(";r=")[2].partition(";")[0]
            seen.append((response.status, remaining, "Retry-After" in response.headers))
    assert seen == [(200, "1", False), (200, "0", False), (429, "0", True), (200, "1", False)]
    assert len(vendor.asked) == 3


async def test_forward_too_many_streams(serve: Serve, vendor: Vendor) -> None:
    """A stream that runs counts until it ends."""
    client = await serve(plans={"default": {"concurrent_streams": 1}})
    vendor.holding = True
    async with client.post("/forward-sse", json=CHAT, headers=as_user()) as first:
        async with client.post("/forward-sse", json=CHAT, headers=as_user()) as second:
            assert (second.status, (await second.json())["error"]["code"]) == (429, "too_many_streams")
        vendor.go_on.set()
        assert await first.read() == STREAM
    async with client.post("/forward-sse", json=CHAT, headers=as_user()) as third:
        assert third.status == 200
        await third.read()


async def test_forward_as_it_comes(client: Client, vendor: Vendor) -> None:
    """An event arrives before the vendor has written the next."""
    vendor.holding = True
    async with client.post("/forward-sse", json=CHAT, headers=as_user()) as response:
        async with asyncio.timeout(WAIT_S):
            first = await response.content.readuntil(b"\n\n")
        assert first == event("Hello")
        vendor.go_on.set()
        assert first + await response.read() == STREAM


async def test_forward_cancels(client: Client, vendor: Vendor) -> None:
    """A client that leaves ends the vendor's handler."""
    vendor.holding = True
    response = await client.post("/forward-sse", json=CHAT, headers=as_user())
    response.close()
    async with asyncio.timeout(WAIT_S):
        await vendor.has_lost_client.wait()


async def test_forward_by_published_keys(serve: Serve, aiohttp_server: AiohttpServer) -> None:
    """A token is checked with the key that its issuer publishes; one of another key is refused."""
    key, other = auth_support.keyring().p256, auth_support.keyring().rsa

    async def keys(_request: web.Request) -> web.Response:
        return web.json_response({"keys": [auth_support.jwk(key, kid="one", alg="ES256")]})

    issuer = web.Application()
    issuer.router.add_get("/keys", keys)
    url = str((await aiohttp_server(issuer)).make_url("/keys"))
    jwt = {"issuer": "published", "audience": "llm", "algorithms": ["ES256"], "jwks_url": url}
    client = await serve(auth={"jwt": [jwt]})

    claims = {"iss": "published", "aud": "llm", "sub": "alice", "exp": int(time.time()) + 60}
    good = auth_support.token(claims, key, "ES256", kid="one")
    forged = auth_support.token(claims, other, "RS256", kid="one")
    statuses = []
    for token in (good, forged):
        async with client.post("/forward-sse", json=CHAT, headers={"Authorization": f"Bearer {token}"}) as response:
            await response.read()
            statuses.append(response.status)
    assert statuses == [200, 401]
