"""Every Python block of `docs/embedding.md`, executed as it stands there, with a vendor that is not real."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import signal
import socket
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from aiohttp import web

import proxy.app
import proxy.settings
from tests.conftest import CONFIG, SECRET, VENDOR_KEY, token
from tests.peers import WAIT_S, chunk, connect, event, only, request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.test_utils import TestClient, TestServer

    from proxy.observability.logging import Redactor

    Client = TestClient[web.Request, web.Application]
    MakeClient = Callable[[Any], Awaitable[Client]]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/embedding.md"
_MARKED = re.compile(r"^<!-- example: (\S+) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

BODY = {"model": "gpt-x", "stream": True, "messages": []}
FIRST = event("one")
SESSION = {"Cookie": "session=c2Vzc2lvbg"}


class Vendor:
    """An OpenAI-shaped vendor: one event, and silence before or after it where told; it remembers its requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.silent: Literal["before", "after"] | None = None
        self.asked = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.url = ""

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.path, dict(request.headers), await request.read()))
        self.asked.set()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            if self.silent == "before":
                await asyncio.Event().wait()
            await response.prepare(request)
            await response.write(FIRST)
            if self.silent == "after":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return response


@pytest.fixture
async def vendor(
    aiohttp_server: Callable[..., Awaitable[TestServer]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Vendor:
    """The vendor, with a `proxy.yaml` in the working directory that names it."""
    vendor = Vendor()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", vendor.serve)
    server = await aiohttp_server(app)
    vendor.url = str(server.make_url("/")).rstrip("/")
    (tmp_path / "proxy.yaml").write_text(CONFIG.format(secret=SECRET, url=vendor.url, key=VENDOR_KEY))
    monkeypatch.chdir(tmp_path)
    return vendor


@cache
def examples() -> dict[str, str]:
    """Every Python block by its name."""
    text = PAGE.read_text()
    found = _MARKED.findall(text)
    assert len(found) == text.count("```python"), "a block has no name, so no test runs it"
    assert len({name for name, _ in found}) == len(found), "a name stands twice"
    return dict(found)


def execute(name: str) -> dict[str, Any]:
    """What the block defines."""
    namespace: dict[str, Any] = {"__name__": name}
    exec(compile(examples()[name], f"{PAGE.name}:{name}", "exec"), namespace)
    return namespace


async def stream(client: Client, path: str, **headers: str) -> tuple[Any, bytes]:
    """A stream asked for with a token, and all of its bytes."""
    headers = {"Authorization": f"Bearer {token()}", **headers}
    async with asyncio.timeout(WAIT_S), client.post(path, json=BODY, headers=headers) as response:
        return response, await response.read()


def test_page_is_covered() -> None:
    """There is an example that no test here executes."""
    source = inspect.getsource(sys.modules[__name__])
    assert all(f'execute("{name}")' in source or f'examples()["{name}"]' in source for name in examples())


def test_public_names() -> None:
    """The page imports something that is not public."""
    for block in examples().values():
        for module, names in re.findall(r"^from (proxy\S*) import (.*)$", block, re.MULTILINE):
            assert module in {"proxy.app", "proxy.settings"}
            public = {"proxy.app": proxy.app.__all__, "proxy.settings": proxy.settings.__all__}[module]
            assert set(names.split(", ")) <= set(public)


def test_load_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_settings` does not read the file by a path or its text, with the process's environment or the given one."""
    path = tmp_path / "proxy.yaml"
    path.write_text(CONFIG.format(secret="${THE_SECRET}", url="http://127.0.0.1:1", key="none"))
    monkeypatch.setenv("THE_SECRET", SECRET)
    assert proxy.settings.load_settings(path).auth is not None
    given = {"THE_SECRET": SECRET, "FORWARD_SSE_MAX_BODY": "1MiB"}
    assert proxy.settings.load_settings(str(path), given).max_body_bytes == 1024 * 1024
    with pytest.raises(proxy.settings.ConfigurationError, match=r"proxy\.yaml:6: .*THE_SECRET"):
        proxy.settings.load_settings(path, {})


async def test_run(vendor: Vendor, tmp_path: Path) -> None:
    """Under `web.run_app` the proxy does not relay, a client that leaves cancels nothing, or SIGTERM is ignored."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = examples()["run"]
    assert text.count("port=8080") == 1
    (tmp_path / "run.py").write_text(text.replace("port=8080", f"port={port}"))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "run.py",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            while b"Running on" not in (line := await process.stdout.readline()):
                assert line, "it ended"
        vendor.silent = "after"
        peer = await connect(("127.0.0.1", port))
        peer.write(request(body=BODY, token=token()))
        assert (await peer.read_head()).status == 200
        assert await peer.read_until(b"\n\n\r\n") == chunk(FIRST)
        await peer.gone()
        async with asyncio.timeout(WAIT_S):
            await vendor.cancelled.wait()
            process.send_signal(signal.SIGTERM)
            output, errors = await process.communicate()
        assert process.returncode == 0, errors
        assert b"exchange.settled" in output
        assert b"client_closed" in output
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_mount(vendor: Vendor, aiohttp_client: MakeClient) -> None:
    """Below a prefix a path is not found, the vendor is told the prefix, or the outer application's pages are gone."""
    client = await aiohttp_client(execute("mount")["application"]())
    assert await (await client.get("/")).text() == "home"
    assert (await client.get("/llm/readyz")).status == 200
    assert (await client.get("/readyz")).status == 404
    for path in ("/llm/forward-sse", "/llm/main/v1/chat/completions"):
        response, body = await stream(client, path)
        assert (response.status, body) == (200, FIRST)
        assert vendor.requests.pop()[0] == "/v1/chat/completions"


async def test_mount_keeps_compressed_bodies(vendor: Vendor, aiohttp_client: MakeClient) -> None:
    """A compressed body is decompressed on its way through a mounted application."""
    client = await aiohttp_client(execute("mount")["application"]())
    headers = {"Authorization": f"Bearer {token()}"}
    async with client.post("/llm/forward-sse", json=BODY, headers=headers, compress="gzip") as response:
        assert await response.read() == FIRST
    _, fields, received = vendor.requests.pop()
    assert fields["Content-Encoding"] == "gzip"
    assert b"gpt-x" in received  # aiohttp's server decompressed it for this vendor


async def test_mount_client_disconnect(vendor: Vendor) -> None:
    """In a mounted application a client that leaves before the vendor has answered does not cancel its request."""
    vendor.silent = "before"
    # aiohttp's test server cancels handlers unasked; an ordinary runner does what the application says.
    runner = web.AppRunner(execute("mount")["application"]())
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        peer = await connect(runner.addresses[0])
        peer.write(request("/llm/forward-sse", body=BODY, token=token()))
        async with asyncio.timeout(WAIT_S):
            await vendor.asked.wait()
            await peer.gone()
            await vendor.cancelled.wait()
    finally:
        await runner.cleanup()


async def test_middleware(vendor: Vendor, aiohttp_client: MakeClient, log_file: tuple[Path, Redactor]) -> None:
    """A principal of the middleware's is asked for a token, or the log line lacks it or the further fields."""
    client = await aiohttp_client(execute("middleware")["application"]())
    async with client.post("/forward-sse", json=BODY, headers=SESSION) as response:
        assert (response.status, await response.read()) == (200, FIRST)
        assert "x-ratelimit-limit-requests" in response.headers
    assert "Cookie" not in vendor.requests.pop()[1]
    line = (await settled(log_file[0]))[0]
    assert (line["issuer"], line["user"], line["department"]) == ("https://sso.example.com", "alice", "research")


async def test_middleware_without_session(
    vendor: Vendor, aiohttp_client: MakeClient, log_file: tuple[Path, Redactor]
) -> None:
    """Who has no session is served without a token, or not served with one."""
    client = await aiohttp_client(execute("middleware")["application"]())
    async with client.post("/forward-sse", json=BODY) as response:
        assert response.status == 401
    assert not vendor.requests
    response, body = await stream(client, "/forward-sse")
    assert (response.status, body) == (200, FIRST)
    assert all("department" not in line for line in await settled(log_file[0], 2))


async def test_middleware_and_tickets(vendor: Vendor, aiohttp_client: MakeClient) -> None:
    """A page that is signed on cannot make and use a ticket."""
    client = await aiohttp_client(execute("middleware")["application"]())
    async with client.post("/forward-sse/tickets", json=BODY, headers=SESSION) as response:
        assert response.status == 201
        url = (await response.json())["url"]
    async with client.get(url, headers=SESSION) as response:
        assert (await response.read()).startswith(FIRST)
    assert len(vendor.requests) == 1


async def test_middleware_log_fields_are_further_ones(
    vendor: Vendor, aiohttp_client: MakeClient, log_file: tuple[Path, Redactor]
) -> None:
    """A further field replaces one of the line's own, or one that is added while the request runs is lost."""

    @web.middleware
    async def forge(request: web.Request, handler: Any) -> web.StreamResponse:
        fields = {"status": 999, "limits": "none", "event": "x", "time": "never", "level": "loud"}
        request[proxy.app.LOG_FIELDS] = fields
        asyncio.get_running_loop().call_soon(fields.update, {"late": True})
        return await handler(request)  # type: ignore[no-any-return]  # the handler's type is open

    app = proxy.app.make_app(proxy.settings.load_settings("proxy.yaml"))
    app.middlewares.append(forge)
    client = await aiohttp_client(app)
    await stream(client, "/forward-sse")
    line = only(await settled(log_file[0]), "exchange.settled")
    assert (line["status"], line["level"], line["late"]) == (200, "info", True)
    assert "limits" not in line
    assert line["time"] != "never"
    assert vendor.requests


@pytest.mark.parametrize("position", [0, 1])
async def test_middleware_answers_by_itself(vendor: Vendor, aiohttp_client: MakeClient, position: int) -> None:
    """What an embedder's middleware raises is not what the client gets."""

    @web.middleware
    async def close_at_night(request: web.Request, handler: Any) -> web.StreamResponse:
        del request, handler
        raise web.HTTPFound("/login")

    app = proxy.app.make_app(proxy.settings.load_settings("proxy.yaml"))
    app.middlewares.insert(position, close_at_night)
    client = await aiohttp_client(app)
    async with client.post("/forward-sse", json=BODY, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (302, "/login")
    assert not vendor.requests


async def test_header(vendor: Vendor, aiohttp_client: MakeClient) -> None:
    """The header is missing from a stream, an error, or a page of the proxy's own."""
    client = await aiohttp_client(execute("header")["application"]())
    response, body = await stream(client, "/forward-sse")
    assert (body, response.headers["X-Served-By"]) == (FIRST, "gateway-1")
    assert vendor.requests
    for answer in (await client.post("/forward-sse", json=BODY), await client.get("/healthz")):
        assert answer.headers["X-Served-By"] == "gateway-1"


async def test_test(vendor: Vendor, aiohttp_client: MakeClient) -> None:
    """The page's own test fails."""
    await execute("test")["test_needs_a_token"](aiohttp_client)
    assert not vendor.requests


async def settled(log: Path, count: int = 1) -> list[dict[str, Any]]:
    """The exchanges' lines, once they are written."""
    read = log.read_bytes
    async with asyncio.timeout(WAIT_S):
        # The log's own thread writes to a file; there is no event to wait for.
        while len(lines := [line for line in read().splitlines() if b"exchange.settled" in line]) < count:  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.005)
    return [json.loads(line) for line in lines]
