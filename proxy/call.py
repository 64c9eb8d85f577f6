"""What the phases of one request share: the rules it began with, and what has been found so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from proxy.auth.authenticator import Authenticator
    from proxy.exchange import Ending, Exchange, Principal, Route
    from proxy.limits.store import Admission, Standing, Store
    from proxy.phases.accept import ClientConnection, Incoming
    from proxy.phases.resolve import Router
    from proxy.protocol.cors import CorsPolicy
    from proxy.upstream.addresses import Address
    from proxy.web.playground import Playground


@dataclass(frozen=True, slots=True)
class Rules:
    """What one configuration says; a reload replaces the whole, and running exchanges keep theirs."""

    authenticator: Authenticator | None
    anonymous: Principal
    query_token: bool
    envelope_passcode: bool
    store: Store
    router: Router
    cors: CorsPolicy
    resolve: Callable[[Route], Awaitable[Sequence[Address]]]
    max_body_bytes: int
    body_timeout_s: float | None
    write_timeout_s: float | None
    early_heartbeat: bool = False
    playground: Playground | None = None


@dataclass(eq=False)
class Call:
    """One request on its way; what the phases have found so far.

    What is found on the way has its default in the class: making one for each request costs less so, and holding one
    no more than slots would.
    """

    rules: Rules
    request: Incoming | None
    client: ClientConnection
    exchange: Exchange
    is_last: bool
    is_old: bool = False
    is_accepted: bool = field(init=False, default=False)
    origin: bytes | None = field(init=False, default=None)
    admission: Admission | None = field(init=False, default=None)
    standing: Standing | None = field(init=False, default=None)
    has_body: bool = field(init=False, default=False)
    # A ticket is being used: whatever goes wrong is told in the stream, where an `EventSource` can read it.
    is_in_band: bool = field(init=False, default=False)
    # The answer's head has left before the vendor's was there, for a request to this target: what goes wrong is told in
    # the stream.
    early_target: bytes | None = field(init=False, default=None)
    # What typed events are called where a ticket, or an early answer, has them.
    typed_names: Mapping[str, str | int] | None = field(init=False, default=None)

    @property
    def is_body_arriving(self) -> bool:
        """Whether more of the body may come: then this answer is the connection's last."""
        return self.has_body and self.request is not None and not self.request.content.is_complete

    def interrupt(self, ending: Ending) -> None:
        """End it from outside: a drain that is over, or somebody who stops it."""
        if self.client.relay is not None:
            self.client.relay.finish(ending)
        elif self.exchange.interrupted_as is None and self.exchange.ending is None:
            self.exchange.interrupted_as = ending
            self.client.cancel()
