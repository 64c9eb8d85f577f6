"""Runs the benchmark's own programs, and a server that answers as a proxy at fault would."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import subprocess
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

NATIVE = Path(__file__).parents[2] / "benchmarks" / "native"
WAIT_S = 30

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
DELTA = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":0,"model":"bench",'
    b'"choices":[{"index":0,"delta":%s,"finish_reason":%s}]}\n\n'
)
STOP = DELTA % (b"{}", b'"stop"')
DONE = b"data: [DONE]\n\n"
LAST = b"0\r\n\r\n"


class Asked(NamedTuple):
    """What one request asked for, and where it came from."""

    id: int
    events: int
    size: int
    connection: int
    address: str


class Answer(NamedTuple):
    """The bytes of one answer, in the pieces to be written, and what happens to the connection after them."""

    pieces: list[bytes]
    after: str = "keep"


class Load:
    """Runs the load generator; its lines are read as they come."""

    def __init__(self, program: Path) -> None:
        self._program = program

    async def start(self, port: int, mode: str, **options: Any) -> asyncio.subprocess.Process:
        flags = [name for name, value in options.items() if value is True]
        values = [text for name, value in options.items() if value is not True for text in (f"--{name}", str(value))]
        arguments = [text.replace("_", "-") for text in ("--mode", mode, *(f"--{name}" for name in flags), *values)]
        return await asyncio.create_subprocess_exec(
            self._program, "--port", str(port), *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    async def __call__(self, port: int, mode: str = "request", **options: Any) -> Any:
        """The result of a run that goes on to its end."""
        process = await self.start(port, mode, **options)
        async with asyncio.timeout(WAIT_S):
            output, errors = await process.communicate()
        assert process.returncode == 0, errors
        return json.loads(output.splitlines()[-1])


async def talk(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer to one request on a connection of its own."""
    async with asyncio.timeout(WAIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        body = await (reader.readexactly(int(length[1])) if length else reader.read())
        writer.close()
        await writer.wait_closed()
    return head, body


async def ask(port: int, path: str, method: str = "GET") -> Any:
    _, body = await talk(port, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return json.loads(body)


async def settled(port: int) -> dict[str, Any]:
    """The upstream's counts once no stream runs any more."""
    async with asyncio.timeout(WAIT_S):
        while True:
            stats: dict[str, Any] = await ask(port, "/bench/stats")
            if not stats["active"]:
                return stats


def event(seq: int, size: int = 0, ns: int | None = None) -> bytes:
    marker = f"@{seq},{time.monotonic_ns() if ns is None else ns}@".ljust(size, "~")
    return DELTA % (b'{"content":"%s"}' % marker.encode(), b"null")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def chunks(*parts: bytes) -> list[bytes]:
    return [chunk(part) for part in parts]


def right(asked: Asked) -> list[bytes]:
    """The body that the upstream would have sent."""
    return [*(event(seq, asked.size) for seq in range(asked.events)), STOP, DONE]


@asynccontextmanager
async def scripted(script: Callable[[Asked], Answer]) -> AsyncIterator[int]:
    """The port of a server that answers as a proxy that is at fault would."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        number = connections
        writer.transport.set_write_buffer_limits(0)  # a piece has left when it is drained
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"Content-Length: (\d+)", head)
                assert length is not None
                body = (await reader.readexactly(int(length[1]))).decode()
                tokens = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", body)}
                address = writer.get_extra_info("peername")[0]
                answer = script(Asked(tokens["id"], tokens["events"], tokens["size"], number, address))
                for piece in answer.pieces:
                    writer.write(piece)
                    await writer.drain()
                if answer.after == "reset":
                    connection = writer.get_extra_info("socket")
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if answer.after != "keep":
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the load generator is done with this connection
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def check_times(result: dict[str, Any]) -> None:
    """Every figure is there, none is negative, and they stand in order."""
    delay = result["delay_us"]
    assert 0 <= delay["p50"] <= delay["p99"] <= delay["max"] < WAIT_S * 1e6
    assert 0 < result["ttfb_us"]["p50"] <= result["ttfb_us"]["p99"]
    assert result["wall_s"] > 0
