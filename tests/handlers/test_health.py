"""`/healthz` and `/readyz` of the clients' listener."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.app import SERVICE

if TYPE_CHECKING:
    from tests.handlers.conftest import Client, Serve


@pytest.mark.parametrize("path", ["/healthz", "/healthz/", "/readyz", "/readyz/"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_health(client: Client, method: str, path: str) -> None:
    """Whoever serves is alive and ready, which needs no token."""
    async with client.request(method, path) as response:
        body = await response.read()
        assert (response.status, response.content_type) == (200, "application/json")
        assert response.headers["Cache-Control"] == "no-store"
        assert "Server" not in response.headers
    assert bool(body) is (method == "GET")


@pytest.mark.parametrize("path", ["/healthz", "/healthz/", "/readyz", "/readyz/"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_other_methods(client: Client, method: str, path: str) -> None:
    """What is there for GET is not allowed to others, with a slash behind it or without."""
    async with client.request(method, path, data=b"x") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
        assert response.headers["X-Forward-Sse-Code"] == "method_not_allowed"


async def test_preflight_of_health(client: Client) -> None:
    """A browser's question is answered as on every path."""
    asking = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
    async with client.options("/healthz", headers=asking) as response:
        assert response.status == 204


async def test_health_of_a_drain(client: Client) -> None:
    """While it drains it is alive, but not ready, and says why."""
    assert client.app is not None
    client.app[SERVICE].is_draining = True
    async with client.get("/readyz") as response:
        assert (response.status, (await response.json())["reasons"]) == (503, ["draining"])
    async with client.get("/healthz") as response:
        assert response.status == 200


async def test_health_without_keys(serve: Serve) -> None:
    """Without the keys of its only issuer it cannot check a token: it is not ready."""
    jwt = {"issuer": "published", "audience": "llm", "algorithms": ["ES256"], "jwks_url": "http://127.0.0.1:1/keys"}
    client = await serve(auth={"jwt": [jwt]})
    async with client.get("/readyz") as response:
        (reason,) = (await response.json())["reasons"]
        assert response.status == 503
    assert reason.startswith("auth: ")
