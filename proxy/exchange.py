"""The words of the domain: who asks, what they may do, where it goes, how it ended.

Plain values only. What is done with them stands in the phases; nothing here knows HTTP, configuration or time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


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


@dataclass(frozen=True, slots=True)
class Origin:
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
    `X-Upstream-Authorization`, or nowhere. `ca_file` replaces the system's trust store for this upstream.
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


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A client's request before its body: the target split once, as it came, never re-quoted.

    `path` starts with a slash; `query` is without the question mark, None where there was none.
    """

    method: str
    path: bytes
    query: bytes | None
    fields: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Route:
    """Where an authenticated request goes, and the exact bytes that go there.

    `upstream` is the label of logs and metrics. `fields` are complete but for Host and Content-Length.
    `is_pinned` is true for an envelope's target: its addresses are checked after resolution (see `allow_private`).
    """

    upstream: str
    dialect: str
    origin: Origin
    method: str
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    body: bytes = field(repr=False)
    timeouts: Timeouts
    heartbeat_s: float | None = None
    ca_file: str | None = None
    is_pinned: bool = False


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
