"""Tickets: a POST with a token makes one, an `EventSource` that cannot send a token uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.handlers.conftest import CHAT, STREAM, as_user

if TYPE_CHECKING:
    from tests.handlers.conftest import Client, Serve, Vendor


async def make(client: Client, **more: Any) -> str:
    """The URL of a ticket."""
    async with client.post("/forward-sse/tickets", json=CHAT, headers=as_user(), **more) as response:
        assert response.status == 201
        assert response.headers["Cache-Control"] == "no-store"
        url = (await response.json())["url"]
    assert isinstance(url, str)
    return url


async def test_ticket(client: Client, vendor: Vendor) -> None:
    """Its use needs no token and gives the stream, and then the event that says how it ended."""
    url = await make(client)
    assert not vendor.asked
    async with client.get(url) as response:
        body = await response.read()
        assert (response.status, response.content_type) == (200, "text/event-stream")
    assert body.startswith(STREAM)
    assert b'"complete"' in body.removeprefix(STREAM)
    assert vendor.only.json == CHAT


async def test_ticket_twice(client: Client, vendor: Vendor) -> None:
    """A browser that comes back is told to stay away, and nothing is forwarded a second time."""
    url = await make(client)
    async with client.get(url) as response:
        await response.read()
    async with client.get(url) as response:
        assert (response.status, await response.read()) == (204, b"")
    assert len(vendor.asked) == 1


async def test_ticket_is_charged_when_used(serve: Serve, vendor: Vendor) -> None:
    """Making one is free; a use beyond the limit is told in the stream, where an `EventSource` can read it."""
    client = await serve(plans={"default": {"requests": ["1/1h"]}})
    urls = [await make(client), await make(client)]
    seen = []
    for url in urls:
        async with client.get(url) as response:
            seen.append((response.status, response.headers.get("X-Forward-Sse-Code")))
            await response.read()
    assert seen == [(200, None), (200, "rate_limit_exceeded")]
    assert len(vendor.asked) == 1


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        pytest.param("POST", "/forward-sse/tickets", {}, CHAT, 401, id="no token"),
        pytest.param("GET", "/forward-sse/tickets", as_user(), None, 405, id="not by GET"),
        pytest.param("POST", "/forward-sse/tickets", as_user(**{"X-Upstream": "nobody"}), CHAT, 404, id="no upstream"),
        pytest.param("GET", "/forward-sse?ticket=none-such", {}, None, 404, id="unknown"),
    ],
)
async def test_ticket_refused(
    client: Client, vendor: Vendor, method: str, path: str, headers: dict[str, str], body: Any, status: int
) -> None:
    """What can be refused is refused when the ticket is asked for, with a status."""
    async with client.request(method, path, json=body, headers=headers) as response:
        assert response.status == status
    assert not vendor.asked
