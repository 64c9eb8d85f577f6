"""A client of the mock that sees every byte: nothing is parsed that a test wants to look at."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxy.mock.server import MockVendor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CREATED = 1_750_000_000
PROMPT = {"model": "mock-1", "messages": [{"role": "user", "content": "say something"}]}
CHAT = "/v1/chat/completions"
BEARER = {"Authorization": "Bearer mock-key"}
# Generous: only a defect ever waits this long.
TIMEOUT_S = 10


def vendor_of_tests(**options: Any) -> MockVendor:
    """A vendor whose clock stands still, so that its answers are the same every time."""
    return MockVendor(clock=lambda: float(CREATED), **options)


@dataclass(frozen=True)
class Response:
    """A whole answer; `chunks` as they were framed, one element where the length was given."""

    status: int
    fields: dict[str, str]
    chunks: list[bytes]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def data(self) -> list[Any]:
        """The JSON of every data line."""
        lines = [line for line in self.body.splitlines() if line.startswith(b"data:")]
        return [json.loads(line[5:]) for line in lines if b"[DONE]" not in line]


def request(
    path: str,
    body: object = None,
    headers: dict[str, str] | None = None,
    *,
    method: str = "POST",
    version: str = "1.1",
    closes: bool = True,
) -> bytes:
    """A request as bytes; a body that is not bytes goes as JSON."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Host": "mock", "Content-Length": str(len(content)), **(BEARER if headers is None else headers)}
    if closes:
        fields["Connection"] = "close"
    head = [f"{method} {path} HTTP/{version}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*head, "", ""]).encode() + content


class RawClient:
    """A TCP connection to the mock; `received` is what came so far, `reads` how it came."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = bytearray()
        self.reads: list[bytes] = []

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.connection, data)

    async def read(self) -> bytes:
        """The next read, empty at the end; a reset raises."""
        async with asyncio.timeout(TIMEOUT_S):
            data = await asyncio.get_running_loop().sock_recv(self.connection, 65536)
        self.received += data
        self.reads.append(data)
        return data

    async def read_until(self, wanted: bytes) -> None:
        while wanted not in self.received:
            assert await self.read(), f"ended before {wanted!r}: {self.received!r}"

    async def read_all(self) -> bytes:
        while await self.read():
            pass
        return bytes(self.received)


@asynccontextmanager
async def connected(vendor: MockVendor) -> AsyncIterator[RawClient]:
    """A connection that is closed at the end, if the test has not done it."""
    connection = socket.socket()
    connection.settimeout(0)  # what the loop needs
    try:
        await asyncio.get_running_loop().sock_connect(connection, (vendor.host, vendor.port))
        yield RawClient(connection)
    finally:
        connection.close()


async def ask(vendor: MockVendor, path: str, body: object = None, headers: dict[str, str] | None = None) -> Response:
    """POST, or GET where there is no body, and read the whole answer, which must be whole."""
    async with connected(vendor) as client:
        await client.send(request(path, body, headers, method="GET" if body is None else "POST"))
        return parse(await client.read_all())


def parse(received: bytes) -> Response:
    """Take a whole answer apart; one that is torn fails the test."""
    head, _, rest = received.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    chunks = [rest]
    if fields.get("transfer-encoding") == "chunked":
        chunks = dechunk(rest)
        assert chunks.pop() == b"", "the final chunk is missing"
    elif "content-length" in fields:
        assert len(rest) == int(fields["content-length"])
    return Response(int(status_line.split(" ")[1]), fields, chunks)


def dechunk(framed: bytes) -> list[bytes]:
    """The chunks of a body that is framed well as far as it goes; the final one is empty."""
    chunks: list[bytes] = []
    position = 0
    while position < len(framed):
        line_end = framed.index(b"\r\n", position)
        start = line_end + 2
        end = start + int(framed[position:line_end], 16)
        chunks.append(framed[start:end])
        assert framed[end : end + 2] == b"\r\n"
        position = end + 2
    return chunks
