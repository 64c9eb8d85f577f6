"""Which fields cross the proxy, in either direction (RFC 9110 §7.6.1, contract §5).

Pure: raw names and values in, raw names and values out, order kept (RFC 9110 §5.3). One loop a direction, over
prebuilt sets. Names must be tokens and values free of CR, LF and NUL: the parsers of both sides and of the envelope
refuse anything else, and it is not looked for again here. Framing is left to who writes the head: neither direction
gives a Content-Length, a Transfer-Encoding or a Host.

Departure from RFC 9110 §5.1 (names are compared without case): here `_` counts as `-` too. Many servers hand both to
their applications as one name, so `X_Api_Key` would carry a credential past a rule that knows only `X-Api-Key`
(CVE-2025-64484).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxy.errors import Field

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

# Upper case to lower case and `_` to `-`, in one C call a name.
_FOLD: Final = bytes.maketrans(bytes(range(ord("A"), ord("Z") + 1)) + b"_", bytes(range(ord("a"), ord("z") + 1)) + b"-")


def fold(name: bytes) -> bytes:
    """The spelling under which names are compared here."""
    return name.translate(_FOLD)


def to_upstream(fields: Iterable[Field], added: Sequence[Field]) -> list[Field]:
    """A client's end-to-end fields as the upstream gets them, with `added` in place of any of the same names.

    What is ours is added after the removal, so that no `Connection: authorization` of a client can take it away. Our
    Via comes after those that are there (RFC 9110 §7.6.3). Time grows with the number of fields, whatever is in them.
    """
    ours = {name.translate(_FOLD) for name, _ in added}
    named = set(ours)
    kept: list[tuple[bytes, Field]] = []
    for field in fields:
        name = field[0].translate(_FOLD)
        if name in _NOT_UPSTREAM or name.startswith(_NOT_UPSTREAM_PREFIXES):
            if name == b"connection":
                _name_options(field[1], named)
            continue
        kept.append((name, field))
    # `named` is complete only now: a Connection field may come after what it names.
    passed = [field for name, field in kept if name not in named]
    if IDENTITY[0].lower() not in ours:
        passed.append(IDENTITY)
    passed.append(VIA)
    passed += added
    return passed


def to_client(fields: Iterable[Field]) -> list[Field]:
    """An upstream's end-to-end fields as the client gets them; its rate limits under names that are not ours.

    Content-Length is left out: whoever frames the body writes it. So is Cache-Control, for which ours stands.
    """
    named: set[bytes] = set()
    kept: list[tuple[bytes, Field]] = []
    for field in fields:
        name = field[0].translate(_FOLD)
        if name in _NOT_CLIENT or name.startswith(_NOT_CLIENT_PREFIXES):
            if name == b"connection":
                _name_options(field[1], named)
            continue
        renamed = field
        if name.startswith(_X_RATE_LIMIT):
            renamed = (b"x-upstream-ratelimit-" + name[len(_X_RATE_LIMIT) :], field[1])
        elif name == _RATE_LIMIT or name.startswith(_RATE_LIMIT + b"-"):
            renamed = (b"x-upstream-" + name, field[1])
        kept.append((name, renamed))
    return [field for name, field in kept if name not in named]


def is_loop(fields: Iterable[Field]) -> bool:
    """Whether the message has been through a proxy of our pseudonym already (RFC 9110 §7.6.3).

    Two installations in a row are refused too: they share the name.
    """
    for name, value in fields:
        if len(name) == 3 and name.lower() == b"via":  # noqa: PLR2004 - the length of the name
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


def _name_options(value: bytes, named: set[bytes]) -> None:
    for option in value.split(b","):
        name = option.strip(b" \t").translate(_FOLD)
        if name:
            named.add(name)
