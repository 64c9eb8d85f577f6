"""What thousands of silent streams cost, measured on the real process."""

from __future__ import annotations

import asyncio
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import token
from tests.peers import STREAM_HEAD, Upstream, chunk, event, request
from tests.whole.test_commands import serve

if TYPE_CHECKING:
    from collections.abc import Callable

STREAMS = 3000
# aiohttp has a task a connection and one a request, and keeps what it has parsed of a request that is being served.
# Python 3.12 and later take some 3 MiB more to begin with.
MAX_KIB = (140 if sys.version_info < (3, 12) else 144) * 1024
NO_LIMIT = "plans:\n  default: {requests: [100000/1s], concurrent_streams: 10000}\n"
FIRST = chunk(event("one"))


class Vendor(asyncio.Protocol):
    """Answers every request with the head of a stream and one event, then says nothing."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"}"):
            self.transport.write(STREAM_HEAD + FIRST)  # type: ignore[attr-defined]  # uvloop's is no asyncio.Transport


class Client(asyncio.Protocol):
    """Asks for a stream, and tells when its first event has come."""

    def __init__(self, asking: bytes, streaming: Callable[[], None]) -> None:
        self.asking = asking
        self.streaming = streaming
        self.seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self.asking)  # type: ignore[attr-defined]  # as above

    def data_received(self, data: bytes) -> None:
        self.seen += data
        if self.seen.endswith(FIRST):
            self.streaming()


def resident_kib(pid: int) -> int:
    """The memory of a process, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_held_streams_memory(tmp_path: Path, upstream: Upstream) -> None:
    """3,000 streams held by one worker cost less than `MAX_KIB` in all, the process itself included."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * STREAMS)), hard))
    loop = asyncio.get_running_loop()
    vendor = await loop.create_server(Vendor, "127.0.0.1", 0, backlog=STREAMS)
    upstream.address = vendor.sockets[0].getsockname()
    asking = request(body={"model": "gpt-x"}, token=token())
    streaming = asyncio.Semaphore(0)
    async with serve(tmp_path, upstream, NO_LIMIT) as (served, address):
        clients = []
        for _ in range(STREAMS // 100):
            clients += await asyncio.gather(
                *(loop.create_connection(lambda: Client(asking, streaming.release), *address) for _ in range(100))
            )
        async with asyncio.timeout(60):
            for _ in range(STREAMS):
                await streaming.acquire()
        held_kib = resident_kib(served.process.pid)
        for transport, _ in clients:
            transport.abort()
    vendor.close()
    await vendor.wait_closed()

    assert held_kib < MAX_KIB
