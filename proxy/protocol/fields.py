"""Which fields cross the proxy, in either direction (RFC 9110 §7.6.1, contract §5).

Pure: raw names and values in, raw names and values out, order kept (RFC 9110 §5.3). Names and values come from strict
parsers, or were validated with the configuration: none holds CR, LF or NUL, and every name is a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxy.errors import Field

PSEUDONYM = b"forward-sse"
VIA: Field = (b"Via", b"1.1 " + PSEUDONYM)
IDENTITY: Field = (b"Accept-Encoding", b"identity")

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
# Whatever may carry a credential; compared after `_` became `-`, because some servers behind take both for one.
CREDENTIALS = frozenset(
    {b"authorization", b"proxy-authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"x-upstream-authorization"}
)
_TO_UPSTREAM_DROPPED = (
    _HOP_BY_HOP
    | CREDENTIALS
    | {
        b"host",
        b"content-length",
        b"expect",
        b"accept-encoding",
        b"cookie",
        b"cookie2",
        b"origin",
        b"referer",
        b"forwarded",
        b"x-real-ip",
        # What turns a GET into a look at a cloud's metadata.
        b"metadata",
        b"metadata-flavor",
        b"x-aws-ec2-metadata-token",
        b"x-google-metadata-request",
    }
)
_TO_UPSTREAM_DROPPED_PREFIXES = (b"sec-", b"x-forwarded-", b"x-upstream", b"x-forward-sse-", b"proxy-")
_TO_CLIENT_DROPPED = _HOP_BY_HOP | {
    b"proxy-authorization",
    b"content-length",
    b"set-cookie",
    b"set-cookie2",
    b"server",
    b"alt-svc",
    b"cache-control",
}
_TO_CLIENT_DROPPED_PREFIXES = (b"access-control-", b"x-accel-", b"x-forward-sse-")
_RATE_LIMITS = {b"ratelimit": b"x-upstream-ratelimit", b"ratelimit-policy": b"x-upstream-ratelimit-policy"}
_X_RATE_LIMIT = b"x-ratelimit-"


def single(fields: Iterable[Field], name: bytes) -> bytes | None:
    """The value of the first field of that lower-case name, None where there is none."""
    length = len(name)
    for key, value in fields:
        if len(key) == length and key.lower() == name:
            return value
    return None


def to_upstream(fields: Sequence[Field], added: Sequence[Field]) -> list[Field]:
    """A client's end-to-end fields as the upstream gets them, with `added` in place of any of the same names.

    What is ours comes after the removal, so that no `Connection` field of a client can remove it. Via is appended to
    those that are there (RFC 9110 §7.6.3).
    """
    dropped = _TO_UPSTREAM_DROPPED | _named_by_connection(fields)
    if added:
        dropped |= {_folded(name) for name, _ in added}
    kept = [
        (name, value)
        for name, value in fields
        if (folded := _folded(name)) not in dropped and not folded.startswith(_TO_UPSTREAM_DROPPED_PREFIXES)
    ]
    kept.append(IDENTITY)
    kept.append(VIA)
    kept += added
    return kept


def to_client(fields: Sequence[Field]) -> list[Field]:
    """An upstream's end-to-end fields as the client gets them; its rate limits under a name that is not ours.

    Content-Length is left out: who frames the body writes it.
    """
    named = _named_by_connection(fields)
    dropped = _TO_CLIENT_DROPPED | named if named else _TO_CLIENT_DROPPED
    kept: list[Field] = []
    for name, value in fields:
        lowered = name.lower()
        if lowered in dropped or lowered.startswith(_TO_CLIENT_DROPPED_PREFIXES):
            continue
        if lowered.startswith(_X_RATE_LIMIT):
            kept.append((b"x-upstream-ratelimit-" + lowered[len(_X_RATE_LIMIT) :], value))
        else:
            kept.append((_RATE_LIMITS.get(lowered, name), value))
    return kept


def is_loop(fields: Iterable[Field]) -> bool:
    """Whether the request has been through a proxy of this name already (RFC 9110 §7.6.3)."""
    return any(
        PSEUDONYM in value.lower() and any(PSEUDONYM in hop.lower().split()[1:2] for hop in value.split(b","))
        for name, value in fields
        if name.lower() == b"via"
    )


def _folded(name: bytes) -> bytes:
    return name.lower().replace(b"_", b"-")


def _named_by_connection(fields: Iterable[Field]) -> frozenset[bytes]:
    named: set[bytes] = set()
    for name, value in fields:
        if len(name) == 10 and name.lower() == b"connection":  # noqa: PLR2004 - the length of the name
            named.update(option.strip().lower() for option in value.split(b","))
    return frozenset(named)
