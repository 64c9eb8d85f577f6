"""CORS (WHATWG Fetch §3.3): the `Access-Control-*` headers of preflights and of all other responses.

Pure functions of the configured origins and the request's headers. A preflight has no credentials, so it is answered
before authentication and not forwarded. Every other response, errors too, gets `answer_fields`: without them a
frontend sees a network error instead of our 401 or 429.

Deliberate limits:

1. An origin is compared as a whole and exactly. No patterns, no case folding: browsers send the serialised origin.
   `null` matches only if it is listed, because every sandboxed frame on the web has it.
2. A response repeats only header names that the lists below or the operator's allow; with the operator's `*` any valid
   name (RFC 9110 §5.1), within the bounds below.
3. `Access-Control-Request-Private-Network` is never granted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.errors import Field
    from proxy.model import FieldIndex

_METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")

# Sent by frontends, vendors' SDKs in browsers and tracing libraries. `*` does not suffice: it never covers
# Authorization, and nothing at all with credentials (Fetch §3.3.5).
_REQUEST_NAMES = frozenset({
    b"accept",
    b"accept-language",
    b"api-key",
    b"authorization",
    b"baggage",
    b"cache-control",
    b"content-encoding",
    b"content-language",
    b"content-type",
    b"idempotency-key",
    b"last-event-id",
    b"pragma",
    b"sentry-trace",
    b"traceparent",
    b"tracestate",
    b"user-agent",
    b"x-api-key",
    b"x-request-id",
    b"x-requested-with",
    b"x-title",
    b"x-upstream",
    b"x-upstream-authorization",
})  # fmt: skip

# Vendors add names under their own prefix with every release of an SDK (openai-node and @anthropic-ai/sdk alone send
# x-stainless-lang, -package-version, -os, -arch, -runtime, -runtime-version, -retry-count, -timeout, -async,
# -helper-method, -stream-helper and -custom-poll-interval). The proxy reads none of them.
_VENDOR_NAME = re.compile(rb"(?:x-stainless|x-dashscope|x-goog|anthropic|openai)-[a-z0-9-]{1,48}")

# Far more than any client sends; a browser refuses the request if one of its names is not in the answer.
_MAX_REQUESTED_BYTES = 4_096
_MAX_REQUESTED_NAMES = 64

_EXPOSED_NAMES = (
    b"x-forward-sse-id",
    b"x-forward-sse-code",
    b"x-forward-sse-upstream",
    b"x-forward-sse-attempts",
    b"www-authenticate",
    b"retry-after",
    b"retry-after-ms",
    b"x-should-retry",
    b"ratelimit",
    b"ratelimit-policy",
    *(
        b"x-ratelimit-%b-%b" % (value, unit)
        for unit in (b"requests", b"tokens")
        for value in (b"limit", b"remaining", b"reset")
    ),
    # The upstream's rate limits, under the names that `header_fields.to_client` gives them.
    *(
        b"x-upstream-ratelimit-%b-%b" % (value, unit)
        for value in (b"limit", b"remaining", b"reset")
        for unit in (b"requests", b"tokens")
    ),
    *(
        b"anthropic-ratelimit-%b-%b" % (unit, value)
        for unit in (b"requests", b"tokens", b"input-tokens", b"output-tokens")
        for value in (b"limit", b"remaining", b"reset")
    ),
    b"anthropic-organization-id",
    b"openai-model",
    b"openai-organization",
    b"openai-processing-ms",
    b"openai-version",
    b"request-id",
    b"x-request-id",
    b"x-dashscope-request-id",
    b"traceparent",
    b"via",
)

# A token without `*`, which means every name to a browser.
_ANY_NAME = re.compile(rb"[!#$%&'+\-.^_`|~0-9a-z]{1,128}")
_CREDENTIALS: Field = (b"Access-Control-Allow-Credentials", b"true")
_ALLOW_METHODS: Field = (b"Access-Control-Allow-Methods", b", ".join(_METHODS))
_VARY: Field = (b"Vary", b"Origin")
_VARY_PREFLIGHT: Field = (b"Vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers")


class CorsPolicy:
    """Makes the CORS headers for one configuration.

    The headers of listed origins are made once; no memory is kept for any other origin.

    Args:
        origins: Serialised origins (`https://app.example.com`), or `*` for all of them; none turns the fields off.
        credentials: Allow cookies and TLS client certificates; not needed for bearer tokens.
        max_age_s: How long a browser may cache a preflight's answer, in seconds.
        headers: Request header names beyond the built-in ones; `*` is every requested name.
        expose: Response header names that pages may read, beyond the built-in ones.

    Raises:
        ValueError: `*` with credentials, which Fetch forbids: every site could act as its visitors.
    """

    def __init__(
        self,
        origins: frozenset[str],
        *,
        credentials: bool,
        max_age_s: int,
        headers: Iterable[str] = (),
        expose: Iterable[str] = (),
    ) -> None:
        if credentials and "*" in origins:
            raise ValueError("credentials cannot be allowed for every origin")
        self._allows_all = "*" in origins
        own_names = frozenset(name.lower().encode("ascii") for name in headers)
        self._request_names = _REQUEST_NAMES | (own_names - {b"*"})
        self._grants_any_name = b"*" in own_names
        exposed = dict.fromkeys((*_EXPOSED_NAMES, *(name.lower().encode("ascii") for name in expose)))
        expose_field: Field = (b"Access-Control-Expose-Headers", b", ".join(exposed))
        self._max_age: Field = (b"Access-Control-Max-Age", b"%d" % max_age_s)
        shared = (_CREDENTIALS,) if credentials else ()
        self._grants: dict[bytes, tuple[Field, ...]] = {
            origin: ((b"Access-Control-Allow-Origin", origin), *shared)
            for origin in (name.encode("ascii") for name in origins)
        }
        # With a list, responses vary by Origin, also those to requests without one: a cache would otherwise serve
        # the response without CORS headers to a listed origin (Fetch §3.3.7).
        self._vary: tuple[Field, ...] = (_VARY,) if origins and not self._allows_all else ()
        self._answers = {origin: (*grant, expose_field, *self._vary) for origin, grant in self._grants.items()}

    def answer_fields(self, origin: bytes | None) -> tuple[Field, ...]:
        """Return the CORS headers of a response; `origin` is the request's `Origin`, None without one."""
        return self._answers.get(self._matched(origin), self._vary)

    def preflight_fields(
        self, origin: bytes | None, requested_method: bytes, requested_headers: bytes | None
    ) -> tuple[Field, ...]:
        """Return the headers of a preflight's 204; without `Access-Control-Allow-Origin` the browser refuses.

        For a method that is not served, the served methods are listed, so that the browser's console shows the
        cause. Time is bounded by the first 4 KiB of `requested_headers`.
        """
        if not self._grants:
            return ()
        grant = self._grants.get(self._matched(origin))
        if grant is None:
            return (_VARY_PREFLIGHT,)
        if requested_method not in _METHODS:
            return (*grant, _ALLOW_METHODS, _VARY_PREFLIGHT)
        names = self._granted_names(requested_headers or b"")
        allow_headers = ((b"Access-Control-Allow-Headers", b", ".join(names)),) if names else ()
        return (*grant, _ALLOW_METHODS, *allow_headers, self._max_age, _VARY_PREFLIGHT)

    def _granted_names(self, requested: bytes) -> tuple[bytes, ...]:
        """Filter `Access-Control-Request-Headers` by what is allowed; a list that is too long gets nothing."""
        if len(requested) > _MAX_REQUESTED_BYTES:
            return ()
        names = dict.fromkeys(name.strip(b" \t").lower() for name in requested.split(b",")[:_MAX_REQUESTED_NAMES])
        return tuple(name for name in names if self._grants_name(name))

    def _grants_name(self, name: bytes) -> bool:
        if name in self._request_names or _VENDOR_NAME.fullmatch(name) is not None:
            return True
        return self._grants_any_name and _ANY_NAME.fullmatch(name) is not None

    def _matched(self, origin: bytes | None) -> bytes:
        # No origin is listed as the empty string, so it stands for "none of them".
        return b"*" if self._allows_all else origin or b""


def request_origin(fields: FieldIndex) -> bytes | None:
    """Give the request's one `Origin`; two of them are as good as none, for nobody could say which one is meant."""
    return None if b"origin" in fields.repeated else fields.get(b"origin")


def is_preflight(method: str, fields: FieldIndex) -> bool:
    """Whether a browser asks for permission; any other OPTIONS is a request like all (Fetch §3.3.2)."""
    return method == "OPTIONS" and b"origin" in fields and b"access-control-request-method" in fields
