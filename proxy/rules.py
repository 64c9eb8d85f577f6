"""From settings to rules: the plain values and objects that one configuration stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from proxy.auth.api_keys import ApiKeys
from proxy.auth.authenticator import Authenticator
from proxy.dialects import DIALECTS
from proxy.exchange import Origin, Plan, Principal, Timeouts, Upstream
from proxy.phases.resolve import EnvelopeRules, Router
from proxy.pipeline import Rules
from proxy.protocol.cors import CorsPolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from proxy.exchange import Route
    from proxy.limits.store import Store
    from proxy.settings import Settings, UpstreamSettings
    from proxy.upstream.addresses import Address

_DEFAULT_PORTS = {"http": 80, "https": 443}
# Everybody, where the file says `auth: none`: one user, one plan.
_NOBODY = ("none", "anonymous")


def build_rules(
    settings: Settings,
    *,
    authenticator: Authenticator | None,
    store: Store,
    resolve: Callable[[Route], Awaitable[Sequence[Address]]],
) -> Rules:
    """The rules that `settings` stand for, around what outlives them."""
    auth = settings.auth
    plans = build_plans(settings)
    return Rules(
        authenticator=authenticator,
        anonymous=Principal(*_NOBODY, plans["default"]),
        query_token=auth is not None and auth.query_token,
        envelope_passcode=auth is not None and auth.envelope_passcode,
        store=store,
        router=Router(
            upstreams={name: _upstream(name, upstream) for name, upstream in settings.upstreams.items()},
            default_upstream=settings.default_upstream,
            envelope=_envelope(settings),
        ),
        cors=CorsPolicy(
            origins=None if "*" in settings.cors.origins else frozenset(settings.cors.origins),
            credentials=settings.cors.credentials,
            max_age_s=int(settings.cors.max_age_s or 0),
        ),
        resolve=resolve,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.client_timeouts.body_s,
        write_timeout_s=settings.client_timeouts.write_s,
    )
