"""Connects through an egress proxy: the proxy's own connection, then the dialogue that makes it a tunnel."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, Final

import aiohappyeyeballs

from proxy.errors import OverloadedError, UpstreamUnreachableError
from proxy.protocol.tunnels import dialogue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.model import EgressProxy
    from proxy.protocol.tunnels import Dialogue
    from proxy.upstream.addresses import Address

# RFC 8305 §8: the recommended delay between attempts over several addresses.
ATTEMPT_DELAY_S: Final = 0.25
# What is ours to repair, not the upstream's: no descriptor (the process's, the system's), memory or local port is left.
NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


async def open_tunnel(proxy: EgressProxy, host: str, port: int, addresses: Sequence[Address]) -> socket.socket:
    """Have the proxy at one of `addresses` connect to a host, and return the socket, on which that host speaks next.

    Does not limit its own time: the caller does. Cancelling closes whatever was begun, at once.

    Raises:
        EgressRefusedError: the proxy said no.
        UpstreamUnreachableError: the proxy cannot be reached, closed the connection, or speaks something else.
        OverloadedError: this machine lacks what a connection takes.
    """
    loop = asyncio.get_running_loop()
    try:
        sock = await aiohappyeyeballs.start_connection(
            [address.info for address in addresses], happy_eyeballs_delay=ATTEMPT_DELAY_S, loop=loop
        )
    except OSError as exc:
        if exc.errno in NO_ROOM:
            raise OverloadedError from exc
        raise unreachable() from exc
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await _converse(loop, sock, dialogue(proxy, host, port))
    except BaseException as exc:
        sock.close()
        if isinstance(exc, OSError):
            raise UpstreamUnreachableError("The egress proxy closed the connection.", reason="egress_closed") from exc
        raise
    return sock


def unreachable() -> UpstreamUnreachableError:
    """The error where there is no connection to the proxy."""
    return UpstreamUnreachableError("The egress proxy could not be reached.", reason="egress_unreachable")


async def _converse(loop: asyncio.AbstractEventLoop, sock: socket.socket, steps: Dialogue) -> None:
    try:
        step = next(steps)
        while True:
            if step.send:
                await loop.sock_sendall(sock, step.send)
            step = steps.send(await loop.sock_recv(sock, step.at_most))
    except StopIteration:
        return
