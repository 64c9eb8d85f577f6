"""Proxies of other makers, as processes on free ports: tinyproxy and microsocks on the way out, nginx on the way in."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from tests.needs import need
from tests.peers import WAIT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

USER, PASSWORD = "proxy-user", "proxy-password-canary-55e1"


def free_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def _process(port: int, *command: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                # Neither says when it listens.
                with contextlib.suppress(ConnectionError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.transport.abort()
                    break
                await asyncio.sleep(0.02)
        yield
    finally:
        process.kill()
        await process.wait()


class Tinyproxy:
    """A tinyproxy that demands credentials, and its log."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder

    def url(self, password: str | None = PASSWORD) -> str:
        """Its URL with these credentials, or none."""
        who = "" if password is None else f"{USER}:{password}@"
        return f"http://{who}127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[Tinyproxy]:
        config = self._folder / "tinyproxy.conf"
        config.write_text(
            f"Port {self.port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 50\nBasicAuth {USER} {PASSWORD}\n"
            f'LogFile "{self._folder}/tinyproxy.log"\nLogLevel Connect\n'
        )
        async with _process(self.port, need("tinyproxy"), "-d", "-c", str(config)):
            yield self

    def asked(self) -> list[str]:
        """The request lines that it logged."""
        lines = (self._folder / "tinyproxy.log").read_text().splitlines()
        return [line.partition("): ")[2] for line in lines if "): CONNECT" in line]


class Microsocks:
    """A microsocks that demands credentials."""

    def __init__(self) -> None:
        self.port = free_port()

    def url(self, password: str | None = PASSWORD) -> str:
        """Its URL with these credentials, or none."""
        who = "" if password is None else f"{USER}:{password}@"
        return f"socks5://{who}127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[Microsocks]:
        command = [need("microsocks"), "-i", "127.0.0.1", "-p", str(self.port), "-u", USER, "-P", PASSWORD]
        async with _process(self.port, *command):
            yield self


NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/temp;
    fastcgi_temp_path {folder}/temp;
    uwsgi_temp_path {folder}/temp;
    scgi_temp_path {folder}/temp;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        location / {{
            proxy_pass http://127.0.0.1:{behind};
            proxy_http_version 1.1;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


@contextlib.asynccontextmanager
async def nginx(folder: Path, certificate: Path, behind: int) -> AsyncIterator[int]:
    """The port of an nginx that ends TLS in front of a port of this machine, as its documentation has it."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, certificate=certificate, behind=behind))
    async with _process(port, need("nginx"), "-e", str(folder / "nginx-error.log"), "-c", str(config)):
        yield port
