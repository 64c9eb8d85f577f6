"""The worker's links to its servers, kept up in the background, so that requests need not wait for it.

Which of them a user's commands go to: the only one, or in a Cluster (`cluster`) the node that has the user's slot.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from proxy.limits.redis.accounts import ServerClock
from proxy.limits.redis.address import run
from proxy.limits.redis.breaker import Breaker
from proxy.limits.redis.channel import Channel, settle
from proxy.limits.redis.errors import UNEXPECTED, ConnectionLostError, ServerError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.limits.memory.store import MemoryStore
    from proxy.limits.redis.address import Dialler, Node
    from proxy.limits.redis.channel import Answer, Command, Sent
    from proxy.limits.redis.greeting import Greeting
    from proxy.limits.redis.scripts import Scripts

# Answers that say something about the command, or about where it was sent, and nothing against the server.
_OF_THE_COMMAND = frozenset({"ASK", "MOVED", "TRYAGAIN", "UNSERVED"})

# A server that closes each channel as soon as it stands is not dialled in a spin.
_BRIEF_S = 0.05


class Link:
    """One channel to one server: dials, greets, watches, and dials again.

    A channel that was lost is replaced at once, and requests may wait for that a moment; once the breaker is open
    nobody waits, and one probe at a time is made here: a channel that was dialled and greeted.

    `clock` is the server's, `local` what counts alone while it is away.

    Args:
        links: Those that it is one of.
        node: Which of a Cluster's it is; None where there is one server.
    """

    def __init__(self, links: Links, node: Node | None) -> None:
        self.node = node
        self._links = links
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
            self._links.on_failure()
            return
        self._count(str(error))
        if self._breaker.is_open and self.channel is not None:
            self.channel.abort(str(error))

    def suspend(self, reason: str) -> None:
        """Say that it will take long, as while greeting: nobody waits for it, and everybody is told why."""
        self._breaker.trip()
        settle(self._attempt, None)
        self._tell_if_open(reason)

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
        channel = await self._links.dial(self)
        try:
            await self._links.greeting.greet(self, channel)
            # Nothing may come in between: what was to be told at the greeting's end is complete only now.
            self._arrive(channel)
        finally:
            if channel is not self.channel:
                channel.abort("it is not wanted")

    def _fail(self, reason: str) -> None:
        self.suspend(reason)
        self._links.on_failure()

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
            self._links.on_change()
        settle(self._attempt, None)

    def _lose(self, reason: str, commands: int) -> None:
        self.channel = None
        self._attempt = self._loop.create_future()
        settle(self._over, None)
        # A server that closes what is idle fails nobody.
        if commands:
            self._count(reason)

    def _count(self, reason: str) -> None:
        self._links.on_failure()
        self._breaker.failed()
        self._tell_if_open(reason)

    def _tell_if_open(self, reason: str) -> None:
        if self._breaker.is_open:
            is_new = self.problem is None
            self.problem = reason
            if is_new:
                self._links.on_change()


class Links:
    """The link to a single server, or to the primary that sentinels name.

    `greeting` is to be set before they are opened: it makes sure of everything on each new channel before requests use
    it.

    Args:
        dialler: Opens connections.
        on_failure: Told of every failed call.
        on_change: Told when `problem` may have begun or ended.
    """

    greeting: Greeting

    def __init__(
        self, dialler: Dialler, scripts: Scripts, on_failure: Callable[[], None], on_change: Callable[[], None]
    ) -> None:
        self._dialler = dialler
        self._scripts = scripts
        self.on_failure = on_failure
        self.on_change = on_change
        self._default = Link(self, None)

    @property
    def problem(self) -> str | None:
        """What is wrong with any server, or None."""
        return self._default.problem

    @property
    def is_serving(self) -> bool:
        """Whether any server has no problem."""
        return any(link.problem is None for link in self)

    def __iter__(self) -> Iterator[Link]:
        yield self._default

    def at(self, _slot: int) -> Link:
        """The link to ask about the keys of a slot; one without a channel where nobody has it."""
        return self._default

    async def tag(self, _link: Link) -> bytes:
        """The hash tag of the keys that a server itself has, the same for all workers.

        Raises:
            StoreError: the server has no slots.
        """
        return b"{node0}"

    async def open(self) -> None:
        """Connect, and wait for the first attempts, whose failures are no error here."""
        await self._default.open()

    async def close(self) -> None:
        """Let go of all connections."""
        for link in self:
            await link.close()

    async def dial(self, link: Link) -> Channel:
        """Open a channel for a link, in bounded time.

        Raises:
            StoreError: there is none.
        """
        connection = await self._dialler.dial(link.node)
        return Channel(connection, timeout_s=self._dialler.timeout_s, resend=partial(self._resend, link))

    async def ask_alone(self, _slot: int, command: Command) -> Answer:
        """Run a large command on a connection of its own.

        Raises:
            StoreError: it failed, or no answer came.
        """
        # Without asking the sentinels again: the link follows the primary.
        async with self._dialler.connected(self._dialler.primary) as connection:
            return await run(connection, command)

    def _resend(self, _link: Link, channel: Channel, sent: Sent, error: ServerError) -> bool:
        """See to another answer than a refusal, if there can be one; see `Channel`."""
        return self._scripts.resend(channel, sent, error)
