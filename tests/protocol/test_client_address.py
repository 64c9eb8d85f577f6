"""The client's address behind trusted proxies: read from the right, bounded, and never the client's own word."""

from __future__ import annotations

import time
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.model import FieldIndex
from proxy.protocol.client_address import MAX_HOPS, ClientAddresses, read_node

TRUSTED = ("10.0.0.0/8", "2001:db8:ffff::/48", "127.0.0.1/32")


def client(peer: str | None, *fields: tuple[str, str], trusted: tuple[str, ...] = TRUSTED) -> str | None:
    """The address as the log has it."""
    raw = tuple((name.encode(), value.encode("latin-1")) for name, value in fields)
    found = ClientAddresses(map(ip_network, trusted)).of(peer, FieldIndex(raw))
    return None if found is None else str(found)


XFF = "X-Forwarded-For"


@pytest.mark.parametrize(
    ("peer", "fields", "expected"),
    [
        pytest.param("192.0.2.1", [(XFF, "198.51.100.7")], "192.0.2.1", id="peer-not-trusted"),
        pytest.param("10.0.0.1", [], "10.0.0.1", id="no-field"),
        pytest.param("10.0.0.1", [(XFF, "198.51.100.7")], "198.51.100.7", id="one-hop"),
        pytest.param("10.0.0.1", [(XFF, "1.1.1.1, 198.51.100.7")], "198.51.100.7", id="spoofed-left"),
        pytest.param("10.0.0.1", [(XFF, "1.1.1.1, 198.51.100.7, 10.9.9.9")], "198.51.100.7", id="two-proxies"),
        pytest.param("10.0.0.1", [(XFF, "10.1.1.1, 10.2.2.2")], "10.1.1.1", id="all-trusted"),
        pytest.param("10.0.0.1", [(XFF, "1.1.1.1"), (XFF, "198.51.100.7")], "198.51.100.7", id="two-lines"),
        pytest.param("10.0.0.1", [(XFF, "1.1.1.1, garbage")], "10.0.0.1", id="garbage"),
        pytest.param("10.0.0.1", [(XFF, "198.51.100.7,")], "10.0.0.1", id="empty-item"),
        pytest.param("10.0.0.1", [(XFF, "unknown, 10.3.3.3")], "10.3.3.3", id="unknown-behind-a-proxy"),
        pytest.param("10.0.0.1", [(XFF, "198.51.100.7:4711")], "198.51.100.7", id="port"),
        pytest.param("10.0.0.1", [(XFF, "[2001:db8::7]:4711")], "2001:db8::7", id="v6-port"),
        pytest.param("10.0.0.1", [(XFF, "2001:DB8::7")], "2001:db8::7", id="v6-bare"),
        pytest.param("10.0.0.1", [(XFF, "::ffff:198.51.100.7")], "198.51.100.7", id="mapped"),
        pytest.param("::ffff:10.0.0.1", [(XFF, "198.51.100.7")], "198.51.100.7", id="mapped-peer"),
        pytest.param("2001:db8:ffff::1", [(XFF, "198.51.100.7")], "198.51.100.7", id="v6-peer"),
        pytest.param("fe80::1%eth0", [], "fe80::1", id="scope"),
        pytest.param(None, [(XFF, "198.51.100.7")], None, id="unix-socket"),
        pytest.param("10.0.0.1", [("Forwarded", "for=198.51.100.7")], "198.51.100.7", id="forwarded"),
        pytest.param(
            "10.0.0.1", [("Forwarded", 'For="[2001:db8::7]:4711";proto=https;by=10.0.0.1')], "2001:db8::7", id="quoted"
        ),
        pytest.param("10.0.0.1", [("Forwarded", 'for="evil, for=198.51.100.7')], "198.51.100.7", id="open-quote"),
        pytest.param("10.0.0.1", [("Forwarded", "for=1.1.1.1, for=_hidden")], "10.0.0.1", id="obfuscated"),
        pytest.param("10.0.0.1", [("Forwarded", 'for="_a:_b"')], "10.0.0.1", id="obfuscated-port"),
        pytest.param("10.0.0.1", [("Forwarded", "for=unknown")], "10.0.0.1", id="unknown"),
        pytest.param("10.0.0.1", [("Forwarded", "for=1.1.1.1;for=2.2.2.2")], "10.0.0.1", id="two-in-one"),
        pytest.param("10.0.0.1", [("Forwarded", "proto=https")], "10.0.0.1", id="without-for"),
        pytest.param(
            "10.0.0.1", [("Forwarded", "for=1.1.1.1"), (XFF, "198.51.100.7")], "198.51.100.7", id="both-fields"
        ),
    ],
)
def test_address(peer: str | None, fields: list[tuple[str, str]], expected: str | None) -> None:
    """The address is the first from the right that is no trusted proxy's; what cannot be read ends the walk."""
    assert client(peer, *fields) == expected


def test_without_trusted_proxies() -> None:
    """Without trusted proxies no field is believed."""
    assert client("127.0.0.1", (XFF, "198.51.100.7"), trusted=()) == "127.0.0.1"


def test_many_hops() -> None:
    """Of a hundred hops of trusted proxies the nearest ones are read."""
    hops = ", ".join(f"10.0.0.{number}" for number in range(100))
    assert client("10.1.1.1", (XFF, hops)) == f"10.0.0.{100 - MAX_HOPS}"


def test_long_field_is_linear() -> None:
    """A head full of commas, quotes or addresses costs no more than a look at it."""
    for text in ("," * 65_000, '"' * 65_000, "1.1.1.1," * 8_000, "for=" * 16_000, "[" * 65_000):
        started = time.perf_counter()
        client("10.1.1.1", (XFF, text))
        client("10.1.1.1", ("Forwarded", text))
        assert time.perf_counter() - started < 0.05


@given(st.text(max_size=80))
def test_node_of_any_text(text: str) -> None:
    """Any text is an address or none, and never an error."""
    found = read_node(text)
    assert found is None or ip_address(str(found)) == found
