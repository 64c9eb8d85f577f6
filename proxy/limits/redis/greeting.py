"""What is done on each new channel: the server is told what this worker holds, and is asked to do what a request does.

A server that comes back empty is told how far the limits were used, by each worker as much as it knows, before anything
is admitted.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from proxy.limits.redis.accounts import PREFIX
from proxy.limits.redis.errors import StoreError
from proxy.limits.redis.leases import BATCH, run_all

if TYPE_CHECKING:
    from proxy.limits.redis.accounts import UserAccounts
    from proxy.limits.redis.channel import Channel
    from proxy.limits.redis.commands import Commands
    from proxy.limits.redis.leases import Leases
    from proxy.limits.redis.links import Link, Links
    from proxy.limits.redis.scripts import Script
    from proxy.limits.redis.tokens import Tokens


class Greeting:
    """Greets servers, and remembers the names of their memories, by which it knows one that lost everything.

    Args:
        settle_s: How long a worker that remembers a server's former self leaves the others to tell what they hold.
    """

    def __init__(
        self,
        commands: Commands,
        links: Links,
        accounts: UserAccounts,
        leases: Leases,
        tokens: Tokens,
        *,
        settle_s: float,
    ) -> None:
        self._commands = commands
        self._links = links
        self._accounts = accounts
        self._leases = leases
        self._tokens = tokens
        self._settle_s = settle_s
        # By the tags of the servers' keys.
        self._memories: dict[bytes, bytes] = {}

    async def greet(self, link: Link, channel: Channel) -> None:
        """Make sure that a server can do all that is asked of it, and knows all that this worker knows.

        Raises:
            StoreError: it cannot, or does not answer.
        """
        tag = await self._tag(link)
        answer = await channel.ask(*self._commands.greet(tag, secrets.token_hex(8)))
        if not isinstance(answer, list):
            raise StoreError("the server's answer is not understood")
        now, memory = answer
        link.clock.update(now)
        is_empty = self._memories.get(tag, memory) != memory
        if is_empty:
            link.suspend("the server came back empty, and is being told what was counted")
            await self._restore(link, channel)
        await self._leases.register(link, channel)
        await self._tokens.register(link, channel)
        await self.probe(link, channel)
        if is_empty:
            await asyncio.sleep(self._settle_s)
        self._memories[tag] = memory
        # What was released meanwhile.
        self._leases.tell(link, channel)
        self._tokens.tell(link, channel)

    async def probe(self, link: Link, channel: Channel) -> None:
        """Do what a request would: only that tells whether one would be served. The server knows the scripts then.

        Raises:
            StoreError: it would not.
        """
        await run_all(channel, self._commands.probe(await self._tag(link)))

    async def _tag(self, link: Link) -> bytes:
        return PREFIX + await self._links.tag(link) + b":"

    async def _restore(self, link: Link, channel: Channel) -> None:
        """Tell an empty server how far the limits are used of every user that this worker has seen."""
        accounts = [account for account in self._accounts if self._links.at(account.slot) is link]
        now = link.clock.now()
        known: set[Script] = set()
        for first in range(0, len(accounts), BATCH):
            batch = accounts[first : first + BATCH]
            await run_all(
                channel, [command for account in batch for command in self._commands.restore(account, now, known)]
            )
