"""Sending an answer at its pace, with its fault: bytes written straight to the transport, so that none is hidden.

The connection is watched elsewhere: whoever runs `send` cancels it when the client goes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

from proxy.mock.controls import Fault, Newline

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from proxy.mock.answer import Answer
    from proxy.mock.controls import Controls

# A response head written a byte at a time and no pace asked for: about ten seconds.
SLOW_HEADERS_INTERVAL_MS = 50
# No status line, and no length of a chunk either.
GARBAGE = b"\x00\xff this is not HTTP \xfe\r\n\r\n"

_FINAL_CHUNK = b"0\r\n\r\n"
# What ends the answer; `split` and `slow_headers` only deform it.
_ENDING_FAULTS = frozenset({Fault.RESET, Fault.STALL, Fault.TRUNCATE, Fault.GARBAGE})


class Sender:
    """Sends one answer on one connection.

    `drain` waits until the transport has room; its limit is set to zero here, so that an event is written when the
    one before has left, memory stays constant, and what went before a fault is on the wire when the fault comes.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        drain: Callable[[], Awaitable[None]],
        controls: Controls,
        *,
        is_http_1_0: bool,
        keeps_alive: bool,
    ) -> None:
        transport.set_write_buffer_limits(high=0)
        self._transport = transport
        self._drain = drain
        self._controls = controls
        self._is_http_1_0 = is_http_1_0
        self._keeps_alive = keeps_alive and not is_http_1_0
        self._is_splitting = False

    async def send(self, answer: Answer, *, received_at: float) -> bool:
        """Send the answer; true when the connection can be used again, else the caller closes it.

        Takes as long as the controls and the client's reading say, for ever when told to stall. `received_at` is the
        monotonic time at which the request came. Cancelling leaves a torn answer, as a client's leaving does.
        """
        controls = self._controls
        await asyncio.sleep(controls.first_byte_ms / 1000)
        if self._is_due(0) and controls.fault in _ENDING_FAULTS:
            return await self._strike()
        pieces: Iterable[bytes] = map(self._with_newlines(answer), answer.pieces)
        length = None
        if not answer.is_stream:
            pieces = halves = self._halved(pieces)
            length = sum(map(len, halves))
        await self._send_head(answer, length, received_at)
        if not await self._send_pieces(answer, pieces, _chunk if self._is_chunked(length) else bytes):
            return False
        if self._is_chunked(length):
            self._transport.write(_FINAL_CHUNK)
        await self._drain()
        return self._keeps_alive

    async def _send_pieces(self, answer: Answer, pieces: Iterable[bytes], frame: Callable[[bytes], bytes]) -> bool:
        """Send the body; false when a fault ended the answer."""
        fault = self._controls.fault
        sent = 0
        upcoming = iter(pieces)
        piece = next(upcoming, None)
        while piece is not None and not (fault is Fault.ERROR_EVENT and self._is_due(sent)):
            following = next(upcoming, None)
            if sent:
                # Where there is no pace, the loop still turns: a client's leaving must be seen.
                await asyncio.sleep(self._controls.interval_ms / 1000)
            # The end follows the last event without a pause, or a client that knows the end by it could leave in
            # between and be counted as cancelled.
            await self._write(frame(piece), waits=following is not None)
            sent += 1
            if self._is_due(sent) and fault in _ENDING_FAULTS:
                return await self._strike()
            self._is_splitting |= self._is_due(sent) and fault is Fault.SPLIT
            piece = following
        if fault is Fault.ERROR_EVENT and self._is_due(sent) and answer.error_event is not None:
            event = self._with_newlines(answer)(answer.error_event(sent))
            await self._write(frame(event), waits=False)
        return True

    def _is_due(self, sent: int) -> bool:
        return sent == self._controls.fault_after

    def _halved(self, pieces: Iterable[bytes]) -> tuple[bytes, ...]:
        """A JSON body; in two halves where a fault is to strike, so that there is a middle for it."""
        body = b"".join(pieces)
        if self._controls.fault is None:
            return (body,)
        middle = len(body) // 2
        return (body[:middle], body[middle:])

    def _with_newlines(self, answer: Answer) -> Callable[[bytes], bytes]:
        """How the line ends of an event are written; JSON escapes its own, so all those in an event are the event's."""
        if self._controls.newline is Newline.CRLF and answer.content_type.startswith("text/event-stream"):
            return lambda piece: piece.replace(b"\n", b"\r\n")
        return bytes

    def _is_chunked(self, length: int | None) -> bool:
        return length is None and not self._is_http_1_0

    async def _send_head(self, answer: Answer, length: int | None, received_at: float) -> None:
        fields = [
            ("Date", formatdate(usegmt=True)),
            ("Server", "forward-sse-mock"),
            ("Content-Type", answer.content_type),
            *answer.fields,
        ]
        if answer.timing_field is not None:
            fields.append((answer.timing_field, str(round((time.monotonic() - received_at) * 1000))))
        if length is not None:
            fields.append(("Content-Length", str(length)))
        elif self._is_chunked(length):
            fields.append(("Transfer-Encoding", "chunked"))
        if not self._keeps_alive:
            fields.append(("Connection", "close"))
        lines = [f"HTTP/1.1 {answer.status} {_reason(answer.status)}", *(f"{name}: {value}" for name, value in fields)]
        head = "\r\n".join([*lines, "", ""]).encode()
        if self._controls.fault is Fault.SLOW_HEADERS:
            interval_ms = self._controls.interval_ms or SLOW_HEADERS_INTERVAL_MS
            for index in range(len(head)):
                await self._write(head[index : index + 1])
                await asyncio.sleep(interval_ms / 1000)
            return
        self._is_splitting = self._controls.fault is Fault.SPLIT and self._is_due(0)
        await self._write(head)

    async def _write(self, data: bytes, *, waits: bool = True) -> None:
        if not self._is_splitting:
            self._transport.write(data)
            if waits:
                await self._drain()
            return
        for index in range(len(data)):
            self._transport.write(data[index : index + 1])
            await self._drain()
            # Without a turn of the loop, one that batches its writes would join the bytes again.
            await asyncio.sleep(0)

    async def _strike(self) -> bool:
        """Let the fault happen when what went before has left."""
        await self._drain()
        fault = self._controls.fault
        if fault is Fault.STALL:
            await asyncio.Event().wait()
        if fault is Fault.GARBAGE:
            await self._write(GARBAGE)
        if fault is Fault.RESET:
            # A linger of zero seconds makes the kernel answer with RST instead of FIN (socket(7)).
            self._transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self._transport.abort()
        return False


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Overloaded" if status == 529 else "Unknown"  # noqa: PLR2004  # Anthropic's own status
