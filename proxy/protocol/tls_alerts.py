"""The alerts by which a server of TLS says what it refuses, as OpenSSL names them (RFC 8446 §6.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ssl

# Those about the client's certificate, or that there is none. `decrypt_error` is that of a certificate whose authority
# has the right name and another key.
CLIENT_CERTIFICATE_ALERTS: Final = frozenset(
    {
        "BAD_CERTIFICATE",
        "CERTIFICATE_EXPIRED",
        "CERTIFICATE_REQUIRED",
        "CERTIFICATE_REVOKED",
        "CERTIFICATE_UNKNOWN",
        "DECRYPT_ERROR",
        "NO_CERTIFICATE",
        "UNKNOWN_CA",
        "UNSUPPORTED_CERTIFICATE",
    }
)


def alert_of(exc: ssl.SSLError) -> str:
    """The name of the alert that the peer sent; empty where it sent none. Its prefix is the protocol it came with."""
    # An error that was made in Python has no such attribute.
    reason: str | None = getattr(exc, "reason", None)
    return (reason or "").partition("ALERT_")[2]
