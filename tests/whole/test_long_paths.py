"""Paths of very many segments: the router's time must not grow with the square of what a client sends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import token
from tests.peers import Upstream, only
from tests.whole.scenes import OK, head

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tests.conftest import Running


@pytest.mark.parametrize("path", ["/" * 200_000, "/a" * 100_000, "/main/v1" + "/a" * 1024], ids=lambda path: path[:6])
async def test_path_of_very_many_segments(start: Callable[..., Any], upstream: Upstream, path: str) -> None:
    """A path of more than 1024 segments, which holds the router for seconds, is not a 400 with a line in the log."""
    proxy = await start("max_header: 256KiB\n")
    client = await proxy.client()
    client.write(head("Content-Length: 0", start=f"POST {path} HTTP/1.1"))

    answer = await client.read_message()
    await client.closed()

    assert (answer.start, answer.get("x-forward-sse-code")) == ("HTTP/1.1 400 Bad Request", "invalid_request")
    assert answer.json["error"]["message"] == "The path has more than 1024 segments."
    assert only(await proxy.settled(), "exchange.settled")["code"] == "invalid_request"
    assert not upstream.peers


@pytest.mark.parametrize("path", ["/" * 200_000, "/console" + "/a" * 1024], ids=["slashes", "console"])
async def test_path_of_very_many_segments_to_the_operator(start: Callable[..., Any], path: str) -> None:
    """On the operator's listener, where nobody needs a credential to ask, it is not refused before the router."""
    proxy = await start("max_header: 256KiB\n")
    admin = await proxy.admin()
    admin.write(head(start=f"GET {path} HTTP/1.1"))
    answer = await admin.read_message()
    await admin.closed()
    assert (answer.status, answer.get("x-forward-sse-code")) == (400, "invalid_request")
    assert answer.json["error"]["message"] == "The path has more than 1024 segments."


async def test_path_with_a_query_of_many_slashes(proxy: Running, upstream: Upstream) -> None:
    """Slashes of a query are taken for segments, or a path with as many as are allowed is refused for that."""
    client = await proxy.client()
    path = "/main/v1/chat/completions?q=" + "/" * 2000
    client.write(head(f"Authorization: Bearer {token()}", "Content-Length: 0", start=f"POST {path} HTTP/1.1"))
    vendor, asked = await upstream.take()
    vendor.write(OK)
    assert (await client.read_message()).body == b"ok"
    assert path.removeprefix("/main") in asked.start

    client.write(
        head(f"Authorization: Bearer {token()}", "Content-Length: 0", start="POST /main" + "/a" * 1023 + " HTTP/1.1")
    )
    assert (await client.read_message()).get("x-forward-sse-code") == "path_not_allowed"
