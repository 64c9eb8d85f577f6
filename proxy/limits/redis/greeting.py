"""What is done on each new channel: the server is told what this worker holds, and is asked to do what a request does.

A server that comes back empty is told how far the limits were used, by each worker as much as it knows, before anything
is admitted.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from proxy.limits import gcra
from proxy.limits.redis import token_commands
from proxy.limits.redis.accounts import PREFIX
from proxy.limits.redis.errors import StoreError
from proxy.limits.redis.leases import BATCH, run_all
from proxy.model import Amounts

if TYPE_CHECKING:
    from proxy.limits.redis.accounts import UserAccounts
    from proxy.limits.redis.channel import Channel, Command
    from proxy.limits.redis.charges import Charges
    from proxy.limits.redis.leases import Leases
    from proxy.limits.redis.link import Link
    from proxy.limits.redis.links import Links
    from proxy.limits.redis.scripts import Scripts


class Greeting:
    """Greets servers, and remembers the names of their memories, by which it knows one that lost everything.

    Args:
        settle_s: How long a worker that remembers a server's former self leaves the others to tell what they hold.
    """

    def __init__(
        self,
        links: Links,
        scripts: Scripts,
        accounts: UserAccounts,
        leases: Leases,
        charges: Charges,
        *,
        settle_s: float,
    ) -> None:
        self._links = links
        self._scripts = scripts
        self._accounts = accounts
        self._leases = leases
        self._charges = charges
        self._settle_s = settle_s
        # By the servers' tags.
        self._memories: dict[bytes, bytes] = {}

    async def greet(self, link: Link, channel: Channel) -> None:
        """Make sure that a server can do all that is asked of it, and knows all that this worker knows.

        Raises:
            StoreError: it cannot, or does not answer.
        """
        tag = await self._links.tag(link)
        greet = self._scripts.greet.whole_command([PREFIX + tag + b":memory"], [secrets.token_hex(8)])
        answer = await channel.ask(*greet)
        if not isinstance(answer, list):
            raise StoreError("the server's answer is not understood")
        now, memory = answer
        link.clock.update(now)
        is_empty = self._memories.get(tag, memory) != memory
        if is_empty:
            link.suspend("the server came back empty, and is being told what was counted")
            await self._restore(link, channel)
        await self._leases.register(link, channel)
        await self._charges.register(link, channel)
        await self.probe(link, channel)
        if is_empty:
            await asyncio.sleep(self._settle_s)
        self._memories[tag] = memory
        # What was released meanwhile.
        self._leases.tell(link, channel)
        self._charges.tell(link, channel)

    async def probe(self, link: Link, channel: Channel) -> None:
        """Do what a request would: only that tells whether one would be served. The server knows the scripts then.

        Raises:
            StoreError: it would not.
        """
        life = self._leases.life
        prefix = PREFIX + await self._links.tag(link)
        leases, rate, *held = [
            prefix + b":probe-" + name for name in (b"leases", b"rate", b"held", b"sums", b"settled")
        ]
        scripts, member = self._scripts, token_commands.member_of(b"probe", Amounts())
        commands = [
            scripts.admit.whole_command([leases, rate], [life, -1, 1_000_000, 1_000_000, 1, 0, b"probe"]),
            scripts.reserve.whole_command(held[:2], [life, 0, member, 0, 0]),
            scripts.hold.whole_command(held[:2], [member, life]),
            scripts.settle.whole_command([leases, *held], [life, life, b"probe", member, 0]),
            scripts.free.whole_command([leases, *held[:2]], [life, b"probe", member]),
        ]
        await run_all(channel, commands)

    async def _restore(self, link: Link, channel: Channel) -> None:
        """Tell an empty server how far the limits are used of every user that this worker has seen."""
        now = link.clock.now()
        commands: list[Command] = []
        of_tokens: list[Command] = []
        for account in self._accounts:
            if self._links.at(account.slot) is not link:
                continue
            keys: list[bytes] = []
            arguments: list[int] = []
            for limit, tat in zip(account.quotas.limits, account.tats, strict=True):
                if gcra.paid_at(limit, tat) > now:
                    keys.append(account.rate_key(limit))
                    arguments += [limit.window, *divmod(tat, limit.quota)]
            # From the second on by its digest.
            if keys:
                script = self._scripts.restore
                commands.append((script.command if commands else script.whole_command)(keys, arguments))
            told = token_commands.restore(self._scripts, account, now, is_first=not of_tokens)
            if told is not None:
                of_tokens.append(told)
        commands += of_tokens
        for first in range(0, len(commands), BATCH):
            await run_all(channel, commands[first : first + BATCH])
