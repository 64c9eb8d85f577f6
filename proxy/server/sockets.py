"""Socket options and addresses: creates listening sockets, and sets options of client sockets.

What is asked about a client's does nothing where the system has no such thing.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# A client that vanished without a word is noticed within a minute (Linux; elsewhere the system's keep-alive applies).
_VANISHED_S = 60
# What the system may hold unsent for a client beyond what is on its way (Linux, TCP_NOTSENT_LOWAT). Otherwise it takes
# megabytes for one that hardly reads, and shows progress only when a third of them has left: a slow but lively client
# would look stuck to the write clock.
_NOTSENT_BYTES = 64 * 1024
# Connections of a burst, as after a network failure, wait here. The system has a cap of its own.
BACKLOG = 4096
_EVERY = "::"


def format_address(address: tuple[str, int] | None) -> str | None:
    """`HOST:PORT`, as it stands in a configuration."""
    if address is None:
        return None
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def format_addresses(addresses: Iterable[tuple[str, int]]) -> str | None:
    """Every `HOST:PORT`, None where there is none."""
    return ", ".join(shown for address in addresses if (shown := format_address(address)) is not None) or None


def listening(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of the host, to be shared by processes; the caller closes them.

    `::` serves both families, every other address its own alone: said to the system each time, whose own default is a
    setting of the machine.

    Raises:
        OSError: the host has no address, or one of them cannot be listened on; then none is.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                sock = socket.socket(family, kind, protocol)
                sockets.append(sock)
                sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != _EVERY)
                sock.bind(address)
            except OSError as exc:
                words = "this machine has no IPv6" if exc.errno == errno.EAFNOSUPPORT else exc.strerror
                raise OSError(exc.errno, f"cannot listen on {format_address((host, port))}: {words}") from exc
            sock.listen(BACKLOG)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def enable_keepalive(sock: socket.socket | None) -> None:
    """Enable TCP keep-alive, which detects a peer that vanished without closing."""
    if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _VANISHED_S // 2),
        ("TCP_KEEPINTVL", _VANISHED_S // 6),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", _VANISHED_S * 1000),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def limit_unsent(sock: socket.socket | None) -> None:
    """Limit the unsent data that the kernel buffers (TCP_NOTSENT_LOWAT)."""
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if sock is not None and option is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
        sock.setsockopt(socket.IPPROTO_TCP, option, _NOTSENT_BYTES)
