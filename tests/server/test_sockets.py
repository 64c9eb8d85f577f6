"""What is asked of the system about sockets that are listened on."""

from __future__ import annotations

import errno
import socket
import sys

import pytest

from proxy.server.sockets import listening, stop_handshakes

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


@pytest.mark.skipif(sys.platform != "linux", reason="nothing happens elsewhere")
def test_stop_handshakes(listener: socket.socket) -> None:
    """A client that was connected before is served; a later one is not answered, and refused after the close."""
    address = listener.getsockname()[:2]
    with listener, connected(listener) as early:
        early.sendall(b"request")
        stop_handshakes(listener)
        with pytest.raises(TimeoutError):
            connected(listener, SILENCE_S)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(100) == b"request"
            listener.close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, timeout=WAIT_S)
            accepted.sendall(b"answer")
            assert early.recv(100) == b"answer"


def test_stop_handshakes_is_allowed_to_fail(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no filters, everything is as it was."""
    monkeypatch.setattr("proxy.server.sockets._SO_ATTACH_FILTER", 9999)
    stop_handshakes(listener)
    with listener, connected(listener):
        pass
