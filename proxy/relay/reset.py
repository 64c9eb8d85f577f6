"""Reset a connection (RST), where an orderly end would look like the end of a body."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


def reset(transport: asyncio.Transport) -> None:
    """End the connection so that its peer sees it broken, with nothing more of what waits to be sent.

    uvloop's `abort` is an orderly end when nothing waits; without lingering the system resets the connection.
    """
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
