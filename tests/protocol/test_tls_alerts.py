"""The names of TLS alerts, whatever the release of OpenSSL and the version of the protocol put before them."""

from __future__ import annotations

import ssl

import pytest

from proxy.protocol.tls_alerts import alert_of


@pytest.mark.parametrize(
    ("reason", "alert"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "CERTIFICATE_REQUIRED"),
        ("SSL/TLS_ALERT_BAD_CERTIFICATE", "BAD_CERTIFICATE"),
        ("CERTIFICATE_VERIFY_FAILED", ""),
        (None, ""),
    ],
)
def test_alert_of(reason: str | None, alert: str) -> None:
    """An alert is the peer's; every other failure is found here."""
    error = ssl.SSLError(1, "words that nobody reads")
    if reason is not None:
        error.reason = reason
    assert alert_of(error) == alert
