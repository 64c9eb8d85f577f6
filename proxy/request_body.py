"""A request's body between the connection that it arrives on and whoever reads it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from proxy.errors import ProxyError

# What is held of a body that nobody reads yet, besides one read more: then the client is made to wait.
HIGH_WATER_BYTES = 128 * 1024


class Source(Protocol):
    """What a body needs of its connection."""

    def hold(self) -> None:
        """Read no more of the client."""
        ...

    def read_on(self) -> None:
        """Read on, unless something else stands against it."""
        ...


class RequestBody:
    """The bytes of one body, in order, for one reader.

    Attributes:
        is_complete: Whether nothing more will come than is here.
    """

    __slots__ = ("_error", "_pieces", "_size", "_source", "_waiter", "is_complete")

    def __init__(self, source: Source) -> None:
        self._source = source
        self._pieces: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: ProxyError | None = None
        self.is_complete = False

    @property
    def is_full(self) -> bool:
        """Whether more waits here than should."""
        return self._size > HIGH_WATER_BYTES

    # The reader's side.

    def take(self) -> bytes:
        """The bytes that are here; does not wait.

        Raises:
            ProxyError: the body broke.
        """
        if self._error is not None:
            raise self._error
        data = b"".join(self._pieces)
        self._pieces = []
        size, self._size = self._size, 0
        if size > HIGH_WATER_BYTES:
            self._source.read_on()
        return data

    async def read(self) -> bytes:
        """The bytes that are here, or the next ones; empty at the end. Cancelling loses nothing.

        Raises:
            ProxyError: the body broke.
        """
        while not self._pieces and not self.is_complete and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.take()

    # The connection's side.

    def feed(self, data: bytes) -> None:
        """More of it has come."""
        self._pieces.append(data)
        self._size += len(data)
        if self._waiter is not None:
            self._wake()
        elif self._size > HIGH_WATER_BYTES:
            self._source.hold()

    def end(self) -> None:
        """All of it has come."""
        self.is_complete = True
        if self._waiter is not None:
            self._wake()

    def fail(self, error: ProxyError) -> None:
        """Nothing more of it can be read: whoever reads is told, now or when its turn comes."""
        self._error = error
        if self._waiter is not None:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
