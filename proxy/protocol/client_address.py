"""The address of a client behind trusted proxies, from `X-Forwarded-For` or `Forwarded` (RFC 7239).

Pure. Everybody may send these fields, so they are read from the right, where the nearest proxy has written, and only
over addresses of trusted proxies: what stands left of the first other address is the client's own word. Where both
fields come, `X-Forwarded-For` is read: nearly every load balancer writes that one, and passes a `Forwarded` of the
client's on as it came.

Departures from RFC 7239: an element that is not of the usual forms (an obfuscated identifier, `unknown`, garbage, a
quoted string with a comma or semicolon in it) ends the walk at the last address that was read.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxy.model import FieldIndex

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network

# More proxies than anybody has in a row. What a client invents stands left of them, and is not looked at.
MAX_HOPS: Final = 32
# An IPv6 address with brackets, quotes and a port has 57.
_MAX_NODE: Final = 64
_KNOWN_PEERS: Final = 1024
_FOR: Final = b"for"
_OWS: Final = b" \t"


class ClientAddresses:
    """Finds the addresses of clients. Costs as much time as a head has hops, at most `MAX_HOPS`."""

    def __init__(self, trusted: Iterable[IpNetwork]) -> None:
        self._trusted = tuple(trusted)
        # A client's connection, and a balancer's above all, brings many requests.
        self._peer = lru_cache(maxsize=_KNOWN_PEERS)(read_node)

    def of(self, peer: str | None, index: FieldIndex) -> IpAddress | None:
        """Return the client's address; None where the peer has none, as on a Unix socket.

        `peer` is the address of the connection's other side. The fields are read only where it is a trusted proxy's.
        """
        address = None if peer is None else self._peer(peer.partition("%")[0])
        if address is None or not self._trusted or not self._is_trusted(address):
            return address
        if b"x-forwarded-for" in index:
            hops = map(_node, _from_the_right(index.every(b"x-forwarded-for")))
        else:
            hops = map(_node_of_element, _from_the_right(index.every(b"forwarded")))
        for hop in hops:
            if hop is None:
                break
            address = hop
            if not self._is_trusted(address):
                break
        return address

    def _is_trusted(self, address: IpAddress) -> bool:
        return any(address in network for network in self._trusted)


def read_node(text: str) -> IpAddress | None:
    """Read an address, perhaps in brackets or with a port; None where it is anything else.

    The IPv4 address of an IPv4-mapped one is returned: one client is one address, whatever the listener's family.
    """
    if len(text) > _MAX_NODE or "%" in text:
        return None
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            return None
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _from_the_right(values: Iterable[bytes]) -> Iterator[bytes]:
    """The list's last items, the last one first; several fields are one list (RFC 9110 §5.3)."""
    items = b",".join(values).rsplit(b",", MAX_HOPS)
    # What is left of the last `MAX_HOPS` commas is not one item.
    return iter(items[: -MAX_HOPS - 1 : -1])


def _node(item: bytes) -> IpAddress | None:
    return read_node(item.strip(_OWS).decode("latin-1"))


def _node_of_element(element: bytes) -> IpAddress | None:
    """The `for` of one element of `Forwarded` (RFC 7239 §4); None where there is none, or two."""
    nodes = [
        value.strip(_OWS)
        for name, _, value in (pair.partition(b"=") for pair in element.split(b";"))
        if name.strip(_OWS).lower() == _FOR
    ]
    if len(nodes) != 1:
        return None
    node = nodes[0]
    if len(node) > 1 and node[:1] == node[-1:] == b'"':
        node = node[1:-1]
    return read_node(node.decode("latin-1"))
