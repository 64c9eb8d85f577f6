"""Which fields cross the proxy, in either direction (RFC 9110 §7.6.1, contract §5).

Pure: raw names and values in, raw names and values out, order kept (RFC 9110 §5.3). One pass a direction, over
prebuilt tables. Names must be tokens and values free of CR, LF and NUL: the parsers of both sides and of the envelope
refuse anything else, and it is not looked for again here. Framing is left to who writes the head: neither direction
gives a Content-Length, a Transfer-Encoding or a Host.

Departure from RFC 9110 §5.1 (names are compared without case): here `_` counts as `-` too. Many servers hand both to
their applications as one name, so `X_Api_Key` would carry a credential past a rule that knows only `X-Api-Key`
(CVE-2025-64484).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from proxy.errors import Field
    from proxy.model import FieldIndex, Origin

_T = TypeVar("_T")

# How we sign Via (RFC 9110 §7.6.3), and know ourselves again in it.
PSEUDONYM: Final = b"forward-sse"
VIA: Final[Field] = (b"Via", b"1.1 " + PSEUDONYM)
# The observer behind us reads plain event streams only; a client's wish for compression is not ours to pass on.
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
# Whatever may carry a credential on its way to us, or by its name to somebody else.
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
# Those of them that are for the server which answers, not for a proxy on the way.
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
# The upstream's limits are its own: under these names a client would take them for ours.
_X_RATE_LIMIT: Final = b"x-ratelimit-"
_RATE_LIMIT: Final = b"ratelimit"

_CONNECTION: Final = b"connection"
_AUTHORITY: Final = re.compile(rb"(https?)://([^/?#]+)", re.IGNORECASE)
_ACCEPT_ENCODING: Final = b"accept-encoding"
# In place of a name: the field does not pass.
_DROPPED: Final = b""

# Upper case to lower case and `_` to `-`, in one C call a name.
_FOLD: Final = bytes.maketrans(bytes(range(ord("A"), ord("Z") + 1)) + b"_", bytes(range(ord("a"), ord("z") + 1)) + b"-")


def fold(name: bytes) -> bytes:
    """The spelling under which names are compared here."""
    return name.translate(_FOLD)


class Added:
    """The fields that are ours to add to a request, in place of any of the same names; made once for many requests.

    `names` are the folded names of those that were given; `fields` are these after what every request gets.
    """

    __slots__ = ("_given", "fields", "names", "replaced")

    def __init__(self, given: Iterable[Field] = ()) -> None:
        self._given = tuple(given)
        self.names = frozenset(fold(name) for name, _ in self._given)
        # Where a client's would pass: for most upstreams none, because credentials never do.
        self.replaced = frozenset(name for name in self.names if _passes_to_upstream(name))
        identity = () if _ACCEPT_ENCODING in self.names else (IDENTITY,)
        self.fields: tuple[Field, ...] = (*identity, VIA, *self._given)

    def under(self, fields: tuple[Field, ...]) -> Added:
        """These, with others before them."""
        return Added((*fields, *self._given)) if fields else self

    def __repr__(self) -> str:
        """A credential is among them."""
        return "Added()"


def to_upstream(fields: Sequence[Field], index: FieldIndex, added: Added) -> tuple[Field, ...]:
    """A client's end-to-end fields as the upstream gets them, with `added` in place of any of the same names.

    What is ours is added after the removal, so that no `Connection: authorization` of a client can take it away. Our
    Via comes after those that are there (RFC 9110 §7.6.3). Time grows with the number of fields, whatever is in them.
    `index` is that of `fields`.
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
    """An upstream's end-to-end fields as the client gets them; its rate limits under names that are not ours.

    Content-Length is left out: whoever frames the body writes it. So is Cache-Control, for which ours stands. `index`
    is that of `fields`.
    """
    if _CONNECTION in index and (unwanted := _connection_options(index)):
        fields = _without(fields, unwanted)
    names = _NAMES_TO_CLIENT
    return [(name, value) for raw, value in fields if (name := names[raw]) is not _DROPPED]


def _without(fields: Iterable[Field], names: Container[bytes]) -> list[Field]:
    return [field for field in fields if fold(field[0]) not in names]


def _connection_options(index: FieldIndex) -> frozenset[bytes]:
    """The fields that `Connection` names, but for those that never pass: mostly none, for mostly it says keep-alive."""
    if index.get(_CONNECTION) in _USUAL_OPTIONS and _CONNECTION not in index.repeated:
        return _NO_NAMES
    options = b",".join(index.every(_CONNECTION)).split(b",")
    return frozenset(fold(option.strip(b" \t")) for option in options) - _HOP_BY_HOP


_USUAL_OPTIONS: Final = frozenset({b"keep-alive", b"Keep-Alive", b"close"})
_NO_NAMES: Final[frozenset[bytes]] = frozenset()


def _passes_to_upstream(raw: bytes) -> bool:
    """Whether a client's field of that name may pass."""
    name = fold(raw)
    return not (name in _NOT_UPSTREAM or name.startswith(_NOT_UPSTREAM_PREFIXES))


def _name_to_client(raw: bytes) -> bytes:
    """The name under which an upstream's field of that name passes, or `_DROPPED`."""
    name = fold(raw)
    if name in _NOT_CLIENT or name.startswith(_NOT_CLIENT_PREFIXES):
        return _DROPPED
    if name.startswith(_X_RATE_LIMIT):
        return b"x-upstream-" + name.removeprefix(b"x-")
    if name == _RATE_LIMIT or name.startswith(_RATE_LIMIT + b"-"):
        return b"x-upstream-" + name
    return raw


def rebase_location(value: bytes, *, origin: Origin, upstream_base: bytes, client_base: bytes) -> bytes:
    """A `Location` below the upstream's url as the path that the client has to ask for; any other stays as it is.

    It is absolute, or begins with a slash (RFC 9110 §10.2.2); what is relative to the request's path is right as it is.
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
    """Whether the message has been through a proxy of our pseudonym already (RFC 9110 §7.6.3).

    Two installations in a row are refused too: they share the name.
    """
    for value in fields.every(b"via"):
        for hop in value.lower().split(b","):
            # Protocol, pseudonym, perhaps a comment.
            if hop.split()[1:2] == [PSEUDONYM]:
                return True
    return False


def values(fields: Iterable[Field], name: bytes) -> list[bytes]:
    """The values of every field of that lower-case name, in order, without the white space around them."""
    length = len(name)
    return [value.strip(b" \t") for key, value in fields if len(key) == length and key.lower() == name]


def single(fields: Iterable[Field], name: bytes) -> bytes | None:
    """The value of the first field of that lower-case name, None where there is none.

    For names of which a second field is refused elsewhere, or harmless; `values` tells how many there are.
    """
    length = len(name)
    for key, value in fields:
        if len(key) == length and key.lower() == name:
            return value
    return None


# Most fields of most messages are these, in one of two spellings; finding them here is cheaper than judging them anew.
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


class _Judged(dict[bytes, _T]):
    """What becomes of a field, by its name as spelled: the common ones judged beforehand, the others when they come.

    Those are not kept: names are the client's to choose, and so would be the memory.
    """

    __slots__ = ("_judge",)

    def __init__(self, judge: Callable[[bytes], _T]) -> None:
        common = (name for text in (_COMMON, _COMMON.lower()) for name in text.encode().split())
        super().__init__((name, judge(name)) for name in common)
        self._judge = judge

    def __missing__(self, name: bytes) -> _T:
        return self._judge(name)


_PASSES_TO_UPSTREAM: Final = _Judged(_passes_to_upstream)
_NAMES_TO_CLIENT: Final = _Judged(_name_to_client)


# What every relayed response says: nobody on the way may buffer or change it.
STREAM_FIELDS: Final = (("Cache-Control", "no-cache, no-transform"), ("X-Accel-Buffering", "no"))


def relayed(fields: Iterable[Field]) -> list[tuple[str, str]]:
    """The fields of a relayed response as aiohttp takes them: the upstream's, and `STREAM_FIELDS`."""
    return [*[(name.decode("latin-1"), _text(value)) for name, value in fields], *STREAM_FIELDS]


def _text(value: bytes) -> str:
    """A field's value as aiohttp writes it back: UTF-8 where it is, else each byte as the character of its number."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
