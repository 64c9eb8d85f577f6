"""Scripted peers over real sockets: the client and the upstream on either side of the proxy, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

WAIT_S = 30.0


def event(text: str) -> bytes:
    """One event of an OpenAI-shaped stream."""
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST = b"0\r\n\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Message:
    """A request or an answer as it was on the wire."""

    start: str
    fields: list[tuple[str, str]]
    body: bytes = b""
    is_whole: bool = True
    chunks: list[bytes] = field(default_factory=list)

    def get(self, name: str) -> str | None:
        """The one value of a field."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name.lower()]

    @property
    def status(self) -> int:
        return int(self.start.split(" ")[1])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Peer:
    """One end of a connection; every wait is bounded."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.seen = b""

    async def gone(self) -> None:
        """Leave, and wait until the socket is closed: a test leaves none behind."""
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(WAIT_S):
            self.writer.write(data)
            await self.writer.drain()

    async def read_until(self, mark: bytes) -> bytes:
        """Everything up to and including `mark`."""
        async with asyncio.timeout(WAIT_S):
            data = await self.reader.readuntil(mark)
        self.seen += data
        return data

    async def read_exactly(self, size: int) -> bytes:
        async with asyncio.timeout(WAIT_S):
            data = await self.reader.readexactly(size)
        self.seen += data
        return data

    async def read_to_end(self) -> bytes:
        """Everything until the other side's end; a reset is an end too."""
        data = b""
        async with asyncio.timeout(WAIT_S):
            try:
                while piece := await self.reader.read(65536):
                    data += piece
            except ConnectionError:
                pass
        self.seen += data
        return data

    async def closed(self) -> None:
        """Wait until the other side is gone."""
        await self.read_to_end()

    async def read_head(self) -> Message:
        head = (await self.read_until(b"\r\n\r\n")).decode("latin-1")
        start, *lines = head[:-4].split("\r\n")
        return Message(start, [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)])

    async def read_message(self, *, has_body: bool = True) -> Message:
        """A whole message; one that breaks off has `is_whole` false and what came of its body."""
        message = await self.read_head()
        if not has_body or message.start.split(" ")[1] in {"204", "304"}:
            return message
        length = message.get("content-length")
        try:
            if (message.get("transfer-encoding") or "").lower() == "chunked":
                while True:
                    size = int((await self.read_until(b"\r\n")).split(b";")[0], 16)
                    data = await self.read_exactly(size)
                    await self.read_exactly(2)
                    if size == 0:
                        break
                    message.chunks.append(data)
                    message.body += data
            elif length is not None:
                message.body = await self.read_exactly(int(length))
            elif message.start.startswith("HTTP/"):
                message.body = await self.read_to_end()
        except asyncio.IncompleteReadError as exc:
            message.is_whole = False
            message.body += exc.partial
        except ConnectionError:
            message.is_whole = False
        return message

    def reset(self) -> None:
        """Leave without a word: RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        """Leave: FIN."""
        self.writer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.gone()


async def connect(address: tuple[str, int], *, receive_buffer: int | None = None) -> Peer:
    """A client's connection; a small receive buffer makes a slow reader felt soon."""
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    sock.setblocking(False)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        async with asyncio.timeout(WAIT_S):
            await asyncio.get_running_loop().sock_connect(sock, address)
            return Peer(*await asyncio.open_connection(sock=sock, limit=receive_buffer or 2**16))
    except BaseException:
        sock.close()
        raise


class Upstream:
    """A vendor whose every byte the test writes. `await accept()` is the next connection that the proxy made."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Peer] = asyncio.Queue()
        self.peers: list[Peer] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address: tuple[str, int] = self._server.sockets[0].getsockname()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for peer in self.peers:
            await peer.gone()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self.peers.append(peer)
        self._waiting.put_nowait(peer)

    async def accept(self) -> Peer:
        async with asyncio.timeout(WAIT_S):
            return await self._waiting.get()

    async def take(self) -> tuple[Peer, Message]:
        """The next connection and its first request."""
        peer = await self.accept()
        return peer, await peer.read_message()

    @property
    def is_untouched(self) -> bool:
        """Whether the proxy never connected."""
        return not self.peers


def request(
    path: str = "/forward-sse",
    body: bytes | dict[str, Any] | None = None,
    *,
    method: str = "POST",
    token: str | None = None,
    fields: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """A request's bytes."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    lines += [f"{name}: {value}" for name, value in fields]
    if data is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (data or b"")


def only(lines: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The one log line of that event."""
    found = [line for line in lines if line["event"] == name]
    assert len(found) == 1, f"{len(found)} lines of {name}: {lines}"
    return found[0]


def secret_free(data: bytes, *secrets: str) -> bool:
    """Whether none of the secrets stands in the bytes, in any case."""
    return not any(re.search(re.escape(secret.encode()), data, re.IGNORECASE) for secret in secrets)


async def until(condition: Callable[[], bool], changed: asyncio.Condition) -> None:
    """Wait for a condition that is announced."""
    async with asyncio.timeout(WAIT_S), changed:
        await changed.wait_for(condition)


def read_events(data: bytes) -> list[tuple[str, str]]:
    """What an `EventSource` dispatches of a whole body: names and data (WHATWG HTML §9.2.6)."""
    text = data.decode("utf-8", "replace").removeprefix("\ufeff")
    *lines, _unfinished = re.split("\r\n|\r|\n", text)
    found: list[tuple[str, str]] = []
    name, values = "", list[str]()
    for line in lines:
        if not line:
            if values:
                found.append((name or "message", "\n".join(values)))
            name, values = "", []
            continue
        field_name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field_name == "event":
            name = value
        elif field_name == "data":
            values.append(value)
    return found
