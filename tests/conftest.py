"""Fixtures for every room: an app on real sockets, its log, tokens, and a scripted upstream."""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import jwt
import pytest
import structlog
from hypothesis import HealthCheck, settings

from proxy.observability.logging import Redactor, configure
from proxy.server.listen import Server
from proxy.server.run import new_event_loop
from proxy.settings.loading import load
from tests.peers import WAIT_S, Peer, Upstream, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    Start = Callable[..., Any]

# The same examples each time, and none is judged by how long it took: the machine may be busy with something else.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

SECRET = "a-secret-of-the-tests-that-is-long-enough"
VENDOR_KEY = "vendor-key-canary-7c1f"


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    """Run every test on the loop that the product runs on."""
    return {"product": new_event_loop}


def token(user: str = "alice", **claims: Any) -> str:
    """A token of the tests' issuer; a claim of None is left out."""
    now_s = int(time.time())
    base: dict[str, Any] = {"iss": "tests", "aud": "llm", "sub": user, "iat": now_s, "exp": now_s + 3600}
    base |= claims
    return jwt.encode({name: value for name, value in base.items() if value is not None}, SECRET, algorithm="HS256")


CONFIG = """
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
auth:
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}"}}
upstreams:
  main:
    url: {url}
    dialect: openai
    api_key: {key}
    models: ["gpt-*"]
default_upstream: main
"""


class Running:
    """An app that runs in the test's loop, and what the tests ask it."""

    def __init__(self, server: Server, log: Path) -> None:
        self.server = server
        self.service = server.service
        self._log = log
        self._peers: list[Peer] = []

    @property
    def address(self) -> tuple[str, int]:
        assert self.server.listen is not None
        return self.server.listen

    @property
    def admin_address(self) -> tuple[str, int]:
        assert self.server.admin_listen is not None
        return self.server.admin_listen

    async def client(self, *, receive_buffer: int | None = None) -> Peer:
        return await self._connect(self.address, receive_buffer)

    async def admin(self) -> Peer:
        return await self._connect(self.admin_address, None)

    async def _connect(self, address: tuple[str, int], receive_buffer: int | None) -> Peer:
        peer = await connect(address, receive_buffer=receive_buffer)
        self.note(peer)
        return peer

    def note(self, peer: Peer) -> None:
        """Have a client leave when the test ends."""
        self._peers.append(peer)

    async def close(self) -> None:
        """Leave as every client, then close the app."""
        for peer in self._peers:
            await peer.gone()
        await self.server.close()

    async def idle(self) -> None:
        """Wait until no exchange runs."""
        async with asyncio.timeout(WAIT_S):
            await self.service.exchanges.idle()

    @property
    def leases_held(self) -> int:
        return self.service.store.leases_held

    async def settled(self, count: int = 1) -> list[dict[str, Any]]:
        """The lines of that many exchanges, once they are written."""
        await self.idle()
        async with asyncio.timeout(WAIT_S):
            # The log's own thread writes to a file; there is no event to wait for.
            while len(lines := [line for line in self.lines() if line["event"] == "exchange.settled"]) < count:  # noqa: ASYNC110 - as said
                await asyncio.sleep(0.005)
        assert len(lines) == count, lines
        return lines

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_bytes().splitlines()]

    def log_bytes(self) -> bytes:
        return self._log.read_bytes()


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[tuple[Path, Redactor]]:
    """Where structlog writes during the test."""
    path = tmp_path / "log.jsonl"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    redactor = Redactor()
    writer = configure(format_="json", level="info", redactor=redactor, descriptor=descriptor)
    yield path, redactor
    writer.close()
    os.close(descriptor)
    structlog.reset_defaults()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """A scripted vendor."""
    async with Upstream() as vendor:
        yield vendor


@asynccontextmanager
async def starter(tmp_path: Path, log_file: tuple[Path, Redactor], upstream: Upstream) -> AsyncIterator[Start]:
    """Start apps on demand, and close them in the end."""
    async with AsyncExitStack() as stack:

        async def begin(
            more: str = "", *, config: str = CONFIG, environ: dict[str, str] | None = None, **overrides: Any
        ) -> Running:
            path = tmp_path / "proxy.yaml"
            path.write_text(config.format(secret=SECRET, url=upstream.url, key=VENDOR_KEY) + more)
            server = Server(load(path, environ or {}, overrides=overrides), log_file[1])
            await server.open()
            running = Running(server, log_file[0])
            stack.push_async_callback(running.close)
            return running

        yield begin


@pytest.fixture
async def start(tmp_path: Path, log_file: tuple[Path, Redactor], upstream: Upstream) -> AsyncIterator[Start]:
    """Start an app with more YAML appended to the tests' own, or with a whole other file."""
    async with starter(tmp_path, log_file, upstream) as begin:
        yield begin


@pytest.fixture
async def proxy(start: Callable[..., Any]) -> Running:
    """An app with the tests' own configuration."""
    return await start()  # type: ignore[no-any-return]  # the factory's options are open
