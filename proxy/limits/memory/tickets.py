"""Tickets of a single process: sealed requests that wait to be taken, once each, and the bounds on them.

Nothing here waits, so taking is atomic. What is kept is opaque; how it is sealed is not known here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from proxy.errors import LimitsUnavailableError
from proxy.limits.messages import too_large_tickets, too_many_tickets
from proxy.limits.store import MAX_OPEN_TICKET_BYTES, MAX_OPEN_TICKETS, SPENT, SPENT_TICKET_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.limits.store import Spent

_Owner = tuple[str, str]

# Eight users at their bound. Beyond it a further ticket is refused rather than an earlier one forgotten, for else
# whoever makes most of them would take away everybody else's.
MAX_BYTES = 8 * MAX_OPEN_TICKET_BYTES
# What a ticket costs beside its bytes, roughly: so that the bound in bytes bounds the number too.
OVERHEAD_BYTES = 1024
# Some 20 MiB of names. One that is forgotten early is unknown instead of spent: no second call either way.
MAX_SPENT = 100_000


class _Open(NamedTuple):
    """A ticket that waits."""

    sealed: bytes
    owner: _Owner
    expires_s: float

    @property
    def cost_bytes(self) -> int:
        return len(self.sealed) + OVERHEAD_BYTES


class TicketStore:
    """Keeps tickets until they are taken or lapse, and for a while the names of those that were taken.

    Lapsed tickets are dropped when the next one is put or taken, oldest first: with ttls that differ, a shorter one
    behind a longer one holds its memory for up to the longer, but never its meaning.

    Args:
        now: A monotonic clock in seconds.
        max_bytes: Bound on all that waits, over all owners.
        max_spent: Bound on the names of taken ones.
    """

    def __init__(
        self, now: Callable[[], float] = time.monotonic, *, max_bytes: int = MAX_BYTES, max_spent: int = MAX_SPENT
    ) -> None:
        self._now = now
        self._max_bytes = max_bytes
        self._max_spent = max_spent
        # Both in the order of coming.
        self._open: dict[str, _Open] = {}
        self._spent: dict[str, float] = {}
        self._owned: dict[_Owner, dict[str, None]] = {}
        self._bytes = 0

    @property
    def bytes_held(self) -> int:
        """What waits, with its overhead; at most `max_bytes`."""
        return self._bytes

    def put(self, name: str, sealed: bytes, ttl_s: float, owner: _Owner) -> None:
        """Keep a ticket; see `store.Store.put_ticket`."""
        now_s = self._now()
        self._drop_lapsed(now_s)
        ticket = _Open(sealed, owner, now_s + ttl_s)
        own = self._owned.get(owner, {})
        # At most `MAX_OPEN_TICKETS` are looked at.
        held_bytes = sum(self._open[other].cost_bytes for other in own)
        is_many = len(own) >= MAX_OPEN_TICKETS
        if is_many or (own and held_bytes + ticket.cost_bytes > MAX_OPEN_TICKET_BYTES):
            oldest = self._open[next(iter(own))]
            refuse = too_many_tickets if is_many else too_large_tickets
            raise refuse(oldest.expires_s - now_s)
        if self._bytes + ticket.cost_bytes > self._max_bytes:
            raise LimitsUnavailableError
        self._open[name] = ticket
        self._owned.setdefault(owner, own)[name] = None
        self._bytes += ticket.cost_bytes

    def take(self, name: str) -> bytes | Spent | None:
        """Give a ticket to the first who asks; see `store.Store.take_ticket`."""
        now_s = self._now()
        self._drop_lapsed(now_s)
        ticket = self._open.get(name)
        if ticket is None:
            return SPENT if name in self._spent else None
        self._remove(name, ticket)
        if now_s >= ticket.expires_s:
            return None
        self._spent[name] = now_s + SPENT_TICKET_S
        if len(self._spent) > self._max_spent:
            del self._spent[next(iter(self._spent))]
        return ticket.sealed

    def _drop_lapsed(self, now_s: float) -> None:
        while self._open:
            name, ticket = next(iter(self._open.items()))
            if now_s < ticket.expires_s:
                break
            self._remove(name, ticket)
        while self._spent:
            name, forgotten_s = next(iter(self._spent.items()))
            if now_s < forgotten_s:
                break
            del self._spent[name]

    def _remove(self, name: str, ticket: _Open) -> None:
        del self._open[name]
        self._bytes -= ticket.cost_bytes
        own = self._owned[ticket.owner]
        del own[name]
        if not own:
            del self._owned[ticket.owner]
