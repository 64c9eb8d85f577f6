"""What the handlers of one worker share."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aiohttp import web

from proxy.errors import RateLimitExceededError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from proxy.exchange import Exchanges
    from proxy.exchange.attempts import Attempts
    from proxy.failover import UpstreamStates
    from proxy.ledger import Ledger
    from proxy.limits import Store
    from proxy.model import Principal
    from proxy.observability.metrics import Metrics
    from proxy.relay import Overruns
    from proxy.routing import Rules, Turns
    from proxy.tickets import Makers
    from proxy.timers import DeadlineTimer
    from proxy.upstream import Pool

# `reasons` against being ready, and under other names what only limps.
Problems = dict[str, list[str]]
# Sums of usage are free, and the ledger makes a few at a time: one user must not keep it from the others.
MAX_ASKING: Final = 4


class UsageAskers:
    """Counts the questions about usage that each user has waiting."""

    def __init__(self) -> None:
        self._asking: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def one_more(self, principal: Principal) -> Iterator[None]:
        """Count one while the context lasts.

        Raises:
            RateLimitExceededError: the user has `MAX_ASKING` waiting already.
        """
        user = principal.issuer, principal.user
        if self._asking[user] >= MAX_ASKING:
            raise RateLimitExceededError(
                "Your other questions about usage are being answered; try again.", limit="questions"
            )
        self._asking[user] += 1
        try:
            yield
        finally:
            self._asking[user] -= 1
            if not self._asking[user]:
                del self._asking[user]


@dataclass(eq=False)
class Service:
    """One worker's rules of the moment, its connections to upstreams, its limits, and the exchanges that run.

    A reload replaces `rules` as a whole; running exchanges keep those that they began with.

    Attributes:
        is_leaving: Whether readiness is withdrawn, because a drain begins soon.
        stop_elsewhere: Stops a user's stream in the other workers: id, issuer, user; None where there are none.
        ledger: Where usage is kept; None where it is not.
        prefix: The path below which the application is mounted in another one.
    """

    rules: Rules
    exchanges: Exchanges
    attempts: Attempts
    pool: Pool
    upstreams: UpstreamStates
    store: Store
    timers: DeadlineTimer
    overruns: Overruns
    turns: Turns
    metrics: Metrics
    ticket_makers: Makers
    usage_askers: UsageAskers = field(default_factory=UsageAskers)
    ledger: Ledger | None = None
    stop_elsewhere: Callable[[str, str, str], Awaitable[bool]] | None = None
    is_leaving: bool = False
    is_draining: bool = False
    prefix: bytes = b""

    def must_refuse(self, request: web.Request) -> bool:
        """Whether a drain refuses this request.

        The first request of a connection that was accepted before the drain is still served: a load balancer cannot
        retry it on another node.
        """
        return self.is_draining and getattr(request.protocol, "has_answered", True)

    def problems(self) -> Problems:
        """What stands against serving a request that arrives now, and what only limps."""
        reasons: list[str] = []
        limping: list[str] = []
        if self.is_leaving or self.is_draining:
            reasons.append("draining")
        authenticator = self.rules.authenticator
        if authenticator is not None:
            problems = list(authenticator.problems())
            (limping if authenticator.is_ready() else reasons).extend(f"auth: {problem}" for problem in problems)
        problem = self.store.problem()
        if problem is not None:
            (limping if self.store.is_serving else reasons).append(f"limits: {problem}")
        limping += self.upstreams.problems()
        return {"reasons": reasons, "limping": limping}


SERVICE: Final = web.AppKey("service", Service)
