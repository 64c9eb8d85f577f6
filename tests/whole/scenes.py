"""Scenes that several rooms of hostile tests begin or end with."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.conftest import VENDOR_KEY, token
from tests.peers import STREAM_HEAD, Message, Peer, Upstream, chunk, event, only, request, secret_free

if TYPE_CHECKING:
    from tests.conftest import Running

BODY = {"model": "gpt-x", "stream": True, "messages": []}
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\nok"


def head(*lines: str | bytes, start: str | bytes = "POST /forward-sse HTTP/1.1", host: bool = True) -> bytes:
    """A request head of raw lines; nothing is added but Host."""
    raw = [start, *(["Host: proxy.test"] if host else []), *lines]
    return b"\r\n".join(line if isinstance(line, bytes) else line.encode("latin-1") for line in raw) + b"\r\n\r\n"


async def begin(proxy: Running, upstream: Upstream, *, first: bytes = b"") -> tuple[Peer, Peer, Message]:
    """A stream that runs: client and upstream connected, the first bytes relayed, the answer's head read."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + (chunk(first) if first else b""))
    answer = await client.read_head()
    if first:
        await client.read_until(first + b"\r\n")
    return client, vendor, answer


async def serves(proxy: Running) -> None:
    """A good request on a fresh connection is answered."""
    client = await proxy.client()
    client.write(request("/healthz", method="GET"))
    assert (await client.read_message()).status == 200


async def check_settled(proxy: Running, ending: str, **fields: Any) -> dict[str, Any]:
    """Lease free, one line, and that line's fields; no defect of ours and no library was heard."""
    line = only(await proxy.settled(), "exchange.settled")
    assert line["ending"] == ending
    assert proxy.leases_held == 0
    assert not [other for other in proxy.lines() if other["event"] in {"exchange.failed", "library.reported"}]
    for name, value in fields.items():
        assert line[name] == value, name
    return line


def check_secrets(proxy: Running, *seen: bytes, secrets: tuple[str, ...] = ()) -> None:
    """Neither what a client saw nor the log holds the vendor's key or one of the secrets."""
    for data in (*seen, proxy.log_bytes()):
        assert secret_free(data, VENDOR_KEY, *secrets)


async def fill(vendor: Peer, *, piece: bytes = chunk(event("x" * 8000)), limit: int = 2**30) -> int:
    """Send a stream until nobody takes any more, and say how much was taken."""
    vendor.write(STREAM_HEAD)
    sent = 0
    vendor.writer.transport.set_write_buffer_limits(high=0)
    try:
        while sent < limit:
            vendor.write(piece)
            async with asyncio.timeout(0.5):
                await vendor.writer.drain()
            sent += len(piece)
    except TimeoutError:
        pass
    return sent
