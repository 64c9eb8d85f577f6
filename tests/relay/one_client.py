"""A relay without a network: a vendor's connection, a client's, and the response between them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import StreamWriter
from aiohttp.test_utils import make_mocked_request

from proxy.protocol.sse_observer import EventStreamObserver
from proxy.relay.passthrough import Passthrough
from proxy.relay.response import Framing, RelayResponse
from proxy.relay.timeouts import StreamTimeouts
from proxy.timers import DeadlineTimer
from proxy.upstream.connection import Connection
from tests.upstream.wire import Wire

if TYPE_CHECKING:
    from proxy.model import Ending
    from proxy.upstream.response import UpstreamResponse

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
NO_TIMEOUTS = StreamTimeouts(None, None, None, None)


def error_event(code: str, message: str) -> bytes:
    return f'data: {{"error":{{"code":"{code}"}}}}\n\n'.encode()


async def turns(count: int = 5) -> None:
    """Let the loop run what is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


class _Protocol(BaseProtocol):
    """With the attributes that a request reads of its connection's protocol."""

    ssl_context = peername = sockname = None


class OneClient:
    """A client's connection as aiohttp sees it; whether it keeps up is the test's to say."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.wire = Wire()
        self.protocol = _Protocol(loop)
        self.protocol.connection_made(cast("asyncio.Transport", self.wire))
        self.request = make_mocked_request(
            "POST",
            "/forward-sse",
            protocol=self.protocol,
            transport=self.wire,
            writer=StreamWriter(self.protocol, loop),
        )

    def fall_behind(self, unsent: int = 1000) -> None:
        """As asyncio tells a protocol whose transport could not write everything."""
        self.wire.unsent = unsent
        self.protocol.pause_writing()

    def catch_up(self) -> None:
        self.wire.unsent = 0
        self.protocol.resume_writing()

    @property
    def body(self) -> bytes:
        """What was written behind the head, chunks and all."""
        return self.wire.written.partition(b"\r\n\r\n")[2]


class OneRelay:
    """One response that runs, from a vendor's reads to what the client is given."""

    def __init__(self) -> None:
        self.client = OneClient()
        self.vendor = Wire()
        self.connection = Connection(upstream="main", key=None, on_idle=lambda _one: None, on_closed=lambda _one: None)
        self.connection.connection_made(cast("asyncio.Transport", self.vendor))
        self.timers = DeadlineTimer(asyncio.get_running_loop(), tick_s=3600)
        self.response: RelayResponse
        self.running: asyncio.Task[None]

    async def begin(
        self, *reads: bytes, timeouts: StreamTimeouts = NO_TIMEOUTS, framing: Framing = "chunked", status: int = 200
    ) -> RelayResponse:
        """Relay the first reads; returns when they are written."""
        asked = self.connection.send(b"", b"", is_head_request=False)
        self.hear(*reads)
        upstream: UpstreamResponse = await asked
        transform = Passthrough(status=status, observer=EventStreamObserver(), error_event=error_event)
        self.response = RelayResponse(
            status=status, headers=[("Content-Type", "text/event-stream")], framing=framing, length=upstream.length
        )
        self.running = asyncio.create_task(
            self.response.run(self.client.request, upstream, transform, timeouts=timeouts, timers=self.timers)
        )
        await turns()
        return self.response

    def hear(self, *reads: bytes) -> None:
        for read in reads:
            self.connection.data_received(read)

    async def end(self) -> Ending | None:
        """Wait for the handler's part, then write the body's end as aiohttp does."""
        await self.running
        await self.response.write_eof()
        self.timers.close()
        return self.response.ending
