"""The dialogue with an egress proxy until it has connected: HTTP CONNECT (RFC 9110 §9.3.6) or SOCKS5 (RFC 1928, 1929).

Pure: a dialogue is a generator that yields what to send and how much may be read, and is sent what was read, empty at
the proxy's end. It never asks for a byte that could be the destination's. The host's name goes to the proxy, which
resolves it; credentials go where the proxy is, and into no error.

Departures: an answer to CONNECT with bare line feeds, and one with anything behind its head, is refused: nothing may be
there before our own first byte. SOCKS5's GSSAPI is not offered.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Generator
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.errors import EgressRefusedError, UpstreamUnreachableError

if TYPE_CHECKING:
    from proxy.model import EgressProxy

# A proxy's answer may be a page of HTML; of that only the head is read.
MAX_HEAD_BYTES: Final = 16 * 1024
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?:[ \r][^\n]*)?\n")
_HEAD_END: Final = b"\r\n\r\n"
# RFC 9110 §15.5.8; and what tinyproxy answers to wrong credentials.
_NEEDS_CREDENTIALS: Final = frozenset({407, 401})
_SOCKS: Final = 5
_PASSWORD_VERSION: Final = 1
_NO_CREDENTIALS, _PASSWORD, _NO_METHOD = 0, 2, 255
_IPV4, _NAME, _IPV6 = 1, 3, 4
_ADDRESS_BYTES: Final = {_IPV4: 4, _IPV6: 16}


class Step(NamedTuple):
    """What to send, and how many bytes may be read then."""

    send: bytes
    at_most: int


Dialogue = Generator[Step, bytes, None]


def dialogue(proxy: EgressProxy, host: str, port: int) -> Dialogue:
    """Return the dialogue that makes `proxy` connect to a host; running to its end without an error is success.

    Raises (while it runs):
        EgressRefusedError: the proxy did not accept the credentials, or did not connect.
        UpstreamUnreachableError: the proxy closed the connection, or what it said is not its protocol.
    """
    return _socks5(proxy, host, port) if proxy.scheme == "socks5" else _http(proxy, host, port)


def _http(proxy: EgressProxy, host: str, port: int) -> Dialogue:
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    request = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: forward-sse\r\n"
    if proxy.user is not None:
        credentials = base64.b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
        request += f"Proxy-Authorization: Basic {credentials}\r\n"
    answer = yield Step(request.encode() + b"\r\n", MAX_HEAD_BYTES)
    if not answer:
        raise _closed()
    while (end := answer.find(_HEAD_END)) < 0:
        if not answer.startswith(b"HTTP/1."[: len(answer)]) or len(answer) >= MAX_HEAD_BYTES:
            raise _invalid()
        more = yield Step(b"", MAX_HEAD_BYTES - len(answer))
        if not more:
            raise _closed()
        answer += more
    line = _STATUS_LINE.match(answer)
    if line is None:
        raise _invalid()
    status = int(line[1])
    if status in _NEEDS_CREDENTIALS:
        raise EgressRefusedError.of_credentials(f"status {status}")
    if not 200 <= status < 300:  # noqa: PLR2004 - RFC 9110 §9.3.6: any 2xx
        raise EgressRefusedError(f"The egress proxy refused the connection to the upstream (status {status}).")
    if len(answer) != end + len(_HEAD_END):
        raise _invalid()


def _socks5(proxy: EgressProxy, host: str, port: int) -> Dialogue:
    methods = bytes([_NO_CREDENTIALS] if proxy.user is None else [_NO_CREDENTIALS, _PASSWORD])
    version, method = yield from _exchange(bytes([_SOCKS, len(methods)]) + methods, 2)
    if version != _SOCKS:
        raise _invalid()
    if method == _NO_METHOD:
        raise EgressRefusedError.of_credentials("SOCKS5")
    if method not in methods:
        raise _invalid()
    if method == _PASSWORD:
        user, password = (proxy.user or "").encode(), (proxy.password or "").encode()
        packed = bytes([_PASSWORD_VERSION, len(user)]) + user + bytes([len(password)]) + password
        _, status = yield from _exchange(packed, 2)
        if status != 0:
            raise EgressRefusedError.of_credentials("SOCKS5")
    version, reply, _, kind = yield from _exchange(
        bytes([_SOCKS, 1, 0]) + _packed_address(host) + port.to_bytes(2, "big"), 4
    )
    if version != _SOCKS:
        raise _invalid()
    if reply != 0:
        # Some close the connection without the rest.
        raise EgressRefusedError(f"The egress proxy refused the connection to the upstream (SOCKS5 reply {reply}).")
    length = _ADDRESS_BYTES.get(kind)
    if kind == _NAME:
        (length,) = yield from _exchange(b"", 1)
    if length is None:
        raise _invalid()
    yield from _exchange(b"", length + 2)


def _packed_address(host: str) -> bytes:
    try:
        address = ip_address(host)
    except ValueError:
        name = host.encode("ascii")
        return bytes([_NAME, len(name)]) + name
    return bytes([_IPV4 if isinstance(address, IPv4Address) else _IPV6]) + address.packed


def _exchange(send: bytes, size: int) -> Generator[Step, bytes, bytes]:
    """Send, and read exactly so many bytes."""
    got = b""
    while len(got) < size:
        more = yield Step(send, size - len(got))
        if not more:
            raise _closed()
        send = b""
        got += more
    return got


def _closed() -> UpstreamUnreachableError:
    return UpstreamUnreachableError("The egress proxy closed the connection.", reason="egress_closed")


def _invalid() -> UpstreamUnreachableError:
    return UpstreamUnreachableError("The egress proxy's answer was invalid.", reason="egress_invalid")
