"""Which server a user's commands go to: the only one, or in a Cluster (`cluster`) the node that has the user's slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from proxy.limits.redis.accounts import ServerClock
from proxy.limits.redis.channel import Channel
from proxy.limits.redis.direct import connected, run
from proxy.limits.redis.link import Link

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from proxy.limits.redis.address import Dialler
    from proxy.limits.redis.channel import Answer, Command
    from proxy.limits.redis.scripts import Scripts

    Greet = Callable[[Link, Channel], Awaitable[None]]


class Links(Protocol):
    """The links to all servers."""

    @property
    def problem(self) -> str | None:
        """What is wrong with any of them, or None."""
        ...

    @property
    def is_serving(self) -> bool:
        """Whether any of them has no problem."""
        ...

    def __iter__(self) -> Iterator[Link]: ...

    def at(self, slot: int) -> Link:
        """The link to ask about the keys of a slot; one without a channel where there is none."""
        ...

    def tag(self, link: Link) -> bytes:
        """The hash tag of the keys that the link's server itself has, the same for all workers.

        Raises:
            StoreError: the server has no slots.
        """
        ...

    async def open(self) -> None:
        """Connect, and wait for the first attempts, whose failures are no error here."""
        ...

    async def close(self) -> None:
        """Let go of all connections."""
        ...

    async def ask_alone(self, slot: int, command: Command) -> Answer:
        """Run a large command on a connection of its own; see `direct`.

        Raises:
            StoreError: it failed, or no answer came.
        """
        ...


class OneLink:
    """A single server, or the primary that sentinels name."""

    def __init__(
        self,
        dialler: Dialler,
        greet: Greet,
        scripts: Scripts,
        *,
        on_failure: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        self._dialler = dialler
        self._scripts = scripts
        self._link = Link(self._dial, greet, ServerClock(), on_failure=on_failure, on_change=on_change)

    @property
    def problem(self) -> str | None:
        """What is wrong, or None."""
        return self._link.problem

    @property
    def is_serving(self) -> bool:
        """Whether nothing is."""
        return self._link.problem is None

    def __iter__(self) -> Iterator[Link]:
        yield self._link

    def at(self, _slot: int) -> Link:
        """The link."""
        return self._link

    def tag(self, _link: Link) -> bytes:
        """Any would do."""
        return b"{node0}"

    async def open(self) -> None:
        """Connect."""
        await self._link.open()

    async def close(self) -> None:
        """Leave the server."""
        await self._link.close()
        await self._dialler.close()

    async def ask_alone(self, _slot: int, command: Command) -> Answer:
        """Run a large command on a connection of its own."""
        async with connected(self._dialler, None) as connection:
            return await run(connection, command)

    async def _dial(self) -> Channel:
        connection = await self._dialler.dial()
        return Channel(connection, timeout_s=self._dialler.timeout_s, resend=self._scripts.resend)
