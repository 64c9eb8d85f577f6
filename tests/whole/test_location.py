"""Where an upstream's `Location` leads a client: below its own path, never to a path that is not served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import token
from tests.peers import Upstream, request

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = """
listen: 127.0.0.1:0
admin_listen: off
auth:
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}"}}
upstreams:
  main:
    url: {url}/base
    dialect: openai
    api_key: {key}
    allow_paths: all
"""


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("{url}/base/v1/files/1", "/main/v1/files/1"),
        ("{URL}/base/v1/files/1?a=b#c", "/main/v1/files/1?a=b#c"),
        ("{url}/base", "/main"),
        ("/base/v1/x", "/main/v1/x"),
        ("/other/v1/x", "/other/v1/x"),
        ("/basement/x", "/basement/x"),
        ("{url}/other", "{url}/other"),
        ("https://cdn.example.com/base/x", "https://cdn.example.com/base/x"),
        ("//127.0.0.1/base/x", "//127.0.0.1/base/x"),
        ("x/y", "x/y"),
        ("?page=2", "?page=2"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("status", [201, 307])
async def test_location(
    start: Callable[..., Any], upstream: Upstream, location: str, expected: str, status: int
) -> None:
    """What is below the upstream's url becomes what the client asks for; anything else stays as it came."""
    proxy = await start(config=CONFIG)
    urls = {"url": upstream.url, "URL": upstream.url.upper()}
    client = await proxy.client()
    client.write(request("/main/v1/files", {}, token=token()))
    vendor, _ = await upstream.take()
    sent = location.format(**urls)
    vendor.write(f"HTTP/1.1 {status} X\r\nLocation: {sent}\r\nContent-Length: 0\r\n\r\n".encode())

    answer = await client.read_message()

    assert answer.status == status
    assert answer.get("location") == expected.format(**urls)
