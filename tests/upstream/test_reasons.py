"""The words for what a library reports: by its types, numbers and names."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from proxy.errors import UpstreamUnreachableError
from proxy.model import DIRECT, Origin, TlsFiles
from proxy.server.run import new_event_loop
from proxy.timers import DeadlineTimer
from proxy.upstream.addresses import resolve
from proxy.upstream.pool import Pool
from proxy.upstream.reasons import CertificateDemandedError, reason_of_dial, reason_of_loss
from proxy.upstream.tls import TlsContexts
from tests.whole.test_reasons import blocking_tls, server_context
from tests.whole.test_tls import make_authority

if TYPE_CHECKING:
    from pathlib import Path


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


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_certificate_demanded_after_the_handshake(tmp_path: Path, size: int) -> None:
    """By the proxy's loop the alert of TLS 1.3 is found, however much of the request was written by then."""
    authority = make_authority(tmp_path)
    context = server_context(authority.good)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.certificate)

    way = DIRECT._replace(tls=TlsFiles(ca_file=str(authority.certificate)))

    async def reason_of(url: str) -> str | None:
        clocks = DeadlineTimer(asyncio.get_running_loop())
        pool = Pool(clocks, TlsContexts())
        port = int(url.rpartition(":")[2])
        try:
            connection = await pool.dial(
                (Origin("https", "localhost", port), way), "main", await resolve("127.0.0.1", port), keep_s=0
            )
            with pytest.raises(UpstreamUnreachableError) as raised:
                await connection.send(b"POST / HTTP/1.1\r\n\r\n", b"x" * size, is_head_request=False)
            return raised.value.reason
        finally:
            pool.close()
            clocks.close()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        for _ in range(10):
            with blocking_tls(context) as url:
                assert runner.run(reason_of(url)) == "tls_client_certificate"
