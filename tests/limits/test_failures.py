"""Bad credentials by client address: counted, refilled, and bounded so that nobody is forgotten cheaply."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from proxy.errors import TooManyFailuresError
from proxy.limits.failures import AuthFailures
from proxy.model import Rate

ALICE = ip_address("192.0.2.1")


class Clock:
    """A clock that the test moves."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_rate_and_retry_after() -> None:
    """After its quota an address is refused with the true wait, and looked at again when that is over."""
    clock = Clock()
    failures = AuthFailures(Rate(3, 60.0), now=clock)
    for _ in range(3):
        failures.check(ALICE)
        failures.count(ALICE)

    with pytest.raises(TooManyFailuresError) as refused:
        failures.check(ALICE)

    assert refused.value.retry_after_s == 20.0
    clock.now_s += 19.9
    with pytest.raises(TooManyFailuresError):
        failures.check(ALICE)
    clock.now_s += 0.1
    failures.check(ALICE)


def test_count_beyond_the_rate() -> None:
    """A failure that was let in together with others is refused, too, and is not owed."""
    failures = AuthFailures(Rate(1, 60.0), now=Clock())
    failures.count(ALICE)
    with pytest.raises(TooManyFailuresError) as refused:
        failures.count(ALICE)
    assert refused.value.retry_after_s == 60.0


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::9", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("0.0.0.1", "0:0:0:1::", False),
    ],
)
def test_addresses_that_count_together(one: str, other: str, *, is_same: bool) -> None:
    """IPv4 addresses count alone, IPv6 addresses by /64."""
    failures = AuthFailures(Rate(1, 60.0), now=Clock())
    failures.count(ip_address(one))
    try:
        failures.check(ip_address(other))
    except TooManyFailuresError:
        assert is_same
    else:
        assert not is_same


def test_without_an_address() -> None:
    """Clients without an address, on a Unix socket, are not limited: they would all be one."""
    failures = AuthFailures(Rate(1, 60.0), now=Clock())
    for _ in range(3):
        failures.count(None)
        failures.check(None)


def test_memory_is_bounded() -> None:
    """However many addresses fail, no more than the bound are remembered."""
    failures = AuthFailures(Rate(20, 60.0), now=Clock(), max_addresses=100)
    for number in range(10_000):
        failures.count(ip_address(number))
    assert len(failures._tats) == 100


def test_attacker_is_not_forgotten_for_strangers() -> None:
    """An address that used up its rate stays refused while any number of others fail once."""
    failures = AuthFailures(Rate(5, 60.0), now=Clock(), max_addresses=100)
    for _ in range(5):
        failures.count(ALICE)
    for number in range(10_000):
        failures.count(ip_address(number))
    with pytest.raises(TooManyFailuresError):
        failures.check(ALICE)


def test_strangers_are_not_refused_for_attackers() -> None:
    """A full memory of addresses that are refused refuses nobody else."""
    failures = AuthFailures(Rate(1, 60.0), now=Clock(), max_addresses=10)
    for number in range(100):
        failures.count(ip_address(number))
    failures.check(ALICE)
