"""`DELETE /forward-sse/streams/{id}`: users stop their own streams."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.handlers.conftest import CHAT, as_user
from tests.peers import WAIT_S

if TYPE_CHECKING:
    from tests.handlers.conftest import Client, Vendor

PATH = "/forward-sse/streams/"


async def test_stop_own_stream(client: Client, vendor: Vendor) -> None:
    """It ends with an error event at its boundary, and the vendor is left; afterwards there is no such stream."""
    vendor.holding = True
    async with client.post("/forward-sse", json=CHAT, headers=as_user()) as stream:
        id_ = stream.headers["X-Forward-Sse-Id"]
        await stream.content.readuntil(b"\n\n")
        async with client.delete(PATH + id_, headers=as_user()) as response:
            assert response.status == 204
        last = await stream.content.readuntil(b"\n\n")
        async with asyncio.timeout(WAIT_S):
            await vendor.has_lost_client.wait()
    assert b'"stopped"' in last
    async with client.delete(PATH + id_, headers=as_user()) as response:
        assert response.status == 404


async def test_stop_stream_of_another_user(client: Client, vendor: Vendor) -> None:
    """To anybody else a stream does not exist, and goes on."""
    vendor.holding = True
    async with client.post("/forward-sse", json=CHAT, headers=as_user()) as stream:
        id_ = stream.headers["X-Forward-Sse-Id"]
        async with client.delete(PATH + id_, headers=as_user("bob")) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "not_found")
        vendor.go_on.set()
        assert (await stream.read()).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("method", "headers", "status", "allow"),
    [
        pytest.param("DELETE", {}, 401, None, id="no token"),
        pytest.param("DELETE", as_user(), 404, None, id="none such"),
        pytest.param("GET", as_user(), 405, "DELETE", id="method"),
    ],
)
async def test_stop_refused(
    client: Client, method: str, headers: dict[str, str], status: int, allow: str | None
) -> None:
    """Only a user may ask, and only to stop."""
    async with client.request(method, PATH + "x", headers=headers) as response:
        assert (response.status, response.headers.get("Allow")) == (status, allow)
