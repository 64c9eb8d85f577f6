"""Hops to put between the doctor and a proxy: relays of bytes or answers, each with one fault; nginx, HAProxy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from tests.limits.redis_support import free_ports
from tests.needs import need
from tests.peers import WAIT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Serve = Callable[[web.Request, aiohttp.ClientResponse], Awaitable[web.StreamResponse]]

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date"}


class ByteRelay:
    """Passes bytes both ways, on a port of its own.

    Args:
        latency_s: Least and most delay of each read of the server's, which stay in order.
        idle_s: Cuts both ends after that much silence of the server's, once it has begun.
        keeps_server: Does not tell the server that the client has left, and reads on.
    """

    def __init__(
        self,
        server: tuple[str, int],
        *,
        latency_s: tuple[float, float] = (0.0, 0.0),
        idle_s: float | None = None,
        keeps_server: bool = False,
    ) -> None:
        self._server_address = server
        self._latency_s = latency_s
        self._idle_s = idle_s
        self._keeps_server = keeps_server
        self._random = random.Random(7)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._server_address)
        up = asyncio.create_task(self._up(reader, server_writer))
        down = asyncio.create_task(self._down(server_reader, writer))
        try:
            await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
            if self._keeps_server and not down.done():
                await asyncio.wait([down])
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.wait([up, down])
            for end in (writer, server_writer):
                end.transport.abort()
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def read() -> None:
            idle_s: float | None = None
            with contextlib.suppress(OSError, TimeoutError):
                while True:
                    async with asyncio.timeout(idle_s):
                        data = await reader.read(65536)
                    queue.put_nowait((loop.time() + self._random.uniform(*self._latency_s), data))
                    idle_s = self._idle_s
                    if not data:
                        return
            queue.put_nowait((0.0, b""))

        reading = asyncio.create_task(read())
        try:
            while True:
                due_s, data = await queue.get()
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                if not data:
                    return
                if not writer.is_closing():
                    writer.write(data)
                    with contextlib.suppress(OSError):
                        await writer.drain()
        finally:
            reading.cancel()
            await asyncio.wait([reading])


@asynccontextmanager
async def middleman(
    server: tuple[str, int],
    serve: Serve,
    *,
    strip: tuple[str, ...] = (),
    max_body: int = 2**26,
    other: tuple[str, int] | None = None,
) -> AsyncIterator[str]:
    """An aiohttp application in front of the proxy, as people write it; `serve` passes an answer on.

    DELETE goes to the `other` proxy, as a balancer may send it.
    """
    base = f"http://{server[0]}:{server[1]}"
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def handle(request: web.Request) -> web.StreamResponse:
            headers = CIMultiDict(
                (name, value)
                for name, value in request.headers.items()
                if name.lower() not in {*_HOP_BY_HOP, "host", *strip}
            )
            data = request.content if request.body_exists else None
            if request.content_length is not None and data is not None:
                headers["Content-Length"] = str(request.content_length)
            if (request.content_length or 0) > max_body:
                return web.Response(status=413)
            to = f"http://{other[0]}:{other[1]}" if other is not None and request.method == "DELETE" else base
            async with session.request(
                request.method, to + request.raw_path, headers=headers, data=data, allow_redirects=False
            ) as answer:
                return await serve(request, answer)

        app = web.Application(client_max_size=2**30, handler_args={"handler_cancellation": True})
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


def fields(answer: aiohttp.ClientResponse) -> CIMultiDict[str]:
    """An answer's end-to-end fields."""
    return CIMultiDict((name, value) for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP)


async def stream(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """Pass on what arrives."""
    response = web.StreamResponse(status=answer.status, headers=fields(answer))
    await response.prepare(request)
    async for data in answer.content.iter_any():
        await response.write(data)
    return response


async def read_to_end(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """Pass it on once it is whole."""
    return web.Response(status=answer.status, headers=fields(answer), body=await answer.read())


def in_lumps(size: int) -> Serve:
    """Pass on each so many bytes together."""

    async def serve(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=fields(answer))
        await response.prepare(request)
        held = b""
        async for data in answer.content.iter_any():
            held += data
            if len(held) >= size:
                await response.write(held)
                held = b""
        await response.write(held)
        return response

    return serve


def caching() -> Serve:
    """Answer each path for ever as the first time."""
    known: dict[str, tuple[int, CIMultiDict[str], bytes]] = {}

    async def serve(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        if request.raw_path not in known:
            known[request.raw_path] = answer.status, fields(answer), await answer.read()
        status, headers, body = known[request.raw_path]
        return web.Response(status=status, headers=headers, body=body)

    return serve


NGINX = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
{user}
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{server};
            proxy_http_version {version};
            proxy_set_header Connection "";
            {more}
        }}
    }}
}}
"""

HAPROXY = """
global
    nbthread 1
defaults
    mode http
    {more}
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend clients
    bind 127.0.0.1:{port}
    default_backend proxy
backend proxy
    server proxy 127.0.0.1:{server}
"""


@asynccontextmanager
async def nginx(server: tuple[str, int], directory: Path, more: str, *, version: str = "1.1") -> AsyncIterator[str]:
    """An nginx in front of the proxy, with more in its location; `version` is that of HTTP towards the proxy."""
    program, (port,) = need("nginx"), free_ports(1)
    config = directory / "nginx.conf"
    # As root its worker would change to a user who may not write here.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(
        NGINX.format(directory=directory, port=port, server=server[1], more=more, user=user, version=version)
    )
    async with _running(port, program, "-p", str(directory), "-c", str(config)) as url:
        yield url


@asynccontextmanager
async def haproxy(server: tuple[str, int], directory: Path, more: str) -> AsyncIterator[str]:
    """A HAProxy in front of the proxy, with more in its defaults."""
    program, (port,) = need("haproxy"), free_ports(1)
    config = directory / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port, server=server[1], more=more))
    async with _running(port, program, "-db", "-f", str(config)) as url:
        yield url


@asynccontextmanager
async def _running(port: int, *command: Any) -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                assert process.returncode is None, "it ended"
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    # Nothing tells when it listens.
                    await asyncio.sleep(0.02)
                else:
                    writer.transport.abort()
                    break
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
