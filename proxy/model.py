"""The words of the domain: who asks, what they may do, where it goes, how it ended.

Plain values only. What is done with them stands in the phases; nothing here knows HTTP, configuration or time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

# What typed events are called in `t` (docs/behaviour.md#typed-events) where the operator does not say.
TYPED_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {name: name for name in ("Image", "Think", "Text", "Cancelled", "End", "Error")}
)

NOTHING_REPEATED: Final[Mapping[bytes, Sequence[bytes]]] = MappingProxyType({})


class Ending(StrEnum):
    """How an exchange ended; every exchange ends in exactly one of these."""

    COMPLETE = "complete"
    CLIENT_CLOSED = "client_closed"
    UPSTREAM_CLOSED = "upstream_closed"
    UPSTREAM_ERROR = "upstream_error"
    TIMEOUT_CONNECT = "timeout_connect"
    TIMEOUT_FIRST_BYTE = "timeout_first_byte"
    TIMEOUT_IDLE = "timeout_idle"
    TIMEOUT_WRITE = "timeout_write"
    TIMEOUT_TOTAL = "timeout_total"
    REFUSED = "refused"
    DRAINED = "drained"
    STOPPED = "stopped"

    # The enumeration's own is a Python function, of the member's name: it differs from that of the text it equals.
    __hash__ = str.__hash__


# Of nearly all exchanges. As a member it is looked up in its class and the class's own class, ten times as slowly.
COMPLETE: Final = Ending.COMPLETE


@dataclass(frozen=True, slots=True)
class Rate:
    """`quota` requests at once, and `quota` more for each `window_s` seconds that pass."""

    quota: int
    window_s: float


@dataclass(frozen=True, slots=True)
class Budget:
    """So many tokens, or nano-dollars, for each calendar period."""

    unit: Literal["tokens", "usd"]
    limit: int
    every: Literal["day", "week", "month"]


class Amounts(NamedTuple):
    """Tokens of input and output, and what they cost; 0 where the price is unknown."""

    tokens: int = 0
    nano_usd: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a user may use.

    `upstreams` is None where all of them are allowed; `concurrent_streams` is None where there is no bound.
    `token_rates` are rates of input and output tokens. `cuts_overrun` says that a running stream ends when it has used
    up a budget; else it goes on, and what exceeds is debt. `has_token_limits` says that tokens or money are limited, so
    that a request has to reserve some and is charged what it took; known in advance, because every request asks.
    """

    name: str
    rates: tuple[Rate, ...] = ()
    concurrent_streams: int | None = None
    upstreams: frozenset[str] | None = None
    token_rates: tuple[Rate, ...] = ()
    budgets: tuple[Budget, ...] = ()
    cuts_overrun: bool = False
    has_token_limits: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "has_token_limits", bool(self.token_rates or self.budgets))


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated user: identity is the pair, because two issuers may both know an "alice".

    API-key users have the issuer `key`.
    """

    issuer: str
    user: str
    plan: Plan


class Origin(NamedTuple):
    """Where a connection goes (RFC 6454): never taken from anything but configuration or a checked target."""

    scheme: str
    host: str
    port: int

    @property
    def host_field(self) -> bytes:
        """The value of `Host`: no port where it is the scheme's own, brackets around IPv6 (RFC 9110 §7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_default = self.port == (443 if self.scheme == "https" else 80)
        return (host if is_default else f"{host}:{self.port}").encode()


class EgressProxy(NamedTuple):
    """A proxy through which connections leave the operator's network; its credentials are secrets."""

    scheme: Literal["http", "socks5"]
    host: str
    port: int
    user: str | None = None
    password: str | None = None

    def __str__(self) -> str:
        """The URL without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def __repr__(self) -> str:
        """No credentials."""
        return f"EgressProxy({str(self)!r})"


class TlsFiles(NamedTuple):
    """The PEM files of a TLS client: authorities instead of the system's, and a certificate of ours with its key."""

    ca_file: str | None = None
    certificate: str | None = None
    key: str | None = None


NO_TLS_FILES: Final = TlsFiles()


class Way(NamedTuple):
    """How an origin is reached. Two exchanges may share a connection only where the origin and all of this are equal.

    `server_name` is the name that the server's certificate must have and that TLS asks for, where it is not the
    origin's host. `proxy` is None where the connection is direct.
    """

    tls: TlsFiles = NO_TLS_FILES
    server_name: str | None = None
    proxy: EgressProxy | None = None


DIRECT: Final = Way()


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The clocks of an exchange towards its upstream, in seconds; None is off.

    `keep_alive_s` is how long its connection may be kept unused afterwards; 0 for not at all.
    """

    connect_s: float | None = 5.0
    first_byte_s: float | None = 300.0
    idle_s: float | None = 120.0
    total_s: float | None = None
    keep_alive_s: float = 50.0


@dataclass(frozen=True, slots=True)
class HealthRules:
    """When an upstream is left out: after so many failures in a row, or a share of the attempts of a window.

    It is left out for `out_for_s`, and twice as long each time it fails again, up to `out_at_most_s`.
    """

    failures: int = 5
    share: float = 0.5
    of_at_least: int = 20
    window_s: float = 30.0
    out_for_s: float = 10.0
    out_at_most_s: float = 300.0


@dataclass(frozen=True, slots=True)
class KeyRules:
    """How an upstream's keys are chosen, and how long one that is limited rests where the vendor does not say."""

    strategy: Literal["least_busy", "round_robin"] = "least_busy"
    cooldown_s: float = 30.0


@dataclass(frozen=True, slots=True)
class RetryRules:
    """What moves a request on to a route's next target; see docs/failover.md.

    `attempts` are targets that are asked, `within_s` bounds when the last of them begins. `retry_paid` allows what the
    vendor may have run already.
    """

    attempts: int = 3
    within_s: float = 20.0
    first_output_s: float | None = None
    on: frozenset[str] = frozenset({"connect", "429", "5xx", "error_event"})
    retry_paid: bool = False


class RouteTarget(NamedTuple):
    """One upstream of a route, and the model that is asked for there; None for the one in the body."""

    upstream: str
    model: str | None = None
    weight: int = 1


@dataclass(frozen=True, slots=True)
class RouteRules:
    """A route as the operator described it; `retry` is None where nothing is tried again."""

    models: tuple[str, ...]
    targets: tuple[RouteTarget, ...]
    strategy: Literal["ordered", "weighted"] = "ordered"
    retry: RetryRules | None = None


@dataclass(frozen=True, slots=True)
class Upstream:
    """A vendor as the operator described it.

    `base_path` is the path of its `url` without a trailing slash; `path` is where `POST /forward-sse` goes, below it,
    perhaps with a query. `allow_paths` is None where the dialect's own are meant.
    `key_source` says where the vendor's credential comes from: `keys`, of which each has a weight, the client's
    `X-Upstream-Authorization`, or nowhere. `credential_header` is the field that carries it bare, where that is not the
    dialect's own. `has_secret_headers` says that a value among `headers` came from a variable or a file, as keys do.
    `way` is how it is reached. `is_typed` means that its streams become typed events unasked, `typed_names` what those
    are called. `asks_usage` means that streams are asked for their usage where the client has left that open.
    """

    name: str
    origin: Origin
    base_path: str
    dialect: str
    path: str | None
    key_source: Literal["own", "client", "none"]
    keys: tuple[str, ...] = field(default=(), repr=False)
    key_weights: tuple[int, ...] = ()
    key_rules: KeyRules = KeyRules()
    health: HealthRules = HealthRules()
    credential_header: bytes | None = None
    models: tuple[str, ...] = ()
    allow_paths: tuple[str, ...] | None = None
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    has_secret_headers: bool = False
    timeouts: Timeouts = Timeouts()
    heartbeat_s: float | None = None
    way: Way = DIRECT
    is_typed: bool = False
    typed_names: Mapping[str, str | int] = field(default_factory=lambda: TYPED_NAMES, hash=False)
    asks_usage: bool = False


class FieldIndex(dict[bytes, bytes]):
    """A message's fields by lower-case name: the value of the first of each; `repeated` has all values of the others.

    `get` is for names of which a second field is refused elsewhere, or harmless; `every` returns the values of all.
    Made once for each message and not to be changed.
    """

    __slots__ = ("repeated",)

    def __init__(self, fields: Sequence[tuple[bytes, bytes]]) -> None:
        # Two are made for each request, and the constructor takes twice as long for pairs.
        for name, value in fields:
            self[name.lower()] = value
        self.repeated = NOTHING_REPEATED if len(self) == len(fields) else self._keep_first(fields)

    def _keep_first(self, fields: Sequence[tuple[bytes, bytes]]) -> Mapping[bytes, Sequence[bytes]]:
        """Keep the first value of each name, and return all of those names that occur more than once."""
        values: dict[bytes, list[bytes]] = {}
        for name, value in fields:
            values.setdefault(name.lower(), []).append(value)
        self.update((name, own[0]) for name, own in values.items())
        return {name: own for name, own in values.items() if len(own) > 1}

    def every(self, name: bytes) -> Sequence[bytes]:
        """The values of every field of that lower-case name, in order."""
        if name in self.repeated:
            return self.repeated[name]
        return (self[name],) if name in self else ()

    def __repr__(self) -> str:
        """Show no values: credentials are among them."""
        return "FieldIndex()"


@dataclass(slots=True, init=False)
class RequestHead:
    """A client's request before its body: the target split once, as it came, never re-quoted.

    `path` starts with a slash; `query` is without the question mark, None where there was none. Not to be changed; it
    is not frozen because one is made for every request, and freezing costs more than making it.
    """

    method: str
    path: bytes
    query: bytes | None
    fields: tuple[tuple[bytes, bytes], ...]
    index: FieldIndex = field(repr=False, compare=False)

    def __init__(
        self,
        method: str,
        path: bytes,
        query: bytes | None,
        fields: tuple[tuple[bytes, bytes], ...],
        index: FieldIndex | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.fields = fields
        self.index = FieldIndex(fields) if index is None else index


class Choices(Protocol):
    """The targets of a route that a request has not been sent to yet, in the order in which they are asked."""

    @property
    def retry(self) -> RetryRules | None:
        """What moves the request on; None where nothing but a refused key does."""
        ...

    @property
    def has_more(self) -> bool:
        """Whether another target is left."""
        ...

    def may_retry(self) -> bool:
        """Take one of the route's retries, if there is one left."""
        ...

    def take(self) -> Generator[None, None, Route | None]:
        """Make the request to the next target, in pieces; None where there is none."""
        ...


class Route(NamedTuple):
    """Where an authenticated request goes, and the exact bytes that go there.

    `upstream` is the label of logs and metrics. `fields` are complete but for Host, which is `host`, and
    Content-Length. `typed_names` is None where the stream is passed on as it is, else what its typed events are called.
    `has_operators_key` is true where the credential among the fields is the operator's, not the client's.
    `is_pinned` is true for an envelope's target: its addresses are checked after resolution (see `allow_private`), and
    its way has no proxy, which would resolve the name again.
    `asks_usage` is true where the proxy has asked for usage in `body`: the client gets the stream without its event.
    `choices` are the other targets of the operator's route that the body's model has led to; None without one.
    `body_model` is the body's member `model`, where routing has read it; None where it has not, or there is none.
    """

    upstream: str
    dialect: str
    origin: Origin
    host: bytes
    timeouts: Timeouts
    heartbeat_s: float | None
    way: Way
    has_operators_key: bool
    method: str
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes | bytearray
    typed_names: Mapping[str, str | int] | None = None
    body_model: str | None = None
    is_pinned: bool = False
    asks_usage: bool = False
    choices: Choices | None = None

    def __repr__(self) -> str:
        """Neither credentials nor content."""
        return f"Route(upstream={self.upstream!r}, method={self.method!r})"
