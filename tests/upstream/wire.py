"""A transport without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    import socket


class Wire:
    """A transport of which both ends are this test's."""

    def __init__(self) -> None:
        self.written = b""
        self.protocol: asyncio.Protocol | None = None
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol

    def get_extra_info(self, _name: str) -> socket.socket | None:
        return None

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        self.is_closed = True
