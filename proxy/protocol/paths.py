"""Request paths, queries and target URLs: parsing, and matching against the allowed ones.

Pure. A path is decoded once, for matching. A path that another server could read as a different one (dot segments,
encoded backslashes, empty segments, double encoding) has no canonical form and matches nothing. An encoded slash is
matched as a slash. The path is sent as it came, never decoded or normalised.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from proxy.errors import InvalidRequestError, TargetNotAllowedError
from proxy.model import Origin

if TYPE_CHECKING:
    from collections.abc import Sequence

# RFC 3986 §3.3 with valid percent-encodings; without `;`, at which some servers truncate a segment.
_PATH: Final = re.compile(rb"(?:/(?:[A-Za-z0-9._~!$&'()*+,=:@-]|%[0-9A-Fa-f]{2})*)+")
# May not be percent-encoded: controls, non-ASCII, a backslash, `%` (double encoding), and delimiters.
_HIDDEN: Final = re.compile(rb"[\x00-\x1f\x7f-\xff\\%?#;]")
# Dot segments, also with spaces, which some file systems drop at the end.
_DOTS: Final = re.compile(rb"[. ]+")
# Visible ASCII but `#`. Wider than RFC 3986 §3.4, because browsers leave `|`, `"` and the like as they are.
_QUERY: Final = re.compile(rb'[!"$-~]*')

# First segments of the proxy's own paths; no upstream has such a name.
_OWN: Final = frozenset({b"forward-sse", b"v1", b"healthz", b"readyz", b"playground"})

_SCHEME: Final = re.compile(r"(https?)://", re.IGNORECASE | re.ASCII)
# Controls, spaces, and all line and paragraph separators.
_NO_URL: Final = re.compile(
    "[\x00-\x20\x7f-\xa0\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ud800-\udfff]"
)
_ENCODED_CONTROL: Final = re.compile(r"%(?:[01][0-9A-Fa-f]|7[Ff])")
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MAX_PORT: Final = 65535
# RFC 1035 §2.3.4, as text without the last dot.
_MAX_HOST: Final = 253
# Servers refuse request lines beyond 8 KiB.
MAX_TARGET_URL: Final = 8000


def split_target(raw: bytes) -> tuple[bytes, bytes | None]:
    """Split a request target in origin form into path and query, as they came.

    Raises:
        InvalidRequestError: another form, a fragment, or a byte that would end the request line (RFC 9112 §3.2).
    """
    path, mark, query = raw.partition(b"?")
    if not path.startswith(b"/") or not (is_query(path) and is_query(query)):
        raise InvalidRequestError("The request target is malformed.")
    return path, query if mark else None


def is_query(query: bytes) -> bool:
    """Whether a query is valid in a request line: visible ASCII, no fragment."""
    return _QUERY.fullmatch(query) is not None


def query_members(query: bytes | None) -> list[tuple[bytes, bytes]]:
    """Decode a query's names and values: `%75pstream` is `upstream`, as it is to the vendor."""
    if not query:
        return []
    pairs = (member.partition(b"=") for member in query.split(b"&"))
    if b"%" not in query:
        return [(name, value) for name, _, value in pairs]
    return [(unquote_to_bytes(name), unquote_to_bytes(value)) for name, _, value in pairs]


def without_member(query: bytes | None, name: bytes, value: bytes | None = None) -> bytes | None:
    """Remove the members of that name, or only those with that value, from a query.

    The other bytes stay, in order. None if nothing is left.
    """
    if not query:
        return None
    kept = (member for member in query.split(b"&") if not _is_member(member, name, value))
    return b"&".join(kept) or None


def _is_member(member: bytes, name: bytes, value: bytes | None) -> bool:
    own_name, _, own_value = member.partition(b"=")
    if b"%" not in member:
        return own_name == name and (value is None or own_value == value)
    return unquote_to_bytes(own_name) == name and (value is None or unquote_to_bytes(own_value) == value)


def merge_queries(own: bytes, own_names: frozenset[bytes], query: bytes | None) -> bytes:
    """Join the operator's query and the client's members of other names, as they came.

    `own_names` are those of `own`, as `member_name` decodes them. Time is linear in the client's query.
    """
    if not query:
        return own
    return b"&".join((own, *(member for member in query.split(b"&") if member_name(member) not in own_names)))


def member_name(member: bytes) -> bytes:
    """Decode the name of a query member; a plus is a space (WHATWG URL §5.1)."""
    name = member.partition(b"=")[0]
    return unquote_to_bytes(name.replace(b"+", b" ")) if b"%" in name or b"+" in name else name


def with_query(path: bytes, query: bytes | None) -> bytes:
    """Join path and query to one request target."""
    return path if query is None else path + b"?" + query


def is_allowed(path: bytes, patterns: Sequence[str]) -> bool:
    """Whether a raw path matches one of the globs, in which `*` matches any characters, slashes too."""
    canonical = canonical_path(path)
    return canonical is not None and any(matches(canonical, pattern) for pattern in patterns)


def canonical_path(path: bytes) -> str | None:
    """Decode a path for matching; None if another server could read it as a different path.

    SDKs encode the slash of a model's name (`org%2Fname`). Some servers decode it before they split segments, some do
    not: it is decoded here, so that `allow_paths` holds for both. Case is kept: `/V1` is not `/v1`. A slash at the end
    is part of the path.
    """
    if _PATH.fullmatch(path) is None or b"//" in path:
        return None
    if b"%" not in path and b"/." not in path:
        return path.decode("ascii")
    for segment in path.split(b"/"):
        if b"%" in segment and _HIDDEN.search(unquote_to_bytes(segment)):
            return None
    # Only now, because a slash and dots may have been encoded together.
    decoded = unquote_to_bytes(path)
    if b"//" in decoded or any(map(_DOTS.fullmatch, decoded.split(b"/"))):
        return None
    return decoded.decode("ascii")


def without_slash(path: bytes) -> bytes:
    """Remove one trailing slash; a path with two is a different path, and `/` is unchanged."""
    return path[:-1] if path[-1:] == b"/" and path[-2:] not in {b"/", b"//"} else path


def own_path(path: bytes) -> bytes:
    """Remove one trailing slash from a path of the proxy's own; a vendor's path stays as it came."""
    return without_slash(path) if path[-1:] == b"/" and path.split(b"/", 2)[1] in _OWN else path


def below(base: str, path: str) -> str:
    """Return the path without the leading segments with which `base` ends, as SDKs' base URLs do.

    Below `/compatible-mode/v1`, `/v1/models` is `/models`; below `/compatible-mode` it stays as it is.
    """
    end = len(path)
    while (end := path.rfind("/", 0, end)) > 0:
        if base.endswith(path[:end]):
            return path[end:]
    return path


def matches(text: str, pattern: str) -> bool:
    """Whether `text` matches the glob, in which `*` is any characters; in linear time, unlike a regex of many `.*`."""
    if "*" not in pattern:
        return text == pattern
    head, *middle, tail = pattern.split("*")
    if not (text.startswith(head) and text.endswith(tail) and len(text) >= len(head) + len(tail)):
        return False
    start, end = len(head), len(text) - len(tail)
    # The leftmost match of each part leaves the most text for the next ones.
    for part in middle:
        found = text.find(part, start, end)
        if found < 0:
            return False
        start = found + len(part)
    return True


@dataclass(frozen=True, slots=True)
class Target:
    """An envelope's parsed target URL; `path` and `query` are the bytes that will be sent."""

    origin: Origin
    path: bytes
    query: bytes | None


def parse_target(url: str) -> Target:
    """Parse a target URL strictly: nothing is repaired, because parsers repair differently.

    Scheme and host are lower-cased, one dot after the host is dropped (for SNI and `Host` too), an empty path becomes
    `/`, a fragment is dropped; the rest is unchanged. An IP address must be in its canonical notation: the others
    (WHATWG URL §3.5) are refused, not converted. So are names beyond ASCII.

    Raises:
        InvalidRequestError: characters that no URL has, or more than `MAX_TARGET_URL`.
        TargetNotAllowedError: a scheme, user information, host, port or path that no entry can allow.
    """
    if len(url) > MAX_TARGET_URL:
        raise InvalidRequestError("targetUrl is too long.")
    if _NO_URL.search(url):
        raise InvalidRequestError("targetUrl holds characters that no URL has.")
    scheme_match = _SCHEME.match(url)
    if scheme_match is None:
        raise TargetNotAllowedError
    scheme = scheme_match[1].lower()
    rest = url[scheme_match.end() :].partition("#")[0]
    hierarchy, mark, query = rest.partition("?")
    authority, slash, path = hierarchy.partition("/")
    if "\\" in rest or _ENCODED_CONTROL.search(hierarchy):
        raise InvalidRequestError("targetUrl holds characters that no URL has.")
    host, port = _split_authority(authority, scheme)
    if not rest.isascii():
        raise InvalidRequestError("targetUrl holds characters that no URL has.")
    raw_path = (slash + path).encode() or b"/"
    if canonical_path(raw_path) is None:
        raise TargetNotAllowedError
    return Target(Origin(scheme, host, port), raw_path, query.encode() if mark else None)


@dataclass(frozen=True, slots=True)
class TargetPattern:
    """One entry of `envelope.targets`: scheme, host and port exact, the path a glob.

    `*.example.com` matches exactly one label more, as in certificates (RFC 9525 §6.3): neither
    `example.com` nor `a.b.example.com`. A pattern without a path has `/`.
    """

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> TargetPattern:
        """Parse a pattern of the configuration.

        Raises:
            ValueError: no target could ever match it, or every host would.
        """
        match = re.fullmatch(r"(https?://)(\*\.)?([^?#]+)", text)
        if match is None:
            raise ValueError("must be http(s)://host[:port]/path, without a query or a fragment")
        wildcard = match[2] or ""
        try:
            target = parse_target(match[1] + match[3])
        except (InvalidRequestError, TargetNotAllowedError) as exc:
            raise ValueError("must be an exact host with a plain path, in which `*` matches anything") from exc
        origin = target.origin
        if wildcard and ("." not in origin.host or _is_literal(origin.host)):
            raise ValueError("`*.` stands before a domain, not before a top-level domain or an address")
        path = canonical_path(target.path)
        assert path is not None
        return cls(origin.scheme, wildcard + origin.host, origin.port, path)

    def matches(self, target: Target) -> bool:
        """Whether the target matches the pattern."""
        origin = target.origin
        if (origin.scheme, origin.port) != (self.scheme, self.port):
            return False
        host = origin.host
        if self.host.startswith("*."):
            label, _, domain = host.partition(".")
            if not label or domain != self.host[2:]:
                return False
        elif host != self.host:
            return False
        return is_allowed(target.path, (self.path,))


def _split_authority(authority: str, scheme: str) -> tuple[str, int]:
    # User information disguises hosts (`https://allowed@evil`); no target needs it.
    if "@" in authority or "%" in authority or not authority.isascii():
        raise TargetNotAllowedError
    if authority.startswith("["):
        literal, bracket, rest = authority[1:].partition("]")
        host = _ipv6(literal) if bracket else ""
    else:
        name, colon, port = authority.partition(":")
        rest = colon + port
        host = _name_or_ipv4(name.lower())
    if not host or (rest and not rest.startswith(":")):
        raise TargetNotAllowedError
    if not rest:
        return host, _DEFAULT_PORTS[scheme]
    if _PORT.fullmatch(rest, 1) is None or int(rest[1:]) > _MAX_PORT:
        raise TargetNotAllowedError
    return host, int(rest[1:])


def _ipv6(literal: str) -> str:
    try:
        return str(IPv6Address(literal))
    except AddressValueError as exc:
        raise TargetNotAllowedError from exc


def _name_or_ipv4(host: str) -> str:
    host = host.removesuffix(".")
    labels = host.split(".")
    if len(host) > _MAX_HOST or not all(_LABEL.fullmatch(label) for label in labels):
        raise TargetNotAllowedError
    # WHATWG URL §3.5: a host whose last label is a number is an IPv4 address.
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(host))
        except AddressValueError as exc:
            raise TargetNotAllowedError from exc
    return host


def _is_literal(host: str) -> bool:
    return ":" in host or _NUMBER.fullmatch(host.rpartition(".")[2]) is not None
