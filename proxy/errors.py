"""Every refusal the proxy can give: its status, its code, whose fault it is, and the answer made of it.

Library exceptions are translated into these at the edge where they arise. A message is shown to clients: it never holds
a token, a key, a host of ours, or anything the client sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from proxy.dialects import Dialect

Blame = Literal["client", "upstream", "proxy"]
Field = tuple[bytes, bytes]

# Fields that grow long, in the spelling in which a message names them.
_KNOWN_FIELDS = {
    name.lower().encode(): name
    for name in (
        "Accept",
        "Api-Key",
        "Authorization",
        "Baggage",
        "Content-Type",
        "Cookie",
        "Forwarded",
        "Referer",
        "Tracestate",
        "User-Agent",
        "Via",
        "X-Api-Key",
        "X-Forwarded-For",
        "X-Goog-Api-Key",
        "X-Upstream-Authorization",
    )
}


class ProxyError(Exception):
    """A refusal: `message` is safe to show; docs/operating.md#code-what-the-proxy-refused explains `status` and `code`.

    `reason` is one word for the log of why something failed (docs/behaviour.md#log-and-metrics); no client is told it.
    None where the code says everything. `limit` is the kind of the limit that was reached, for the metrics.
    """

    status: int = 500
    code: str = "internal_error"
    blame: Blame = "proxy"
    message: str = "The proxy failed."
    reason: str | None = None
    limit: str | None = None

    def __init__(
        self,
        message: str | None = None,
        *,
        retry_after_s: float | None = None,
        reason: str | None = None,
        limit: str | None = None,
    ) -> None:
        self.message = message or self.message
        self.reason = reason or self.reason
        self.limit = limit or self.limit
        self.retry_after_s = retry_after_s
        super().__init__(self.message)

    def challenge(self) -> bytes | None:
        """The value of `WWW-Authenticate` (RFC 6750 §3), or None where the status asks for none."""
        return None


class InvalidRequestError(ProxyError):
    """The request cannot be understood (400)."""

    status, code, blame, message = 400, "invalid_request", "client", "The request is malformed."


class AuthenticationError(ProxyError):
    """Base of the three 401 answers; always carries a challenge (RFC 9110 §15.5.2)."""

    status, code, blame, message = 401, "invalid_token", "client", "The access token is invalid."

    def challenge(self) -> bytes:
        """RFC 6750 §3.1: an error attribute only when a token was sent; nothing of the token in it."""
        return b'Bearer realm="forward-sse", error="invalid_token", error_description="' + self.message.encode() + b'"'


class InvalidTokenError(AuthenticationError):
    """The credential is malformed, forged, unknown, or not for us."""


class ExpiredTokenError(AuthenticationError):
    """The credential was good once."""

    code, message = "expired_token", "The access token has expired."


class MissingTokenError(AuthenticationError):
    """No credential was sent; RFC 6750 §3.1 wants no error attribute then."""

    code, message = "missing_token", "An access token is required."

    def challenge(self) -> bytes:
        """The bare challenge."""
        return b'Bearer realm="forward-sse"'


class InsufficientScopeError(ProxyError):
    """The token is good but lacks a scope that its issuer's entry requires (403)."""

    status, code, blame, message = 403, "insufficient_scope", "client", "The access token lacks a required scope."

    def challenge(self) -> bytes:
        """RFC 6750 §3.1: 403 with `insufficient_scope`."""
        return b'Bearer realm="forward-sse", error="insufficient_scope"'


class OriginNotAllowedError(ProxyError):
    """A web page of another origin asks the operator's listener, or one that is not known to be of its own (403)."""

    status, code, blame, message = 403, "origin_not_allowed", "client", "Pages of another origin have no access here."


class UpstreamNotAllowedError(ProxyError):
    """The user's plan does not include the upstream (403)."""

    status, code, blame = 403, "upstream_not_allowed", "client"
    message = "Your plan does not include this upstream."


class TargetNotAllowedError(ProxyError):
    """The envelope's target is not on the list, not a global address, or ourselves (403); one message for all."""

    status, code, blame, message = 403, "target_not_allowed", "client", "This target is not allowed."


class PathNotAllowedError(ProxyError):
    """The path below the upstream's base is not on its list (403)."""

    status, code, blame = 403, "path_not_allowed", "client"
    message = "This path is not allowed for this upstream."


class UnknownUpstreamError(ProxyError):
    """No upstream of that name, or none for that model (404)."""

    status, code, blame, message = 404, "unknown_upstream", "client", "No such upstream."


class NotFoundError(ProxyError):
    """Nothing is served here (404)."""

    status, code, blame, message = 404, "not_found", "client", "Nothing is served at this path."


class MethodNotAllowedError(ProxyError):
    """The path exists, the method does not (405); RFC 9110 §15.5.6 wants `Allow`."""

    status, code, blame, message = 405, "method_not_allowed", "client", "This method is not allowed here."

    def __init__(self, allow: str) -> None:
        super().__init__()
        self.allow = allow


class BodyTooLargeError(ProxyError):
    """The body exceeds `max_body` (413)."""

    status, code, blame, message = 413, "body_too_large", "client", "The request body is too large."


class HeaderTooLargeError(ProxyError):
    """A line of the head, or the head, exceeds its bound (431, RFC 6585 §5); the message says which.

    A field is named only where its name is a well-known one: any other may be a secret in the wrong place.
    """

    status, code, blame, message = 431, "header_too_large", "client", "The request's head is too large."

    @classmethod
    def of_request_line(cls, max_bytes: int) -> Self:
        """The request line, which is the target for the most part."""
        return cls(f"The request line is longer than {max_bytes} bytes.")

    @classmethod
    def of_field(cls, name: bytes | None, max_bytes: int) -> Self:
        """One field, name and value together; None where its name has not been read."""
        known = _KNOWN_FIELDS.get(b"" if name is None else name.lower())
        return cls(f"{'A header field' if known is None else f'The {known} field'} is longer than {max_bytes} bytes.")

    @classmethod
    def of_head(cls, max_bytes: int) -> Self:
        """All lines together."""
        return cls(f"The request line and the header fields are longer than {max_bytes} bytes together.")


class UpgradeNotSupportedError(ProxyError):
    """The client asks for a WebSocket, which is not proxied (501)."""

    status, code, blame = 501, "upgrade_not_supported", "client"
    message = "WebSocket connections are not supported; ask for an event stream."


class RequestTimeoutError(ProxyError):
    """The client was too slow with its head or body (408)."""

    status, code, blame, message = 408, "request_timeout", "client", "The request did not arrive in time."


class UnsupportedMediaTypeError(ProxyError):
    """The body has to be read to route it, and is in a content coding that is not known (415)."""

    status, code, blame = 415, "unsupported_media_type", "client"
    message = "Content-Encoding must be gzip, deflate, br or zstd, or an upstream must be named."
    # RFC 9110 §15.5.16: what would have been understood.
    accept_encoding = b"gzip, deflate, br, zstd"


class RateLimitExceededError(ProxyError):
    """One of the plan's rates is used up (429); `retry_after_s` is when the next request would be admitted."""

    status, code, blame, message = 429, "rate_limit_exceeded", "client", "Too many requests for your plan."
    limit = "requests"


class TooManyStreamsError(ProxyError):
    """The plan's concurrent streams are all in use (429)."""

    status, code, blame, message = 429, "too_many_streams", "client", "Too many concurrent streams for your plan."
    limit = "streams"


class TooManyTicketsError(ProxyError):
    """The user has as many tickets open as one may have (429); `retry_after_s` is when the oldest lapses."""

    status, code, blame, limit = 429, "rate_limit_exceeded", "client", "tickets"
    message = "Too many of your tickets are open; use one, or wait until one lapses."


class TooManyFailuresError(ProxyError):
    """Too many bad credentials came from the client's address (429); `retry_after_s` is when one is looked at again."""

    status, code, blame = 429, "too_many_failures", "client"
    message = "Too many bad credentials came from your address; try again later."


class InsufficientQuotaError(ProxyError):
    """One of the plan's budgets has no room until its next period, or until running exchanges leave some (429)."""

    status, code, blame, message = 429, "insufficient_quota", "client", "Your budget is used up."


class UpstreamUnreachableError(ProxyError):
    """No connection to the upstream, or it was lost before an answer began (502)."""

    status, code, blame, message = 502, "upstream_unreachable", "upstream", "The upstream could not be reached."


class EgressRefusedError(UpstreamUnreachableError):
    """The egress proxy did not connect us to the upstream (502); the message has the status or reply that it gave."""

    code, message = "egress_refused", "The egress proxy refused the connection to the upstream."
    reason = "egress_refused"

    @classmethod
    def of_credentials(cls, word: str) -> Self:
        """The proxy wants credentials, or other ones; `word` is how it says so."""
        return cls(f"The egress proxy does not accept this proxy's credentials ({word}).", reason="egress_credentials")


class UpstreamProtocolError(ProxyError):
    """The upstream's answer is not valid HTTP/1.1 (502)."""

    status, code, blame, message = 502, "upstream_protocol_error", "upstream", "The upstream's answer was invalid."


class UpstreamCredentialsError(ProxyError):
    """The upstream refused the operator's own key (502): the fault is neither the user's nor to be mended by them.

    `upstream_status` is what the upstream answered, 401 or 403.
    """

    status, code, blame = 502, "upstream_credentials_exhausted", "upstream"
    message = "The upstream does not accept this proxy's own credentials."
    reason = "credentials_refused"

    def __init__(self, upstream_status: int) -> None:
        super().__init__()
        self.upstream_status = upstream_status


class UpstreamTimeoutError(ProxyError):
    """A clock ran out before the upstream's answer, or its body, began (504); the message names it."""

    status, code, blame, message = 504, "upstream_timeout", "upstream", "The upstream did not answer in time."

    def __init__(self, clock: Literal["connect", "first_byte", "first_output", "idle", "total"]) -> None:
        super().__init__(f"The upstream did not answer in time (clock: {clock}).")
        self.clock = clock


class DrainingError(ProxyError):
    """The proxy is going away (503)."""

    status, code, message = 503, "draining", "The proxy is shutting down; try again."


class AuthUnavailableError(ProxyError):
    """The token cannot be judged because its issuer's keys were never loaded (503)."""

    status, code, message = 503, "auth_unavailable", "Authentication is not available yet; try again."
    reason = "keys_unavailable"


class LimitsUnavailableError(ProxyError):
    """The limits store does not answer and `on_store_error` is `deny` (503)."""

    status, code, message = 503, "limits_unavailable", "Limits cannot be checked right now; try again."


class LedgerUnavailableError(ProxyError):
    """The ledger of usage cannot be read right now (503)."""

    status, code, message = 503, "ledger_unavailable", "Usage cannot be read right now; try again."


class StoppedError(ProxyError):
    """The exchange was stopped by its user or an operator; told only where the client's answer had begun."""

    status, code, message = 502, "stopped", "The stream was stopped."


class OverloadedError(ProxyError):
    """This machine has no descriptor or port left for a connection to the upstream (503)."""

    status, code, message = 503, "overloaded", "The proxy has no room for another connection; try again."


class TooManyConsolesError(ProxyError):
    """As many consoles are connected to this worker as it serves (503)."""

    status, code, message = 503, "too_many_consoles", "Too many consoles are open; close one and try again."


class UpstreamOffError(ProxyError):
    """An operator has turned the upstream off, or all upstreams of the route (503)."""

    status, code, message = 503, "upstream_off", "This upstream is turned off for now; try again later."


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is ours, ready to be written."""

    status: int
    fields: tuple[Field, ...]
    body: bytes


# RFC 9110 §10.2.3: 503 and 429 say when to come back; where nothing better is known, soon.
DEFAULT_RETRY_AFTER_S = 1.0

# The SDKs of OpenAI and Anthropic sleep as long as `Retry-After` says, be it a day, and tell their program nothing.
# Beyond what a person waits for they are told not to try again, so that they raise their error at once.
LONGEST_RETRY_S = 60


def refusal(error: ProxyError, dialect: Dialect) -> Refusal:
    """Make the one answer that an error has, in the dialect of the upstream that was asked for.

    401 always has `WWW-Authenticate`, 405 `Allow`, 415 `Accept-Encoding`, 429 and 503 `Retry-After` in whole seconds,
    rounded up so that who obeys it is admitted, and beyond a minute, or for a budget, `X-Should-Retry: false`. Pure.
    """
    fields: list[Field] = [(b"Content-Type", b"application/json"), (b"X-Forward-Sse-Code", error.code.encode())]
    if (challenge := error.challenge()) is not None:
        fields.append((b"WWW-Authenticate", challenge))
    if isinstance(error, MethodNotAllowedError):
        fields.append((b"Allow", error.allow.encode()))
    if isinstance(error, UnsupportedMediaTypeError):
        fields.append((b"Accept-Encoding", error.accept_encoding))
    if (seconds := retry_after(error)) is not None:
        fields.append((b"Retry-After", b"%d" % seconds))
        if seconds > LONGEST_RETRY_S or isinstance(error, InsufficientQuotaError):
            fields.append((b"X-Should-Retry", b"false"))
    return Refusal(error.status, tuple(fields), dialect.error_body(error))


def retry_after(error: ProxyError) -> int | None:
    """The whole seconds after which it is of use to come back, for the two statuses that say so."""
    if error.status not in {429, 503}:
        return None
    return whole_seconds(DEFAULT_RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s)


def whole_seconds(wait_s: float) -> int:
    """Round a wait up to the whole seconds that `Retry-After` can hold, at least 1; messages round by this one too."""
    return max(1, -int(-wait_s // 1))
