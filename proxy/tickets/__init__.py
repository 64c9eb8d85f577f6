"""Tickets: a POST request is stored under a single-use name, for an `EventSource`, which can only send GET.

`make_ticket` takes the checked request, encrypts it, puts it into the limits store and returns its name; `use_ticket`
takes the name and returns the request, once. The room can be removed as one folder with `handlers/tickets`.
"""

from proxy.tickets.ticket import FRONT, Makers, asks_for_typed, has_ticket, make_ticket, ticket_in, use_ticket

__all__ = ["FRONT", "Makers", "asks_for_typed", "has_ticket", "make_ticket", "ticket_in", "use_ticket"]
