"""CORS: what a browser's page may ask for and read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.handlers.conftest import CHAT, as_user

if TYPE_CHECKING:
    from tests.handlers.conftest import Client, Serve, Vendor

PAGE = "https://app.example.com"
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


@pytest.fixture
async def shared(serve: Serve) -> Client:
    """One page is allowed."""
    return await serve(cors={"origins": [PAGE]})


PATHS = [
    "/forward-sse",
    "/main/v1/chat/completions",
    "/anything/else",
    "/forward-sse/tickets",
    "/forward-sse/tickets/",
    "/forward-sse/streams/one",
    "/playground/upstreams",
    "/healthz",
]


@pytest.mark.parametrize("path", PATHS)
async def test_preflight(shared: Client, vendor: Vendor, path: str) -> None:
    """A page may ask for every path, without a token, and nothing is forwarded."""
    async with shared.options(path, headers={"Origin": PAGE, **ASKS}) as response:
        assert (response.status, await response.read()) == (204, b"")
        headers = response.headers
    assert headers["Access-Control-Allow-Origin"] == PAGE
    assert "POST" in headers["Access-Control-Allow-Methods"]
    assert "authorization" in headers["Access-Control-Allow-Headers"].lower()
    assert not vendor.asked


async def test_preflight_of_another_page(shared: Client) -> None:
    """Another page is told nothing that its browser would take for a permission."""
    async with shared.options("/forward-sse", headers={"Origin": "https://evil.example", **ASKS}) as response:
        assert response.headers.get("Access-Control-Allow-Origin") != "https://evil.example"
        assert "*" not in response.headers.values()


async def test_options_that_are_no_preflight(shared: Client, vendor: Vendor) -> None:
    """They are a request like any other, for which there is no route."""
    for path in ("/forward-sse", "/forward-sse/tickets", "/forward-sse/streams/one", "/main/v1/models"):
        async with shared.options(path, headers={"Origin": PAGE}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (405, "method_not_allowed")
    assert not vendor.asked


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        pytest.param("/forward-sse", as_user(), 200, id="stream"),
        pytest.param("/forward-sse", {}, 401, id="refusal"),
        pytest.param("/nobody/x", as_user(), 404, id="no route"),
        pytest.param("/healthz", {}, 405, id="own path"),
    ],
)
async def test_response_to_a_page(shared: Client, path: str, headers: dict[str, str], status: int) -> None:
    """Every response may be read by the page, refusals too, and its id and limits with it."""
    async with shared.post(path, json=CHAT, headers={"Origin": PAGE, **headers}) as response:
        await response.read()
        told = response.headers
        if path != "/healthz":
            assert response.status == status
    assert told["Access-Control-Allow-Origin"] == PAGE
    assert "x-forward-sse-id" in told["Access-Control-Expose-Headers"].lower()
    assert told["Vary"] == "Origin"
