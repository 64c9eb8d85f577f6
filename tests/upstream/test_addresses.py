"""Which addresses are dialled, and how they are remembered."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import TargetNotAllowedError, UpstreamUnreachableError
from proxy.upstream.addresses import (
    MAX_LOOK_UPS,
    MAX_NAMES,
    STALE_S,
    TTL_S,
    Address,
    Resolver,
    check_addresses,
    is_global,
    is_own_listener,
    resolve,
)


def address(text: str, port: int = 443) -> Address:
    """An address as the system's resolver gives it."""
    if ":" in text:
        return Address((socket.AF_INET6, socket.SOCK_STREAM, 6, "", (text, port, 0, 0)))
    return Address((socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port)))


GLOBAL = [
    "8.8.8.8",
    "1.1.1.1",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.1",
    "192.0.1.1",
    "198.17.255.255",
    "198.20.0.1",
    "223.255.255.255",
    "168.63.129.15",
    "2606:4700:4700::1111",
    "2a00:1450:4001:81b::200e",
    "2001:4860:4860::8888",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]
NOT_GLOBAL = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.0.0.2",
    "127.255.255.255",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0.0.0.0",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "64:ff9b::a00:1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1",
    "2002:a00:1::",
    "2002:808:808::",
    "2001::1",
    "2001:0:53aa:64c:0:0:f5ff:fffe",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "3fff::1",
    "100::1",
    "ff02::1",
    "ff0e::1",
    "4000::1",
    "5f00::1",
]


@pytest.mark.parametrize("text", GLOBAL)
def test_check_addresses_global(text: str) -> None:
    """A public host's address may be dialled."""
    check_addresses([address(text)])


@pytest.mark.parametrize("text", NOT_GLOBAL)
def test_check_addresses_not_global(text: str) -> None:
    """An address that is not a public host's is refused, in whatever clothes, also beside a good one (D1-D4, D8)."""
    for addresses in ([text], ["8.8.8.8", text], [text, "8.8.8.8"]):
        with pytest.raises(TargetNotAllowedError):
            check_addresses([address(one) for one in addresses])


def test_check_addresses_none() -> None:
    """No address is no permission."""
    with pytest.raises(TargetNotAllowedError):
        check_addresses([])


@given(st.ip_addresses())
def test_is_global_agrees(ip: object) -> None:
    """Nothing that Python's own registries call private, reserved or multicast is global here, bare or translated."""
    one = ip_address(str(ip))
    if is_global(one) and not (one.version == 6 and one in ip_network("64:ff9b::/96")):
        mapped = one.ipv4_mapped if one.version == 6 else None
        judged = one if mapped is None else mapped
        assert judged.is_global
        assert not judged.is_multicast


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("10.1.2.3", "10.1.0.0/16"),
        ("127.0.0.1", "127.0.0.1/32"),
        ("::ffff:10.1.2.3", "10.1.0.0/16"),
        ("fd00::1", "fd00::/8"),
        ("64:ff9b::a01:203", "10.1.0.0/16"),
    ],
)
def test_check_addresses_allow_private(text: str, block: str) -> None:
    """A block that the operator lists may be dialled, and only that."""
    allowed = [ip_network("fd12::/16"), ip_network(block)]

    check_addresses([address(text)], allow_private=allowed)
    with pytest.raises(TargetNotAllowedError):
        check_addresses([address(text), address("192.168.0.1")], allow_private=allowed)


@pytest.mark.parametrize("text", ["0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "ff02::1", "::ffff:0.0.0.0"])
def test_check_addresses_no_hosts(text: str) -> None:
    """What is no single host's address is never dialled, whatever is listed."""
    with pytest.raises(TargetNotAllowedError):
        check_addresses([address(text)], allow_private=[ip_network("0.0.0.0/0"), ip_network("::/0")])


@pytest.mark.parametrize(
    ("text", "port", "listener", "is_own"),
    [
        ("127.0.0.1", 8080, ("127.0.0.1", 8080), True),
        ("127.0.0.1", 8080, ("0.0.0.0", 8080), True),
        ("127.9.9.9", 8080, ("0.0.0.0", 8080), True),
        ("::ffff:127.0.0.1", 8080, ("0.0.0.0", 8080), True),
        ("127.0.0.1", 8080, ("::", 8080), True),
        ("::1", 8080, ("::", 8080), True),
        ("::1", 8080, ("::1%lo", 8080), True),
        ("127.0.0.1", 8080, ("localhost", 8080), True),
        ("0.0.0.0", 8080, ("127.0.0.1", 8080), True),
        ("127.0.0.1", 8081, ("0.0.0.0", 8080), False),
        ("127.0.0.2", 8080, ("127.0.0.1", 8080), False),
        ("8.8.8.8", 8080, ("0.0.0.0", 8080), False),
        ("2606:4700:4700::1111", 8080, ("::", 8080), False),
    ],
)
def test_is_own_listener(text: str, port: int, listener: tuple[str, int], is_own: bool) -> None:
    """Our own listeners are known at every address that reaches them (C15)."""
    assert is_own_listener(address(text, port), port, [("192.0.2.9", 1), listener]) is is_own


def test_is_own_listener_this_machines_address() -> None:
    """With a listener on all addresses, each of this machine's addresses is one of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # sends nothing; asks the kernel which address it would send from
        except OSError:
            pytest.skip("this machine has no route, so no address but loopback")
        mine = sock.getsockname()[0]

    assert is_own_listener(address(mine, 8080), 8080, [("0.0.0.0", 8080)])


def test_check_addresses_own_listener() -> None:
    """The proxy's own listener is refused even where its block is allowed."""
    block = [ip_network("127.0.0.0/8")]

    check_addresses([address("127.0.0.1", 81)], allow_private=block, own=[("0.0.0.0", 80)])
    with pytest.raises(TargetNotAllowedError):
        check_addresses([address("127.0.0.1", 80)], allow_private=block, own=[("0.0.0.0", 80)])


def test_address_scope() -> None:
    """A scope is not part of the address."""
    scoped = Address((socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1%eth0", 443, 0, 2)))

    assert (scoped.ip, scoped.port) == (ip_address("fe80::1"), 443)


async def test_resolve_literal() -> None:
    """A literal resolves to itself, once."""
    [found] = await resolve("127.0.0.1", 8080)

    assert (str(found.ip), found.port, found.info[0]) == ("127.0.0.1", 8080, socket.AF_INET)


@pytest.mark.parametrize("host", ["x" * 64 + ".invalid", "\ud800", "a..b"])
async def test_resolve_fails(host: str) -> None:
    """What cannot be looked up is an unreachable upstream, whatever the library says."""
    with pytest.raises(UpstreamUnreachableError):
        await resolve(host, 443)


class LookUps:
    """A resolver that answers when told, and a clock that stands until moved."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, asyncio.Future[tuple[Address, ...]]] = {}
        self.now_s = 1000.0
        self.is_down = False
        self.is_held = False
        self.arrived = asyncio.Event()

    async def __call__(self, host: str, port: int) -> tuple[Address, ...]:
        self.asked.append(host)
        if self.is_held:
            self.answers[host] = asyncio.get_running_loop().create_future()
            self.arrived.set()
            return await self.answers[host]
        if self.is_down:
            raise UpstreamUnreachableError
        return (address("8.8.8.8", port),)

    def clock(self) -> float:
        return self.now_s


@pytest.fixture
def look_ups() -> LookUps:
    return LookUps()


@pytest.fixture
def resolver(look_ups: LookUps) -> Resolver:
    return Resolver(look_up=look_ups, clock=look_ups.clock)


async def asked(look_ups: LookUps, count: int) -> None:
    """Wait until so many look-ups are under way."""
    async with asyncio.timeout(5):
        while len(look_ups.asked) < count:
            look_ups.arrived.clear()
            await look_ups.arrived.wait()


async def test_resolver_remembers(resolver: Resolver, look_ups: LookUps) -> None:
    """A name is looked up again only after its time, and each port has its own answer."""
    first = await resolver.resolve("a", 443)
    look_ups.now_s += TTL_S - 1
    assert await resolver.resolve("a", 443) is first
    assert (await resolver.resolve("a", 80))[0].port == 80
    look_ups.now_s += 1
    assert await resolver.resolve("a", 443) == first

    assert look_ups.asked == ["a", "a", "a"]


async def test_resolver_stale(resolver: Resolver, look_ups: LookUps) -> None:
    """While looking up fails, what was known goes on for a while, and then no more."""
    first = await resolver.resolve("a", 443)
    look_ups.is_down = True
    look_ups.now_s += STALE_S - 1

    assert await resolver.resolve("a", 443) == first
    look_ups.now_s += 1
    with pytest.raises(UpstreamUnreachableError):
        await resolver.resolve("a", 443)
    look_ups.is_down = False
    assert await resolver.resolve("a", 443) == first


async def test_resolver_failure_is_not_remembered(resolver: Resolver, look_ups: LookUps) -> None:
    """A name that could not be looked up is looked up again at once."""
    look_ups.is_down = True
    for _ in range(2):
        with pytest.raises(UpstreamUnreachableError):
            await resolver.resolve("a", 443)

    assert look_ups.asked == ["a", "a"]


async def test_resolver_single_flight(resolver: Resolver, look_ups: LookUps) -> None:
    """Many who ask at once are one look-up, and one who leaves does not take it from the others."""
    look_ups.is_held = True
    tasks = [asyncio.create_task(resolver.resolve("a", 443)) for _ in range(5)]
    await asked(look_ups, 1)

    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    look_ups.answers["a"].set_result((address("8.8.8.8"),))

    assert await asyncio.gather(*tasks[1:]) == [(address("8.8.8.8"),)] * 4
    assert look_ups.asked == ["a"]


async def test_resolver_nobody_left(resolver: Resolver, look_ups: LookUps) -> None:
    """A look-up that everybody has left is remembered when it comes, and its failure is nobody's."""
    look_ups.is_held = True
    tasks = [asyncio.create_task(resolver.resolve(name, 443)) for name in ("a", "b")]
    await asked(look_ups, 2)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    look_ups.answers["a"].set_result((address("8.8.8.8"),))
    look_ups.answers["b"].set_exception(UpstreamUnreachableError())
    await asyncio.wait(list(resolver._tasks.values()))

    assert await resolver.resolve("a", 443) == (address("8.8.8.8"),)
    assert look_ups.asked == ["a", "b"]


async def test_resolver_bounds(resolver: Resolver, look_ups: LookUps) -> None:
    """At most so many names are remembered; the one used least recently goes first."""
    for number in range(MAX_NAMES):
        await resolver.resolve(f"n{number}", 443)
    await resolver.resolve("n0", 443)
    await resolver.resolve("one-more", 443)
    before = len(look_ups.asked)

    await resolver.resolve("n0", 443)
    assert len(look_ups.asked) == before
    await resolver.resolve("n1", 443)
    assert len(look_ups.asked) == before + 1
    assert len(resolver._found) == MAX_NAMES


async def test_resolver_too_many_look_ups(resolver: Resolver, look_ups: LookUps) -> None:
    """Names that nobody answers for do not queue without end; what is known is still served."""
    known = await resolver.resolve("known", 443)
    look_ups.is_held = True
    look_ups.now_s += TTL_S
    tasks = [asyncio.create_task(resolver.resolve(f"slow{number}", 443)) for number in range(MAX_LOOK_UPS)]
    await asked(look_ups, MAX_LOOK_UPS + 1)

    with pytest.raises(UpstreamUnreachableError):
        await resolver.resolve("another", 443)
    assert await resolver.resolve("known", 443) == known
    assert len(look_ups.asked) == MAX_LOOK_UPS + 1

    await resolver.close()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, UpstreamUnreachableError) for outcome in outcomes)
