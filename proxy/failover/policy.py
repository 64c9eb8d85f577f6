"""Which failure of an attempt moves a request on to the next target of its route. Pure.

docs/failover.md#which-failures-switch has the table, and RFC 9110's words on requests that may not be repeated.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from proxy.failover.keys import LIMITED, REFUSED, UNPAID

if TYPE_CHECKING:
    from proxy.model import RetryRules

_FIRST_SERVER_ERROR: Final = 500


class Outcome(StrEnum):
    """How an attempt came out; the label `outcome` of the metrics."""

    # Answered, with whatever the client is to have: a success, a redirect, a 4xx of its own.
    OK = "ok"
    # Nothing was sent: no connection.
    CONNECT = "connect"
    # The key was refused: 401 and 403, 402, 429.
    CREDENTIALS = "credentials"
    UNPAID = "402"
    LIMITED = "429"
    SERVER_ERROR = "5xx"
    # An event stream that begins with an error, or ends without an event.
    ERROR_EVENT = "error_event"
    # The request was sent, and no answer came of it: the vendor may have run it.
    LOST = "lost"
    TIMEOUT = "timeout"
    # The failure is ours, or the time for all attempts is over.
    REFUSED = "refused"
    CANCELLED = "cancelled"

    # See `Ending`.
    __hash__ = str.__hash__


# Of nearly all attempts. As a member it is looked up in its class and the class's own class, five times as slowly.
OK: Final = Outcome.OK
# What the upstream is to blame for; a key's refusals are the key's.
FAULTS: Final = frozenset({Outcome.CONNECT, Outcome.SERVER_ERROR, Outcome.ERROR_EVENT, Outcome.LOST, Outcome.TIMEOUT})
# What the vendor may have run, and be paid for.
_MAY_HAVE_RUN: Final = frozenset({Outcome.LOST, Outcome.TIMEOUT})
# Which word of `retry.on` moves an outcome on.
_WORDS: Final = {
    Outcome.CONNECT: "connect",
    Outcome.LIMITED: "429",
    Outcome.SERVER_ERROR: "5xx",
    Outcome.ERROR_EVENT: "error_event",
}


def outcome_of(status: int, *, has_operators_key: bool) -> Outcome:
    """Return what an answer's status makes of its attempt."""
    if status >= _FIRST_SERVER_ERROR:
        return Outcome.SERVER_ERROR
    if status == LIMITED:
        return Outcome.LIMITED
    if has_operators_key:
        if status in REFUSED:
            return Outcome.CREDENTIALS
        if status == UNPAID:
            return Outcome.UNPAID
    return OK


def moves_on(outcome: Outcome, retry: RetryRules | None) -> bool:
    """Return whether a request goes on to its route's next target; `retry` is None where the route has none.

    A key of the operator's that was refused moves every route on: nothing has run. What may have run, only with
    `retry_paid`. A 4xx of the request's own never does.
    """
    if outcome in {Outcome.CREDENTIALS, Outcome.UNPAID}:
        return True
    if retry is None:
        return False
    if outcome in _MAY_HAVE_RUN:
        return retry.retry_paid
    return _WORDS.get(outcome) in retry.on


def ends_at_once(outcome: Outcome, retry: RetryRules | None) -> bool:
    """Return whether the client is told this failure, whatever answer another vendor gave before."""
    if outcome in _MAY_HAVE_RUN:
        return retry is None or not retry.retry_paid
    return outcome is Outcome.REFUSED
