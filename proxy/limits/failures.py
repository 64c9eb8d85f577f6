"""How many bad credentials an address may send before its unknown credentials are no longer looked at."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from proxy.errors import TooManyFailuresError
from proxy.limits import gcra
from proxy.limits.quotas import TICKS_PER_S, limits_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv6Address

    from proxy.model import Rate

# Some 7 MiB. An attacker with more addresses than this has no need to be forgotten.
MAX_ADDRESSES: Final = 65_536
# How many entries are compared before one of them is forgotten.
_CANDIDATES: Final = 8
# RFC 6177: a site gets a /64 at least, so whoever has one address has all of it.
_HOST_BITS: Final = 64


class AuthFailures:
    """Counts failed authentication by client address. One for each worker; it outlives reloads that keep its rate.

    The rate refills all the time (GCRA). IPv6 addresses count by /64. At most `MAX_ADDRESSES` are remembered: of eight
    entries the one that owes least is forgotten for a new address, which is one that owes nothing any more where there
    is one. So an address that used up its rate is forgotten last, and no address is ever counted for another one.
    """

    def __init__(self, rate: Rate, *, now: Callable[[], float], max_addresses: int = MAX_ADDRESSES) -> None:
        """`now` gives monotonic seconds."""
        self.rate = rate
        (self._limit,) = limits_of((rate,))
        self._now = now
        self._max_addresses = max_addresses
        self._tats: dict[int, int] = {}

    def check(self, client: IPv4Address | IPv6Address | None) -> None:
        """Refuse a credential that is not known yet, of an address that used up its rate. A look-up and a comparison.

        Raises:
            TooManyFailuresError: it did.
        """
        if client is None:
            return
        tat = self._tats.get(_key(client))
        if tat is not None:
            wait = gcra.retry_after(self._limit, tat, int(self._now() * TICKS_PER_S))
            if wait > 0:
                raise TooManyFailuresError(retry_after_s=wait / TICKS_PER_S)

    def count(self, client: IPv4Address | IPv6Address | None) -> None:
        """Count a failure.

        Raises:
            TooManyFailuresError: the address has used up its rate, perhaps by requests that ran at the same time.
        """
        if client is None:
            return
        self.check(client)
        key, now = _key(client), int(self._now() * TICKS_PER_S)
        ends = gcra.charge((self._limit,), (self._tats.pop(key, 0),), now)
        if len(self._tats) >= self._max_addresses:
            self._forget_one()
        if ends is not None:
            # At the end: those that failed least recently are compared first.
            self._tats[key] = ends[0]

    def _forget_one(self) -> None:
        oldest = itertools.islice(self._tats, _CANDIDATES)
        del self._tats[min(oldest, key=self._tats.__getitem__)]


def _key(client: IPv4Address | IPv6Address) -> int:
    """One number for all addresses that count together; those of IPv4 are below any network of IPv6 that is in use."""
    return int(client) if isinstance(client, IPv4Address) else int(client) >> _HOST_BITS | 1 << _HOST_BITS
