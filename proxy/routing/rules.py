"""The rules of one configuration: what every request is served by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from proxy.auth import Authenticator
    from proxy.failover import UpstreamState
    from proxy.limits import Store
    from proxy.limits.failures import AuthFailures
    from proxy.model import Principal, Route
    from proxy.playground import Playground
    from proxy.protocol.client_address import ClientAddresses
    from proxy.protocol.cors import CorsPolicy
    from proxy.routing.router import Router
    from proxy.upstream import Address
    from proxy.usage import Prices


@dataclass(frozen=True, slots=True)
class Rules:
    """One loaded configuration; a reload replaces it as a whole, and running exchanges keep theirs.

    Attributes:
        clients: Finds the clients' addresses; None where nothing needs them.
        logs_client: Whether log lines have the client's address.
        failures: Limits bad credentials by address; None where they are not limited.
    """

    authenticator: Authenticator | None
    anonymous: Principal
    query_token: bool
    envelope_passcode: bool
    store: Store
    router: Router
    prices: Prices
    cors: CorsPolicy
    resolve: Callable[[Route], Awaitable[Sequence[Address]]]
    max_body_bytes: int
    max_head_bytes: int
    body_timeout_s: float | None
    write_timeout_s: float | None
    states: Mapping[str, UpstreamState]
    # The most tokens of output that a request reserves.
    reserve_output: int = 16_384
    early_heartbeat: bool = False
    playground: Playground | None = None
    usage_retention_s: float = 90 * 86_400.0
    clients: ClientAddresses | None = None
    logs_client: bool = False
    failures: AuthFailures | None = None
