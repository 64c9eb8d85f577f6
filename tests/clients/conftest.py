"""The bench for real clients: the proxy between them and the mock vendor, and a vendor that tears inside an event."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from proxy.mock.server import MockVendor
from tests.conftest import VENDOR_KEY, token
from tests.peers import STREAM_HEAD, WAIT_S, Upstream, chunk, only, secret_free

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable

    from tests.conftest import Running

T = TypeVar("T")

# Upstreams `torn_*` lead to the scripted vendor, which breaks off where the test says; the others to the mock.
_CONFIG = """
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
auth:
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}"}}
plans:
  default: {{requests: [1000/1s]}}
  tiny: {{requests: [1/1d]}}
upstreams:
  openai: {{url: "VENDOR", dialect: openai, api_key: {key}, models: ["mock-*"]}}
  tongyi: {{url: "VENDOR/compatible-mode", dialect: openai, api_key: {key}}}
  anthropic: {{url: "VENDOR", dialect: anthropic, api_key: {key}, models: ["claude-*"]}}
  dashscope: {{url: "VENDOR", dialect: dashscope, api_key: {key}}}
  gemini: {{url: "VENDOR", dialect: gemini, api_key: {key}}}
  torn_openai: {{url: "{url}", dialect: openai, api_key: {key}}}
  torn_anthropic: {{url: "{url}", dialect: anthropic, api_key: {key}}}
  torn_dashscope: {{url: "{url}", dialect: dashscope, api_key: {key}}}
  torn_gemini: {{url: "{url}", dialect: gemini, api_key: {key}}}
"""

# What a client asks of the mock for a stream that is still running when the client leaves.
ENDLESS = {"X-Mock-Events": "1000000", "X-Mock-Interval-Ms": "2"}


def torn(after: int) -> dict[str, str]:
    """Ask the mock to leave after so many events."""
    return {"X-Mock-Fault": "truncate", "X-Mock-Fault-After": str(after)}


async def collect(stream: AsyncIterable[T], into: list[T]) -> None:
    """Gather what a stream gives; where it raises, what came before is there."""
    async for item in stream:
        into.append(item)  # noqa: PERF401  a comprehension would lose what came before the error


@dataclass(frozen=True)
class Bench:
    """The proxy, the mock behind it, and what every client's test asks of both."""

    proxy: Running
    vendor: MockVendor
    scripted: Upstream
    token: str
    over_limit: str

    def url(self, path: str) -> str:
        host, port = self.proxy.address
        return f"http://{host}:{port}{path}"

    async def check_keys(self, field: str, value: str = VENDOR_KEY) -> None:
        """The vendor's key came in the dialect's field, once, and the caller's token nowhere at all."""
        await self.proxy.idle()
        assert self.vendor.requests
        for received in self.vendor.requests:
            credentials = [
                (name.lower(), content) for name, content in received.headers if VENDOR_KEY.encode() in content
            ]
            assert credentials == [(field.encode(), value.encode())]
            whole = (
                received.target.encode()
                + b"\0".join(part for pair in received.headers for part in pair)
                + received.body
            )
            assert secret_free(whole, self.token, self.token.rpartition(".")[2])
        assert secret_free(self.proxy.log_bytes(), self.token, VENDOR_KEY)

    async def check_cancelled(self) -> None:
        """The vendor saw its client leave, and the log says who left."""
        async with asyncio.timeout(WAIT_S):
            await self.vendor.wait_for(lambda stats: stats.cancelled == 1)
        line = only(await self.proxy.settled(), "exchange.settled")
        assert (line["ending"], line["status"]) == ("client_closed", 200)
        assert line["events"] > 0
        assert self.proxy.leases_held == 0

    async def ending(self) -> str:
        """How the only exchange ended."""
        return str(only(await self.proxy.settled(), "exchange.settled")["ending"])

    async def tear(self, half: bytes) -> None:
        """Be the vendor of a `torn_*` upstream: begin a stream with these bytes, and leave."""
        peer, _ = await self.scripted.take()
        await peer.send(STREAM_HEAD + chunk(half))
        peer.close()


@pytest.fixture
async def bench(start: Callable[..., Any], upstream: Upstream) -> AsyncIterator[Bench]:
    """A proxy with every dialect behind it."""
    async with MockVendor(VENDOR_KEY) as vendor:
        proxy = await start(config=_CONFIG.replace("VENDOR", vendor.url))
        yield Bench(proxy, vendor, upstream, token(), token("bob", plan="tiny"))
