"""What exchanges took, charged at the server: sent when they are settled, and again where no answer came.

The server knows for a while which exchanges it has charged, so a settlement that is sent twice charges once. While it
is away, settlements wait here. Each worker keeps at most `MOST_WAITING` of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from proxy.limits.redis import token_commands
from proxy.limits.redis.errors import ConnectionLostError, StoreError
from proxy.limits.redis.leases import BATCH
from proxy.limits.redis.token_commands import REMEMBERED_S, Question

if TYPE_CHECKING:
    from proxy.limits.redis.channel import Answer, Channel
    from proxy.limits.redis.leases import Leases
    from proxy.limits.redis.link import Link
    from proxy.limits.redis.links import Links
    from proxy.limits.redis.scripts import Scripts
    from proxy.model import Amounts

# Some 50 MiB. Beyond it the oldest are given up: what they took is then known to the ledger alone.
MOST_WAITING: Final = 100_000
# For how long one is tried: the server must not have forgotten meanwhile that it has charged it.
_TRY_S: Final = REMEMBERED_S - 60.0


@dataclass(slots=True, eq=False)
class Charge:
    """What one exchange took: `failed_s` is since when it was tried in vain, and perhaps charged all the same."""

    question: Question
    id: bytes
    member: bytes | None
    took: Amounts
    failed_s: float | None = None


class Charges:
    """Sends what was taken to the server of its user, until it is charged."""

    def __init__(self, scripts: Scripts, links: Links, leases: Leases) -> None:
        self._scripts = scripts
        self._links = links
        self._leases = leases
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Charge] = deque()

    def settle(self, charge: Charge) -> None:
        """Charge what an exchange took, now or when its server is back; never waits."""
        charge.question.account.charges[charge.id] = charge
        channel = self._link(charge).channel
        if channel is None:
            self._wait(charge)
        else:
            self._send(channel, charge)

    async def register(self, link: Link, channel: Channel) -> None:
        """Tell a server that was away all that waits for it, some at a time.

        Raises:
            ConnectionLostError: it is away again.
        """
        # What it refuses waits again, for a while.
        for _ in range(len(self._waiting) // BATCH + 1):
            if not self.tell(link, channel):
                return
            # Behind those that were just sent.
            await channel.ask("PING")

    def tell(self, link: Link, channel: Channel) -> int:
        """Tell a server a batch of what waits for it, without waiting for its answers; give how many that were."""
        sent = 0
        for _ in range(len(self._waiting)):
            charge = self._waiting.popleft()
            if sent < BATCH and self._link(charge) is link:
                sent += 1
                self._send(channel, charge)
            else:
                self._waiting.append(charge)
        return sent

    def tell_all(self) -> None:
        """Tell each server that is there a batch of what it has refused before."""
        if self._waiting:
            for link in self._links:
                if link.channel is not None:
                    self.tell(link, link.channel)

    def _link(self, charge: Charge) -> Link:
        return self._links.at(charge.question.account.slot)

    def _wait(self, charge: Charge) -> None:
        if len(self._waiting) >= MOST_WAITING:
            _drop(self._waiting.popleft())
        self._waiting.append(charge)

    def _send(self, channel: Channel, charge: Charge) -> None:
        if charge.failed_s is not None and self._loop.time() > charge.failed_s + _TRY_S:
            _drop(charge)
            return
        command = token_commands.settle(
            self._scripts, charge.question, charge.id, charge.member, charge.took, life=self._leases.life
        )
        channel.send(command, partial(self._answered, charge))

    def _answered(self, charge: Charge, answer: Answer) -> None:
        link, account = self._link(charge), charge.question.account
        if isinstance(answer, StoreError):
            if charge.failed_s is None:
                charge.failed_s = self._loop.time()
            self._wait(charge)
            if not isinstance(answer, ConnectionLostError):
                # Nothing was done, as on a server without memory, which can free all the same.
                self._leases.remove(account, charge.id, charge.member)
                link.failed(answer)
            return
        _drop(charge)
        status = charge.question.read_answer(answer, 0)
        if status is not None and account.tokens is not None:
            link.clock.update(status.at)
            account.tokens.update(status)


def _drop(charge: Charge) -> None:
    charge.question.account.charges.pop(charge.id, None)
