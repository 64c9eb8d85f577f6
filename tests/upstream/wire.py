"""A transport without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Iterable


class Wire:
    """A transport of which both ends are this test's.

    Attributes:
        unsent: What the peer has not taken yet, as the test says.
        is_reading: False between `pause_reading` and `resume_reading`.
    """

    def __init__(self) -> None:
        self.written = b""
        self.protocol: asyncio.Protocol | None = None
        self.is_closed = False
        self.is_reading = True
        self.unsent = 0

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self.written += b"".join(pieces)

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol

    def get_extra_info(self, _name: str, _default: object = None) -> socket.socket | None:
        return None

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True
