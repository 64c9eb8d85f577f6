"""What is asked of the system about sockets that are listened on."""

from __future__ import annotations

import errno
import socket

import pytest

from proxy.server.sockets import listening

WAIT_S = 30.0
# Far longer than a loopback answers in, and shorter than the second after which a client asks again.
SILENCE_S = 0.3


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> socket.socket:
    """A socket that listens; closed by the test."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        return socket.create_server((request.param, 0), family=family)
    except OSError:
        pytest.skip("the machine has no such address")


def connected(listener: socket.socket, timeout_s: float = WAIT_S) -> socket.socket:
    return socket.create_connection(listener.getsockname()[:2], timeout=timeout_s)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="the machine has no IPv6")


def reached(host: str, at: str) -> bool:
    """Whether who listens on `host` is reached at the address `at`."""
    sockets = listening(host, 0)
    try:
        with socket.create_connection((at, sockets[0].getsockname()[1]), timeout=WAIT_S):
            return True
    except ConnectionRefusedError:
        return False
    finally:
        for sock in sockets:
            sock.close()


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "at", "is_reached"),
    [
        ("::", "127.0.0.1", True),
        ("::", "::1", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "::1", False),
        ("::1", "::1", True),
        ("::1", "127.0.0.1", False),
        ("127.0.0.1", "::1", False),
    ],
)
def test_listening_families(host: str, at: str, is_reached: bool) -> None:
    """`[::]` serves both families, every other address its own, whatever the machine's default is."""
    assert reached(host, at) is is_reached


def test_listening_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no IPv6 the fault says so, with the address."""

    def no_ipv6(*_args: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", no_ipv6)
    with pytest.raises(OSError, match=r"cannot listen on \[::\]:8080: this machine has no IPv6"):
        listening("::", 8080)
