"""The bench for real clients: the proxy between them and the mock vendor, and a vendor that tears inside an event."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from proxy.mock.server import MockVendor
from tests.clients.calls import Call, Client, Heard
from tests.clients.failures import failure_of
from tests.clients.programs import IndependentVendor, NodeClients, need_node
from tests.conftest import VENDOR_KEY, token
from tests.needs import need
from tests.peers import STREAM_HEAD, WAIT_S, Upstream, chunk, only, secret_free

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.conftest import Running

# The names of upstreams are their dialects. Upstreams `torn_*` lead to the scripted vendor, which breaks off where the
# test says; the others to the mock.
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
  openai: {{url: "VENDOR", dialect: openai, api_key: {key}, models: ["mock-*", "gpt-*"]}}
  tongyi: {{url: "VENDOR/compatible-mode", dialect: openai, api_key: {key}}}
  anthropic: {{url: "VENDOR", dialect: anthropic, api_key: {key}, models: ["claude-*"]}}
  dashscope: {{url: "VENDOR", dialect: dashscope, api_key: {key}}}
  gemini: {{url: "VENDOR", dialect: gemini, api_key: {key}}}
  torn_openai: {{url: "{url}", dialect: openai, api_key: {key}}}
  torn_anthropic: {{url: "{url}", dialect: anthropic, api_key: {key}}}
  torn_dashscope: {{url: "{url}", dialect: dashscope, api_key: {key}}}
  torn_gemini: {{url: "{url}", dialect: gemini, api_key: {key}}}
"""

# Where a vendor looks for its key, if not in `Authorization`.
_KEY_FIELDS = {"anthropic": ("x-api-key", VENDOR_KEY), "gemini": ("x-goog-api-key", VENDOR_KEY)}

# A failure after which every client that tries again does so at once.
_FAILURE_BODY = b'{"error":{"code":500,"message":"The vendor has trouble.","status":"INTERNAL"}}'
_FAILURE = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nRetry-After-Ms: 1\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(_FAILURE_BODY), _FAILURE_BODY)
)

# What a client asks of the mock for a stream that is still running when the client leaves.
ENDLESS = {"X-Mock-Events": "1000000", "X-Mock-Interval-Ms": "2"}


def config_of(vendor_url: str) -> str:
    """The proxy's file, with that vendor behind every dialect."""
    return _CONFIG.replace("VENDOR", vendor_url)


def torn(after: int) -> dict[str, str]:
    """Ask the mock to leave after so many events."""
    return {"X-Mock-Fault": "truncate", "X-Mock-Fault-After": str(after)}


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

    async def check_keys(self, dialect: str) -> None:
        """The vendor's key came in the dialect's field, once, and the caller's token nowhere at all."""
        field, value = _KEY_FIELDS.get(dialect, ("authorization", f"Bearer {VENDOR_KEY}"))
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

    async def fail(self) -> None:
        """Be the vendor of a `torn_*` upstream: answer every request with a failure, each on its own connection."""
        while True:
            peer, _ = await self.scripted.take()
            await peer.send(_FAILURE)
            peer.close()


@pytest.fixture
async def bench(start: Callable[..., Any], upstream: Upstream) -> AsyncIterator[Bench]:
    """A proxy with every dialect behind it."""
    async with MockVendor(VENDOR_KEY) as vendor:
        proxy = await start(config=config_of(vendor.url))
        yield Bench(proxy, vendor, upstream, token(), token("bob", plan="tiny"))


Hear: TypeAlias = "Callable[..., Awaitable[Heard]]"


@pytest.fixture(scope="session")
def node() -> Iterator[NodeClients]:
    """The process of the Node clients."""
    need_node()
    with NodeClients() as clients:
        yield clients


@pytest.fixture(scope="session")
def independent(node: NodeClients) -> Iterator[IndependentVendor]:
    """A mock vendor that others wrote, with the vendor's key; it runs on Node."""
    with IndependentVendor(VENDOR_KEY) as vendor:
        yield vendor


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Client:
    """A client that can be used here."""
    found: Client = request.param
    if found.name == "curl":
        need("curl")
    return found if found.speak else replace(found, speak=request.getfixturevalue("node").speak)


@pytest.fixture
async def hear(bench: Bench) -> AsyncIterator[Hear]:
    """Stream one answer with a client, and give what it heard; the client stays open until the test's end."""
    async with AsyncExitStack() as kept:

        async def begin(client: Client, *, upstream: str | None = None, **more: Any) -> Heard:
            base = bench.url(client.address.format(upstream=upstream or client.dialect))
            call = Call(**{"client": client.name, "base": base, "key": bench.token, "model": "mock-thinking", **more})
            heard = Heard(call.leaves_after)
            assert client.speak is not None
            try:
                async with asyncio.timeout(WAIT_S):
                    await client.speak(call, heard, kept)
            except Exception as exc:  # noqa: BLE001 - whatever a client raises is what the tests are about
                heard.failure = failure_of(exc)
            return heard

        yield begin
