"""Tickets on the server: kept until they are taken, once, by whichever worker is asked.

A ticket holds a body. On the connection that all admissions share it would hold them up, so each has one of its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.errors import LimitsUnavailableError
from proxy.limits.memory.tickets import OVERHEAD_BYTES
from proxy.limits.messages import too_large_tickets, too_many_tickets
from proxy.limits.quotas import TICKS_PER_S
from proxy.limits.redis.accounts import PREFIX, digest
from proxy.limits.redis.resp import Answer, StoreError
from proxy.limits.store import MAX_OPEN_TICKET_BYTES, MAX_OPEN_TICKETS, SPENT, SPENT_TICKET_S

if TYPE_CHECKING:
    from proxy.limits.redis.dial import Dialler
    from proxy.limits.redis.link import Link
    from proxy.limits.redis.scripts import Script, Scripts
    from proxy.limits.store import Spent
    from proxy.model import Principal

# At a time and worker: what the server must hold at most in its buffers for us.
_MAX_CONNECTIONS = 8


class RedisTickets:
    """Puts and takes; see `store.Store`."""

    def __init__(self, dialler: Dialler, link: Link, scripts: Scripts) -> None:
        self._dialler = dialler
        self._link = link
        self._scripts = scripts
        self._free = asyncio.Semaphore(_MAX_CONNECTIONS)

    async def put(self, name: str, sealed: bytes, ttl_s: float, owner: Principal) -> None:
        """Keep a ticket."""
        mine = PREFIX + b"{" + digest(owner.issuer, owner.user) + b"}:tickets"
        arguments: list[bytes | int] = [
            sealed,
            round(ttl_s * 1000),
            MAX_OPEN_TICKETS,
            MAX_OPEN_TICKET_BYTES,
            OVERHEAD_BYTES,
        ]
        answer = await self._run(self._scripts.put_ticket, [_key(name), mine], arguments)
        if isinstance(answer, list):
            bound, wait = answer
            refuse = too_many_tickets if bound == 1 else too_large_tickets
            raise refuse(wait / TICKS_PER_S)

    async def take(self, name: str) -> bytes | Spent | None:
        """Give a ticket to the first who asks."""
        answer = await self._run(self._scripts.take_ticket, [_key(name)], [round(SPENT_TICKET_S * 1000)])
        if answer == 0:
            return SPENT
        assert answer is None or isinstance(answer, bytes)
        return answer

    async def _run(self, script: Script, keys: list[bytes], arguments: list[bytes | int]) -> Answer:
        if self._link.problem is not None:
            raise LimitsUnavailableError
        try:
            async with asyncio.timeout(self._dialler.timeout_s):
                await self._free.acquire()
        except TimeoutError as exc:
            raise LimitsUnavailableError from exc
        try:
            connection = await self._dialler.dial(is_patient=True)
            try:
                return await script.ask(connection, keys, arguments)
            finally:
                connection.abort("it is not wanted")
        except StoreError as exc:
            self._link.failed(exc)
            raise LimitsUnavailableError from exc
        finally:
            self._free.release()


def _key(name: str) -> bytes:
    # By digest: whoever reads the server's keys learns no ticket that could be used.
    return PREFIX + b"ticket:{" + digest(name) + b"}"
