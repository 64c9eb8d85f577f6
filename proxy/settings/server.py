"""The top level of the file: listeners, plans, limits, timeouts, envelope, CORS, log; and checks across them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PlainValidator, PrivateAttr, WithJsonSchema, model_validator

from proxy.dialects import DIALECTS
from proxy.protocol.proxy_variables import ProxyVariables
from proxy.settings.admin import Admin, admin_faults, read_admin
from proxy.settings.auth import Auth, read_auth
from proxy.settings.budgets import BudgetSettings  # noqa: TC001 - pydantic reads the annotation
from proxy.settings.envelope import Envelope  # noqa: TC001 - pydantic reads the annotation
from proxy.settings.limits_store import Store  # noqa: TC001 - pydantic reads the annotation
from proxy.settings.listener_tls import ListenerTls  # noqa: TC001 - pydantic reads the annotation
from proxy.settings.listeners import (
    ADMIN_LISTEN_DEFAULT,
    LISTEN_DEFAULT,
    AdminAddress,
    ListenAddresses,
    listen_faults,
)
from proxy.settings.log import Log
from proxy.settings.model import Contradiction, Location, Model, closest, default, mapping, or_word, sequence
from proxy.settings.routes import RouteSettings, route_faults
from proxy.settings.scalars import (
    Clock,
    Count,
    Duration,
    FailureRate,
    FieldName,
    Flag,
    HeaderSize,
    OriginText,
    PositiveDuration,
    RateText,
    Size,
    Text,
    TokenRateText,
    TrustedProxies,
    count_up_to,
    read_field_name,
    split_http_url,
    text_schema,
)
from proxy.settings.telemetry import OtelVariables, TelemetrySettings
from proxy.settings.typed import TypedNames, name_faults
from proxy.settings.units import InvalidValue, valid_or_none
from proxy.settings.upstreams import RESERVED_NAMES, UPSTREAM_NAME, UpstreamSettings, UpstreamTimeouts
from proxy.settings.usage import PriceSettings, UsageSettings, price_faults, retention_faults
from proxy.settings.ways import EgressText, EgressValue  # noqa: TC001 - pydantic reads the annotation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Each worker has its own connections, keys and 60 MiB.
MAX_WORKERS = 256
MAX_CORS_NAMES = 64


_read_workers = count_up_to(MAX_WORKERS)


def _read_request_field_name(value: object) -> str:
    return "*" if value == "*" else read_field_name(value)


RequestFieldName = Annotated[str, PlainValidator(_read_request_field_name), text_schema()]
Workers = Annotated[
    int, PlainValidator(_read_workers), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_WORKERS})
]


class ClientTimeouts(Model):
    """Timeouts towards clients; none can be off, because any client may occupy a connection until then."""

    header_s: PositiveDuration = Field(default("10s"), description="Until a request's head is complete.")
    body_s: PositiveDuration = Field(default("30s"), description="The longest silence within a request's body.")
    keep_alive_s: PositiveDuration = Field(default("75s"), description="An unused connection's life.")
    write_s: PositiveDuration = Field(default("30s"), description="How long a client may read nothing.")


class PlanSettings(Model):
    """What the users of a plan may use."""

    requests: tuple[RateText, ...] = Field((), description="Rates that all hold; none means no bound.")
    tokens: tuple[TokenRateText, ...] = Field((), description="Rates of input and output tokens that all hold.")
    budgets: tuple[BudgetSettings, ...] = Field((), description="What may be used in a day, week or month.")
    budget_overrun: Literal["finish", "cut"] = Field(
        "finish", description="Whether a running stream that uses up a budget goes on, or ends."
    )
    concurrent_streams: Count | None = Field(None, description="Streams at a time; no bound when absent.")
    upstreams: tuple[Text, ...] | None = Field(None, description="The upstreams allowed; all when absent.")


class Limits(Model):
    """Where usage is counted."""

    store: Store = Field("memory", description="Where usage is counted: `memory`, or a Redis or Valkey server.")
    on_store_error: Literal["deny", "local", "allow"] = Field(
        "deny", description="When a shared store fails: deny (503), local (each worker counts alone), allow."
    )


class Cors(Model):
    """Which pages may read the proxy's responses (CORS)."""

    origins: tuple[OriginText, ...] = Field((), description="Exact origins; `*` for every page; `null` for files.")
    headers: tuple[RequestFieldName, ...] = Field(
        (), description='Headers that requests may have, beyond the built-in ones; ["*"] for whatever is asked for.'
    )
    expose: tuple[FieldName, ...] = Field(
        (), description="Headers of answers that pages may read, beyond the built-in ones."
    )
    credentials: Flag = Field(default=False, description="Whether browsers may send cookies along.")
    max_age_s: Duration = Field(default("10m"), description="How long browsers remember a preflight.")

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """Check that `*` and credentials exclude each other (Fetch §3.2.5), and the length of lists."""
        for key in ("headers", "expose"):
            if len(sequence(data.get(key))) > MAX_CORS_NAMES:
                yield (key,), InvalidValue(f"must be at most {MAX_CORS_NAMES}")
        if len(names := sequence(data.get("headers"))) > 1 and "*" in names:
            yield ("headers",), InvalidValue("must have `*` alone: it grants every name")
        if "*" in sequence(data.get("origins")) and data.get("credentials") in (True, "true"):
            yield ("credentials",), InvalidValue("must be false while origins has `*`", suggestion="false")


DEFAULT_PLAN = PlanSettings.model_validate({"requests": ["60/10s"], "concurrent_streams": 8})


class Settings(Model):
    """The whole configuration, in seconds and bytes. Made by `proxy.settings.loading.load`."""

    listen: ListenAddresses = Field(
        default(LISTEN_DEFAULT), description="Where clients come in: an address, or a list; [::] serves both families."
    )
    admin_listen: AdminAddress = Field(
        default(ADMIN_LISTEN_DEFAULT), description="Where /metrics and /admin/* are; `off` to have none."
    )
    admin: Annotated[Admin, BeforeValidator(read_admin)] | None = Field(
        None,
        description="Who may use `admin_listen`: operators' `tokens`, or the word `open`; needed where it is not on "
        "loopback.",
        json_schema_extra=or_word("open"),
    )
    workers: Workers = Field(1, description="Processes; more than 1 needs a shared limits.store.")
    max_body_bytes: Size = Field(default("32MiB"), description="The largest request body.")
    max_header_bytes: HeaderSize = Field(
        default("16KiB"), description="The longest line of a request's head; above it 431."
    )
    tls: ListenerTls | None = Field(None, description="TLS on `listen`; without it a load balancer's business.")
    trusted_proxies: TrustedProxies | None = Field(
        None,
        description="CIDR blocks of the proxies in front, whose X-Forwarded-For or Forwarded names the client; the log "
        "then has its address.",
    )
    auth_failures: FailureRate = Field(
        default("off"),
        description="Bad credentials per client address, such as 20/1m; above it 429. IPv6 addresses count by /64.",
    )
    client_timeouts: ClientTimeouts = Field(
        default_factory=ClientTimeouts, description="The clocks towards the client."
    )
    drain_timeout_s: Duration = Field(default("60s"), description="How long running streams go on after SIGTERM.")
    drain_delay_s: Clock = Field(
        default("off"),
        description="How long after SIGTERM clients are still taken, while readiness is 503 for balancers to see.",
    )
    auth: Annotated[Auth | None, BeforeValidator(read_auth)] = Field(
        description="Who may use the proxy; the word `none` allows everybody.", json_schema_extra=or_word("none", at=2)
    )
    plans: dict[str, PlanSettings] = Field(
        default_factory=dict, description="What users may use; `default` is 60/10s and 8 streams unless given."
    )
    limits: Limits = Field(default_factory=Limits, description="Where usage is counted.")
    prices: dict[str, PriceSettings] = Field(
        default_factory=dict, description="What models cost, by name, over the built-in table of prices."
    )
    usage: UsageSettings = Field(default_factory=UsageSettings, description="How usage is reckoned.")
    timeouts: UpstreamTimeouts = Field(default_factory=UpstreamTimeouts, description="The clocks of every upstream.")
    heartbeat_s: Clock = Field(
        default("off"), description="Silence after which `: ping` is sent at an event boundary; never gemini."
    )
    egress_proxy: EgressText = Field(
        default("environment"),
        description="The proxy to upstreams and issuers: `environment` (HTTPS_PROXY and its like), `none`, http://… or "
        "socks5://…",
    )
    early_heartbeat: Flag = Field(
        default=False,
        description="Whether streams begin with 200 and `: ping` where the vendor is silent for `heartbeat`.",
    )
    typed_names: TypedNames = Field(
        default_factory=TypedNames, description="What typed events (?events=typed) are called in their `t`."
    )
    upstreams: dict[str, UpstreamSettings] = Field(
        description="The vendors, by name.", json_schema_extra={"propertyNames": {"pattern": f"^{UPSTREAM_NAME}$"}}
    )
    routes: tuple[RouteSettings, ...] = Field(
        (), description="Models that several upstreams have; looked at before the `models` of upstreams."
    )
    default_upstream: Text | None = Field(None, description="Where requests go that name no upstream and no model.")
    envelope: Envelope | None = Field(None, description="The envelope form; off unless given.")
    cors: Cors = Field(default_factory=Cors, description="Which pages may read the proxy's responses (CORS).")
    log: Log = Field(default_factory=Log, description="The log on standard output.")
    telemetry: TelemetrySettings = Field(
        default_factory=TelemetrySettings, description="Traces and metrics by OpenTelemetry; off unless asked for."
    )
    playground: Flag = Field(default=False, description="The trial page at /playground.")

    # See `secret_files`.
    _secret_files: tuple[tuple[Location, str], ...] = PrivateAttr(default=())
    _proxies: ProxyVariables = PrivateAttr(default=ProxyVariables())
    _otel: OtelVariables = PrivateAttr(default=OtelVariables())

    @property
    def secret_files(self) -> tuple[tuple[Location, str], ...]:
        """Locations of upstreams' secrets that were read from files, and the `file:/path` of each."""
        return self._secret_files

    def note(self, files: Mapping[Location, str], proxies: ProxyVariables, otel: OtelVariables) -> None:
        """Store which secrets were read from files, and what the environment says; called once, after loading."""
        self._secret_files = tuple((place, source) for place, source in files.items() if place[0] == "upstreams")
        self._proxies, self._otel = proxies, otel

    @property
    def proxies(self) -> ProxyVariables:
        """The environment's egress proxies."""
        return self._proxies

    @property
    def otel(self) -> OtelVariables:
        """What the environment says of telemetry."""
        return self._otel

    def egress_value(self, own: EgressValue | None) -> EgressValue:
        """The `egress_proxy` that holds where an upstream's or an issuer's own is `own`."""
        return self.egress_proxy if own is None else own

    def with_secret(self, location: Location, text: str) -> Settings | None:
        """Copy the settings with a new value of an upstream's secret; None if it is unchanged.

        Raises:
            InvalidValue: The text is not valid as that secret. Never contains any of it.
        """
        name = str(location[1])
        upstream = self.upstreams[name].with_secret(location[2:], text)
        if upstream is None:
            return None
        return self.model_copy(update={"upstreams": {**self.upstreams, name: upstream}})

    @model_validator(mode="after")
    def _inherit(self) -> Self:
        """Let upstreams inherit timeouts, heartbeat and names from the top level; add the plan `default`."""
        self.plans.setdefault("default", DEFAULT_PLAN)
        for name, upstream in self.upstreams.items():
            own = upstream.timeouts.model_fields_set
            clocks = {clock: value for clock, value in upstream.timeouts if clock in own}
            changes: dict[str, object] = {"timeouts": self.timeouts.model_copy(update=clocks)}
            names = {kind: name for kind, name in upstream.typed_names if kind in upstream.typed_names.model_fields_set}
            changes["typed_names"] = self.typed_names.model_copy(update=names)
            if "heartbeat_s" not in upstream.model_fields_set:
                changes["heartbeat_s"] = self.heartbeat_s if DIALECTS[upstream.dialect].heartbeat_allowed else None
            self.upstreams[name] = upstream.model_copy(update=changes)
        return self

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """Check names, references between parts, listeners, and that an upstream's key stays with its origin."""
        yield from listen_faults(data)
        yield from admin_faults(data)
        yield from _worker_faults(data)
        yield from retention_faults(data)
        yield from _name_faults(data)
        yield from _reference_faults(data)
        yield from route_faults(data)
        yield from _heartbeat_faults(data)
        yield from name_faults(data)
        yield from price_faults(data)


def _worker_faults(data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check for a shared limits store with several workers, which would each grant the whole limit."""
    workers = valid_or_none(_read_workers, data.get("workers", 1)) or 1
    if workers > 1 and mapping(data.get("limits")).get("store", "memory") == "memory":
        yield ("workers",), InvalidValue("needs a shared limits.store (redis://…) to be more than 1", suggestion="1")


def _heartbeat_faults(data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check that `early_heartbeat` has a `heartbeat`, without which it has no effect."""
    holders = [data, *(mapping(upstream) for upstream in mapping(data.get("upstreams")).values())]
    if data.get("early_heartbeat") in (True, "true") and all(
        holder.get("heartbeat", "off") == "off" for holder in holders
    ):
        words = "needs a `heartbeat`, at the top level or in an upstream, that is not off"
        yield ("early_heartbeat",), InvalidValue(words)


def _name_faults(data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check the names of upstreams and plans, and that there is an upstream."""
    if data.get("upstreams") == {}:
        yield ("upstreams",), InvalidValue("must have at least one upstream")
    for name in mapping(data.get("upstreams")):
        if re.fullmatch(UPSTREAM_NAME, name) is None:
            words = "is not an upstream's name: up to 63 of a-z, 0-9, _ and -, a letter or digit first"
            yield ("upstreams", name), InvalidValue(words)
        elif name in RESERVED_NAMES:
            yield ("upstreams", name), InvalidValue("is a path of the proxy's own; choose another name")
    for name in mapping(data.get("plans")):
        if not name.strip() or not name.isprintable():
            yield ("plans", name), InvalidValue("is not a plan's name")


def _reference_faults(data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check that all named upstreams and plans are defined."""
    upstreams, plans = mapping(data.get("upstreams")), {"default": None, **mapping(data.get("plans"))}
    for plan, settings in plans.items():
        for index, upstream in enumerate(sequence(mapping(settings).get("upstreams"))):
            yield from _unknown(("plans", plan, "upstreams", index), upstream, upstreams, "an upstream")
    for index, key in enumerate(sequence(mapping(data.get("auth")).get("api_keys"))):
        yield from _unknown(("auth", "api_keys", index, "plan"), mapping(key).get("plan"), plans, "a plan")
    yield from _unknown(("default_upstream",), data.get("default_upstream"), upstreams, "an upstream")
    for index, target in enumerate(sequence(mapping(data.get("envelope")).get("targets"))):
        yield from _target_faults(("envelope", "targets", index), mapping(target), upstreams)


def _unknown(
    where: tuple[str | int, ...], name: object, known: Mapping[str, object], what: str
) -> Iterator[Contradiction]:
    if isinstance(name, str) and name.strip() and name not in known:
        yield where, InvalidValue(f"names {what} that nobody defined", suggestion=closest(name, known))


def _target_faults(
    where: tuple[str | int, ...], target: Mapping[str, object], upstreams: Mapping[str, object]
) -> Iterator[Contradiction]:
    name = target.get("upstream")
    yield from _unknown((*where, "upstream"), name, upstreams, "an upstream")
    if isinstance(name, str) and name in upstreams:
        urls = (target.get("url"), mapping(upstreams[name]).get("url"))
        ours, theirs = (valid_or_none(split_http_url, url) for url in urls)
        if ours and theirs and ours[1] != theirs[1]:
            words = f"is not at the origin of the upstream `{name}`: a key is bound to scheme, host and port"
            yield (*where, "url"), InvalidValue(words)
