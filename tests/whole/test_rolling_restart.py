"""Two nodes behind a balancer, restarted one after the other under load: nobody is refused, no stream is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.mock.server import MockVendor
from tests.conftest import CONFIG, SECRET, token
from tests.limits.redis_support import RedisServer
from tests.needs import need
from tests.peers import WAIT_S, connect, request
from tests.whole.several import with_store
from tests.whole.test_commands import Served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the arbiter is run on Linux")

CLIENTS = 24
EVENTS = 12
INTERVAL_MS = 20

# TCP mode, as in front of a service that must see its clients' connections end: no retry once bytes were sent.
BALANCER = """
global
    maxconn 2000
    stats socket {commands} level admin
defaults
    mode tcp
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout check 1s
    retries 3
    option redispatch 1
frontend clients
    bind 127.0.0.1:{port}
    default_backend nodes
backend nodes
    balance roundrobin
    option httpchk GET /readyz
    default-server check inter 100ms fall 1 rise 1
    server one 127.0.0.1:{ports[0]} port {admin_ports[0]}
    server two 127.0.0.1:{ports[1]} port {admin_ports[1]}
"""


class Node:
    """A proxy on ports that stay its own over restarts."""

    def __init__(self, name: str, config: Path, port: int, admin_port: int, workers: int) -> None:
        self.name = name
        self.config = config
        self.port = port
        self.admin_port = admin_port
        self._workers = workers

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy", "serve", "--config", str(self.config), "--workers", str(self._workers)),
            stdout=asyncio.subprocess.PIPE,
        )
        self.served = Served(self.process, self.config)
        await self.served.line("server.started")
        self.reading = asyncio.create_task(self.served.rest())

    async def stop(self) -> int | None:
        """SIGTERM, and wait for its end."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(WAIT_S * 3):
            await self.reading
        return self.process.returncode

    def endings(self) -> list[str]:
        return [line["ending"] for line in self.served.lines if line["event"] == "exchange.settled"]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the system gives to connections; other ones in another run."""
    found: list[int] = []
    for port in range(21000 + os.getpid() % 1000 * 10, 32000):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
        if len(found) == count:
            break
    return found


@asynccontextmanager
async def balancer(tmp_path: Path, port: int, nodes: list[Node]) -> AsyncIterator[None]:
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        BALANCER.format(
            port=port,
            ports=[node.port for node in nodes],
            admin_ports=[node.admin_port for node in nodes],
            commands=tmp_path / "haproxy.sock",
        )
    )
    process = await asyncio.create_subprocess_exec("haproxy", "-db", "-q", "-f", str(config))
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(request("/healthz", method="GET", fields=(("Connection", "close"),)))
                    answer = await reader.read()
                    writer.close()
                    if answer.startswith(b"HTTP/1.1 200 "):
                        break
                except OSError:
                    await asyncio.sleep(0.05)
        yield
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize("is_told", [True, False], ids=["balancer is told", "drain_delay"])
@pytest.mark.parametrize("workers", [1, 2])
async def test_rolling_restart(tmp_path: Path, workers: int, *, is_told: bool) -> None:
    """Each node is drained and started again while clients stream: every request is served, every stream is whole."""
    need("haproxy")
    port, *ports = free_ports(5)
    failures: list[str] = []
    served = [0]
    is_over = asyncio.Event()
    endings: list[str] = []

    async def load() -> None:
        path = f"/main/v1/chat/completions?events={EVENTS}&interval_ms={INTERVAL_MS}"
        body = {"model": "gpt-x", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        while not is_over.is_set():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request(path, body, token=token(), fields=(("Connection", "close"),)))
                async with asyncio.timeout(WAIT_S * 2):
                    answer = await reader.read()
                writer.close()
            except (OSError, TimeoutError) as exc:
                failures.append(repr(exc))
                continue
            if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
                failures.append(repr(answer[:60] + b" ... " + answer[-60:]))
            served[0] += 1

    async def restarted(node: Node) -> None:
        if is_told:
            # As `preStop` is for: no more clients are sent, and those that were sent last have been accepted, in order.
            await _tell_balancer(tmp_path, node, "drain")
            async with await connect(("127.0.0.1", node.port)) as last:
                last.write(request("/healthz", method="GET"))
                assert (await last.read_message()).status == 200
        assert await node.stop() == 0
        endings.extend(node.endings())
        await node.start()
        if is_told:
            await _tell_balancer(tmp_path, node, "ready")
        async with asyncio.timeout(WAIT_S):
            # Until the balancer sends it clients again.
            while not (await _requests(node)):  # noqa: ASYNC110 - the other process counts
                await asyncio.sleep(0.05)

    async with AsyncExitStack() as stack:
        vendor = await stack.enter_async_context(MockVendor())
        server = RedisServer()
        stack.callback(server.close)
        await server.start()
        nodes = []
        for index in range(2):
            config = tmp_path / f"node{index}.yaml"
            text = CONFIG.format(secret=SECRET, url=f"http://127.0.0.1:{vendor.port}", key="mock-key")
            text = text.replace("listen: 127.0.0.1:0\n", f"listen: 127.0.0.1:{ports[index]}\n", 1)
            text = text.replace("admin_listen: 127.0.0.1:0", f"admin_listen: 127.0.0.1:{ports[2 + index]}")
            # Ten of the balancer's checks.
            delay = "" if is_told else "drain_delay: 1s\n"
            config.write_text(text + delay + "plans: {default: {}}\n" + with_store(f"unix://{server.path}"))
            node = Node(("one", "two")[index], config, ports[index], ports[2 + index], workers)
            await node.start()
            stack.push_async_callback(node.stop)
            nodes.append(node)
        await stack.enter_async_context(balancer(tmp_path, port, nodes))
        loading = [asyncio.create_task(load()) for _ in range(CLIENTS)]
        for node in nodes * 2:
            count = served[0]
            await restarted(node)
            assert served[0] > count
        is_over.set()
        await asyncio.gather(*loading)
        for node in nodes:
            await node.stop()
            endings.extend(node.endings())

    assert failures == []
    assert served[0] > CLIENTS * 4
    assert set(endings) == {"complete"}
    assert len(endings) == served[0]


async def _tell_balancer(tmp_path: Path, node: Node, state: str) -> None:
    """Set a node's state with the balancer's own command."""
    reader, writer = await asyncio.open_unix_connection(tmp_path / "haproxy.sock")
    writer.write(f"set server nodes/{node.name} state {state}\n".encode())
    assert (await reader.read()).strip() == b""
    writer.close()


async def _requests(node: Node) -> float:
    async with await connect(("127.0.0.1", node.admin_port)) as admin:
        admin.write(request("/metrics", method="GET"))
        text = (await admin.read_message()).body.decode()
    lines = [line for line in text.splitlines() if line.startswith("forward_sse_requests_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)
