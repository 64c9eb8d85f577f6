"""Message heads of HTTP/1.1: writing both kinds, and the checks on a client's that the server's parser leaves to us.

Pure. What the parser (llhttp, strict) already refuses is not repeated here. Fields given to the writers must come from
a parser or from configuration that was validated: neither CR, LF nor NUL is looked for again.
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

# A reason phrase of the upstream's is never repeated: it may hold anything, and nobody reads it.
_STATUS_LINES = {
    status: b"HTTP/1.1 %d %b" % (status, phrase)
    for status in range(100, 600)
    for phrase in [HTTPStatus(status).phrase.encode() if status in set(HTTPStatus) else b""]
}

# RFC 9110 §7.2 with RFC 3986 §3.2.2: a name, an IPv4 or a bracketed IPv6 address, and perhaps a port.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_MAX_PORT = 65535
_MAX_LENGTH_DIGITS = 15
# What may stand in a head once, and what is wrong with one in which it stands more often.
_ONCE = {
    b"host": "Exactly one Host field is required.",
    b"content-length": "The Content-Length field is malformed.",
    # RFC 9110 §5.3 allows no second one, and a vendor may read either.
    b"content-type": "There is more than one Content-Type field.",
    b"transfer-encoding": "The only transfer coding understood here is chunked.",
}
# What may not stand twice in a response's head, and what may if it says the same.
_NEVER_TWICE = frozenset({b"content-length", b"content-encoding", b"transfer-encoding"})
_ONE_VALUE = frozenset({b"content-type", b"location", b"retry-after"})
# Without user information (RFC 9110 §4.2.4): what follows the authority is the path, the query, or nothing.
_ABSOLUTE = re.compile(rb"(?i:https?)://[^/?#\s@]+(?=[/?]|\Z)")
# Each is looked at several times, and an empty one costs its sender a byte: a line of them would hold the loop.
MAX_QUERY_MEMBERS = 1024
# As an integer: so it is looked for in one call.
_FRAGMENT = ord("#")

Framing = Literal["none", "length", "chunked"]


def render_request(
    method: str, target: bytes, host: bytes, fields: Iterable[Field], content_length: int | None
) -> bytes:
    """The head of a request: Host first (RFC 9110 §7.2), the length last, where there is a body."""
    line = b"%b %b HTTP/1.1\r\nHost: %b" % (method.encode(), target, host)
    end = b"\r\n" if content_length is None else b"Content-Length: %d\r\n\r\n" % content_length
    return b"\r\n".join([line, *map(b": ".join, fields), end])


def render_response(status: int, fields: Iterable[Field], end: bytes = b"\r\n") -> bytes:
    """The head of a response; `end` is what comes after the fields, lines that are always the same and a blank one."""
    return b"\r\n".join([_STATUS_LINES[status], *map(b": ".join, fields), end])


def check_request(version: tuple[int, int], fields: FieldIndex) -> tuple[Framing, int | None]:
    """Judge a request's framing and Host as RFC 9112 does, and say how its body is framed and how long it is.

    Two servers that disagree about where a request ends are how requests are smuggled, so whatever is unusual is
    refused: any transfer coding but one `chunked` (§6.1), both kinds of length (§6.3), a length that is not a plain
    number, a missing, doubled or malformed Host (§3.2). A second Content-Type is refused here too.

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
    """Whether a request is a WebSocket handshake (RFC 6455 §4.1), or what a proxy on the way has left of one.

    Every other upgrade may be ignored (RFC 9110 §7.8), and then the request is served as it stands. A handshake is of
    no use as a plain GET, but it would go out with the vendor's key.
    """
    if b"upgrade" in fields and b"websocket" in _options(fields.every(b"upgrade")):
        return True
    return b"sec-websocket-key" in fields and b"upgrade" in _options(fields.every(b"connection"))


def _options(values: Iterable[bytes]) -> set[bytes]:
    """The members of a list-valued field, in lower case, without a version (`websocket/13`)."""
    return {option.partition(b"/")[0].strip(b" \t") for value in values for option in value.lower().split(b",")}


def join_identical(fields: list[Field], index: FieldIndex) -> tuple[list[Field], FieldIndex] | None:
    """Judge the repeated fields of a response, and remove a repetition that says nothing new.

    Misconfigured servers send `Content-Type`, `Location` or `Retry-After` twice with one value: the first is kept. Two
    different values of these, and any repetition of a length or a coding, leave the reader to choose (RFC 9110 §5.3,
    RFC 9112 §6.3): the result is None, and the response must be refused.
    """
    repeated = index.repeated
    if not _NEVER_TWICE.isdisjoint(repeated):
        return None
    joined = [name for name in _ONE_VALUE if name in repeated]
    if not joined:
        return fields, index
    # The parser leaves white space behind a value.
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
    path, mark, query = target.partition(b"?")
    if query.count(b"&") >= MAX_QUERY_MEMBERS:
        raise InvalidRequestError(f"The query has more than {MAX_QUERY_MEMBERS} members.")
    return path, query if mark else None
