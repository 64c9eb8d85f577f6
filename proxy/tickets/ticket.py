"""Makes and uses tickets: stores a checked request, and loads it for the `EventSource` that presents the ticket."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Final

import orjson

from proxy.errors import InvalidRequestError, NotFoundError
from proxy.limits import Spent, too_many_ticket_bodies
from proxy.protocol.paths import query_members
from proxy.tickets.sealed import Ticket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.limits import Store
    from proxy.model import Principal, RequestHead
    from proxy.routing import Turns

# Where tickets are made, and where they are used: each stands for a POST to the second.
TICKETS: Final = b"/forward-sse/tickets"
FRONT: Final = b"/forward-sse"
TICKET_TTL_S: Final = 60
# Reading a ticket's body holds no lease, so this bounds what one user's bodies can take up in a worker.
MAX_MAKING: Final = 8
_TYPED: Final = (b"events", b"typed")


class Makers:
    """Counts the ticket bodies that each user is sending now."""

    def __init__(self) -> None:
        self._making: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def one_more(self, principal: Principal | None) -> Iterator[None]:
        """Count one body while the context lasts; None is a user who is not known before the body is read.

        Raises:
            TooManyTicketsError: the user is sending `MAX_MAKING` already.
        """
        if principal is None:
            yield
            return
        user = principal.issuer, principal.user
        if self._making[user] >= MAX_MAKING:
            raise too_many_ticket_bodies(MAX_MAKING)
        self._making[user] += 1
        try:
            yield
        finally:
            self._making[user] -= 1
            if not self._making[user]:
                del self._making[user]


def has_ticket(query: bytes | None) -> bool:
    """Check whether a GET's query has a ticket, valid or not."""
    return any(name == b"ticket" for name, _ in query_members(query))


def asks_for_typed(head: RequestHead) -> bool:
    """Check whether the query asks for typed events."""
    return _TYPED in query_members(head.query)


def ticket_in(head: RequestHead) -> Ticket:
    """Parse the ticket in the query of a GET.

    Raises:
        InvalidRequestError: there are several.
        NotFoundError: it cannot be one of ours.
    """
    texts = [value for name, value in query_members(head.query) if name == b"ticket"]
    if len(texts) != 1:
        raise InvalidRequestError("There is more than one ticket.")
    ticket = Ticket.parse(texts[0])
    if ticket is None:
        raise NotFoundError("No such ticket.")
    return ticket


async def make_ticket(store: Store, head: RequestHead, body: BytesIO, owner: Principal, turns: Turns) -> bytes:
    """Store a request under a new ticket, and return the response's JSON. The body is overwritten.

    Raises:
        TooManyTicketsError, LimitsUnavailableError: as `store.Store.put_ticket` says.
    """
    ticket = Ticket.new()
    await store.put_ticket(ticket.name, await turns.run(ticket.seal(head, body)), float(TICKET_TTL_S), owner)
    return orjson.dumps(
        {"ticket": ticket.text, "url": f"{FRONT.decode()}?ticket={ticket.text}", "expires_in": TICKET_TTL_S}
    )


async def use_ticket(
    store: Store, ticket: Ticket, head: RequestHead, turns: Turns
) -> tuple[RequestHead, bytes] | Spent:
    """Return the ticket's request, once; `Spent.SPENT` every later time.

    `events=typed` may stand on either request; nothing else of this one, whose head is `head`, counts.

    Raises:
        NotFoundError: there is none, or it lapsed unused, or what the store holds is not what was sealed.
        LimitsUnavailableError: the store does not answer.
    """
    sealed = await store.take_ticket(ticket.name)
    if isinstance(sealed, Spent):
        return Spent.SPENT
    if sealed is None:
        raise NotFoundError("No such ticket.")
    buffer = BytesIO(sealed)
    # The buffer alone has it: it is decrypted where it is.
    del sealed
    try:
        asked, body = await turns.run(ticket.unseal(buffer))
    except ValueError:
        raise NotFoundError("No such ticket.") from None
    if asks_for_typed(head) and not asks_for_typed(asked):
        query = b"&".join(part for part in (asked.query, b"=".join(_TYPED)) if part)
        asked = replace(asked, query=query)
    return asked, body
