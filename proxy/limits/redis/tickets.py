"""Tickets on the server: kept until they are taken, once, by whichever worker is asked.

A ticket holds a body. On the channel that all admissions share it would hold them up, so each has a connection of its
own. What a user has open is counted at the user's keys, the ticket itself lies under its name: in a Cluster the two may
be on different nodes, so they are two steps, each whole. Where the second fails, the first is undone, or lapses.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from redis.crc import key_slot

from proxy.errors import LimitsUnavailableError
from proxy.limits.memory.tickets import OVERHEAD_BYTES
from proxy.limits.messages import too_large_tickets, too_many_tickets
from proxy.limits.quotas import TICKS_PER_S
from proxy.limits.redis.accounts import PREFIX, digest
from proxy.limits.redis.channel import Answer, ignore
from proxy.limits.redis.errors import ConnectionLostError, StoreError
from proxy.limits.store import MAX_OPEN_TICKET_BYTES, MAX_OPEN_TICKETS, SPENT, SPENT_TICKET_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.limits.redis.links import Links
    from proxy.limits.redis.scripts import Script, Scripts
    from proxy.limits.store import Spent
    from proxy.model import Principal

# At a time and worker: what the server must hold at most in its buffers for us.
_MAX_CONNECTIONS = 8


class RedisTickets:
    """Puts and takes; see `store.Store`."""

    def __init__(self, links: Links, scripts: Scripts, *, timeout_s: float) -> None:
        self._links = links
        self._scripts = scripts
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(_MAX_CONNECTIONS)

    async def put(self, name: str, sealed: bytes, ttl_s: float, owner: Principal) -> None:
        """Keep a ticket."""
        mine = PREFIX + b"{" + digest(owner.issuer, owner.user) + b"}:open"
        size, life_ms = len(sealed) + OVERHEAD_BYTES, round(ttl_s * 1000)
        key = _key(name)
        member = b"%b:%d" % (key, size)
        may_be_kept = False
        try:
            await self._open(mine, [key, size, life_ms, MAX_OPEN_TICKETS, MAX_OPEN_TICKET_BYTES])
            may_be_kept = True
            await self._run_alone(self._scripts.keep_ticket, key, [sealed, life_ms, mine + b" " + member])
        finally:
            # Where nobody knows whether it is kept it goes on to count, until it lapses.
            if not may_be_kept:
                self._forget(mine, member)

    async def take(self, name: str) -> bytes | Spent | None:
        """Give a ticket to the first who asks."""
        answer = await self._run_alone(self._scripts.take_ticket, _key(name), [round(SPENT_TICKET_S * 1000)])
        if answer == 0:
            return SPENT
        if not isinstance(answer, list):
            return None
        sealed, note = answer
        self._forget(*note.split(b" "))
        assert isinstance(sealed, bytes)
        return sealed

    async def _open(self, mine: bytes, arguments: Sequence[bytes | int]) -> None:
        link = self._links.at(key_slot(mine))
        channel = await link.connected(self._timeout_s)
        if channel is None:
            raise LimitsUnavailableError
        try:
            answer = await channel.ask(*self._scripts.open_ticket.whole_command([mine], arguments))
        except StoreError as exc:
            link.failed(exc)
            raise LimitsUnavailableError from exc
        if isinstance(answer, list):
            bound, wait = answer
            refuse = too_many_tickets if bound == 1 else too_large_tickets
            raise refuse(wait / TICKS_PER_S)

    def _forget(self, mine: bytes, member: bytes) -> None:
        """Take a ticket from those that its owner has open; where the server is away, it lapses."""
        channel = self._links.at(key_slot(mine)).channel
        if channel is not None:
            channel.send((b"ZREM", mine, member), ignore)

    async def _run_alone(self, script: Script, key: bytes, arguments: Sequence[bytes | int]) -> Answer:
        slot = key_slot(key)
        link = self._links.at(slot)
        if link.problem is not None:
            raise LimitsUnavailableError
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._free.acquire()
        except TimeoutError as exc:
            raise LimitsUnavailableError from exc
        try:
            return await self._links.ask_alone(slot, script.whole_command([key], arguments))
        except StoreError as exc:
            link.failed(exc)
            if isinstance(exc, ConnectionLostError):
                # Of a connection that is not the link's, which counts only its own.
                self._links.on_failure()
            raise LimitsUnavailableError from exc
        finally:
            self._free.release()


def _key(name: str) -> bytes:
    # By digest: whoever reads the server's keys learns no ticket that could be used.
    return PREFIX + b"sealed:{" + digest(name) + b"}"
