"""Vendors that fail in every way, and a service with routes over them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import struct
import termios
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from tests.conftest import SECRET
from tests.peers import LAST, STREAM_HEAD, WAIT_S, Message, Peer, chunk, event, only

if TYPE_CHECKING:
    import socket
    from types import TracebackType

    from tests.conftest import Running

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
ERROR = b'data: {"error":{"message":"overloaded","type":"server_error","code":"server_error"}}\n\n'
DONE = b"data: [DONE]\n\n"
PING = b": keep-alive\n\n"
BODY = b'{ "model" : "gpt-x",\t"stream": true, "messages": [ {"role":"user","content":"h\\u00e9"} ] }'


def words(name: str) -> bytes:
    """The vendor's whole answer, of which every byte is its own: each event has its name."""
    return ROLE + event(f"{name} one") + event(f"{name} two") + DONE


def error_answer(status: int, name: str, *fields: str) -> bytes:
    body = json.dumps({"error": {"message": f"no, says {name}", "code": "theirs"}}).encode()
    lines = [f"HTTP/1.1 {status} No", "Content-Type: application/json", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def answers(vendor: Vendor, peer: Peer) -> None:
    """A whole answer."""
    await peer.send(STREAM_HEAD + b"".join(chunk(part) for part in words(vendor.name).split(b"@")) + LAST)


def status(code: int, *fields: str) -> Any:
    """An error with that status."""

    async def answer(vendor: Vendor, peer: Peer) -> None:
        await peer.send(error_answer(code, vendor.name, *fields))

    return answer


async def says_error(vendor: Vendor, peer: Peer) -> None:
    """200, a preamble, then an error event."""
    await peer.send(STREAM_HEAD + chunk(PING) + chunk(ROLE) + chunk(ERROR) + chunk(DONE) + LAST)


async def is_empty(vendor: Vendor, peer: Peer) -> None:
    """200, a comment, and the end."""
    await peer.send(STREAM_HEAD + chunk(PING) + LAST)


async def loses(vendor: Vendor, peer: Peer) -> None:
    """Closes without a word, once the request is there."""
    peer.close()


async def loses_preamble(vendor: Vendor, peer: Peer) -> None:
    """Closes within the preamble."""
    await peer.send(STREAM_HEAD + chunk(ROLE))
    peer.close()


async def is_silent(vendor: Vendor, peer: Peer) -> None:
    """Never answers."""
    await peer.closed()


async def pings(vendor: Vendor, peer: Peer) -> None:
    """200 and a preamble; then only comments, for ever."""
    await peer.send(STREAM_HEAD + chunk(ROLE))
    while not peer.reader.at_eof():
        with contextlib.suppress(ConnectionError):
            await peer.send(chunk(PING))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await peer.reader.read(1)


async def breaks(vendor: Vendor, peer: Peer) -> None:
    """Breaks off after the first output."""
    await peer.send(STREAM_HEAD + chunk(ROLE) + chunk(event(f"{vendor.name} one")))
    peer.close()


@dataclass
class Vendor:
    """Serves each request by the next of `script`, then by the last of it."""

    name: str
    script: list[Any] = field(default_factory=lambda: [answers])
    asked: list[Message] = field(default_factory=list)
    open: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    peers: list[Peer] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for peer in self.peers:
            await peer.gone()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def keys(self) -> list[str]:
        """The keys with which it was asked."""
        return [(message.get("authorization") or "").removeprefix("Bearer ") for message in self.asked]

    async def stop(self) -> None:
        """Refuse connections."""
        self._server.close()
        await self._server.wait_closed()

    async def all_closed(self) -> None:
        """Wait until no connection is open."""
        async with asyncio.timeout(WAIT_S), self.changed:
            await self.changed.wait_for(lambda: not self.open)

    async def is_asked(self, count: int = 1) -> None:
        """Wait until that many requests have come."""
        async with asyncio.timeout(WAIT_S), self.changed:
            await self.changed.wait_for(lambda: len(self.asked) >= count)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self.peers.append(peer)
        task = asyncio.create_task(self._serve(peer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, peer: Peer) -> None:
        await self._change(1)
        try:
            while True:
                message = await peer.read_message()
                self.asked.append(message)
                await self._change(0)
                act = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                await act(self, peer)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass
        finally:
            peer.writer.transport.abort()
            await self._change(-1)

    async def _change(self, by: int) -> None:
        async with self.changed:
            self.open += by
            self.changed.notify_all()


def config(vendors: dict[str, str], routes: str, *, upstream: str = "", plan: str = "", more: str = "") -> str:
    """A file with one upstream for each vendor's url, and these routes; what is given replaces nothing."""
    lines = [
        "listen: 127.0.0.1:0",
        "admin_listen: 127.0.0.1:0",
        f'auth: {{jwt: [{{issuer: tests, audience: llm, algorithms: [HS256], secret: "{SECRET}"}}]}}',
        f"plans: {{default: {{requests: [100/1h], concurrent_streams: 8{plan}}}}}",
        "timeouts: {keep_alive: off}",
        "upstreams:",
    ]
    for name, url in vendors.items():
        lines.append(f"  {name}: {{url: {url}, dialect: openai, api_key: key-of-{name}{upstream}}}")
    lines += [f"default_upstream: {next(iter(vendors))}", "routes:", f"  - {routes}", more]
    return "\n".join(lines).replace("{", "{{").replace("}", "}}") + "\n"


async def has_read(proxy: Running, peer: Peer) -> None:
    """Wait until the proxy has read all that was sent to it on a vendor's connection."""
    address = peer.writer.get_extra_info("peername")
    socks = [connection._transport.get_extra_info("socket") for connection in proxy.service.pool._open]  # type: ignore[union-attr]
    (sock,) = [sock for sock in socks if sock.getsockname() == address]
    async with asyncio.timeout(WAIT_S):
        while unread(sock):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.001)


def unread(sock: socket.socket) -> int:
    """How many bytes have arrived at a socket that its process has not read."""
    (count,) = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, b"\0" * 4))
    return int(count)


async def line_of(proxy: Running, name: str) -> dict[str, Any]:
    """The one log line of that event, once the log's own thread has written it."""
    async with asyncio.timeout(WAIT_S):
        while not any(line["event"] == name for line in proxy.lines()):  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.005)
    return only(proxy.lines(), name)
