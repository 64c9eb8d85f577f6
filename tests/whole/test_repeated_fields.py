"""A field that may stand once in a head and stands there twice: what clients send, and what vendors answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import token
from tests.peers import Upstream, request
from tests.whole.scenes import BODY, check_settled, head

if TYPE_CHECKING:
    from tests.conftest import Running

JSON = "Content-Type: application/json"


@pytest.mark.parametrize(
    ("name", "value"),
    [("Content-Type", "text/event-stream"), ("Retry-After", "7"), ("Location", "https://vendor.example/a?b=c")],
)
async def test_vendor_repeats_a_field(proxy: Running, upstream: Upstream, name: str, value: str) -> None:
    """A vendor's field that comes twice with one value is taken once, and the connection is kept."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    answer = (
        f"HTTP/1.1 200 OK\r\n{name}: {value}\r\nX-Two: a\r\nContent-Length: 2\r\nX-Two: b\r\n{name.lower()}:  {value} "
    )
    for _ in range(2):
        vendor.write(answer.encode() + b"\r\n\r\nok")
        received = await client.read_message()
        assert (received.status, received.body) == (200, b"ok")
        assert received.get(name) == value
        assert received.all("x-two") == ["a", "b"]
        client.write(request(body=BODY, token=token()))
        await vendor.read_message()


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Type: text/event-stream", "Content-Type: application/json"),
        ("Content-Type: text/event-stream", "content-type: Text/event-stream"),
        ("Content-Type: a/b", "Content-Type: a/b", "Content-Type: a/c"),
        ("Retry-After: 1", "Retry-After: 2"),
        ("Location: /a", "Location: /b"),
        ("Content-Encoding: gzip", "Content-Encoding: gzip"),
        ("Content-Type: a/b", "Content-Type: a/b", "Content-Encoding: br", "Content-Encoding: br"),
        ("Content-Length: 0", "Content-Length: 0"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    ],
    ids=" | ".join,
)
async def test_vendor_contradicts_itself(proxy: Running, upstream: Upstream, lines: tuple[str, ...]) -> None:
    """Two values, and any second length or coding, are still a 502: two readers could take two different answers."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    framing = "" if any(line.startswith(("Content-Length", "Transfer")) for line in lines) else "Content-Length: 0\r\n"
    vendor.write(("HTTP/1.1 200 OK\r\n" + "\r\n".join(lines) + f"\r\n{framing}\r\n").encode())

    answer = await client.read_message()

    await vendor.closed()
    assert (answer.status, answer.get("x-forward-sse-code")) == (502, "upstream_protocol_error")
    await check_settled(proxy, "upstream_error", status=502, code="upstream_protocol_error")


@pytest.mark.parametrize("second", [JSON, "content-type: text/plain", "CONTENT-TYPE:"])
@pytest.mark.parametrize("path", ["/forward-sse", "/main/v1/chat/completions", "/v1/embeddings"])
async def test_client_repeats_its_content_type(proxy: Running, upstream: Upstream, path: str, second: str) -> None:
    """Two Content-Types of a client, even if they agree, are a 400 before anything is sent to a vendor or charged."""
    client = await proxy.client()
    start = f"POST {path} HTTP/1.1"
    client.write(head(f"Authorization: Bearer {token()}", JSON, second, "Content-Length: 2", start=start) + b"{}")

    answer = await client.read_message()

    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_request")
    assert upstream.is_untouched
    await check_settled(proxy, "refused", status=400, code="invalid_request", user=None)
