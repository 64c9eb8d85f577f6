"""Header filter: which fields the proxy forwards, in either direction (RFC 9110 §7.6.1).

docs/behaviour.md#requests and docs/behaviour.md#responses-status-headers-upstream-errors list what is dropped.
Pure: raw names and values in, raw names and values out, in order (RFC 9110 §5.3), in one pass over prebuilt tables.
Names must be tokens and values free of CR, LF and NUL: the HTTP parsers and that of the envelope refuse anything else,
and it is not checked again. Content-Length, Transfer-Encoding and Host are dropped: whoever writes the head adds them.

Departure from RFC 9110 §5.1 (names are compared without case): `_` counts as `-` too. Many servers pass both to their
applications as one name, so `X_Api_Key` would evade a rule for `X-Api-Key` (CVE-2025-64484).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeVar

from multidict import istr

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from proxy.errors import Field
    from proxy.model import FieldIndex, Origin

_T = TypeVar("_T")

# Our pseudonym in Via (RFC 9110 §7.6.3), by which loops are detected.
PSEUDONYM: Final = b"forward-sse"
VIA: Final[Field] = (b"Via", b"1.1 " + PSEUDONYM)
# The event-stream observer reads uncompressed streams only.
IDENTITY: Final[Field] = (b"Accept-Encoding", b"identity")

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Fields that may carry a credential, for the proxy or for another server.
CREDENTIALS: Final = frozenset(
    {
        b"api-key",
        b"authorization",
        b"proxy-authorization",
        b"x-api-key",
        b"x-goog-api-key",
        b"x-upstream-authorization",
    }
)
# Credentials for the origin server, not for a proxy in between.
SERVER_CREDENTIALS: Final = CREDENTIALS - {b"proxy-authorization", b"x-upstream-authorization"}
_NOT_UPSTREAM: Final = (
    _HOP_BY_HOP
    | CREDENTIALS
    | {
        b"accept-encoding",
        b"content-length",
        b"cookie",
        b"cookie2",
        b"expect",
        b"forwarded",
        b"host",
        b"origin",
        b"referer",
        b"x-real-ip",
    }
)
_NOT_UPSTREAM_PREFIXES: Final = (b"sec-", b"x-forwarded", b"x-upstream", b"x-forward-sse-")
_NOT_CLIENT: Final = _HOP_BY_HOP | {
    b"alt-svc",
    b"cache-control",
    b"content-length",
    b"server",
    b"set-cookie",
    b"set-cookie2",
}
_NOT_CLIENT_PREFIXES: Final = (b"access-control-", b"x-accel-", b"x-forward-sse-")
# The upstream's rate limits are renamed: under these names a client would take them for the proxy's.
_X_RATE_LIMIT: Final = b"x-ratelimit-"
_RATE_LIMIT: Final = b"ratelimit"

_CONNECTION: Final = b"connection"
_AUTHORITY: Final = re.compile(rb"(https?)://([^/?#]+)", re.IGNORECASE)
_ACCEPT_ENCODING: Final = b"accept-encoding"
# Instead of a name: the field is dropped.
_DROPPED: Final = b""

# Lower case, and `_` becomes `-`, in one C call for each name.
_FOLD: Final = bytes.maketrans(bytes(range(ord("A"), ord("Z") + 1)) + b"_", bytes(range(ord("a"), ord("z") + 1)) + b"-")


def fold(name: bytes) -> bytes:
    """Return the field name in the spelling in which names are compared."""
    return name.translate(_FOLD)


class Added:
    """Header fields that the proxy adds to an upstream request, replacing the client's; made once for many requests.

    `names` are the folded names of the given fields; `fields` are all to add: what every request gets, then the given.
    """

    __slots__ = ("_given", "fields", "names", "replaced")

    def __init__(self, given: Iterable[Field] = ()) -> None:
        self._given = tuple(given)
        self.names = frozenset(fold(name) for name, _ in self._given)
        # Names that a client's field could pass under: mostly none, because credentials never pass.
        self.replaced = frozenset(name for name in self.names if _passes_to_upstream(name))
        identity = () if _ACCEPT_ENCODING in self.names else (IDENTITY,)
        self.fields: tuple[Field, ...] = (*identity, VIA, *self._given)

    def under(self, fields: tuple[Field, ...]) -> Added:
        """Return a copy with other fields before these."""
        return Added((*fields, *self._given)) if fields else self

    def __repr__(self) -> str:
        """Hide the fields: credentials are among them."""
        return "Added()"


def to_upstream(fields: Sequence[Field], index: FieldIndex, added: Added) -> tuple[Field, ...]:
    """Return the request headers for the upstream: the client's end-to-end fields, with `added` replacing same names.

    `added` comes after the hop-by-hop fields are removed, so that a client's `Connection: authorization` cannot remove
    the key. Our Via follows existing ones (RFC 9110 §7.6.3). Time is linear in the number of fields. `index` is that
    of `fields`.
    """
    passes = _PASSES_TO_UPSTREAM
    passed = [field for field in fields if passes[field[0]]]
    unwanted = added.replaced
    if _CONNECTION in index:
        unwanted |= _connection_options(index)
    if unwanted:
        passed = _without(passed, unwanted)
    return (*passed, *added.fields)


def to_client(fields: Sequence[Field], index: FieldIndex) -> list[Field]:
    """Return the response headers for the client: the upstream's end-to-end fields, its rate limits renamed.

    Content-Length is dropped: whoever frames the body adds it. Cache-Control is dropped for `STREAM_FIELDS`. `index`
    is that of `fields`.
    """
    if _CONNECTION in index and (unwanted := _connection_options(index)):
        fields = _without(fields, unwanted)
    names = _NAMES_TO_CLIENT
    return [(name, value) for raw, value in fields if (name := names[raw]) is not _DROPPED]


def is_encoded(index: FieldIndex) -> bool:
    """Check whether a message's body is in a content coding (RFC 9110 §8.4); `identity` is none."""
    return b"content-encoding" in index and any(
        coding.strip(b" \t").lower() not in _NO_CODING for coding in index.every(b"content-encoding")
    )


_NO_CODING: Final = frozenset({b"", b"identity"})


def _without(fields: Iterable[Field], names: Container[bytes]) -> list[Field]:
    return [field for field in fields if fold(field[0]) not in names]


def _connection_options(index: FieldIndex) -> frozenset[bytes]:
    """Return the names in `Connection` but those that never pass: mostly none, because it is mostly `keep-alive`."""
    if index.get(_CONNECTION) in _USUAL_OPTIONS and _CONNECTION not in index.repeated:
        return _NO_NAMES
    options = b",".join(index.every(_CONNECTION)).split(b",")
    return frozenset(fold(option.strip(b" \t")) for option in options) - _HOP_BY_HOP


_USUAL_OPTIONS: Final = frozenset({b"keep-alive", b"Keep-Alive", b"close"})
_NO_NAMES: Final[frozenset[bytes]] = frozenset()


def _passes_to_upstream(raw: bytes) -> bool:
    """Whether a client's field of that name is forwarded."""
    name = fold(raw)
    return not (name in _NOT_UPSTREAM or name.startswith(_NOT_UPSTREAM_PREFIXES))


def _name_to_client(raw: bytes) -> bytes:
    """Return the name under which an upstream's field is forwarded, or `_DROPPED`."""
    name = fold(raw)
    if name in _NOT_CLIENT or name.startswith(_NOT_CLIENT_PREFIXES):
        return _DROPPED
    if name.startswith(_X_RATE_LIMIT):
        return b"x-upstream-" + name.removeprefix(b"x-")
    if name == _RATE_LIMIT or name.startswith(_RATE_LIMIT + b"-"):
        return b"x-upstream-" + name
    return raw


def rebase_location(value: bytes, *, origin: Origin, upstream_base: bytes, client_base: bytes) -> bytes:
    """Rewrite a `Location` below the upstream's url to the path below the proxy; any other is returned unchanged.

    Handles absolute URLs and absolute paths (RFC 9110 §10.2.2); a path relative to the request's is correct as it is.
    """
    match = _AUTHORITY.match(value)
    if match is not None:
        scheme, host = origin.scheme.encode(), origin.host_field
        spellings = {host.lower(), b"%b:%d" % (host.lower(), origin.port)}
        if match[1].lower() != scheme or match[2].lower() not in spellings:
            return value
        path = value[match.end() :] or b"/"
    elif value.startswith(b"/") and not value.startswith(b"//"):
        path = value
    else:
        return value
    rest = path.removeprefix(upstream_base)
    is_below = path.startswith(upstream_base) and rest[:1] in {b"", b"/", b"?", b"#"}
    return client_base + rest if is_below else value


def is_loop(fields: FieldIndex) -> bool:
    """Whether the request passed through a proxy of our pseudonym already (RFC 9110 §7.6.3).

    True for two installations in a row too, because they share the pseudonym.
    """
    for value in fields.every(b"via"):
        for hop in value.lower().split(b","):
            # Protocol, pseudonym, optional comment.
            if hop.split()[1:2] == [PSEUDONYM]:
                return True
    return False


def values(fields: Iterable[Field], name: bytes) -> list[bytes]:
    """Return the values of all fields of that lower-case name, in order, stripped of white space."""
    length = len(name)
    return [value.strip(b" \t") for key, value in fields if len(key) == length and key.lower() == name]


def single(fields: Iterable[Field], name: bytes) -> bytes | None:
    """Return the value of the first field of that lower-case name, None without one.

    For names of which a second field is refused elsewhere, or harmless.
    """
    length = len(name)
    for key, value in fields:
        if len(key) == length and key.lower() == name:
            return value
    return None


# Most fields have these names, in one of two spellings: a dict look-up is cheaper than filtering them anew. Vendors,
# their networks and their SDKs add names of their own, which are kept when they are first seen.
_COMMON: Final = (
    "Accept Accept-Encoding Accept-Language Access-Control-Allow-Origin Alt-Svc Anthropic-Version Authorization "
    "Cache-Control Connection Content-Encoding Content-Length Content-Type Cookie Date ETag Expect Host Keep-Alive "
    "OpenAI-Organization OpenAI-Processing-Ms OpenAI-Version Origin Pragma Priority Referer Retry-After Sec-Fetch-Dest "
    "Sec-Fetch-Mode Sec-Fetch-Site Server Set-Cookie Strict-Transport-Security Traceparent Transfer-Encoding "
    "User-Agent Vary Via X-API-Key X-Accel-Buffering X-Content-Type-Options X-DashScope-SSE X-Forwarded-For "
    "X-Forwarded-Host X-Forwarded-Proto X-Goog-API-Key X-RateLimit-Limit-Requests X-RateLimit-Limit-Tokens "
    "X-RateLimit-Remaining-Requests X-RateLimit-Remaining-Tokens X-RateLimit-Reset-Requests X-RateLimit-Reset-Tokens "
    "X-Real-IP X-Request-Id X-Stainless-Arch X-Stainless-Async X-Stainless-Lang X-Stainless-OS "
    "X-Stainless-Package-Version X-Stainless-Read-Timeout X-Stainless-Retry-Count X-Stainless-Runtime "
    "X-Stainless-Runtime-Version X-Upstream"
)


# Clients and the targets of envelopes choose names, and could fill the memory with them: 64 KiB of names are kept, and
# who has filled that makes only names slow that nobody had sent before.
_MAX_NAMES: Final = 1024
_MAX_NAME_BYTES: Final = 64


class _Judged(dict[bytes, _T]):
    """Filter result by field name as spelled: precomputed for common names, computed and kept for others.

    At most `_MAX_NAMES` are kept, none of them longer than `_MAX_NAME_BYTES`; the rest is computed at each look-up.
    """

    __slots__ = ("_judge",)

    def __init__(self, judge: Callable[[bytes], _T]) -> None:
        common = (name for text in (_COMMON, _COMMON.lower()) for name in text.encode().split())
        super().__init__((name, judge(name)) for name in common)
        self._judge = judge

    def __missing__(self, name: bytes) -> _T:
        judged = self._judge(name)
        if len(self) < _MAX_NAMES and len(name) <= _MAX_NAME_BYTES:
            self[name] = judged
        return judged


_PASSES_TO_UPSTREAM: Final = _Judged(_passes_to_upstream)
_NAMES_TO_CLIENT: Final = _Judged(_name_to_client)


# On every relayed response: proxies in between must neither buffer nor transform it.
STREAM_FIELDS: Final = (
    (istr("Cache-Control"), "no-cache, no-transform"),
    (istr("X-Accel-Buffering"), "no"),
)
# aiohttp looks each name up in lower case, and has that of an `istr`.
_TEXT_NAMES: Final = _Judged(lambda name: istr(name.decode("latin-1")))


def relayed(fields: Sequence[Field]) -> list[tuple[str, str]]:
    """Return a relayed response's headers for aiohttp: the given fields, and `STREAM_FIELDS`."""
    headers: list[tuple[str, str]]
    names = _TEXT_NAMES
    try:
        headers = [(names[name], value.decode()) for name, value in fields]
    except UnicodeDecodeError:
        # Few are anything but ASCII, and a call for each value takes as long as its decoding.
        headers = [(names[name], _text(value)) for name, value in fields]
    headers += STREAM_FIELDS
    return headers


def _text(value: bytes) -> str:
    """Decode a field value for aiohttp, which encodes it as UTF-8: from UTF-8 if it is that, else from Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
