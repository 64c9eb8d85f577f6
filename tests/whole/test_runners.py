"""The application under runners that are not ours: `web.run_app`'s, gunicorn's stock worker, another application.

Whoever embeds it has neither our listener nor our connection class; what the relay promises must hold all the same.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import re
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from proxy.app import connection_options, make_app
from tests.conftest import VENDOR_KEY, token
from tests.peers import LAST, STREAM_HEAD, WAIT_S, Peer, Upstream, chunk, connect, event, only, request
from tests.settings_builder import settings, values
from tests.whole.scenes import BODY, OK
from tests.whole.test_backpressure import dechunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from proxy.observability.logging import Redactor

ROOT = Path(__file__).parents[2]
WAITING_BYTES = 256 * 1024
# More than the system's own buffers take on both sides of the proxy.
HELD_BYTES = 32 * 2**20
SERVICE = """
from pathlib import Path

from proxy.app import make_app
from proxy.settings.loading import load


async def factory():
    return make_app(load(Path(__file__).with_name("proxy.json"), {}))
"""


class Host:
    """Where the application is served, and what is known of it there.

    Attributes:
        prefix: The path below which it is mounted.
        connections: The open ones, where they are this process's.
    """

    def __init__(
        self, address: tuple[str, int], *, prefix: str = "", connections: Callable[[], list[Any]] | None = None
    ) -> None:
        self.address = address
        self.prefix = prefix
        self.connections = connections or list
        self.peers = AsyncExitStack()

    async def client(self, *, receive_buffer: int | None = None) -> Peer:
        return await self.peers.enter_async_context(await connect(self.address, receive_buffer=receive_buffer))

    def request(self, path: str = "/forward-sse", body: Any = BODY, **more: Any) -> bytes:
        return request(self.prefix + path, body, token=token(), **more)

    @property
    def waiting_bytes(self) -> int:
        """What waits in the process for its clients."""
        transports = (connection.transport for connection in self.connections())
        return sum(transport.get_write_buffer_size() for transport in transports if transport is not None)


@asynccontextmanager
async def on_site(app: web.Application, *, prefix: str = "") -> AsyncIterator[Host]:
    """As `web.run_app` serves it: a runner with its defaults, and a site."""
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server = runner.server
        assert server is not None
        host = Host(runner.addresses[0], prefix=prefix, connections=lambda: server.connections)
        async with host.peers:
            yield host
    finally:
        await runner.cleanup()


def run_app(upstream: Upstream, _tmp_path: Path) -> AbstractAsyncContextManager[Host]:
    """Alone, as `web.run_app(make_app(settings))`."""
    return on_site(make_app(settings(upstream.url)))


def mounted(upstream: Upstream, _tmp_path: Path) -> AbstractAsyncContextManager[Host]:
    """As a part of another application. Connections are the outer one's, so it has to be told what they need."""
    inner = settings(upstream.url)
    outer = web.Application(handler_args=connection_options(inner))
    outer.add_subapp("/llm", make_app(inner))
    return on_site(outer, prefix="/llm")


@asynccontextmanager
async def gunicorn(upstream: Upstream, tmp_path: Path) -> AsyncIterator[Host]:
    """In a worker of gunicorn's, as aiohttp brings it."""
    (tmp_path / "proxy.json").write_text(json.dumps(values(upstream.url)))
    (tmp_path / "llm_service.py").write_text(SERVICE)
    command = ["-m", "gunicorn", "-k", "aiohttp.GunicornUVLoopWebWorker", "-b", "127.0.0.1:0", "--no-control-socket"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(*command, "--pythonpath", str(tmp_path), "--graceful-timeout", "1", "llm_service:factory"),
        cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(WAIT_S):
            said = await process.stderr.readuntil(b"Listening at: http://")
            said += await process.stderr.readline()
        found = re.search(rb"http://(127\.0\.0\.1):(\d+)", said)
        assert found is not None
        reading = asyncio.create_task(process.stderr.read())
        host = Host((found[1].decode(), int(found[2])))
        async with host.peers:
            yield host
    finally:
        process.terminate()
        async with asyncio.timeout(WAIT_S):
            await process.wait()
        said = await reading
    assert b"Traceback" not in said, said.decode()


@pytest.fixture(params=[run_app, gunicorn, mounted], ids=lambda runner: runner.__name__)
async def host(
    request: pytest.FixtureRequest, upstream: Upstream, tmp_path: Path, log_file: tuple[Path, Redactor]
) -> AsyncIterator[Host]:
    """The application under each runner in turn."""
    async with request.param(upstream, tmp_path) as one:
        yield one


async def begin(host: Host, upstream: Upstream, **options: Any) -> tuple[Peer, Peer]:
    """A stream that has brought its first event."""
    client = await host.client(**options)
    client.write(host.request())
    vendor, asked = await upstream.take()
    assert asked.get("Authorization") == f"Bearer {VENDOR_KEY}"
    vendor.write(STREAM_HEAD + chunk(event("first")))
    answer = await client.read_head()
    assert (answer.status, answer.get("Content-Type")) == (200, "text/event-stream")
    assert answer.get("Server") is None
    await client.read_until(event("first") + b"\r\n")
    return client, vendor


async def test_runner_relays(host: Host, upstream: Upstream) -> None:
    """A stream arrives event by event, byte for byte, and the connection serves the next request."""
    client, vendor = await begin(host, upstream)
    for text in ("one", "two"):
        vendor.write(chunk(event(text)))
        assert await client.read_exactly(len(chunk(event(text)))) == chunk(event(text))
    odd = b"data: not \xff utf-8\r\n\r\nhalf"
    vendor.write(chunk(odd) + LAST)
    assert await client.read_exactly(len(chunk(odd)) + len(LAST)) == chunk(odd) + LAST

    client.write(host.request())
    await vendor.read_message()
    vendor.write(OK)
    assert (await client.read_message()).body == b"ok"


async def test_runner_cancels(host: Host, upstream: Upstream) -> None:
    """A client that leaves a silent stream closes the upstream's connection."""
    client, vendor = await begin(host, upstream)
    client.reset()
    await vendor.closed()


async def test_runner_cancels_before_the_response(host: Host, upstream: Upstream) -> None:
    """So does one that leaves while the vendor still thinks."""
    client = await host.client()
    client.write(host.request())
    vendor, _ = await upstream.take()
    client.reset()
    await vendor.closed()


async def test_runner_holds_the_upstream_back(host: Host, upstream: Upstream) -> None:
    """For a client that does not read, little waits in the process, and the vendor is not read until it reads again."""
    client, vendor = await begin(host, upstream, receive_buffer=16384)
    vendor.writer.transport.set_write_buffer_limits(high=0)
    data = event("x" * 100_000)
    sent = 0
    while sent * len(data) < 2 * HELD_BYTES:
        vendor.write(chunk(data))
        sent += 1
        try:
            async with asyncio.timeout(0.5):
                await vendor.writer.drain()
        except TimeoutError:
            break
        assert host.waiting_bytes <= WAITING_BYTES
    assert sent * len(data) < HELD_BYTES
    assert host.waiting_bytes <= WAITING_BYTES

    vendor.write(LAST)
    got = hashlib.sha256()
    async with asyncio.timeout(WAIT_S):
        await dechunk(client, got)
    assert got.digest() == hashlib.sha256(data * sent).digest()


async def test_runner_forwards_a_compressed_body(host: Host, upstream: Upstream) -> None:
    """A body that says it is compressed is forwarded as it came."""
    client = await host.client()
    data = gzip.compress(json.dumps(BODY).encode() * 10)
    fields = (("X-Upstream", "main"), ("Content-Encoding", "gzip"))
    client.write(host.request(body=data, fields=fields))
    vendor, asked = await upstream.take()
    assert (asked.body, asked.get("Content-Encoding")) == (data, "gzip")
    vendor.write(OK)
    assert (await client.read_message()).status == 200


async def test_runner_refuses(host: Host, upstream: Upstream) -> None:
    """A refusal has the same status and code, whoever serves."""
    client = await host.client()
    client.write(request(host.prefix + "/forward-sse", BODY))
    answer = await client.read_message()
    assert (answer.status, answer.json["error"]["code"]) == (401, "missing_token")
    assert answer.get("X-Forward-Sse-Id")
    assert upstream.is_untouched


@pytest.mark.parametrize("runner", [run_app, mounted], ids=lambda runner: runner.__name__)
async def test_runner_settles(runner: Any, upstream: Upstream, tmp_path: Path, log_file: tuple[Path, Redactor]) -> None:
    """The exchange of a client that left has its one line, and nothing was reported as a failure."""
    async with runner(upstream, tmp_path) as host:
        client, vendor = await begin(host, upstream)
        client.reset()
        await vendor.closed()
    async with asyncio.timeout(WAIT_S):
        # The log's own thread writes to a file; there is no event to wait for.
        while b"exchange.settled" not in log_file[0].read_bytes():  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.005)
    lines = [json.loads(line) for line in log_file[0].read_bytes().splitlines()]
    assert only(lines, "exchange.settled")["ending"] == "client_closed"
    assert not [line for line in lines if line["event"] in {"exchange.failed", "library.reported"}]


async def test_mounted_elsewhere(upstream: Upstream, tmp_path: Path, log_file: tuple[Path, Redactor]) -> None:
    """Beside it the other application serves its own, and what is not below the prefix is not ours."""
    outer = web.Application()

    async def own(_request: web.Request) -> web.Response:
        return web.Response(text="own")

    outer.router.add_get("/own", own)
    outer.add_subapp("/llm", make_app(settings(upstream.url)))
    async with on_site(outer) as host:
        client = await host.client()
        statuses = []
        for path in ("/own", "/llm/healthz", "/healthz", "/llmx/healthz"):
            client.write(request(path, method="GET"))
            statuses.append((await client.read_message()).status)
        # A path below the upstream's name, too: the prefix is not sent on.
        client.write(request("/llm/main/v1/chat/completions", BODY, token=token()))
        vendor, asked = await upstream.take()
        vendor.write(OK)
        await client.read_message()
    assert statuses == [200, 200, 404, 404]
    assert asked.start == "POST /v1/chat/completions HTTP/1.1"
