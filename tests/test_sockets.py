"""What is asked of the system about sockets that are listened on."""

from __future__ import annotations

import socket
import sys

import pytest

from proxy.server.sockets import answer_no_more

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


@pytest.mark.skipif(sys.platform != "linux", reason="nothing happens elsewhere")
def test_answer_no_more(listener: socket.socket) -> None:
    """Who was connected before is let in and served; who comes later is not answered, and refused after the close."""
    address = listener.getsockname()[:2]
    with listener, connected(listener) as early:
        early.sendall(b"request")
        answer_no_more(listener)
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


def test_answer_no_more_is_allowed_to_fail(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no filters, everything is as it was."""
    monkeypatch.setattr("proxy.server.sockets._SO_ATTACH_FILTER", 9999)
    answer_no_more(listener)
    with listener, connected(listener):
        pass
