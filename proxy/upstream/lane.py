"""The lane: whole events from an upstream's transport to a client's, in one call.

While a stream runs, it stands in the place of its connection as the transport's protocol. What it cannot tell to be one
whole event in one whole chunk it hands to the connection, whose parser stands between two chunks and is not told of
those that passed here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# As integers: so they are looked for in one call, and quickly.
_LF, _CR = b"\n\r"
# How a line of data begins, and how a chunk ends of which it is the last line.
_DATA: Final = b"data:"
_END: Final = b"\n\n\r\n"


def _shapes() -> tuple[tuple[bytes, int, int], ...]:
    # As long as no chunk is: its line cannot be less than nothing.
    shapes = [(_DATA, -len(_DATA) - 1, 0)] * (len(b"fff\r\n") + 0xFFF + len(b"\r\n") + 1)
    for payload in range(0x10, 0x1000):
        lead = b"%x\r\n" % payload
        shapes[len(lead) + payload + len(b"\r\n")] = (lead + _DATA, payload - len(_DATA) - len(b"\n\n"), payload)
    return tuple(shapes)


# For every length of a read what it is if it is one whole chunk with one line of data: how that begins, how long the
# line is from there on, and how long the payload.
_SHAPES: Final = _shapes()
_TOO_LONG: Final = len(_SHAPES)


class Lane(asyncio.Protocol):
    """One stream's lane: open while the stream stands between two chunks and between two events, else closed.

    Attributes:
        bytes: How much payload has passed here.
        events: How many events.
    """

    __slots__ = ("_connection", "_write", "bytes", "events")

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._connection: asyncio.Protocol | None = None
        self.bytes = 0
        self.events = 0

    def open(self, connection: asyncio.Protocol) -> None:
        """Stand in for the connection."""
        self._connection = connection

    def data_received(self, data: bytes) -> None:
        """Pass one event on as it came, the client's coding being the upstream's.

        The hot path of the proxy: everything here is paid for each event, and everything else is not. A chunk whose
        line says how long it is, and that ends with a blank line, is one event if what stands between is one block of
        lines, of which the last is data.
        """
        size = len(data)
        if size < _TOO_LONG:
            lead, length, payload = _SHAPES[size]
            line = data.removeprefix(lead).removesuffix(_END)
            # With both gone, that is what is left.
            if len(line) == length:
                is_event = _LF not in line and _CR not in line
            else:
                is_event = _is_named_event(data, lead, length)
            if is_event:
                self._write(data)
                self.bytes += payload
                self.events += 1
                return
        assert self._connection is not None
        self._connection.data_received(data)

    def eof_received(self) -> bool | None:
        """The connection's to judge."""
        assert self._connection is not None
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection's to tell."""
        assert self._connection is not None
        self._connection.connection_lost(exc)


def _is_named_event(data: bytes, lead: bytes, length: int) -> bool:
    """Whether a chunk is a line that is not blank and one of data, as those vendors send that name their events."""
    block = data.removeprefix(lead.removesuffix(_DATA)).removesuffix(_END)
    if len(block) != len(_DATA) + length:
        return False
    line_end = block.find(b"\n")
    return (
        line_end > 0
        and block[line_end + 1 : line_end + 6] == _DATA
        and block.find(b"\n", line_end + 1) < 0
        and _CR not in block
    )
