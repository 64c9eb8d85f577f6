"""The lane: whole events from an upstream's transport to a client's, in one call.

While a stream runs, it stands in the place of its connection as the transport's protocol. What it cannot tell to be one
whole event in one whole chunk it hands to the connection, whose parser stands between two chunks and is not told of
those that passed here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.protocol.chunks import LINE_OF_5, WHOLE_LENGTHS

if TYPE_CHECKING:
    from collections.abc import Callable

# As integers: so they are looked for in one call, and quickly.
_LF, _CR = b"\n\r"


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
        if data[-4:] == b"\n\n\r\n":
            size = len(data)
            start = 4 if size < LINE_OF_5 else 5
            if WHOLE_LENGTHS.get(data[:start]) == size:
                block = data[start:-4]
                if _CR not in block and (_LF not in block if block[:5] == b"data:" else _is_named_event(block)):
                    self._write(data)
                    self.bytes += size - start - 2
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


def _is_named_event(block: bytes) -> bool:
    """Whether a block is a line that is not blank and one of data, as those vendors send that name their events."""
    line_end = block.find(b"\n")
    return line_end > 0 and block[line_end + 1 : line_end + 6] == b"data:" and block.find(b"\n", line_end + 1) < 0
