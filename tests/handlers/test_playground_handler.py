"""The playground: its page, to anybody; the upstreams, to a user."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.handlers.conftest import as_user

if TYPE_CHECKING:
    from tests.handlers.conftest import Client, Serve


@pytest.fixture
async def shown(serve: Serve) -> Client:
    return await serve(playground=True)


async def test_playground_page(shown: Client) -> None:
    """The page needs no token, brings its own policy, and is sent anew only when it has changed."""
    async with shown.get("/playground") as response:
        assert (response.status, response.content_type) == (200, "text/html")
        headers = response.headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-cache"
    async with shown.get("/playground/", headers={"If-None-Match": headers["ETag"]}) as response:
        assert (response.status, await response.read()) == (304, b"")


async def test_playground_upstreams(shown: Client) -> None:
    """They are those of the user's plan; without a token nobody is told."""
    async with shown.get("/playground/upstreams", headers=as_user()) as response:
        assert response.status == 200
        assert "main" in await response.text()
    async with shown.get("/playground/upstreams") as response:
        assert response.status == 401


@pytest.mark.parametrize("path", ["/playground", "/playground/upstreams"])
async def test_playground_methods(shown: Client, path: str) -> None:
    """There is nothing to post to."""
    async with shown.post(path, headers=as_user()) as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/playground", "/playground/upstreams"])
async def test_playground_that_is_off(client: Client, path: str) -> None:
    """Unless it is asked for there is none."""
    async with client.get(path, headers=as_user()) as response:
        assert response.status == 404
