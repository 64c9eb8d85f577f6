"""Requests whose body is sent piece by piece, on connections of their own.

By hand, because what is wanted is what an HTTP client hides: an answer that comes before the body was sent.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from multidict import CIMultiDict

from proxy.cli.doctor.way import AGENT, UNANSWERED, NoAnswerError, why
from proxy.protocol.verify_flags import set_verify_flags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.cli.doctor.way import Way


@dataclass
class Sent:
    """An answer to a request of which the body was sent piece by piece. `before_end`: it came before all was sent."""

    status: int
    headers: Mapping[str, str]
    before_end: bool


async def send(
    way: Way, path: str, size: int, *, headers: Mapping[str, str], patience_s: float, hold: bool = False
) -> Sent:
    """Send a body of spaces that ends in `[]`, on a connection of its own, and give the answer's head.

    With `hold` one byte is sent, and the rest only when no answer came for `patience_s`; else everything is sent, and
    the answer may come meanwhile.

    Raises:
        NoAnswerError: none came.
    """
    context = set_verify_flags(ssl.create_default_context()) if way.is_tls else None
    lines = [f"POST {way.path}{path} HTTP/1.1", f"Host: {way.netloc}", f"User-Agent: {AGENT}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += ["Content-Type: application/json", f"Content-Length: {size}", "Connection: close"]
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    writer: asyncio.StreamWriter | None = None
    tasks: list[asyncio.Task[Any]] = []
    try:
        async with asyncio.timeout(patience_s):
            reader, writer = await asyncio.open_connection(way.host, way.port, ssl=context)
        writer.write(head + b" ")
        answering = asyncio.create_task(_read_head(reader))
        tasks.append(answering)
        if hold:
            await asyncio.wait([answering], timeout=patience_s)
        before_end = answering.done()
        if not before_end:
            sending = asyncio.create_task(_send_rest(writer, size - 1))
            tasks.append(sending)
            await asyncio.wait([answering, sending], timeout=patience_s * 10, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([answering], timeout=patience_s)
        if not answering.done():
            raise NoAnswerError(f"no answer within {patience_s:g} s")
        status, fields = answering.result()
    except UNANSWERED as exc:
        raise NoAnswerError(why(exc)) from exc
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.exception()
        if writer is not None:
            writer.transport.abort()
    way.note(fields)
    return Sent(status, fields, before_end)


async def _send_rest(writer: asyncio.StreamWriter, size: int) -> None:
    piece = b" " * 65536
    try:
        for _ in range((size - 2) // len(piece)):
            writer.write(piece)
            await writer.drain()
        writer.write(b" " * ((size - 2) % len(piece)) + b"[]")
        await writer.drain()
    except OSError:
        # The answer, if any, is read on.
        await asyncio.sleep(0)


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, Mapping[str, str]]:
    """The first head that is not interim."""
    while True:
        start, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].decode("latin-1").split("\r\n")
        status = int(start.partition(" ")[2][:3])
        if status >= 200:  # noqa: PLR2004 - RFC 9110 §15.2: what is below is interim
            pairs = (line.partition(":") for line in lines)
            return status, CIMultiDict((name.strip(), value.strip()) for name, _, value in pairs if name)
