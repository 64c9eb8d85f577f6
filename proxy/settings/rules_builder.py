"""Builds the rules anew at each reload, around what outlives one: states of upstreams, addresses, counted failures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from proxy.errors import UpstreamUnreachableError
from proxy.failover import UpstreamStates
from proxy.limits.failures import AuthFailures
from proxy.observability.logging import UpstreamLog
from proxy.playground import load_page
from proxy.settings.build import build_authenticator, build_rules
from proxy.upstream.addresses import check_addresses
from proxy.upstream.egress import unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.auth import Authenticator
    from proxy.limits import Store
    from proxy.model import EgressProxy, Rate, Route
    from proxy.observability.metrics import Metrics
    from proxy.routing import Rules
    from proxy.settings import Settings
    from proxy.upstream import Address
    from proxy.upstream.addresses import Resolver


class RulesBuilder:
    """Makes the rules of settings, around what outlives a reload.

    Attributes:
        settings: Those of the rules in force.
        own_listeners: The addresses on which this process listens, which are never an envelope's target.
        states: What is known of the upstreams and their keys.
    """

    def __init__(
        self, settings: Settings, *, store: Store, resolver: Resolver, now: Callable[[], float], metrics: Metrics
    ) -> None:
        """`now` gives the loop's time, in seconds."""
        self.settings = settings
        self._resolver = resolver
        self.own_listeners: list[tuple[str, int]] = []
        self._store = store
        self._now = now
        self._failures: AuthFailures | None = None
        self._metrics = metrics
        self.states = UpstreamStates(now=now, listener=UpstreamLog())
        self._metrics.watch_upstreams(self.states.reports)
        # Both at start: a reload may turn the playground on, or authentication off.
        self._guarded_page, self._open_page = load_page(needs_token=True), load_page(needs_token=False)

    def make_authenticator(self, settings: Settings, old: Authenticator | None) -> Authenticator | None:
        """The authenticator; key sets of the old one are used again where nothing about them changed."""
        known = {} if old is None else old.key_sources
        return build_authenticator(settings, known=known, on_refresh=self._keys_refreshed)

    def build(self, settings: Settings, authenticator: Authenticator | None, *, is_reload: bool = True) -> Rules:
        """The rules of these settings; `is_reload` where an operator has asked for them."""
        allow_private = () if settings.envelope is None else settings.envelope.allow_private

        async def resolve(route: Route) -> Sequence[Address]:
            if (proxy := route.way.proxy) is not None:
                return await self._resolve_proxy(proxy)
            addresses = await self._resolver.resolve(route.origin.host, route.origin.port)
            if route.is_pinned:
                check_addresses(addresses, allow_private=allow_private, own=self.own_listeners)
            return addresses

        page = self._open_page if settings.auth is None else self._guarded_page
        return build_rules(
            settings,
            authenticator=authenticator,
            store=self._store,
            resolve=resolve,
            page=page,
            states=self.states,
            failures=self._failures_of(settings.auth_failures),
            is_reload=is_reload,
        )

    async def _resolve_proxy(self, proxy: EgressProxy) -> Sequence[Address]:
        try:
            return await self._resolver.resolve(proxy.host, proxy.port)
        except UpstreamUnreachableError as exc:
            raise unreachable() from exc

    def _failures_of(self, rate: Rate | None) -> AuthFailures | None:
        """What was counted stays while the rate does."""
        if rate is None:
            self._failures = None
        elif self._failures is None or self._failures.rate != rate:
            self._failures = AuthFailures(rate, now=self._now)
        return self._failures

    def _keys_refreshed(self, issuer: str, outcome: str, reason: str | None) -> None:
        self._metrics.jwks_refreshed(issuer, outcome)
        log = structlog.get_logger()
        if reason is None:
            log.info("keys.refreshed", issuer=issuer, outcome=outcome)
        else:
            # Each time: the attempts become seldom by themselves, and the reason may change.
            log.warning("keys.refreshed", issuer=issuer, outcome=outcome, reason=reason)
