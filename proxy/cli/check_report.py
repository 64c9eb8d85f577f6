"""The report of `check`: what a configuration would run, for the operator; no key, no secret, no header's value."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from proxy.dialects import DIALECTS
from proxy.protocol.paths import below
from proxy.settings import ALL_PATHS
from proxy.settings.build_telemetry import sampling_of, semconv_of, targets_of
from proxy.settings.build_ways import proxy_to, target_proxy, ways
from proxy.settings.ledgers import spool_directory
from proxy.settings.scalars import is_loopback
from proxy.settings.units import duration_text
from proxy.usage import usd_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.model import EgressProxy, Rate
    from proxy.settings import Auth, BudgetSettings, JwtIssuer, PlanSettings, PriceSettings, Settings, UpstreamSettings
    from proxy.settings.routes import RouteSettings

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def report(settings: Settings) -> str:
    """Write the report, one line a fact, without the warnings."""
    return "\n".join(_lines(settings))


def warnings(settings: Settings) -> tuple[str, ...]:
    """List what is allowed but should be checked before the proxy is reachable from the internet."""
    return tuple(_warnings(settings))


def _lines(settings: Settings) -> Iterator[str]:
    yield f"listen         {', '.join(map(str, settings.listen))}"
    yield f"admin_listen   {settings.admin_listen or 'off'}"
    yield from _admin(settings)
    yield f"workers        {settings.workers}"
    yield from _auth(settings)
    yield "plans"
    for name, plan in settings.plans.items():
        yield f"  {name:<12} {_plan(plan)}"
    limits = settings.limits
    yield f"limits         {limits.store}" + (
        "" if limits.store == "memory" else f"; without it: {limits.on_store_error}"
    )
    yield from _usage(settings)
    proxies = {name: (proxy, source) for name, proxy, source in ways(settings)}
    yield "upstreams"
    for name, upstream in settings.upstreams.items():
        is_default = " (default)" if name == settings.default_upstream else ""
        yield f"  {name}{is_default}"
        yield from (f"    {key:<10} {value}" for key, value in _upstream(upstream))
        yield f"    {'way':<10} {_way(proxies.get(name))}"
    yield from (f"route          {_route(route)}" for route in settings.routes)
    if settings.envelope is None:
        yield "envelope       off"
    else:
        yield "envelope"
        for target in settings.envelope.targets:
            whose = f"with the key of {target.upstream}" if target.upstream else "with the envelope's own header"
            yield f"  target       {target.url} {whose} ({', '.join(target.methods)})"
        yield from (f"  private      {network} is allowed" for network in settings.envelope.allow_private)
    yield f"cors           {', '.join(settings.cors.origins) or 'no origin'}"
    for what, names in (("headers", settings.cors.headers), ("expose", settings.cors.expose)):
        if names:
            yield f"  {what:<12} {', '.join(names)}"
    yield f"log            {_log(settings)}"
    yield f"telemetry      {_telemetry(settings)}"


def _log(settings: Settings) -> str:
    log = settings.log
    fields = f", with {', '.join(log.fields)}" if log.fields else ""
    return f"{log.format}, {log.level}{fields}" + (", exchanges only with a code" if log.access == "off" else "")


def _telemetry(settings: Settings) -> str:
    telemetry, targets = settings.telemetry, targets_of(settings)
    if settings.otel.is_disabled:
        return "off (OTEL_SDK_DISABLED)"
    parts = []
    if telemetry.traces:
        ratio, follows_parent = sampling_of(settings)
        share = f"sample {ratio:.6g}{', or as the caller says' if follows_parent else ''}"
        user = telemetry.user if telemetry.user_key is None else "hashed by a key"
        parts.append(f"traces ({share}, user {user}) to {targets['traces'].url}")
    if telemetry.metrics:
        parts.append("metrics on /metrics" + (f" and to {targets['metrics'].url}" if "metrics" in targets else ""))
    return f"{' and '.join(parts)}, names of {semconv_of(settings)}" if parts else "off"


def _admin(settings: Settings) -> Iterator[str]:
    admin = settings.admin
    if settings.admin_listen is None:
        return
    if admin is None:
        yield "admin          without credentials: only from this machine"
    elif admin.is_open:
        yield "admin          open: without credentials"
    else:
        metrics = "open" if admin.metrics == "open" else "with a token"
        yield f"admin          {len(admin.tokens)} token{'s' if len(admin.tokens) > 1 else ''}, metrics {metrics}"
        yield from (f"  operator     {one.name}: {one.role}, SHA-256 {one.sha256[:8]}…" for one in admin.tokens)


def _usage(settings: Settings) -> Iterator[str]:
    if settings.prices:
        yield "prices"
        yield from (f"  {model:<12} {_price(price)}" for model, price in settings.prices.items())
    for currency, rate in settings.usage.rates.items():
        yield f"rate           1 {currency} is {rate} USD"
    if any(plan.tokens or plan.budgets for plan in settings.plans.values()):
        yield f"reserve        at most {settings.usage.reserve_output} tokens of output a request"
    if any(plan.budgets for plan in settings.plans.values()):
        yield f"budgets        days begin in {settings.usage.budget_timezone}"
    yield f"ledger         {_ledger(settings)}"


def _ledger(settings: Settings) -> str:
    usage = settings.usage
    if usage.ledger is None:
        return "off"
    when = "each row at once" if usage.sync == "each" else "rows within 50ms"
    spool = "" if usage.ledger.path is not None else f", spool {spool_directory(settings).absolute()}"
    return f"{usage.ledger}{spool}, kept for {duration_text(usage.retention_s)}, {when}"


def _auth(settings: Settings) -> Iterator[str]:
    yield "auth" + ("           none: everybody may come in" if settings.auth is None else "")
    if settings.auth is not None:
        for issuer in settings.auth.jwt:
            yield f"  issuer       {issuer.issuer}: {_issuer(issuer)}{_issuers_way(settings, issuer)}"
        for key in settings.auth.api_keys:
            yield f"  api key      {key.user}: plan {key.plan}, SHA-256 {key.sha256[:8]}…"
        yield from (
            f"  also         {switch}"
            for switch in ("envelope_passcode", "query_token")
            if getattr(settings.auth, switch)
        )
    if settings.trusted_proxies is not None:
        yield f"trusted        {', '.join(map(str, settings.trusted_proxies)) or 'no proxy'}"
    if settings.auth_failures is not None:
        yield f"auth_failures  {_rate(settings.auth_failures)} by address"


def _issuer(issuer: JwtIssuer) -> str:
    source = {
        "jwks_url": f"keys from {issuer.jwks_url}",
        "discovery": "keys by discovery",
        "public_key": "one public key",
        "secret": "an HMAC secret",
    }[issuer.source]
    scopes = f", scopes {' '.join(issuer.required_scopes)}" if issuer.required_scopes else ""
    claim = "" if issuer.audience_claim == "aud" else f" in {issuer.audience_claim}"
    return f"{', '.join(issuer.algorithms)}, {source}, audience {', '.join(issuer.audience)}{claim}{scopes}"


def _issuers_way(settings: Settings, issuer: JwtIssuer) -> str:
    if issuer.source not in {"jwks_url", "discovery"}:
        return ""
    proxy, source = proxy_to(settings, issuer.jwks_url or issuer.issuer, issuer.egress_proxy)
    return "" if proxy is None else f", {_way((proxy, source))}"


def _way(found: tuple[EgressProxy, str] | None) -> str:
    return "direct" if found is None else f"through {found[0]} ({found[1]})"


def _rate(rate: Rate) -> str:
    return f"{rate.quota}/{duration_text(rate.window_s)}"


def _plan(plan: PlanSettings) -> str:
    rates = ", ".join(map(_rate, plan.requests)) or "any number of"
    streams = "any number of" if plan.concurrent_streams is None else str(plan.concurrent_streams)
    where = "every upstream" if plan.upstreams is None else ", ".join(plan.upstreams) or "no upstream"
    parts = [f"{rates} requests", f"{streams} streams at a time", where]
    if plan.tokens:
        parts.append(f"{', '.join(map(_rate, plan.tokens))} tokens")
    parts += map(_budget, plan.budgets)
    if plan.budget_overrun == "cut" and plan.budgets:
        parts.append("streams are cut that use up a budget")
    return ", ".join(parts)


def _budget(budget: BudgetSettings) -> str:
    if budget.tokens is not None:
        return f"{budget.tokens} tokens a {budget.every}"
    return f"{usd_text(budget.usd or 0)} USD a {budget.every}"


def _price(price: PriceSettings) -> str:
    parts = {name: getattr(price, name) for name in ("input", "cached_input", "cache_write", "output")}
    listed = ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)
    return f"{listed} {price.currency} a million tokens"


def _default_path(upstream: UpstreamSettings) -> str | None:
    path = DIALECTS[upstream.dialect].default_path
    return None if path is None else below(urlsplit(upstream.url).path, path)


def _paths(upstream: UpstreamSettings) -> str:
    if upstream.allow_paths is None:
        return "the dialect's own" if DIALECTS[upstream.dialect].default_allow_paths else "only its path"
    if upstream.allow_paths == ALL_PATHS:
        return "all"
    return ", ".join(upstream.allow_paths) or "none"


def _upstream(upstream: UpstreamSettings) -> Iterator[tuple[str, str]]:
    count = len(upstream.keys)
    own = f"own ({count} key{'s' if count > 1 else ''})"
    certificate = upstream.client_certificate
    facts = {
        "url": upstream.url,
        "dialect": upstream.dialect,
        "path": upstream.path or _default_path(upstream) or "none: POST /forward-sse cannot reach it",
        "key": {"own": own, "client": "the client's X-Upstream-Authorization", "none": "none"}[upstream.key_source],
        "shows": None if certificate is None else str(certificate.certificate),
        "named": upstream.server_name,
        "key in": upstream.credential_header,
        "models": ", ".join(upstream.models) or "none: only by name",
        "paths": _paths(upstream),
        "headers": ", ".join(upstream.headers),
        "timeouts": ", ".join(f"{name.removesuffix('_s')} {duration_text(value)}" for name, value in upstream.timeouts),
        "heartbeat": None if upstream.heartbeat_s is None else duration_text(upstream.heartbeat_s),
        "events": "typed" if upstream.events == "typed" else None,
        "typed as": ", ".join(f"{kind} {name}" for kind, name in upstream.typed_names if kind != name),
        "usage": "asked for" if upstream.ask_usage else None,
    }
    yield from ((name, fact) for name, fact in facts.items() if fact)


def _route(route: RouteSettings) -> str:
    """A route in one line: its models, its upstreams in their order, and what moves a request on."""
    is_weighted = route.strategy == "weighted"
    targets = [
        target.name
        + (f" (as {target.model})" if target.model is not None else "")
        + (f" × {target.weight}" if is_weighted else "")
        for target in route.upstreams
    ]
    said = f"{', '.join(route.models)} to {(', ' if is_weighted else ', then ').join(targets)}"
    retry = route.retry
    if retry is None:
        return f"{said}; no retry"
    paid = ", and what may be paid twice" if retry.retry_paid else ""
    output = "" if retry.first_output_s is None else f", first output within {duration_text(retry.first_output_s)}"
    causes = ", ".join(retry.on) or "nothing else than a refused key"
    return f"{said}; {retry.attempts} attempts within {duration_text(retry.within_s)} on {causes}{paid}{output}"


def _warnings(settings: Settings) -> Iterator[str]:
    if settings.auth is None:
        yield "auth: none: everybody who reaches the proxy spends your vendors' keys"
    else:
        yield from _auth_warnings(settings.auth)
    yield from _admin_warnings(settings)
    if any(network.prefixlen == 0 for network in settings.trusted_proxies or ()):
        yield "trusted_proxies: every client is a trusted proxy, and may claim any address"
    yield from _plan_warnings(settings)
    yield from _telemetry_warnings(settings)
    if settings.cors.origins == ("*",):
        yield "cors.origins: every web page may use a token that it has"
    yield from _price_warnings(settings)
    yield from _target_warnings(settings)
    models: dict[str, str] = {}
    for name, upstream in settings.upstreams.items():
        url = urlsplit(upstream.url)
        if url.scheme == "http" and url.hostname not in _LOOPBACK and upstream.key_source != "none":
            yield f"upstreams.{name}: its key and every prompt travel unencrypted (http://)"
        path, _, query = (upstream.path or "").partition("?")
        if path.endswith(":streamGenerateContent") and "alt=sse" not in query.split("&"):
            yield f"upstreams.{name}.path: Gemini streams events only where it ends in ?alt=sse"
        if upstream.allow_paths == ALL_PATHS and upstream.key_source == "own":
            yield f"upstreams.{name}.allow_paths: all: its users can list, read and delete what is stored under its key"
        for glob in upstream.models:
            if (first := models.setdefault(glob, name)) != name:
                yield f"upstreams.{name}.models: {glob!r} is also {first}'s, which comes first"


def _admin_warnings(settings: Settings) -> Iterator[str]:
    admin, listen = settings.admin, settings.admin_listen
    if admin is None:
        return
    if listen is None:
        yield "admin: admin_listen is off, so it changes nothing"
    elif admin.is_open and not is_loopback(listen.host):
        yield "admin: open: everybody who reaches admin_listen sees who streams what, and may stop it"


def _plan_warnings(settings: Settings) -> Iterator[str]:
    if not settings.plans["default"].requests:
        yield "plans.default: has no rate; every user without a plan may send any number of requests"
    for name, plan in settings.plans.items():
        if plan.budget_overrun == "cut" and not plan.budgets:
            yield f"plans.{name}.budget_overrun: cut changes nothing: the plan has no budgets"


def _telemetry_warnings(settings: Settings) -> Iterator[str]:
    telemetry = settings.telemetry
    if telemetry.otlp is not None and not (telemetry.traces or telemetry.metrics):
        yield "telemetry.otlp: nothing is sent there: neither `traces` nor `metrics` is on"
    for target in targets_of(settings).values():
        url = urlsplit(target.url)
        if target.headers and url.scheme == "http" and url.hostname not in _LOOPBACK:
            yield f"telemetry: the headers for {target.url} travel unencrypted (http://)"
    if settings.log.access == "off" and settings.usage.ledger is not None:
        yield "log.access: off: `usage import` cannot complete the ledger from such a log"
    elif settings.log.access == "off" and not telemetry.traces:
        yield "log.access: off without telemetry.traces: streams that break are in the metrics only"


def _target_warnings(settings: Settings) -> Iterator[str]:
    """Targets that go out directly although a proxy is set: their addresses are checked, which a proxy would not."""
    for index, target in enumerate(() if settings.envelope is None else settings.envelope.targets):
        proxy, source = target_proxy(settings, target)
        if proxy is not None and not target.allow_unpinned:
            yield f"envelope.targets[{index}]: goes out directly, not through {proxy} ({source}); see allow_unpinned"
        elif proxy is not None:
            yield f"envelope.targets[{index}]: {proxy} looks up its name, so its addresses are not checked"


def _price_warnings(settings: Settings) -> Iterator[str]:
    for currency in sorted({price.currency for price in settings.prices.values()} - settings.usage.rates.keys()):
        if currency != "USD":
            yield f"usage.rates: has no {currency}: models with prices in it have no cost in dollars"
    # Else a request for any model may reach an upstream that has none, or the default one.
    if settings.default_upstream is None and all(upstream.models for upstream in settings.upstreams.values()):
        globs = [glob for upstream in settings.upstreams.values() for glob in upstream.models]
        for model in settings.prices:
            # A price is also that of the model's versions, so a pattern for one of them is a match, too.
            if not any(fnmatchcase(model, glob) or glob.startswith(model) for glob in globs):
                yield f"prices.{model}: matches no upstream's models: used only where a request names its upstream"


def _auth_warnings(auth: Auth) -> Iterator[str]:
    if auth.query_token:
        yield "auth.query_token: tokens in URLs end up in browsers' histories and others' logs"
    for issuer in auth.jwt:
        url = urlsplit((issuer.jwks_url or issuer.issuer) if issuer.source in {"jwks_url", "discovery"} else "")
        if url.scheme == "http" and url.hostname not in _LOOPBACK:
            yield f"auth.jwt: {issuer.issuer}: its keys come unencrypted (http://); whoever changes them is any user"
        if issuer.jwks_url is not None and url.hostname == "id.example.com":
            yield f"auth.jwt: {issuer.issuer} is the example; nobody can come in through it"
