"""Which server a user's commands go to: the only one, or in a Cluster (`cluster`) the node that has the user's slot."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from proxy.limits.redis.address import run
from proxy.limits.redis.channel import Channel
from proxy.limits.redis.link import Link

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from proxy.limits.redis.address import Dialler, Node
    from proxy.limits.redis.channel import Answer, Command, Sent
    from proxy.limits.redis.errors import ServerError
    from proxy.limits.redis.scripts import Scripts


class Links:
    """The link to a single server, or to the primary that sentinels name.

    Args:
        dialler: Opens connections.
        greet: Run on each new channel; see `Link`.
        probe: Raises `StoreError` where a server would not serve a request.
        on_failure: Told of every failed call.
        on_change: Told when `problem` may have begun or ended.
    """

    def __init__(
        self,
        dialler: Dialler,
        greet: Callable[[Link, Channel], Awaitable[None]],
        probe: Callable[[Link, Channel], Awaitable[None]],
        scripts: Scripts,
        *,
        on_failure: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        self._dialler = dialler
        self._greet = greet
        self._probe = probe
        self._scripts = scripts
        self._on_failure = on_failure
        self._on_change = on_change
        self._default = self._link_to(None)

    @property
    def problem(self) -> str | None:
        """What is wrong with any server, or None."""
        return self._default.problem

    @property
    def is_serving(self) -> bool:
        """Whether any server has no problem."""
        return self._default.problem is None

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

    async def ask_alone(self, _slot: int, command: Command) -> Answer:
        """Run a large command on a connection of its own.

        Raises:
            StoreError: it failed, or no answer came.
        """
        # Without asking the sentinels again: the link follows the primary.
        async with self._dialler.connected(self._dialler.primary) as connection:
            return await run(connection, command)

    def _link_to(self, node: Node | None) -> Link:
        async def dial() -> Channel:
            connection = await self._dialler.dial(node)
            return Channel(connection, timeout_s=self._dialler.timeout_s, resend=partial(self._resend, link))

        link = Link(node, dial, self._greet, on_failure=self._on_failure, on_change=self._on_change)
        return link

    def _resend(self, _link: Link, channel: Channel, sent: Sent, error: ServerError) -> bool:
        """See to another answer than a refusal, if there can be one; see `Channel`."""
        return self._scripts.resend(channel, sent, error)
