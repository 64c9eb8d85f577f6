"""Classifies why a connection to an upstream failed, as the log's `reason`.

docs/operating.md#reason-why-the-vendor-could-not-be-reached-or-broke-off has the words and what to do about each.
Clients are not told: to them an upstream is unreachable, whatever is wrong with it. Library exceptions are told apart
by their types, numbers and names, never by their texts, which differ between releases.
"""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Final

from proxy.protocol.tls_alerts import CLIENT_CERTIFICATE_ALERTS, alert_of

# OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_HOSTNAME_MISMATCH and
# X509_V_ERR_IP_ADDRESS_MISMATCH (x509_vfy.h); Python gives the numbers, but no names for them.
_OUT_OF_DATE: Final = frozenset({9, 10})
_OTHER_NAME: Final = frozenset({62, 64})
# What the parser says while no status line has come.
_NO_VERSION: Final = "0.0"
_RESET: Final = frozenset({errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE})


class CertificateDemandedError(ssl.SSLError):
    """A server of TLS 1.2 ended the handshake because we have no certificate to show."""


class ClientHandshake(ssl.SSLObject):
    """A TLS connection that tells apart the two things which TLS 1.2 has one alert for.

    `handshake_failure` means that nothing both sides can speak was found, or that the server demands a certificate of
    the client (RFC 5246 §7.4.6). The first is said instead of a ServerHello, the second long after it.
    """

    def do_handshake(self) -> None:
        """Go on with the handshake.

        Raises:
            CertificateDemandedError: the server demands a certificate.
            ssl.SSLError: any other failure, or that more has to be read or written.
        """
        try:
            super().do_handshake()
        except ssl.SSLError as exc:
            # The cipher suite is known from the ServerHello on.
            if alert_of(exc) == "HANDSHAKE_FAILURE" and self.cipher() is not None:
                raise CertificateDemandedError(*exc.args) from exc
            raise


def reason_of_dial(exc: OSError, *, is_tls: bool) -> str:
    """Return the `reason` why no connection could be made."""
    if is_tls and isinstance(exc, ConnectionError) and exc.errno != errno.ECONNREFUSED:
        # TCP stood, or it would have been refused: the loop reports any end within the handshake as a reset.
        return "tls_handshake"
    return _reason_of(exc)


def reason_of_loss(exc: Exception | None) -> str:
    """Return the `reason` why an open connection was lost; None is an orderly end.

    With TLS 1.3 a server judges the client after the client's handshake is over: its alert arrives here. uvloop reads
    what has arrived before it writes; asyncio's own loop closes at a write that fails, and may lose an alert by it.
    """
    if exc is None:
        return "closed"
    return _reason_of(exc) if isinstance(exc, ssl.SSLError) else "reset"


def _reason_of(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError):
        return _reason_of_tls(exc)
    if isinstance(exc, socket.gaierror):
        return "dns"
    if exc.errno == errno.ECONNREFUSED:
        return "refused"
    return "reset" if exc.errno in _RESET else "unreachable"


def _reason_of_tls(exc: ssl.SSLError) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        if exc.verify_code in _OUT_OF_DATE:
            return "tls_expired"
        return "tls_name" if exc.verify_code in _OTHER_NAME else "tls_untrusted"
    if isinstance(exc, CertificateDemandedError) or alert_of(exc) in CLIENT_CERTIFICATE_ALERTS:
        return "tls_client_certificate"
    return "tls_handshake"


def reason_of_head(version: str, first_read: bytes | None) -> str:
    """Return the log's reason for a refused head: `head_invalid`, or `not_http` where the read is no HTTP response.

    A server that speaks TLS, HTTP/2 or something else is told by its first bytes. `version` is the parser's, and
    `first_read` is None where the fault is in a later read.
    """
    is_http = version != _NO_VERSION and (first_read is None or first_read.startswith(b"HTTP/"))
    return "head_invalid" if is_http else "not_http"
