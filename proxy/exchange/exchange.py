"""One exchange, RFC 9110's word for a request with its response."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from aiohttp import web

from proxy.dialects import DEFAULT_DIALECT
from proxy.errors import (
    DrainingError,
    ProxyError,
    StoppedError,
    UpstreamCredentialsError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
)
from proxy.exchange.settle import MAX_PATH_CHARACTERS, NO_UPSTREAM, Reckoning
from proxy.model import Ending, Principal
from proxy.observability.logging import log_credentials_refused, log_failure
from proxy.observability.redaction import cut_redacted
from proxy.protocol.header_fields import CREDENTIALS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address, IPv6Address
    from types import TracebackType

    from proxy.exchange.attempt import Attempt
    from proxy.exchange.registry import Exchanges
    from proxy.failover import Lease
    from proxy.limits import Admission, RateStatus
    from proxy.model import RequestHead, Route
    from proxy.observability.tracing import Trace
    from proxy.relay import RelayResponse
    from proxy.routing import Rules
    from proxy.usage import Meter

_TIMEOUT_ENDINGS: Final = {
    "connect": Ending.TIMEOUT_CONNECT,
    "first_byte": Ending.TIMEOUT_FIRST_BYTE,
    "first_output": Ending.TIMEOUT_FIRST_BYTE,
    "idle": Ending.TIMEOUT_IDLE,
    "total": Ending.TIMEOUT_TOTAL,
}


@dataclass(eq=False, slots=True)
class Exchange:
    """What is known of one request while it runs; the log line and the metrics are made of it in the end.

    It is a context manager. Leaving it releases the lease, writes the one log line and counts the metrics, whatever
    happened, without waiting; a `ProxyError` that passes through is recorded as the exchange's ending. Times are the
    loop's, in seconds. Never holds a token, a key, or content once its head was dropped.

    Attributes:
        status: None until a response has begun.
        interrupted_as: Why somebody other than the two peers ended it.
        limit: The kind of the limit that refused it or cut it, where one did.
        reason: The word for why an upstream, or what was needed to judge the request, failed.
        head: The request's head, until the stream starts.
        route: Where the request goes, with its body, until the stream starts.
        prefix: The path below which the application is mounted.
        client: The client's address, where the rules need it.
        early_target: The request's target, where the response has begun before the vendor's: what goes wrong is told in
            the stream then.
        is_in_band: The client is an `EventSource`, which sees no status: refusals come as events of a 200.
        known: Whom an embedder's middleware has authenticated: no credential is looked for then.
        attempts: The requests to vendors so far, in order; of most exchanges one.
        lease: The running attempt's part of its upstream and key.
        is_answered: What the client is given is a vendor's answer.
        meter: What the vendor's answer took; once the limits have let the request out.
        trace_ids: The ids of its trace and of its own span, or without tracing of its caller's, for the log.
        trace: Its place in its trace; None without tracing.
        log_fields: An embedder's further fields of the log line; read when the exchange is settled.
        slot: Where it stands in the file of what runs; None where it does not.
        typed_names: The names of typed events where the client or the operator asked for them.
    """

    id: str
    started_s: float
    rules: Rules
    registry: Exchanges = field(repr=False)
    method: str = ""
    path: str = field(init=False, default="")
    dialect: str = field(init=False, default=DEFAULT_DIALECT)
    head: RequestHead | None = field(init=False, default=None, repr=False)
    route: Route | None = field(init=False, default=None, repr=False)
    origin: bytes | None = field(init=False, default=None)
    prefix: bytes = field(init=False, default=b"")
    client: IPv4Address | IPv6Address | None = field(init=False, default=None)
    early_target: bytes | None = field(init=False, default=None)
    principal: Principal | None = field(init=False, default=None)
    admission: Admission | None = field(init=False, default=None, repr=False)
    standing: RateStatus | None = field(init=False, default=None, repr=False)
    upstream: str | None = field(init=False, default=None)
    status: int | None = field(init=False, default=None)
    ending: Ending | None = field(init=False, default=None)
    code: str | None = field(init=False, default=None)
    reason: str | None = field(init=False, default=None)
    limit: str | None = field(init=False, default=None)
    first_byte_s: float | None = field(init=False, default=None)
    bytes: int = field(init=False, default=0)
    events: int = field(init=False, default=0)
    interrupted_as: Ending | None = field(init=False, default=None)
    limits: str | None = field(init=False, default=None)
    is_in_band: bool = field(init=False, default=False)
    is_preflight: bool = field(init=False, default=False)
    typed_names: Mapping[str, str | int] | None = field(init=False, default=None)
    known: Principal | None = field(init=False, default=None)
    attempts: list[Attempt] = field(init=False, default_factory=list, repr=False)
    lease: Lease | None = field(init=False, default=None, repr=False)
    is_answered: bool = field(init=False, default=False)
    meter: Meter | None = field(init=False, default=None, repr=False)
    trace_ids: tuple[str, str] | None = field(init=False, default=None)
    trace: Trace | None = field(init=False, default=None, repr=False)
    log_fields: dict[str, Any] | None = field(init=False, default=None, repr=False)
    slot: int | None = field(init=False, default=None)
    response: RelayResponse | None = field(init=False, default=None, repr=False)
    task: asyncio.Task[object] | None = field(init=False, default=None, repr=False)
    transport: asyncio.Transport | None = field(init=False, default=None, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record how it ended, release the lease, settle.

        Raises:
            DrainingError, StoppedError: in place of the cancellation by which it was interrupted.
        """
        translated: ProxyError | None = None
        try:
            if isinstance(error, ProxyError):
                self.record_refusal(error)
            elif isinstance(error, asyncio.CancelledError):
                translated = self._record_cancellation()
            elif error is not None:
                log_failure(self.id)
                self.record_refusal(ProxyError())
        finally:
            self.registry.end(self)
        if translated is not None:
            raise translated from None

    @property
    def checked_head(self) -> RequestHead:
        """The request's head, for whoever comes after its check and before the stream.

        Raises:
            RuntimeError: it was not checked yet, or dropped: a defect of ours.
        """
        if self.head is None:
            raise RuntimeError("the exchange has no head")
        return self.head

    @property
    def checked_route(self) -> Route:
        """The route, for whoever comes after it was decided and before the stream.

        Raises:
            RuntimeError: it was not decided yet, or dropped: a defect of ours.
        """
        if self.route is None:
            raise RuntimeError("the exchange has no route")
        return self.route

    @property
    def reckoning(self) -> Reckoning:
        """What finds out what the exchange took."""
        return Reckoning(self.meter, self.upstream or NO_UPSTREAM, self.rules.prices, self.registry.estimates)

    @property
    def has_token_limits(self) -> bool:
        """Whether the user's tokens or money are limited, so that the request has to reserve some."""
        return self.principal is not None and self.principal.plan.has_token_limits

    def admit(self, admission: Admission) -> None:
        """Note that the limits let the request in: charged, and with a lease that leaving the exchange releases."""
        self.admission = admission
        self.standing = admission.standing
        self.limits = admission.fallback

    def refund(self) -> None:
        """Refund the rate-limit charge: a request that the proxy itself rejects is free."""
        if self.admission is not None:
            self.admission.refund()
            self.standing = None

    def drop_request(self) -> None:
        """Free the parsed headers and the body before a long stream starts."""
        self.head = self.route = None

    def redact(self, secret: str) -> None:
        """Remove a secret from what the log line repeats of a request: its path, and the id that the client chose."""
        if not secret:
            return
        if secret in self.path:
            self.path = self.path.replace(secret, "[redacted]")
        if secret in self.id:
            self.id = self.registry.new_id()

    def cut_path(self) -> str:
        """The path as the log line and the span have it: of a long one the beginning."""
        return cut_redacted(self.path, MAX_PATH_CHARACTERS, self.registry.redact)

    def record_refusal(self, error: ProxyError) -> None:
        """Take status, code and ending of an error that the client is about to be answered with."""
        if self.head is not None:
            # Refused before the credential was found, perhaps because there are several.
            for name, value in self.head.fields:
                if name.lower() in CREDENTIALS:
                    self.redact(value.decode("latin-1").rpartition(" ")[2])
        self.status = 200 if self.is_in_band or self.early_target is not None else error.status
        self.code = error.code
        self.reason = error.reason
        self.limit = error.limit
        self.ending = self.interrupted_as or ending_of(error)
        if isinstance(error, UpstreamCredentialsError):
            log_credentials_refused(self.id, self.upstream or "", error.upstream_status)

    def interrupt(self, ending: Ending) -> None:
        """End it from outside: a drain that is over, or somebody who stops it."""
        if self.response is not None:
            self.response.finish(ending)
        elif self.interrupted_as is None and self.ending is None and self.task is not None:
            self.interrupted_as = ending
            self.task.cancel()

    def _record_cancellation(self) -> ProxyError | None:
        """The client has left, unless `interrupt` cancelled the task, and nobody else did."""
        is_interrupted = self.interrupted_as is not None and self.task is not None and self.task.uncancel() == 0
        if not is_interrupted:
            self.ending = self.ending or Ending.CLIENT_CLOSED
            return None
        if self.interrupted_as is Ending.DRAINED or self.early_target is not None:
            error = DrainingError() if self.interrupted_as is Ending.DRAINED else StoppedError()
            self.record_refusal(error)
            return error
        self.ending = self.interrupted_as
        if self.transport is not None:
            self.transport.abort()
        return None


def ending_of(error: ProxyError) -> Ending:
    """Return how an exchange, or an attempt, ends with this error."""
    if isinstance(error, UpstreamTimeoutError):
        return _TIMEOUT_ENDINGS[error.clock]
    if isinstance(error, UpstreamUnreachableError | UpstreamProtocolError | UpstreamCredentialsError):
        return Ending.UPSTREAM_ERROR
    return Ending.REFUSED


EXCHANGE: Final = web.RequestKey("exchange", Exchange)
# An embedder's middleware may set these: who asks, and further fields of the log line, whose own cannot be replaced.
PRINCIPAL: Final = web.RequestKey("principal", Principal)
LOG_FIELDS: Final[web.RequestKey[dict[str, Any]]] = web.RequestKey("log_fields", dict)
