"""Builds from settings the plain values and objects of one configuration: rules, authenticator, plans, store."""

from __future__ import annotations

from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import SecretStr

from proxy.auth import Authenticator
from proxy.auth.api_keys import ApiKeys
from proxy.auth.issuers import Issuer
from proxy.auth.jwks import JwksSource
from proxy.auth.key_sets import KeySource, StaticKeySet
from proxy.auth.operators import AdminRules, OperatorToken
from proxy.auth.published_keys import RemoteKeySet
from proxy.dialects import DIALECTS
from proxy.limits.memory import MemoryStore
from proxy.limits.openings import Openings
from proxy.limits.periods import Calendar
from proxy.model import (
    Budget,
    HealthRules,
    KeyRules,
    Origin,
    Plan,
    Principal,
    RetryRules,
    RouteRules,
    RouteTarget,
    Timeouts,
    Upstream,
)
from proxy.playground import Playground
from proxy.protocol.client_address import ClientAddresses
from proxy.protocol.cors import CorsPolicy
from proxy.protocol.paths import TargetPattern, below
from proxy.routing import Router, Rules
from proxy.routing.envelopes import EnvelopeRules, EnvelopeTarget
from proxy.routing.model_routes import ModelRoute
from proxy.settings.build_prices import build_prices
from proxy.settings.build_telemetry import telemetry_secrets
from proxy.settings.build_ways import egress_of, egress_secrets, target_proxy, way_of
from proxy.settings.scalars import is_loopback
from proxy.settings.ways import tls_files
from proxy.timers import tick_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence

    from proxy.failover import UpstreamStates
    from proxy.ledger import Ledger
    from proxy.limits import Store
    from proxy.limits.failures import AuthFailures
    from proxy.limits.redis import RedisAddress
    from proxy.model import Route
    from proxy.pages import Page
    from proxy.settings import Address as ListenAddress
    from proxy.settings import BudgetSettings, JwtIssuer, Settings, StoreUrl, UpstreamSettings
    from proxy.settings.routes import RouteSettings
    from proxy.settings.upstreams import UpstreamTimeouts
    from proxy.upstream import Address

_DEFAULT_PORTS = {"http": 80, "https": 443}
# The only user with `auth: none`.
_NOBODY = ("none", "anonymous")


def build_rules(
    settings: Settings,
    *,
    authenticator: Authenticator | None,
    store: Store,
    resolve: Callable[[Route], Awaitable[Sequence[Address]]],
    page: Page,
    states: UpstreamStates,
    failures: AuthFailures | None,
    is_reload: bool = True,
) -> Rules:
    """Build the rules; the arguments besides `settings` outlive a reload. `page` is the playground's.

    `is_reload`: an operator has asked for it, so that keys which vendors had refused are used again.
    """
    auth = settings.auth
    plans = build_plans(settings)
    upstreams = {name: _upstream(settings, name, upstream) for name, upstream in settings.upstreams.items()}
    known = states.configure(upstreams.values(), wakes=is_reload)
    policy = CorsPolicy(
        frozenset(settings.cors.origins),
        credentials=settings.cors.credentials,
        max_age_s=int(settings.cors.max_age_s or 0),
        headers=settings.cors.headers,
        expose=settings.cors.expose,
    )
    return Rules(
        authenticator=authenticator,
        anonymous=Principal(*_NOBODY, plans["default"]),
        query_token=auth is not None and auth.query_token,
        envelope_passcode=auth is not None and auth.envelope_passcode,
        store=store,
        router=Router(
            upstreams=upstreams,
            default_upstream=settings.default_upstream,
            envelope=_envelope(settings),
            max_body_bytes=settings.max_body_bytes,
            routes=[ModelRoute(_route(route), now=states.now) for route in settings.routes],
            states=known,
        ),
        states=known,
        prices=build_prices(settings),
        cors=policy,
        resolve=resolve,
        max_body_bytes=settings.max_body_bytes,
        # A head may have four lines of `max_header`, if that is more.
        max_head_bytes=max(64 * 1024, 4 * settings.max_header_bytes),
        body_timeout_s=settings.client_timeouts.body_s,
        write_timeout_s=settings.client_timeouts.write_s,
        reserve_output=settings.usage.reserve_output,
        early_heartbeat=settings.early_heartbeat,
        usage_retention_s=settings.usage.retention_s,
        playground=Playground(page, upstreams.values(), default_upstream=settings.default_upstream)
        if settings.playground
        else None,
        clients=None
        if settings.trusted_proxies is None and failures is None
        else ClientAddresses(settings.trusted_proxies or ()),
        logs_client=settings.trusted_proxies is not None,
        failures=failures,
    )


def build_admin_rules(settings: Settings, listens_on: ListenAddress | None) -> AdminRules:
    """Build the operators' rules; `listens_on` is where the process really listens, which a reload does not change.

    A file that was read again may lack `admin` because it has moved the listener to loopback. Until the restart that
    takes, nobody gets in at the old address.
    """
    clients = ClientAddresses(settings.trusted_proxies or ())
    admin = settings.admin
    if admin is None:
        is_local = listens_on is None or is_loopback(listens_on.host)
        return AdminRules(needs_credential=not is_local, checks_host=is_local, clients=clients)
    if admin.is_open:
        return AdminRules(checks_host=False, clients=clients)
    return AdminRules(
        tuple(OperatorToken(token.name, bytes.fromhex(token.sha256), token.role) for token in admin.tokens),
        needs_credential=True,
        checks_host=False,
        are_metrics_open=admin.metrics == "open",
        clients=clients,
    )


def build_authenticator(
    settings: Settings,
    *,
    known: Mapping[Hashable, KeySource],
    on_refresh: Callable[[str, str, str | None], None],
) -> Authenticator | None:
    """Build the authenticator; None with `auth: none`.

    Key sets in `known` whose settings did not change are reused, so that a reload neither fetches them again nor
    refuses requests meanwhile. The caller opens and closes it.
    """
    auth = settings.auth
    if auth is None:
        return None
    return Authenticator(
        issuers=[_issuer(settings, issuer, known, on_refresh) for issuer in auth.jwt],
        api_keys=ApiKeys([(key.sha256, key.user, key.plan) for key in auth.api_keys]),
        plans=build_plans(settings),
    )


def build_plans(settings: Settings) -> dict[str, Plan]:
    """Build the plans, by name."""
    return {
        name: Plan(
            name,
            rates=plan.requests,
            concurrent_streams=plan.concurrent_streams,
            upstreams=None if plan.upstreams is None else frozenset(plan.upstreams),
            token_rates=plan.tokens,
            budgets=tuple(map(_budget, plan.budgets)),
            cuts_overrun=plan.budget_overrun == "cut",
        )
        for name, plan in settings.plans.items()
    }


def secrets_of(settings: Settings) -> Iterator[str]:
    """Yield every secret of the configuration, to be redacted from log lines."""
    for upstream in settings.upstreams.values():
        yield from (key.get_secret_value() for key in upstream.keys)
        for value in upstream.headers.values():
            if isinstance(value, SecretStr):
                # The credential after a scheme (`Bearer …`) is a secret by itself, too.
                yield from {value.get_secret_value(), value.get_secret_value().rpartition(" ")[2]}
    store = settings.limits.store
    if store != "memory":
        for password in (store.password, store.sentinel_password):
            if password is not None:
                yield password.get_secret_value()
    yield from egress_secrets(settings)
    yield from telemetry_secrets(settings)
    ledger = settings.usage.ledger
    if ledger is not None:
        yield from ledger.passwords
    if settings.auth is not None:
        for issuer in settings.auth.jwt:
            if issuer.secret is not None:
                yield issuer.secret.get_secret_value()


def build_store(
    settings: Settings,
    ledger: Ledger | None,
    *,
    on_failure: Callable[[], None],
    on_change: Callable[[str | None], None],
) -> Store:
    """Build the limits store. The caller opens and closes it, within one event loop.

    The ledger is asked what a user has used of a period of which the store knows nothing.

    Raises:
        OSError: the `ca_file` cannot be read.
    """
    limits = settings.limits
    url = limits.store
    calendar = Calendar(settings.usage.budget_timezone)
    openings = Openings() if ledger is None else Openings(ledger.used, start_s=ledger.start_s)
    if url == "memory":
        return MemoryStore(calendar=calendar, openings=openings)
    # 9 MiB and a sixth of a second of redis-py, which only those pay who have a limits server.
    from proxy.limits.redis import RedisStore  # noqa: PLC0415

    return RedisStore(
        redis_address(url),
        on_store_error=limits.on_store_error,
        on_failure=on_failure,
        on_change=on_change,
        calendar=calendar,
        openings=openings,
    )


def timer_tick_s(settings: Settings) -> float:
    """How often the timer of deadlines has to look, for the shortest of them."""
    clients = settings.client_timeouts
    durations: list[float | None] = [clients.header_s, clients.body_s, clients.keep_alive_s, clients.write_s]
    for upstream in settings.upstreams.values():
        clocks = upstream.timeouts
        durations += [clocks.connect_s, clocks.first_byte_s, clocks.idle_s, clocks.total_s, upstream.heartbeat_s]
    return tick_for(*durations)


def redis_address(url: StoreUrl) -> RedisAddress:
    """Build the address of the limits server, with its passwords."""
    from proxy.limits.redis import RedisAddress  # noqa: PLC0415 - as in `build_store`

    # Both have the same fields.
    passwords = {name: _password(getattr(url, name)) for name in ("password", "sentinel_password")}
    return RedisAddress(**asdict(url) | passwords)


def _budget(budget: BudgetSettings) -> Budget:
    if budget.usd is not None:
        return Budget("usd", budget.usd, budget.every)
    assert budget.tokens is not None  # one of them is given
    return Budget("tokens", budget.tokens, budget.every)


def _password(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _issuer(
    settings: Settings,
    issuer: JwtIssuer,
    known: Mapping[Hashable, KeySource],
    on_refresh: Callable[[str, str, str | None], None],
) -> Issuer:
    keys: KeySource
    if issuer.secret is not None:
        keys = StaticKeySet.from_secret(issuer.secret.get_secret_value(), issuer.algorithms)
    elif issuer.public_key is not None:
        keys = StaticKeySet.from_pem(issuer.public_key, issuer.algorithms)
    else:
        source = JwksSource(
            issuer.issuer,
            issuer.jwks_url,
            allow_http=issuer.allow_http,
            tls=tls_files(issuer.ca_file, issuer.client_certificate),
            server_name=issuer.server_name,
            egress=egress_of(settings, issuer.egress_proxy),
        )
        keys = RemoteKeySet(source, issuer.algorithms, on_refresh=on_refresh)
    return Issuer(
        issuer=issuer.issuer,
        audiences=issuer.audience,
        algorithms=issuer.algorithms,
        keys=known.get(keys.settings_key, keys),
        audience_claim=issuer.audience_claim,
        user_claim=issuer.user_claim,
        plan_claim=issuer.plan_claim,
        required_scopes=issuer.required_scopes,
        leeway_s=issuer.leeway_s,
    )


def _upstream(settings: Settings, name: str, upstream: UpstreamSettings) -> Upstream:
    url = urlsplit(upstream.url)
    assert url.hostname is not None
    dialect = DIALECTS[upstream.dialect]
    base_path = url.path.rstrip("/")
    path = upstream.path
    if path is None and dialect.default_path is not None:
        path = below(base_path, dialect.default_path)
    return Upstream(
        name=name,
        origin=Origin(url.scheme, url.hostname, url.port or _DEFAULT_PORTS[url.scheme]),
        base_path=base_path,
        dialect=upstream.dialect,
        path=path,
        key_source=upstream.key_source,
        keys=tuple(key.get_secret_value() for key in upstream.keys),
        key_weights=tuple(listed.weight for listed in upstream.api_keys or ()) or (1,) * len(upstream.keys),
        key_rules=KeyRules(upstream.key_pool.strategy, upstream.key_pool.cooldown_s),
        health=HealthRules(**dict(upstream.health)),
        models=upstream.models,
        allow_paths=upstream.allow_paths,
        credential_header=None if upstream.credential_header is None else upstream.credential_header.encode(),
        headers=tuple((field.encode(), _plain(value).encode("latin-1")) for field, value in upstream.headers.items()),
        has_secret_headers=any(isinstance(value, SecretStr) for value in upstream.headers.values()),
        timeouts=_timeouts(upstream.timeouts),
        heartbeat_s=upstream.heartbeat_s,
        way=way_of(settings, upstream),
        is_typed=upstream.events == "typed",
        typed_names=MappingProxyType(dict(upstream.typed_names)),
        asks_usage=upstream.ask_usage,
    )


def _route(route: RouteSettings) -> RouteRules:
    retry = route.retry
    return RouteRules(
        models=route.models,
        targets=tuple(RouteTarget(target.name, target.model, target.weight) for target in route.upstreams),
        strategy=route.strategy,
        retry=None
        if retry is None
        else RetryRules(retry.attempts, retry.within_s, retry.first_output_s, frozenset(retry.on), retry.retry_paid),
    )


def _plain(value: str | SecretStr) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _envelope(settings: Settings) -> EnvelopeRules | None:
    envelope = settings.envelope
    if envelope is None:
        return None
    return EnvelopeRules(
        targets=tuple(
            EnvelopeTarget(
                TargetPattern.parse(target.url),
                target.upstream,
                frozenset(method.upper() for method in target.methods),
                target_proxy(settings, target)[0] if target.allow_unpinned else None,
            )
            for target in envelope.targets
        ),
        timeouts=_timeouts(settings.timeouts),
    )


def _timeouts(clocks: UpstreamTimeouts) -> Timeouts:
    # A connection without a bound would be kept until the vendor closes it, perhaps during the next request.
    return Timeouts(**dict(clocks) | {"keep_alive_s": clocks.keep_alive_s or 0.0})
