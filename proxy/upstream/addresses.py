"""From names to addresses: looked up once, checked where a client chose the name, and then dialled as they are."""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any

from proxy.errors import TargetNotAllowedError, UpstreamUnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TTL_S = 30.0
# A resolver that fails does not take known upstreams away.
STALE_S = 300.0
MAX_NAMES = 1000

_IpAddress = IPv4Address | IPv6Address
_IpNetwork = IPv4Network | IPv6Network
# RFC 6052 §2.1 and RFC 8215: addresses that a translator turns into IPv4 ones, private ones included.
_TRANSLATED = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a name, as `getaddrinfo` gives it."""

    info: tuple[Any, ...]

    @property
    def ip(self) -> _IpAddress:
        """The address itself; a scope is not part of it."""
        return ip_address(str(self.info[4][0]).partition("%")[0])

    @property
    def port(self) -> int:
        """The port to dial."""
        return int(self.info[4][1])


class Resolver:
    """Looks names up with the system's resolver, in its thread, and remembers the answers for a short while.

    Concurrent look-ups of one name are one look-up; a request that is cancelled while it waits does not cancel it for
    the others. At most `MAX_NAMES` are remembered, the least recently used going first.
    """

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, int], tuple[float, tuple[Address, ...]]] = OrderedDict()
        self._looking: dict[tuple[str, int], asyncio.Task[tuple[Address, ...]]] = {}

    async def resolve(self, host: str, port: int) -> tuple[Address, ...]:
        """The addresses of a host, in the system's order of preference.

        Raises:
            UpstreamUnreachableError: there are none, or nobody knows.
        """
        key = (host, port)
        now_s = asyncio.get_running_loop().time()
        known = self._found.get(key)
        if known is not None and now_s - known[0] < TTL_S:
            self._found.move_to_end(key)
            return known[1]
        task = self._looking.get(key)
        if task is None:
            task = asyncio.create_task(self._look_up(host, port))
            self._looking[key] = task
            task.add_done_callback(lambda done: self._finish(key, done))
        try:
            return await asyncio.shield(task)
        except OSError as exc:
            if known is not None and now_s - known[0] < STALE_S:
                return known[1]
            raise UpstreamUnreachableError from exc

    async def close(self) -> None:
        """Stop waiting for look-ups that are under way."""
        tasks = list(self._looking.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _look_up(self, host: str, port: int) -> tuple[Address, ...]:
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = tuple(Address(tuple(info)) for info in infos)
        self._found[host, port] = (loop.time(), addresses)
        self._found.move_to_end((host, port))
        while len(self._found) > MAX_NAMES:
            self._found.popitem(last=False)
        return addresses

    def _finish(self, key: tuple[str, int], task: asyncio.Task[tuple[Address, ...]]) -> None:
        self._looking.pop(key, None)
        if not task.cancelled():
            # Whoever waits has it too; asked for here so that one nobody waits for is not reported.
            task.exception()


def check_addresses(
    addresses: Iterable[Address], *, allow_private: Sequence[_IpNetwork], own: Iterable[tuple[str, int]]
) -> None:
    """Refuse a client's target unless every one of its addresses may be dialled.

    One bad address among good ones is enough: who controls the name controls the order.

    Raises:
        TargetNotAllowedError: an address that is neither global nor in `allow_private`, or one of our own listeners.
    """
    own = tuple(own)
    for address in addresses:
        ip = _unwrapped(address.ip)
        if not (_is_global(ip) or any(ip in network for network in allow_private)):
            raise TargetNotAllowedError
        if _is_own_listener(ip, address.port, own):
            raise TargetNotAllowedError


def _unwrapped(ip: _IpAddress) -> _IpAddress:
    # An IPv4 address in IPv6 clothes is judged as what it is.
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


def _is_global(ip: _IpAddress) -> bool:
    if not ip.is_global or ip.is_multicast or ip.is_reserved:
        return False
    if isinstance(ip, IPv6Address):
        # 6to4, Teredo and NAT64 lead to an IPv4 address of the sender's choice.
        return ip.sixtofour is None and ip.teredo is None and not any(ip in network for network in _TRANSLATED)
    return True


def _is_own_listener(ip: _IpAddress, port: int, own: Iterable[tuple[str, int]]) -> bool:
    for host, own_port in own:
        if port != own_port:
            continue
        listening = _unwrapped(ip_address(host.partition("%")[0]))
        if listening == ip or (listening.is_unspecified and _is_local(ip)):
            return True
    return False


def _is_local(ip: _IpAddress) -> bool:
    """Whether the address is this machine's: only then can it be bound."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6  # noqa: PLR2004 - IPv4
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((str(ip), 0))
        except OSError:
            return False
    return True
