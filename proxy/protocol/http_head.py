"""HTTP/1.1 message heads: serialisation, and the checks of a request's head that the parser does not make.

Pure. What the parser (llhttp, strict) already refuses is not checked again. Fields to serialise must come from a parser
or from validated configuration: CR, LF and NUL are not looked for.
"""

from __future__ import annotations

import re
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

from proxy.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.errors import Field
    from proxy.model import FieldIndex

# The upstream's reason phrase is not forwarded: it may hold anything, and clients ignore it.
_STATUS_LINES = {
    status: b"HTTP/1.1 %d %b" % (status, phrase)
    for status in range(100, 600)
    for phrase in [HTTPStatus(status).phrase.encode() if status in set(HTTPStatus) else b""]
}

# RFC 9110 §7.2 with RFC 3986 §3.2.2: a name, an IPv4 or a bracketed IPv6 address, and an optional port.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_MAX_PORT = 65535
_MAX_LENGTH_DIGITS = 15
# Fields that may occur once in a request, and the message if they occur more often.
_ONCE = {
    b"host": "Exactly one Host field is required.",
    b"content-length": "The Content-Length field is malformed.",
    # RFC 9110 §5.3 allows no second one, and vendors differ in which they read.
    b"content-type": "There is more than one Content-Type field.",
    b"transfer-encoding": "The only transfer coding understood here is chunked.",
}
# Fields that may not occur twice in a response, and those that may with equal values.
_NEVER_TWICE = frozenset({b"content-length", b"content-encoding", b"transfer-encoding"})
_ONE_VALUE = frozenset({b"content-type", b"location", b"retry-after"})
# Without user information (RFC 9110 §4.2.4): what follows the authority is the path, the query, or nothing.
_ABSOLUTE = re.compile(rb"(?i:https?)://[^/?#\s@]+(?=[/?]|\Z)")
# Each is checked several times, and an empty one costs its sender a byte: many would block the event loop.
MAX_QUERY_MEMBERS = 1024
# Integers, so that one call finds them.
_FRAGMENT = ord("#")
_QUERY = ord("?")

Framing = Literal["none", "length", "chunked"]


def render_request(
    method: str, target: bytes, host: bytes, fields: Iterable[Field], content_length: int | None
) -> bytes:
    """Serialise a request's head: Host first (RFC 9110 §7.2), Content-Length last, if there is a body."""
    line = b"%b %b HTTP/1.1\r\nHost: %b" % (method.encode(), target, host)
    end = b"\r\n" if content_length is None else b"Content-Length: %d\r\n\r\n" % content_length
    return b"\r\n".join([line, *map(b": ".join, fields), end])


def render_response(status: int, fields: Iterable[Field], end: bytes = b"\r\n") -> bytes:
    """Serialise a response's head; `end` follows the fields: constant lines and the blank line."""
    return b"\r\n".join([_STATUS_LINES[status], *map(b": ".join, fields), end])


def check_request(version: tuple[int, int], fields: FieldIndex) -> tuple[Framing, int | None]:
    """Check a request's framing and Host by RFC 9112, and return how its body is framed and its length.

    Against request smuggling anything ambiguous is refused: any transfer coding but one `chunked` (§6.1), a length
    beside it (§6.3), a length that is not a plain number, a missing, repeated or malformed Host (§3.2); also a second
    Content-Type.

    Raises:
        InvalidRequestError: the connection must be closed after the answer.
    """
    if version not in {(1, 1), (1, 0)}:
        raise InvalidRequestError("Only HTTP/1.0 and HTTP/1.1 are spoken here.")
    if fields.repeated:
        for name, message in _ONCE.items():
            if name in fields.repeated:
                raise InvalidRequestError(message)
    host = fields.get(b"host")
    if host is None:
        if version == (1, 1):
            raise InvalidRequestError("Exactly one Host field is required.")
    elif not _is_host(host):
        raise InvalidRequestError("The Host field is malformed.")
    length = fields.get(b"content-length")
    if length is not None and not (length.isdigit() and len(length) <= _MAX_LENGTH_DIGITS):
        raise InvalidRequestError("The Content-Length field is malformed.")
    coding = fields.get(b"transfer-encoding")
    if coding is not None:
        if coding.lower() != b"chunked" or version == (1, 0):
            raise InvalidRequestError("The only transfer coding understood here is chunked.")
        if length is not None:
            raise InvalidRequestError("Content-Length and Transfer-Encoding exclude each other.")
        return "chunked", None
    size = int(length or 0)
    return ("length", size) if size else ("none", None)


def asks_for_websocket(fields: FieldIndex) -> bool:
    """Whether a request is a WebSocket handshake (RFC 6455 §4.1), or the rest of one that a proxy has stripped.

    Other upgrades are ignored and the request is served (RFC 9110 §7.8). A handshake is useless as a plain GET, but
    would be sent with the vendor's key.
    """
    if b"upgrade" in fields and b"websocket" in _options(fields.every(b"upgrade")):
        return True
    return b"sec-websocket-key" in fields and b"upgrade" in _options(fields.every(b"connection"))


def _options(values: Iterable[bytes]) -> set[bytes]:
    """Parse a list-valued field: its members in lower case, without versions (`websocket/13`)."""
    return {option.partition(b"/")[0].strip(b" \t") for value in values for option in value.lower().split(b",")}


def join_identical(fields: list[Field], index: FieldIndex) -> tuple[list[Field], FieldIndex] | None:
    """Remove identical repetitions of a response's fields; None if a repetition is ambiguous.

    Misconfigured servers send `Content-Type`, `Location` or `Retry-After` twice with one value: the first is kept. Two
    different values of these, or any repetition of a length or a coding, are ambiguous (RFC 9110 §5.3, RFC 9112 §6.3),
    and the response must be refused.
    """
    repeated = index.repeated
    if not _NEVER_TWICE.isdisjoint(repeated):
        return None
    joined = [name for name in _ONE_VALUE if name in repeated]
    if not joined:
        return fields, index
    # The parser keeps white space after a value.
    if any(len({value.strip(b" \t") for value in repeated[name]}) > 1 for name in joined):
        return None
    seen: set[bytes] = set()
    kept: list[Field] = []
    for field in fields:
        name = field[0].lower()
        if name in _ONE_VALUE:
            if name in seen:
                continue
            seen.add(name)
        kept.append(field)
    return kept, type(index)(kept)


@lru_cache(maxsize=64)
def _is_host(value: bytes) -> bool:
    # Nearly every request is for one of a few hosts.
    match = _HOST.fullmatch(value)
    return match is not None and int(match[1] or 0) <= _MAX_PORT


def origin_form(target: bytes) -> tuple[bytes, bytes | None]:
    """Split a request target into path and query, as it came; the absolute form is accepted (RFC 9112 §3.2.2).

    Raises:
        InvalidRequestError: any other form (`*`, an authority), a fragment, or more members of a query than any client
            sends.
    """
    if target[:1] != b"/":
        match = _ABSOLUTE.match(target)
        if match is None:
            raise InvalidRequestError("The request target is malformed.")
        target = target[match.end() :]
        if not target.startswith(b"/"):
            target = b"/" + target
    if _FRAGMENT in target:
        raise InvalidRequestError("The request target is malformed.")
    if _QUERY not in target:
        return target, None
    path, _, query = target.partition(b"?")
    if query.count(b"&") >= MAX_QUERY_MEMBERS:
        raise InvalidRequestError(f"The query has more than {MAX_QUERY_MEMBERS} members.")
    return path, query
