"""The dialogues with egress proxies, without a network: the same for every split, and bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ProxyError
from proxy.model import EgressProxy
from proxy.protocol.tunnels import MAX_HEAD_BYTES, dialogue

HTTP = EgressProxy("http", "proxy.example", 3128)
SOCKS = EgressProxy("socks5", "proxy.example", 1080, "user", "password")
SOCKS_ANSWERS = b"\x05\x02" + b"\x01\x00" + b"\x05\x00\x00\x01\x7f\x00\x00\x01\x04\x38"


def converse(proxy: EgressProxy, host: str, answers: bytes, sizes: list[int]) -> tuple[bytes, bytes]:
    """What was said to a proxy that answers so, in pieces, and what of its bytes was not read."""
    steps = dialogue(proxy, host, 443)
    said = b""
    try:
        step = next(steps)
        while True:
            said += step.send
            assert 0 < step.at_most <= MAX_HEAD_BYTES
            size = min(step.at_most, sizes.pop() if sizes else step.at_most)
            piece, answers = answers[:size], answers[size:]
            step = steps.send(piece)
    except StopIteration:
        return said, answers


@given(st.lists(st.integers(1, 20)))
def test_http_in_any_pieces(sizes: list[int]) -> None:
    """An answer is understood however it is cut."""
    said, left = converse(HTTP, "vendor.example", b"HTTP/1.1 200 OK\r\nVia: a\r\n\r\n", sizes)
    assert said.startswith(b"CONNECT vendor.example:443 HTTP/1.1\r\nHost: vendor.example:443\r\n")
    assert b"Proxy-Authorization" not in said
    assert left == b""


@given(st.lists(st.integers(1, 20)))
def test_socks_in_any_pieces(sizes: list[int]) -> None:
    """SOCKS5 is understood however it is cut, and reads no byte of the destination's."""
    said, left = converse(SOCKS, "vendor.example", SOCKS_ANSWERS + b"TLS", sizes)
    assert said.endswith(b"\x05\x01\x00\x03\x0evendor.example\x01\xbb")
    assert left == b"TLS"


@pytest.mark.parametrize(
    ("host", "packed"),
    [("192.0.2.1", b"\x01\xc0\x00\x02\x01"), ("2001:db8::1", b"\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01")],
)
def test_socks_with_an_address(host: str, packed: bytes) -> None:
    """An address goes to the proxy as one."""
    said, _ = converse(SOCKS, host, SOCKS_ANSWERS, [])
    assert said.endswith(b"\x05\x01\x00" + packed + b"\x01\xbb")


def test_http_to_an_ipv6_address() -> None:
    """An IPv6 address stands in brackets (RFC 9110 §9.3.6)."""
    said, _ = converse(HTTP, "2001:db8::1", b"HTTP/1.1 200 OK\r\n\r\n", [])
    assert said.startswith(b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\n")


@given(st.binary(max_size=60), st.lists(st.integers(1, 20)), st.sampled_from([HTTP, SOCKS]))
def test_any_answer(answer: bytes, sizes: list[int], proxy: EgressProxy) -> None:
    """Whatever a proxy says ends in success or an error of ours."""
    error: ProxyError | None = None
    try:
        converse(proxy, "vendor.example", answer, sizes)
    except ProxyError as exc:
        error = exc
    assert error is None or (error.status == 502 and "password" not in error.message)
