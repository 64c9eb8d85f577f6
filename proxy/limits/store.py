"""What a limits store promises, whatever keeps the numbers: admission, leases, and how a user stands.

A request is admitted when every rate of its user's plan and the plan's bound on concurrent streams have room; it then
is charged to all of the rates and holds one lease. A store also keeps tickets, because it is what workers share. Values
and promises only; the stores stand beside this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, TypeAlias

from proxy.limits import gcra
from proxy.limits.quotas import NO_QUOTAS, TICKS_PER_S, Quotas
from proxy.limits.token_status import amount

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from proxy.limits.token_status import TokenStatus
    from proxy.model import Amounts, Principal

# A stream's end cannot be foretold; RFC 9110 §10.2.3 still wants a number, and a second is the shortest it can say.
STREAM_RETRY_AFTER_S = 1.0

# What one user may have open at a time: making a ticket is charged to no rate, and each holds a body. The only open one
# of a user may have any size, because `max_body` has bounded it already.
MAX_OPEN_TICKETS = 32
MAX_OPEN_TICKET_BYTES = 32 * 1024 * 1024
# How long a taken ticket is told from one that never was. Clients come back within seconds; those that slept, later.
SPENT_TICKET_S = 3600.0


class Spent(Enum):
    """What is left of a ticket that was taken."""

    SPENT = "spent"


SPENT: Final = Spent.SPENT

# Each worker counts alone, or nobody counts.
Fallback = Literal["local", "allow"]


class LimitState(NamedTuple):
    """How a user stands in one limit, for whoever asks: amounts are requests, tokens or nano-dollars.

    `name` tells it apart within its plan, such as `100000-tokens-per-1m` or `50-usd-per-month`. `reserved` is for
    exchanges that run, `used` without it. `resets_s` is the Unix time at which all of it is there again.
    """

    kind: Literal["requests", "tokens", "usd"]
    name: str
    limit: int
    used: int
    reserved: int
    resets_s: float


class RateState(NamedTuple):
    """How much of one rate is left.

    `name` tells the rate apart within its plan; `reset_s` is the time until the whole quota is there again.
    """

    name: str
    quota: int
    window_s: float
    remaining: int
    reset_s: float


@dataclass(slots=True, eq=False)  # one is made for every request, and `frozen` costs more than all the rest
class RateStatus:
    """How a user stands at a tick: the state of each of the plan's rates, as it is counted (see `gcra`).

    `tokens` tells of its token rates and budgets, None where it has none.
    """

    quotas: Quotas = NO_QUOTAS
    tats: tuple[int, ...] = ()
    at: int = 0
    tokens: TokenStatus | None = None

    @property
    def rates(self) -> tuple[RateState, ...]:
        """How much of each rate is left, in the plan's order; empty where the plan has none."""
        rates = []
        for limit, name, tat in zip(self.quotas.limits, self.quotas.names, self.tats, strict=True):
            left, reset = gcra.standing(limit, tat, self.at)
            rates.append(RateState(name, limit.quota, limit.window / TICKS_PER_S, left, reset / TICKS_PER_S))
        return tuple(rates)

    def limit_states(self, at_s: float) -> tuple[LimitState, ...]:
        """Give the state of each rate of requests, token rate and budget; `at_s` is the tick in Unix time."""
        states = []
        for rate in self.rates:
            used, resets_s = rate.quota - rate.remaining, at_s + rate.reset_s
            states.append(LimitState("requests", rate.name, rate.quota, used, 0, resets_s))
        if self.tokens is not None:
            states += _token_states(self.tokens)
        return tuple(states)


def _token_states(status: TokenStatus) -> Iterator[LimitState]:
    limits, held = status.limits, status.held
    for limit, name, tat, used in zip(limits.rates, limits.rate_names, status.tats, status.used(), strict=True):
        reset = max(0, -(-(tat - status.at * limit.quota) // limit.quota))
        reserved = min(held.tokens, limit.quota)
        yield LimitState("tokens", name, limit.quota, used, reserved, status.at_s + reset / TICKS_PER_S)
    for budget, name, period, spent in zip(
        limits.budgets, limits.budget_names, status.periods, status.spent, strict=True
    ):
        reserved = min(amount(held, budget), budget.limit)
        yield LimitState(budget.unit, name, budget.limit, spent, reserved, float(period.end_s))


class Admission(Protocol):
    """A request that was let in: it holds one of its user's streams (its lease) and a charge.

    Whoever called `admit` releases it; while it is held, the charge can be given back.
    """

    def release(self) -> None:
        """Give the slot back. Any number of times; never raises and never waits, so it is safe in any `finally`."""
        ...

    @property
    def standing(self) -> RateStatus:
        """How the user stood just after this request was charged."""
        ...

    @property
    def fallback(self) -> Fallback | None:
        """What let it in where the store could not be asked; None where it was."""
        ...

    def settle(self, took: Amounts) -> None:
        """Charge what the exchange took in place of what it had reserved, and release the lease, in one atomic step.

        Any number of times; only the first counts. Never raises and never waits. What exceeds the limits is debt.
        """
        ...

    def refund(self) -> None:
        """Give back what is left of the charge to every rate, for a request that our own check refused.

        Any number of times; only the first counts, and only before the lease is released. Nothing is given back for
        what time has already freed, so a refund never lets more through than the rates allow. The lease stays held.
        """
        ...


# What a user has used since a moment (Unix time in milliseconds), by the ledger: issuer, user, moment. Where it does
# not know it raises, whatever it is: an answer is believed, one of nothing too, and the user's period counts as opened.
Opening: TypeAlias = "Callable[[str, str, int], Awaitable[Amounts]]"


class Store(Protocol):
    """Holds users to their plans."""

    async def open(self) -> None:
        """Get ready; a store that cannot be reached is no error here (`problem` tells)."""
        ...

    async def close(self) -> None:
        """Free what `open` took; leases may still be released afterwards."""
        ...

    async def admit(self, principal: Principal) -> Admission:
        """Charge one request to every rate of the user's plan and take a lease, or refuse and change nothing.

        Cancelling is safe: either an admission was returned, or nothing is held.

        Raises:
            RateLimitExceededError: A rate is used up; `retry_after_s` is when a request will fit all of them.
            TooManyStreamsError: The rates have room, but all of the plan's streams are in use.
            LimitsUnavailableError: The question cannot be answered.
        """
        ...

    async def reserve(self, admission: Admission, estimate: Amounts) -> None:
        """Reserve tokens and money for an admitted exchange, in every token rate and budget of its plan or in none.

        Of each limit at most the whole of it is reserved, so that a full allowance always admits one. What is reserved
        is given back by `settle` or `release`, and within 30 s where the worker died. The admission's `standing` tells
        of it. For plans without such limits it does nothing. Cancelling is safe.

        Raises:
            RateLimitExceededError: A token rate has no room; `retry_after_s` is when it will.
            InsufficientQuotaError: A budget has no room; `retry_after_s` is when its next period begins.
            LimitsUnavailableError: The question cannot be answered.
        """
        ...

    async def limits(self, principal: Principal) -> tuple[LimitState, ...]:
        """Say how the user stands in each limit of the plan, without charging anything.

        Raises:
            LimitsUnavailableError: The question cannot be answered.
        """
        ...

    def charge_dead(self, principal: Principal, took: Amounts, name: str) -> None:
        """Charge what an exchange took whose worker was killed, and whose row is in the ledger; never waits.

        Once for each `name`, however often it is said. What it had reserved lapses by itself.
        """
        ...

    async def put_ticket(self, name: str, sealed: bytes, ttl_s: float, owner: Principal) -> None:
        """Keep a sealed request under a name until it is taken, for at most `ttl_s`; charges no rate.

        Neither the name nor the bytes are a secret of the user's, but neither belongs in a log.

        Raises:
            TooManyTicketsError: The owner has `MAX_OPEN_TICKETS` or `MAX_OPEN_TICKET_BYTES` open.
            LimitsUnavailableError: There is no room for anybody, or the store does not answer.
        """
        ...

    async def take_ticket(self, name: str) -> bytes | Spent | None:
        """Give what was kept to the first who asks, in all workers; `SPENT` to whoever asks later, None for the rest.

        A ticket that lapsed unused is as unknown as one that never was. Cancelling may lose the ticket, never give it
        twice.

        Raises:
            LimitsUnavailableError: The question cannot be answered.
        """
        ...

    def standing(self, principal: Principal) -> RateStatus:
        """Say how the user stands without charging anything, for the fields of answers that were not admitted."""
        ...

    def problem(self) -> str | None:
        """Say in a few words why the store does not work, or not for all users; None when it does. For `/readyz`."""
        ...

    @property
    def is_serving(self) -> bool:
        """Whether requests are served in spite of a `problem`: of some users, or without the store."""
        ...

    def fallback(self, principal: Principal) -> Fallback | None:
        """How a user's requests are let in without the store; None while it works, and where they are not."""
        ...

    @property
    def leases_held(self) -> int:
        """How many leases this process holds, over all users."""
        ...
