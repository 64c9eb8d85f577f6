"""The leases that this worker holds at the server: kept alive while their streams live, given back at once.

A lease lapses on the server `LIFE_S` after it was last renewed, so those of a worker that died free themselves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from proxy.limits.quotas import TICKS_PER_S
from proxy.limits.redis.channel import Answer, outcome
from proxy.limits.redis.errors import ConnectionLostError, ServerError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from proxy.limits.redis.accounts import UserAccount
    from proxy.limits.redis.admission import RedisAdmission
    from proxy.limits.redis.channel import Channel, Command
    from proxy.limits.redis.commands import Commands
    from proxy.limits.redis.links import Link

# Below the thirty seconds that are promised. Each is renewed three times in its life, so that two may fail.
LIFE_S = 24.0
_RENEWALS = 3
# The server does nothing else while it works through a batch: this many users take it one or two milliseconds.
BATCH = 128
# What waits for a server that is away. Beyond it the oldest are left to lapse.
_MOST_LEAVING = 100_000

# A lease to be removed, what is held of token limits with it, and when that became due.
_Leaving = tuple["UserAccount", bytes, "bytes | None", float]


class Leases:
    """Holds, renews and releases. `on_period` is called whenever everything was renewed.

    Args:
        at: Gives the link to the server that has a slot.
    """

    def __init__(self, commands: Commands, at: Callable[[int], Link]) -> None:
        self._commands = commands
        self._at = at
        self._loop = asyncio.get_running_loop()
        self._life_s = commands.life / TICKS_PER_S
        self.on_period: Callable[[], None] = lambda: None
        self._holding: dict[UserAccount, None] = {}
        # What a server that is away has not been told.
        self._leaving: deque[_Leaving] = deque(maxlen=_MOST_LEAVING)
        # What it may be about to take in a question that nobody waits for any more.
        self._unconfirmed: deque[_Leaving] = deque(maxlen=_MOST_LEAVING)
        self._task: asyncio.Task[None] | None = None

    @property
    def held(self) -> int:
        """How many are held, over all users, known to the server or not; counted when asked for."""
        return sum(len(account.live) for account in self._holding)

    def open(self) -> None:
        """Begin to renew; once."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_alive(), name="limits.leases")

    async def close(self) -> None:
        """Renew no more, and wait until what was released is; what a server does not hear of lapses."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None

    def hold(self, admission: RedisAdmission) -> None:
        """Keep a lease alive until it is released."""
        account = admission.account
        if not account.live:
            self._holding[account] = None
        account.live[admission] = None

    def release(self, admission: RedisAdmission) -> bool:
        """Give it back, and say whether it was held; never waits."""
        if not self.drop(admission):
            return False
        if admission.is_registered or admission.held is not None:
            self.remove(admission.account, admission.id, admission.member)
        return True

    def drop(self, admission: RedisAdmission) -> bool:
        """Hold it no more, and say whether it was held; what it has reserved is still to be told to the server."""
        account = admission.account
        if admission not in account.live:
            return False
        del account.live[admission]
        if admission.held is not None:
            admission.free()
        if not account.live:
            del self._holding[account]
        return True

    def remove(self, account: UserAccount, id_: bytes, member: bytes | None = None) -> None:
        """Take a lease, and what it holds of token limits, from the server; one that is away is told when it is back.

        Nobody holds it here any more.
        """
        self._remove((account, id_, member, self._loop.time()))

    def release_unconfirmed(self, account: UserAccount, id_: bytes) -> None:
        """Take a lease from the server that it may have given, or may yet give.

        A server that was held up may find the question on the old connection after the removal on the new one; so the
        removal is sent twice, the second time with the next renewals.
        """
        self._unconfirmed.append((account, id_, None, self._loop.time()))
        self.remove(account, id_)

    async def register(self, link: Link, channel: Channel) -> None:
        """Tell a server that was away of everything that is held, and of everything that is not any more.

        Raises:
            StoreError: it could not be told.
        """
        self.tell(link, channel)
        accounts = [account for account in self._holding if self._at(account.slot) is link]
        for first in range(0, len(accounts), BATCH):
            await self._renew(channel, accounts[first : first + BATCH])

    def tell(self, link: Link, channel: Channel) -> None:
        """Tell a server of what is not held any more, without waiting for its answers."""
        for _ in range(len(self._leaving)):
            one = self._leaving.popleft()
            if self._at(one[0].slot) is link:
                self._send(channel, one)
            else:
                self._leaving.append(one)

    def _remove(self, leaving: _Leaving) -> None:
        channel = self._at(leaving[0].slot).channel
        if channel is None:
            self._leaving.append(leaving)
        else:
            self._send(channel, leaving)

    def _send(self, channel: Channel, leaving: _Leaving) -> None:
        account, id_, member, due_s = leaving
        # What has waited longer than it would have lived is gone.
        if due_s > self._loop.time() - self._life_s:
            command: Command = (b"ZREM", account.leases_key, id_)
            if member is not None:
                command = self._commands.free(account, id_, member)
            channel.send(command, partial(self._keep_if_lost, leaving))

    def _keep_if_lost(self, leaving: _Leaving, answer: Answer) -> None:
        if isinstance(answer, ConnectionLostError):
            self._leaving.append(leaving)

    async def _keep_alive(self) -> None:
        """Renew everything once a period, spread over it."""
        period_s = self._life_s / _RENEWALS
        while True:
            accounts = tuple(self._holding)
            for first in range(0, len(accounts), BATCH):
                batch = accounts[first : first + BATCH]
                await self._renew_where_held(batch)
                await asyncio.sleep(period_s * len(batch) / len(accounts))
            if not accounts:
                await asyncio.sleep(period_s)
            for leaving in (self._leaving, self._unconfirmed):
                for _ in range(len(leaving)):
                    self._remove(leaving.popleft())
            self.on_period()

    async def _renew_where_held(self, accounts: Sequence[UserAccount]) -> None:
        by_link: dict[Link, list[UserAccount]] = {}
        for account in accounts:
            by_link.setdefault(self._at(account.slot), []).append(account)
        for link, held in by_link.items():
            if link.channel is not None:
                try:
                    await self._renew(link.channel, held)
                except StoreError as error:
                    link.failed(error)

    async def _renew(self, channel: Channel, accounts: Sequence[UserAccount], *, are_whole: bool = False) -> None:
        for account in accounts:
            for admission in account.live:
                admission.is_registered = True
        try:
            await run_all(channel, self._commands.renewals(accounts, are_whole=are_whole))
        except ServerError as error:
            if error.redirect is not None:
                # Not followed: it could come behind a release. The next period finds the node.
                return
            if error.code != "NOSCRIPT" or are_whole:
                raise
            # Not the same commands again: what was released meanwhile would come back.
            await self._renew(channel, accounts, are_whole=True)


async def run_all(channel: Channel, commands: Iterable[Command]) -> None:
    """Run commands, and wait for all of the answers.

    Raises:
        StoreError: one of them failed.
    """
    answers = [channel.request(command) for command in commands]
    if answers:
        await asyncio.wait(answers)
    for answer in answers:
        outcome(answer.result())
