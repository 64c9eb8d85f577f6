"""Paths and target URLs: what may be asked for, judged on the very bytes that are sent.

Pure. A path is decoded once to be matched; whatever could be read differently by another server (dot segments, encoded
separators, doubled slashes) matches nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from proxy.errors import InvalidRequestError, TargetNotAllowedError
from proxy.exchange import Origin

if TYPE_CHECKING:
    from collections.abc import Sequence

# A path in the characters of RFC 3986 §3.3, percent-encodings well formed.
_PATH = re.compile(rb"/(?:[A-Za-z0-9._~!$&'()*+,=:@/-]|%[0-9A-Fa-f]{2})*")
_QUERY = re.compile(rb"(?:[\x21\x22\x24-\x7e]|%[0-9A-Fa-f]{2})*")
# What an encoding may not hide, after one decoding: separators, a second encoding, controls, what servers cut at.
_HIDDEN = re.compile(rb"[\x00-\x20\x7f-\xff/\\%?#;]")
_DOT_SEGMENTS = frozenset({b".", b".."})

_URL = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?(?:#.*)?", re.ASCII)
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_MAX_URL = 8192
_MAX_PORT = 65535
_MAX_HOST = 253
_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_allowed(path: bytes, patterns: Sequence[str]) -> bool:
    """Whether a raw path matches one of the globs, in which `*` stands for any characters, slashes included."""
    decoded = canonical(path)
    return decoded is not None and any(_glob(pattern).fullmatch(decoded) for pattern in patterns)


def canonical(path: bytes) -> bytes | None:
    """The path with its harmless percent-encodings decoded, or None where another server might read another path."""
    if _PATH.fullmatch(path) is None or b"//" in path:
        return None
    segments: list[bytes] = []
    for segment in path.split(b"/"):
        decoded = segment
        if b"%" in segment:
            decoded = unquote_to_bytes(segment)
            if _HIDDEN.search(decoded):
                return None
        if decoded in _DOT_SEGMENTS:
            return None
        segments.append(decoded)
    return b"/".join(segments)


@lru_cache(maxsize=1024)  # patterns come from configuration, not from clients
def _glob(pattern: str) -> re.Pattern[bytes]:
    return re.compile(b".*".join(re.escape(part.encode()) for part in pattern.split("*")))


def is_query(query: bytes) -> bool:
    """Whether a query can be written into a request line."""
    return _QUERY.fullmatch(query) is not None


@dataclass(frozen=True, slots=True)
class Target:
    """An envelope's target URL, parsed once; `path` and `query` are the bytes that will be sent."""

    origin: Origin
    path: bytes
    query: bytes | None


def parse_target(url: str) -> Target:
    """Parse a target strictly: nothing is repaired, because what repairs it elsewhere may repair it differently.

    Raises:
        InvalidRequestError: not a URL at all, or one with characters that no URL has.
        TargetNotAllowedError: a scheme, user information or a host notation that is never allowed.
    """
    if len(url) > _MAX_URL or not url.isascii() or any(character <= " " or character in '\\\x7f"<>^`{|}' for character in url):
        raise InvalidRequestError("targetUrl is malformed.")
    match = _URL.fullmatch(url)
    if match is None:
        raise TargetNotAllowedError
    scheme = match["scheme"]
    host, port = _split_authority(match["authority"], scheme)
    path = (match["path"] or "/").encode()
    query = None if match["query"] is None else match["query"].encode()
    if canonical(path) is None:
        raise TargetNotAllowedError
    return Target(Origin(scheme, host, port), path, query)


def _split_authority(authority: str, scheme: str) -> tuple[str, int]:
    if "@" in authority or "%" in authority:
        raise TargetNotAllowedError
    if authority.startswith("["):
        literal, bracket, rest = authority[1:].partition("]")
        host = _ipv6(literal) if bracket else ""
    else:
        host, colon, port = authority.partition(":")
        rest = colon + port
        host = _name_or_ipv4(host.lower())
    if not rest:
        return host, _DEFAULT_PORTS[scheme]
    if not rest.startswith(":") or _PORT.fullmatch(rest[1:]) is None or int(rest[1:]) > _MAX_PORT:
        raise TargetNotAllowedError
    return host, int(rest[1:])


def _ipv6(literal: str) -> str:
    try:
        return str(IPv6Address(literal))
    except ValueError as exc:
        raise TargetNotAllowedError from exc


def _name_or_ipv4(host: str) -> str:
    # One trailing dot is the same name (RFC 1034 §3.1), for the comparison and for SNI.
    host = host.removesuffix(".")
    labels = host.split(".")
    if not host or len(host) > _MAX_HOST or not all(_LABEL.fullmatch(label) for label in labels):
        raise TargetNotAllowedError
    # WHATWG URL §3.5: a host whose last label is a number is an IPv4 address, in whatever notation; only the plain
    # dotted one is taken here.
    if labels[-1].isdigit() or re.fullmatch(r"0x[0-9a-f]*", labels[-1]):
        try:
            return str(ip_address(host))
        except ValueError as exc:
            raise TargetNotAllowedError from exc
    return host


@dataclass(frozen=True, slots=True)
class TargetPattern:
    """One entry of `envelope.targets`: scheme and port exact, the path a glob.

    The host is exact, or `*.example.com`, which stands for one or more labels before it and not for `example.com`.
    """

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> TargetPattern:
        """Read a pattern as the configuration writes it.

        Raises:
            ValueError: not a pattern.
        """
        match = re.fullmatch(r"(https?)://([^/?#]+)(/[^?#]*)?", text, re.ASCII)
        if match is None:
            raise ValueError("not a URL pattern")
        wildcard = "*." if match[2].startswith("*.") else ""
        try:
            host, port = _split_authority(match[2].removeprefix(wildcard), match[1])
        except TargetNotAllowedError as exc:
            raise ValueError("not a host") from exc
        return cls(match[1], wildcard + host, port, match[3] or "/")

    def matches(self, target: Target) -> bool:
        """Whether the target is one of these."""
        origin = target.origin
        if (origin.scheme, origin.port) != (self.scheme, self.port) or not is_allowed(target.path, (self.path,)):
            return False
        if self.host.startswith("*."):
            return origin.host.endswith(self.host[1:]) and len(origin.host) > len(self.host) - 1
        return origin.host == self.host
