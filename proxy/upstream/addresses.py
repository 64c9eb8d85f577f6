"""Resolves host names once, checks the addresses where a client chose the name, and returns what is connected to.

Nothing is looked up a second time between the check and the connection, so a name that changes in between (DNS
rebinding) changes nothing. Which targets are checked is the caller's business.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, Final

from proxy.errors import TargetNotAllowedError, UpstreamUnreachableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network

TTL_S: Final = 30.0
# A resolver that fails does not take known upstreams away.
STALE_S: Final = 300.0
MAX_NAMES: Final = 1000
# Each look-up waits in one of the loop's few threads. Where a pattern of targets lets clients choose names, those whose
# servers never answer must not queue without end before everybody else's.
MAX_LOOK_UPS: Final = 64
# More than any vendor has; the attempts over them are bounded by the connect clock only.
MAX_ADDRESSES: Final = 16

# What is not for the public (IANA's special-purpose registries, as of RFC 9637), spelled out because the verdicts of
# `ipaddress` differ between Python's patch releases.
_NOT_GLOBAL_V4: Final = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # also the metadata service of one cloud, 100.100.100.200
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's platform service at a public address, answering from within only
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# RFC 4291 §2.4: everything global is in here, so that the rest (loopback, link-local, unique local, multicast,
# IPv4-compatible, RFC 8215's local NAT64) need not be named.
_GLOBAL_V6: Final = IPv6Network("2000::/3")
_NOT_GLOBAL_V6: Final = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23",  # IETF protocol assignments, Teredo among them
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address of the sender's choice
        "3fff::/20",
    )
)
# RFC 6052 §2.1: on networks with IPv6 only, every IPv4 host looks like this.
_NAT64: Final = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a host. `info` is an entry of `getaddrinfo`: family, type, protocol, name, socket address."""

    info: tuple[Any, ...]

    @property
    def ip(self) -> IpAddress:
        """The IP address, without a scope."""
        return ip_address(str(self.info[4][0]).partition("%")[0])

    @property
    def port(self) -> int:
        """The port to connect to."""
        return int(self.info[4][1])


async def resolve(host: str, port: int) -> tuple[Address, ...]:
    """Ask the system's resolver, in a thread, for the addresses of a host; at most `MAX_ADDRESSES`, in its order.

    Bounded in time by the system's configuration alone: put a clock around it. Cancelling gives up the answer; the
    thread goes on until it has it.

    Raises:
        UpstreamUnreachableError: there are none, or nobody knows.
    """
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:  # UnicodeError: a label that IDNA cannot encode
        raise UpstreamUnreachableError(reason="dns") from exc
    unique = {info[4]: Address(tuple(info)) for info in infos if info[0] in {socket.AF_INET, socket.AF_INET6}}
    if not unique:
        raise UpstreamUnreachableError(reason="dns")
    return tuple(unique.values())[:MAX_ADDRESSES]


class Resolver:
    """A DNS cache: resolves hosts and keeps the addresses for a short time. One for each worker; its creator closes it.

    Concurrent look-ups of one name are one look-up; a request that is cancelled while it waits does not cancel it for
    the others. At most `MAX_NAMES` names are remembered, the least recently used going first, and at most
    `MAX_LOOK_UPS` are looked up at a time. A failure is not remembered.

    Args:
        clock: Gives monotonic seconds.

    Attributes:
        on_found: Called with a host, its port and what was found, each time that it was looked up.
    """

    on_found: Callable[[str, int, tuple[Address, ...]], None] | None = None

    def __init__(
        self,
        *,
        look_up: Callable[[str, int], Awaitable[tuple[Address, ...]]] = resolve,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look_up = look_up
        self._clock = clock
        self._found: OrderedDict[tuple[str, int], tuple[float, tuple[Address, ...]]] = OrderedDict()
        self._tasks: dict[tuple[str, int], asyncio.Task[tuple[Address, ...] | UpstreamUnreachableError]] = {}

    async def resolve(self, host: str, port: int) -> tuple[Address, ...]:
        """Resolve a host; addresses are cached for `TTL_S`, and for `STALE_S` while resolving fails.

        Raises:
            UpstreamUnreachableError: there are none, nobody knows, or too many other names are being looked up.
        """
        key = (host, port)
        known = self._found.get(key)
        if known is not None:
            self._found.move_to_end(key)
            if self._clock() - known[0] < TTL_S:
                return known[1]
        task = self._tasks.get(key)
        if task is None:
            if len(self._tasks) >= MAX_LOOK_UPS:
                return self._stale(key, UpstreamUnreachableError(reason="dns"))
            task = self._begin(key)
        await asyncio.wait([task])  # not a plain await: that would cancel the look-up with the waiter
        if task.cancelled():
            raise UpstreamUnreachableError(reason="dns")
        found = task.result()
        if isinstance(found, UpstreamUnreachableError):
            return self._stale(key, found)
        return found

    def refresh(self, host: str, port: int) -> None:
        """Begin to look up again what was found more than `TTL_S` ago; never waits."""
        key = (host, port)
        known = self._found.get(key)
        is_old = known is not None and self._clock() - known[0] >= TTL_S
        if is_old and key not in self._tasks and len(self._tasks) < MAX_LOOK_UPS:
            self._begin(key)

    async def close(self) -> None:
        """Abandon running look-ups; those who await one get its failure."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _begin(self, key: tuple[str, int]) -> asyncio.Task[tuple[Address, ...] | UpstreamUnreachableError]:
        task = self._tasks[key] = asyncio.get_running_loop().create_task(self._run(key))
        task.add_done_callback(lambda _: self._tasks.pop(key, None))
        return task

    async def _run(self, key: tuple[str, int]) -> tuple[Address, ...] | UpstreamUnreachableError:
        # A failure is a value: with nobody left to wait, an exception would be reported as never retrieved.
        try:
            found = await self._look_up(*key)
        except UpstreamUnreachableError as error:
            return error
        self._found[key] = (self._clock(), found)
        self._found.move_to_end(key)
        while len(self._found) > MAX_NAMES:
            self._found.popitem(last=False)
        if self.on_found is not None:
            self.on_found(*key, found)
        return found

    def _stale(self, key: tuple[str, int], error: UpstreamUnreachableError) -> tuple[Address, ...]:
        known = self._found.get(key)
        if known is None or self._clock() - known[0] >= STALE_S:
            # A new one: several waiters raising one object would share, and grow, its traceback.
            raise UpstreamUnreachableError(reason=error.reason) from error
        return known[1]


def check_addresses(
    addresses: Iterable[Address], *, allow_private: Sequence[IpNetwork] = (), own: Iterable[tuple[str, int]] = ()
) -> None:
    """Refuse a client's target unless all of its addresses are allowed.

    One bad address among good ones is enough: who controls the name controls the order. Addresses that are no
    single host's (unspecified, multicast, broadcast) are refused whatever `allow_private` says, the blocks that are not
    global and may be dialled all the same. `own` are the hosts and ports on which this proxy listens, as bound.

    Raises:
        TargetNotAllowedError: one that may not, or none at all; one message for all, without the address.
    """
    checked = tuple(addresses)
    listeners = tuple(own)
    if not checked:
        raise TargetNotAllowedError
    for address in checked:
        ip = unwrap(address.ip)
        is_listed = any(ip in network or address.ip in network for network in allow_private) and _is_unicast(ip)
        if not (is_global(ip) or is_listed) or is_own_listener(address, address.port, listeners):
            raise TargetNotAllowedError


def unwrap(ip: IpAddress) -> IpAddress:
    """Return the IPv4 address that the kernel or the network makes of an IPv6 one, else `ip`."""
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is not None:
            return ip.ipv4_mapped
        if ip in _NAT64:
            return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip


def is_global(ip: IpAddress) -> bool:
    """Whether an address is a public host's, by IANA's registries; strict where a tunnel hides another address."""
    ip = unwrap(ip)
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in _NOT_GLOBAL_V4)
    return ip in _GLOBAL_V6 and not any(ip in network for network in _NOT_GLOBAL_V6)


def is_own_listener(address: Address, port: int, listeners: Iterable[tuple[str, int]]) -> bool:
    """Check whether a connection to that address and port would reach one of the proxy's own listeners.

    A listener on all addresses (or on a name) is at every address of this machine. Addresses that somebody in front
    translates to ours cannot be seen from here: such a loop is found by its Via field.
    """
    ip = unwrap(address.ip)
    for host, own_port in listeners:
        if port != own_port:
            continue
        try:
            listening = unwrap(ip_address(host.partition("%")[0]))
        except ValueError:
            listening = None
        # Connecting to 0.0.0.0 or :: reaches this machine's loopback.
        if listening == ip or ip.is_unspecified:
            return True
        if (listening is None or listening.is_unspecified) and _is_of_this_machine(address, ip):
            return True
    return False


def _is_unicast(ip: IpAddress) -> bool:
    return not (ip.is_unspecified or ip.is_multicast or ip == IPv4Address("255.255.255.255"))


def _is_of_this_machine(address: Address, ip: IpAddress) -> bool:
    """Check whether the address is this machine's, by binding a socket to it. Sends nothing."""
    if ip.is_loopback:
        return True
    family, sockaddr = address.info[0], (address.info[4][0], 0, *address.info[4][2:])
    if isinstance(ip, IPv4Address):
        family, sockaddr = socket.AF_INET, (str(ip), 0)
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind(sockaddr)
    except OSError as exc:
        # Any other failure says nothing about whose it is; then it is not dialled.
        return exc.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
    return True
