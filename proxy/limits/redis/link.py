"""The worker's link to one server: one channel, kept up in the background, so that requests need not wait for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.limits.redis.accounts import ServerClock
from proxy.limits.redis.breaker import Breaker
from proxy.limits.redis.channel import settle
from proxy.limits.redis.errors import UNEXPECTED, ConnectionLostError, ServerError, StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.limits.memory.store import MemoryStore
    from proxy.limits.redis.address import Node
    from proxy.limits.redis.channel import Channel

# Answers that say something about the command, or about where it was sent, and nothing against the server.
_OF_THE_COMMAND = frozenset({"ASK", "MOVED", "TRYAGAIN", "UNSERVED"})

# A server that closes each channel as soon as it stands is not dialled in a spin.
_BRIEF_S = 0.05


class Link:
    """Dials, greets, watches, and dials again.

    A channel that was lost is replaced at once, and requests may wait for that a moment; once the breaker is open
    nobody waits, and one probe at a time is made here: a channel that was dialled and greeted.

    `clock` is the server's, `local` what counts alone while it is away.

    Args:
        node: Which of a Cluster's it is; None where there is one server.
        dial: Opens a channel, or raises `StoreError`, in bounded time.
        greet: Makes sure of everything before requests use it; raises `StoreError` where the server is of no use.
        on_failure: Told of every failed call.
        on_change: Told when `problem` begins and when it ends.
    """

    def __init__(
        self,
        node: Node | None,
        dial: Callable[[], Awaitable[Channel]],
        greet: Callable[[Link, Channel], Awaitable[None]],
        *,
        on_failure: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        self.node = node
        self._dial = dial
        self._greet = greet
        self._on_failure = on_failure
        self._on_change = on_change
        self._breaker = Breaker()
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        # Each is replaced when the channel is lost: done when the next attempt has ended, and when that is over.
        self._attempt: asyncio.Future[None] = self._loop.create_future()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self.channel: Channel | None = None
        # Why the breaker is open.
        self.problem: str | None = None
        self.clock = ServerClock()
        self.local: MemoryStore | None = None

    async def open(self) -> None:
        """Begin, and wait for the first attempt, whose failure is no error here."""
        self.begin()
        await asyncio.wait((self._attempt,))

    def begin(self) -> None:
        """Begin, without waiting."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_up(), name="limits.link")

    async def close(self) -> None:
        """Let go of the channel; commands that wait are lost."""
        task, self._task = self._task, None
        if self.channel is not None:
            self.channel.on_lost = None
            self.channel.abort("the store is closed")
            self.channel = None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def connected(self, timeout_s: float) -> Channel | None:
        """The channel; while it is being replaced, wait for that. None, and at once, while the breaker is open."""
        if self.channel is None and self._task is not None and not self._breaker.is_open:
            await asyncio.wait((self._attempt,), timeout=timeout_s)
        return self.channel

    def succeeded(self) -> None:
        """A request was answered."""
        self._breaker.succeeded()

    def failed(self, error: StoreError) -> None:
        """A request was not answered. What a lost channel takes with it counts once, when it is lost."""
        if isinstance(error, ConnectionLostError):
            return
        if isinstance(error, ServerError) and error.code in _OF_THE_COMMAND:
            self._on_failure()
            return
        self._count(str(error))
        if self._breaker.is_open and self.channel is not None:
            self.channel.abort(str(error))

    def suspend(self, reason: str) -> None:
        """Say while greeting that it will take long: nobody waits for it, and everybody is told why."""
        self._breaker.trip()
        self._tell_if_open(reason)
        settle(self._attempt, None)

    async def _keep_up(self) -> None:
        while True:
            try:
                await self._connect()
            except StoreError as error:
                self._fail(str(error))
            except UNEXPECTED:
                # Of a server that answers in no form that is known. To end here would be to give it up for good.
                self._fail("the server's answer is not understood")
            else:
                arrived_s = self._loop.time()
                await self._over
                if self._loop.time() - arrived_s < _BRIEF_S:
                    await asyncio.sleep(_BRIEF_S)
            if self._breaker.is_open:
                await asyncio.sleep(self._breaker.next_pause_s())

    async def _connect(self) -> None:
        channel = await self._dial()
        try:
            await self._greet(self, channel)
            # Nothing may come in between: what was to be told at the greeting's end is complete only now.
            self._arrive(channel)
        finally:
            if channel is not self.channel:
                channel.abort("it is not wanted")

    def _fail(self, reason: str) -> None:
        self._breaker.trip()
        try:
            self._count(reason)
        finally:
            settle(self._attempt, None)

    def _arrive(self, channel: Channel) -> None:
        if not channel.is_usable:
            raise ConnectionLostError("the connection was lost")
        self._over = self._loop.create_future()
        self._breaker.probed()
        channel.on_lost = self._lose
        self.channel = channel
        self.local = None
        if self.problem is not None:
            self.problem = None
            self._on_change()
        settle(self._attempt, None)

    def _lose(self, reason: str, commands: int) -> None:
        self.channel = None
        self._attempt = self._loop.create_future()
        settle(self._over, None)
        # A server that closes what is idle fails nobody.
        if commands:
            self._count(reason)

    def _count(self, reason: str) -> None:
        self._on_failure()
        self._breaker.failed()
        self._tell_if_open(reason)

    def _tell_if_open(self, reason: str) -> None:
        if self._breaker.is_open:
            is_new = self.problem is None
            self.problem = reason
            if is_new:
                self._on_change()
