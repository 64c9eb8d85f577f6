"""The errors of a user who reached a limit, with messages that name the limit and the wait.

Pure, and the same for every store. A wait in a message is the number of `Retry-After`: both are rounded by
`errors.whole_seconds`. Units are symbols (`ms`, `s`, `min`, `h`, `d`), which have no plural. A message holds only the
user's own limits: how others use theirs never shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.errors import (
    InsufficientQuotaError,
    RateLimitExceededError,
    TooManyStreamsError,
    TooManyTicketsError,
    whole_seconds,
)
from proxy.limits import gcra
from proxy.limits.gcra import Limit
from proxy.limits.quotas import TICKS_PER_S, window_of
from proxy.limits.store import MAX_OPEN_TICKET_BYTES, MAX_OPEN_TICKETS, STREAM_RETRY_AFTER_S
from proxy.limits.token_limits import amount_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.limits.token_status import Misfit
    from proxy.model import Budget, Plan

_WAIT_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
# From here on a number of seconds is hard to read, and larger units stand beside it.
_LONG_WAIT_S = 120


def rate_limit_exceeded(limits: Sequence[Limit], tats: Sequence[int], now: int) -> RateLimitExceededError:
    """Make the error of a request that does not fit all of the limits.

    The message names the limit with the longest wait, of equals the first: a request that waits for it fits the others
    too. `tats` and `now` are those of `gcra`.
    """
    limit, wait = gcra.longest_wait(limits, tats, now)
    wait_s = wait / TICKS_PER_S
    return RateLimitExceededError(f"{rate_text(limit)} used up; {try_again(wait_s)}.", retry_after_s=wait_s)


def no_room(misfit: Misfit | None) -> RateLimitExceededError | InsufficientQuotaError:
    """Make the error of an exchange whose reservation does not fit a token rate or a budget.

    None where that was so a moment ago, or is by less than a microsecond.
    """
    if misfit is None:
        return RateLimitExceededError(f"Tokens used up; {try_again(1.0)}.", retry_after_s=1.0, limit="tokens")
    rule, wait_s = misfit.rule, misfit.wait_s
    again = try_again(wait_s)
    if isinstance(rule, Limit):
        text = rate_text(rule, "token")
        message = (
            f"What is left of your {text} is reserved for your requests that run; {again}."
            if misfit.cause == "held"
            else f"{text} used up; {again}."
        )
        return RateLimitExceededError(message, retry_after_s=wait_s, limit="tokens")
    text = budget_text(rule)
    message = {
        "used": f"Your {text} is used up; {again}.",
        "large": f"What is left of your {text} is too little for this request; {again}.",
        "held": f"What is left of your {text} is reserved for your requests that run; {again}, or when one has ended.",
    }[misfit.cause]
    return InsufficientQuotaError(message, retry_after_s=wait_s, limit=f"{rule.unit}_budget")


def too_many_streams(plan: Plan) -> TooManyStreamsError:
    """Make the error of a request for which all of the plan's streams are in use; nobody knows when one ends."""
    most = plan.concurrent_streams
    message = (
        "Your 1 stream at a time is in use; try again when it has ended."
        if most == 1
        else f"All of your {most} streams at a time are in use; try again when one has ended."
    )
    return TooManyStreamsError(message, retry_after_s=STREAM_RETRY_AFTER_S)


def too_many_tickets(wait_s: float) -> TooManyTicketsError:
    """Make the error of a user with `MAX_OPEN_TICKETS`, of which the oldest lapses after the wait."""
    message = f"All of your {MAX_OPEN_TICKETS} tickets at a time are open; use one, or {try_again(wait_s)}."
    return TooManyTicketsError(message, retry_after_s=wait_s)


def too_large_tickets(wait_s: float) -> TooManyTicketsError:
    """Make the error of a user whose tickets would exceed `MAX_OPEN_TICKET_BYTES`; the oldest lapses after the wait."""
    most = f"{MAX_OPEN_TICKET_BYTES >> 20} MiB"
    message = f"Your open tickets may hold {most} at a time; use one, or {try_again(wait_s)}."
    return TooManyTicketsError(message, retry_after_s=wait_s)


def too_many_ticket_bodies(most: int) -> TooManyTicketsError:
    """Make the error of a user who is sending the bodies of `most` tickets; nobody knows when one arrives."""
    return TooManyTicketsError(
        f"All of your {most} ticket bodies at a time are on their way; try again when one has arrived."
    )


def budget_text(budget: Budget) -> str:
    """Write a budget for people: `budget of 50 USD a month`."""
    unit = "USD" if budget.unit == "usd" else "token" if budget.limit == 1 else "tokens"
    return f"budget of {amount_text(budget)} {unit} a {budget.every}"


def rate_text(limit: Limit, noun: str = "request") -> str:
    """Write a rate for people: `60 requests per 10 s`, its window in the largest unit that makes it a whole number."""
    count, unit = window_of(limit)
    if limit.quota != 1:
        noun += "s"
    return f"{limit.quota} {noun} per {count} {'min' if unit == 'm' else unit}"


def try_again(wait_s: float) -> str:
    """Write a wait for people: `try again in 3 s`, and from two minutes on `try again in 5400 s (1 h 30 min)`."""
    seconds = whole_seconds(wait_s)
    text = f"try again in {seconds} s"
    if seconds < _LONG_WAIT_S:
        return text
    parts = []
    for unit, size in _WAIT_UNITS:
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count} {unit}")
    return f"{text} ({' '.join(parts)})"
