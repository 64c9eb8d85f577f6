"""The words for what a library reports: by its types, numbers and names."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from proxy.upstream.reasons import CertificateDemandedError, reason_of_dial, reason_of_loss


def tls(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, "words that nobody reads")
    error.reason = reason
    return error


def untrusted(code: int) -> ssl.SSLError:
    error = ssl.SSLCertVerificationError(1, "words that nobody reads")
    error.verify_code = code
    return error


@pytest.mark.parametrize("is_tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ECONNREFUSED, "x"), "refused"),
        (OSError(errno.ENETUNREACH, "x"), "unreachable"),
        (OSError(errno.EHOSTUNREACH, "x"), "unreachable"),
        (OSError(errno.ETIMEDOUT, "x"), "unreachable"),
        (OSError("Multiple exceptions: …"), "unreachable"),
        (socket.gaierror(socket.EAI_NONAME, "x"), "dns"),
    ],
)
def test_reason_of_dial(error: OSError, reason: str, *, is_tls: bool) -> None:
    """What keeps a connection from being made is the same with TLS and without."""
    assert reason_of_dial(error, is_tls=is_tls) == reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionResetError(), "tls_handshake"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "tls_handshake"),
        (ConnectionAbortedError("handshake took too long"), "tls_handshake"),
        (tls("WRONG_VERSION_NUMBER"), "tls_handshake"),
        (tls("SSLV3_ALERT_HANDSHAKE_FAILURE"), "tls_handshake"),
        (tls("TLSV1_ALERT_PROTOCOL_VERSION"), "tls_handshake"),
        (CertificateDemandedError(1, "x"), "tls_client_certificate"),
        (tls("SSLV3_ALERT_BAD_CERTIFICATE"), "tls_client_certificate"),
        (tls("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "tls_client_certificate"),
        (tls("SSL/TLS_ALERT_BAD_CERTIFICATE"), "tls_client_certificate"),
        (untrusted(10), "tls_expired"),
        (untrusted(9), "tls_expired"),
        (untrusted(62), "tls_name"),
        (untrusted(64), "tls_name"),
        (untrusted(18), "tls_untrusted"),
        (untrusted(20), "tls_untrusted"),
    ],
)
def test_reason_of_a_handshake(error: OSError, reason: str) -> None:
    """What a handshake failed of."""
    assert reason_of_dial(error, is_tls=True) == reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "closed"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "reset"),
        (BrokenPipeError(errno.EPIPE, "x"), "reset"),
        (OSError(errno.ETIMEDOUT, "x"), "reset"),
        (tls("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "tls_client_certificate"),
    ],
)
def test_reason_of_loss(error: Exception | None, reason: str) -> None:
    """What ended a connection that stood."""
    assert reason_of_loss(error) == reason
