"""The words of the domain: who asks, what they may do, where it goes, how it ended.

Plain values only. What is done with them stands in the phases; nothing here knows HTTP, configuration or time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# What typed events are called in `t` (contract §9) where the operator does not say.
TYPED_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {name: name for name in ("Image", "Think", "Text", "Cancelled", "End", "Error")}
)


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


@dataclass(frozen=True, slots=True)
class Rate:
    """`quota` requests at once, and `quota` more for each `window_s` seconds that pass."""

    quota: int
    window_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What a user may use.

    `upstreams` is None where all of them are allowed; `concurrent_streams` is None where there is no bound.
    """

    name: str
    rates: tuple[Rate, ...] = ()
    concurrent_streams: int | None = None
    upstreams: frozenset[str] | None = None


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
        return _host_field(self)


@lru_cache(maxsize=256)
def _host_field(origin: Origin) -> bytes:
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    is_default = origin.port == (443 if origin.scheme == "https" else 80)
    return (host if is_default else f"{host}:{origin.port}").encode()


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The clocks of an exchange towards its upstream, in seconds; None is off."""

    connect_s: float | None = 5.0
    first_byte_s: float | None = 60.0
    idle_s: float | None = 120.0
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class Upstream:
    """A vendor as the operator described it.

    `base_path` is the path of its `url` without a trailing slash; `path` is where `POST /forward-sse` goes, below it.
    `key_source` says where the vendor's credential comes from: `keys` (in turn), the client's
    `X-Upstream-Authorization`, or nowhere. `ca_file` replaces the system's trust store for this upstream. `is_typed`
    means that its streams become typed events unasked, `typed_names` what those are called.
    """

    name: str
    origin: Origin
    base_path: str
    dialect: str
    path: str | None
    key_source: Literal["own", "client", "none"]
    keys: tuple[str, ...] = field(default=(), repr=False)
    models: tuple[str, ...] = ()
    allow_paths: tuple[str, ...] = ()
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    timeouts: Timeouts = Timeouts()
    heartbeat_s: float | None = None
    ca_file: str | None = None
    is_typed: bool = False
    typed_names: Mapping[str, str] = field(default_factory=lambda: TYPED_NAMES, hash=False)


class FieldIndex:
    """A message's fields by name, without case. Made once a message, because every phase asks for some of them."""

    __slots__ = ("_first", "_repeated")

    def __init__(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        first: dict[bytes, bytes] = {}
        repeated: dict[bytes, list[bytes]] | None = None
        for name, value in fields:
            key = name.lower()
            if key in first:
                if repeated is None:
                    repeated = {}
                repeated.setdefault(key, [first[key]]).append(value)
            else:
                first[key] = value
        self._first = first
        self._repeated = repeated

    def __contains__(self, name: object) -> bool:
        return name in self._first

    def repeats(self, names: frozenset[bytes]) -> bool:
        """Whether there is more than one field of any of those lower-case names."""
        return self._repeated is not None and not names.isdisjoint(self._repeated)

    def single(self, name: bytes) -> bytes | None:
        """The value of the first field of that lower-case name, None where there is none.

        For names of which a second field is refused elsewhere, or harmless; `values` tells how many there are.
        """
        return self._first.get(name)

    def values(self, name: bytes) -> Sequence[bytes]:
        """The values of every field of that lower-case name, in order."""
        if self._repeated is not None and name in self._repeated:
            return self._repeated[name]
        value = self._first.get(name)
        return () if value is None else (value,)


_NO_FIELDS: Final = FieldIndex(())


@dataclass(slots=True)
class RequestHead:
    """A client's request before its body: the target split once, as it came, never re-quoted.

    `path` starts with a slash; `query` is without the question mark, None where there was none. Not to be changed; it
    is not frozen because one is made for every request, and freezing costs more than making it.
    """

    method: str
    path: bytes
    query: bytes | None
    fields: tuple[tuple[bytes, bytes], ...]
    index: FieldIndex = field(default=_NO_FIELDS, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.index is _NO_FIELDS:
            self.index = FieldIndex(self.fields)


class Route(NamedTuple):
    """Where an authenticated request goes, and the exact bytes that go there.

    `upstream` is the label of logs and metrics. `fields` are complete but for Host and Content-Length.
    `is_pinned` is true for an envelope's target: its addresses are checked after resolution (see `allow_private`).
    `typed_names` is None where the stream is passed on as it is, else what its typed events are called.
    """

    upstream: str
    dialect: str
    origin: Origin
    method: str
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes
    timeouts: Timeouts
    heartbeat_s: float | None = None
    ca_file: str | None = None
    is_pinned: bool = False
    typed_names: Mapping[str, str] | None = None

    def __repr__(self) -> str:
        """Neither credentials nor content."""
        return f"Route(upstream={self.upstream!r}, method={self.method!r})"


@dataclass(slots=True, eq=False)
class Exchange:
    """What is known of one request while it runs, and in the end: the one log line and the metrics are made of it.

    Times are the loop's, in seconds. `status` is None until an answer has begun. `interrupted_as` is why somebody other
    than the two peers ended it; `limits` says how limits were held while their store was
    away. Never holds a token, a key, or content.
    """

    id: str
    started_s: float
    method: str = ""
    path: str = ""
    dialect: str = "openai"
    principal: Principal | None = None
    upstream: str | None = None
    status: int | None = None
    ending: Ending | None = None
    code: str | None = None
    first_byte_s: float | None = None
    bytes: int = 0
    events: int = 0
    interrupted_as: Ending | None = None
    limits: str | None = None
