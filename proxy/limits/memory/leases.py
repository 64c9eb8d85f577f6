"""The leases that this worker holds at the server: kept alive while their streams live, given back at once.

A lease lapses on the server `LIFE_S` after it was last renewed, so those of a worker that died free themselves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from proxy.limits.quotas import TICKS_PER_S
from proxy.limits.redis.resp import Answer, ConnectionLostError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from proxy.limits.redis.accounts import UserAccount
    from proxy.limits.redis.admission import RedisAdmission
    from proxy.limits.redis.resp import Connection
    from proxy.limits.redis.scripts import Script, Scripts

# Below the thirty seconds that are promised. Each is renewed three times in its life, so that two may fail.
LIFE_S = 24.0
_RENEWALS = 3
# The server does nothing else while it works through a batch: this many users take it one or two milliseconds.
_BATCH = 128
# Of one user in one command.
_MOST_IDS = 500
# What waits for a server that is away. Beyond it the oldest are left to lapse.
_MOST_LEAVING = 100_000


class Leases:
    """Holds, renews and releases. `held` counts what is held, known to the server or not.

    Args:
        connection: Gives the connection of the moment.
        on_failure: Told of renewals that failed.
        life_s: How long a lease lives without being renewed.
    """

    def __init__(
        self,
        scripts: Scripts,
        connection: Callable[[], Connection | None],
        *,
        on_failure: Callable[[StoreError], None],
        life_s: float = LIFE_S,
    ) -> None:
        self._scripts = scripts
        self._connection = connection
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._life_s = life_s
        self.life = round(life_s * TICKS_PER_S)
        self._holding: dict[UserAccount, None] = {}
        # Commands that remove a lease, and when that became due.
        self._released: deque[tuple[bytes, float]] = deque(maxlen=_MOST_LEAVING)
        self._is_flush_due = False
        self._unconfirmed: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self.held = 0

    def open(self) -> None:
        """Begin to renew."""
        self._task = asyncio.create_task(self._keep_alive(), name="limits.leases")

    async def close(self) -> None:
        """Renew no more, and send what is to be released; what the server does not hear of lapses."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        connection = self._connection()
        if connection is not None:
            self._flush()
            try:
                # Answers come in order: when this one is there, so are theirs.
                await connection.ask("PING")
            except StoreError:
                return

    def hold(self, admission: RedisAdmission) -> None:
        """Keep a lease alive until it is released."""
        account = admission.account
        if not account.live:
            self._holding[account] = None
        account.live[admission] = None
        self.held += 1

    def release(self, admission: RedisAdmission) -> bool:
        """Give it back, and say whether it was held; never waits. Releases of one turn of the loop are one write."""
        account = admission.account
        if admission not in account.live:
            return False
        del account.live[admission]
        if not account.live:
            del self._holding[account]
        self.held -= 1
        if admission.is_registered:
            self.remove(account, admission.id)
        return True

    def remove(self, account: UserAccount, id_: bytes) -> None:
        """Take a lease, which nobody holds here, from the server."""
        self._released.append((b"%b%b\r\n" % (account.release_command, id_), self._loop.time()))
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def release_unconfirmed(self, account: UserAccount, id_: bytes) -> None:
        """Take a lease from the server that it may have given, or may yet give.

        A server that was held up may find the question on the old connection after the removal on the new one; so the
        removal is sent twice, the second time with the next renewals.
        """
        if len(self._unconfirmed) < _MOST_LEAVING:
            self._unconfirmed.append(b"%b%b\r\n" % (account.release_command, id_))
        self.remove(account, id_)

    async def register(self, connection: Connection) -> None:
        """Tell a server that was away of everything that is held, and of everything that is not any more.

        Raises:
            StoreError: it could not be told.
        """
        self._flush_to(connection)
        accounts = tuple(self._holding)
        for first in range(0, len(accounts), _BATCH):
            await self._renew(connection, accounts[first : first + _BATCH])

    async def _keep_alive(self) -> None:
        """Renew everything once a period, spread over it."""
        period_s = self._life_s / _RENEWALS
        while True:
            accounts = tuple(self._holding)
            for first in range(0, len(accounts), _BATCH):
                batch = accounts[first : first + _BATCH]
                connection = self._connection()
                if connection is not None:
                    try:
                        await self._renew(connection, batch)
                    except StoreError as error:
                        self._on_failure(error)
                await asyncio.sleep(period_s * len(batch) / len(accounts))
            if not accounts:
                await asyncio.sleep(period_s)
            buried, self._unconfirmed = self._unconfirmed, []
            self._released.extend((command, self._loop.time()) for command in buried)
            self._flush()

    async def _renew(self, connection: Connection, accounts: Sequence[UserAccount]) -> None:
        commands = []
        for account in accounts:
            for admission in account.live:
                admission.is_registered = True
            ids = [admission.id for admission in account.live]
            for first in range(0, len(ids), _MOST_IDS):
                arguments: list[bytes | int] = [self.life, *ids[first : first + _MOST_IDS]]
                commands.append(self._scripts.renew.command([account.leases_key], arguments))
        await run_all(connection, self._scripts.renew, commands)

    def _flush(self) -> None:
        self._is_flush_due = False
        connection = self._connection()
        # With none, it is done when there is one again.
        if connection is not None:
            self._flush_to(connection)

    def _flush_to(self, connection: Connection) -> None:
        if not self._released:
            return
        batch = tuple(self._released)
        self._released.clear()
        # What has waited longer than it would have lived is gone.
        since_s = self._loop.time() - self._life_s
        commands = [command for command, due_s in batch if due_s > since_s]
        is_kept = False

        def on_answer(answer: Answer) -> None:
            nonlocal is_kept
            if isinstance(answer, ConnectionLostError) and not is_kept:
                is_kept = True
                self._released.extend(batch)

        if commands:
            connection.send(b"".join(commands), on_answer, count=len(commands))


async def run_all(connection: Connection, script: Script, commands: Iterable[bytes]) -> None:
    """Run a script many times, and wait for all of the answers.

    Raises:
        StoreError: one of them failed.
    """
    waiting = tuple(commands)
    if not waiting:
        return
    left = len(waiting)
    failures: list[StoreError] = []
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_answer(answer: Answer) -> None:
        nonlocal left
        left -= 1
        if isinstance(answer, StoreError):
            failures.append(answer)
        if left == 0 and not done.done():
            done.set_result(None)

    for command in waiting:
        script.run(connection, command, on_answer)
    await done
    if failures:
        raise failures[0]
