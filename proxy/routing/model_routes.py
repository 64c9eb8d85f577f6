"""The operator's routes: a model that several upstreams have, and in which order a request is sent to them.

The order is made for each request, by what is known of the upstreams then. What moves a request on is the attempts' to
decide; what is left of the order is here.
"""

from __future__ import annotations

import random
import re
from fnmatch import translate
from typing import TYPE_CHECKING, Final

from proxy.errors import ProxyError, UpstreamOffError
from proxy.failover import RetryBudget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from proxy.failover import UpstreamState
    from proxy.model import RetryRules, Route, RouteRules, RouteTarget
    from proxy.protocol.json_text import Steps

# How long who is told that an upstream is off should wait: an operator has to turn it on.
OFF_RETRY_S: Final = 30.0


class ModelRoute:
    """One route in one worker. Vendors' model names are case-sensitive, so the globs are."""

    def __init__(self, rules: RouteRules, *, now: Callable[[], float], chance: random.Random | None = None) -> None:
        """`now` gives the loop's time, in seconds; `chance` draws where weights decide."""
        self.rules = rules
        self.budget = RetryBudget(now)
        self._patterns = [re.compile(translate(glob)).match for glob in rules.models]
        self._chance = chance or random.Random()  # noqa: S311 - spreads load, protects nothing

    def matches(self, model: str) -> bool:
        """Whether the route is for this model."""
        return any(matches(model) for matches in self._patterns)

    def order(self, states: Mapping[str, UpstreamState]) -> tuple[list[RouteTarget], bool]:
        """Return the targets in the order in which they are asked, and whether all of them are out.

        Those that are off are left out, and so are those that are out, unless all are: then the one that failed least
        recently is first. Those of which every key rests come last.
        """
        targets = [target for target in self.rules.targets if not states[target.upstream].is_off]
        well = [target for target in targets if states[target.upstream].breaker.allows]
        if targets and not well:
            return sorted(targets, key=lambda target: states[target.upstream].breaker.last_failed_s), True
        if self.rules.strategy == "weighted":
            well = self._drawn(well)
        return sorted(well, key=lambda target: states[target.upstream].keys.all_rest), False

    def _drawn(self, targets: Iterable[RouteTarget]) -> list[RouteTarget]:
        """Draw without putting back: each gets a number by its weight, the largest first (Efraimidis 2006)."""
        chance = self._chance.random
        return sorted(targets, key=lambda target: chance() ** (1 / target.weight), reverse=True)


class RouteChoices:
    """What is left of a route's order, for one request. It holds the request: it goes when the stream begins."""

    __slots__ = ("_are_all_out", "_build", "_fault", "_has_begun", "_route", "_states", "_targets")

    def __init__(
        self,
        route: ModelRoute,
        states: Mapping[str, UpstreamState],
        build: Callable[[RouteTarget], Steps[Route]],
    ) -> None:
        """`build` makes the request to a target, or raises what refuses it."""
        self._route = route
        self._states = states
        self._build = build
        self._targets, self._are_all_out = route.order(states)
        self._fault: ProxyError | None = None
        self._has_begun = False
        route.budget.request()

    @property
    def retry(self) -> RetryRules | None:
        """What moves the request on; None where nothing but a refused key does."""
        return self._route.rules.retry

    @property
    def has_more(self) -> bool:
        """Whether another target is left."""
        return bool(self._targets)

    def may_retry(self) -> bool:
        """Take one of the route's retries, if there is one left."""
        return self._route.budget.take()

    def first(self) -> Steps[Route]:
        """Make the request to the first target to which it may go.

        Raises:
            UpstreamOffError: all of them are off.
            ProxyError: what refuses the request of the first of them, where all refuse it.
        """
        route = yield from self.take()
        if route is None:
            raise self._fault or UpstreamOffError(retry_after_s=OFF_RETRY_S)
        return route

    def take(self) -> Steps[Route | None]:
        """Make the request to the next target, in pieces; None where there is none.

        Left out are those to which this request may not go, and those that have become unfit meanwhile.
        """
        while self._targets:
            target = self._targets.pop(0)
            state = self._states[target.upstream]
            if self._has_begun and (state.is_off or not (self._are_all_out or state.breaker.allows)):
                continue
            try:
                route = yield from self._build(target)
            except ProxyError as error:
                self._fault = self._fault or error
                continue
            self._has_begun = True
            return route._replace(choices=self)
        return None
