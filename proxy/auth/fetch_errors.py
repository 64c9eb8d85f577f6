"""Explains to operators why a key set could not be fetched: translates the HTTP client's errors.

Pure. Each error has two texts: the reason may stand in `/readyz`, which anybody can read, so it holds no host, path or
words of the server's; the detail is for the log alone, and holds such words only shortened and escaped.
"""

from __future__ import annotations

import errno
import json
import re
import ssl
from typing import Final

import aiohttp

_QUOTED_CHARS: Final = 200
_AUTHORITY_USER: Final = re.compile(r"//[^/@]*@")
# X509_V_ERR_… of OpenSSL's x509_vfy.h; the names differ between its versions, the numbers do not.
_CERTIFICATE_REASONS: Final = {
    9: "the server's certificate is not valid yet",
    10: "the server's certificate has expired",
    **dict.fromkeys((18, 19, 20, 21), "the server's certificate is not signed by a trusted authority (see ca_file)"),
    **dict.fromkeys((62, 63, 64), "the server's certificate is for another host"),
}
# OpenSSL's names for an answer that is no TLS record.
_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"})


class KeyFetchError(Exception):
    """The key set could not be fetched; `reason` may be shown to anybody, `in_full` to operators."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.in_full = f"{reason} ({detail})" if detail else reason


def transport_error(what: str, error: aiohttp.ClientError | OSError) -> KeyFetchError:
    """Translate the HTTP client's error; `what` is the requested document. Quotes no response."""
    reason, detail = _cause(error)
    return KeyFetchError(f"{what}: {reason}", detail)


def redirect_error(what: str, status: int, location: str | None) -> KeyFetchError:
    """Make the error for a redirect; the log shows its target, without query, fragment and user."""
    target = re.split(r"[?#]", location or "", maxsplit=1)[0]
    detail = f"to {quoted(_AUTHORITY_USER.sub('//', target))}" if target else ""
    return KeyFetchError(f"{what}: a redirect (status {status}), which is not followed", detail)


def quoted(value: object) -> str:
    """Quote a text of a foreign document for a log line, shortened and escaped; another type is not shown."""
    if not isinstance(value, str):
        return "no text"
    return json.dumps(value if len(value) <= _QUOTED_CHARS else value[:_QUOTED_CHARS] + "…")


def _cause(error: BaseException) -> tuple[str, str]:
    tls = _tls_error(error)
    if isinstance(tls, ssl.SSLCertVerificationError):
        reason = _CERTIFICATE_REASONS.get(tls.verify_code, "the server's certificate is not accepted")
        return f"TLS: {reason}", quoted(tls.verify_message)
    if tls is not None:
        # OpenSSL's own name of the fault, such as TLSV13_ALERT_CERTIFICATE_REQUIRED; absent where Python raised it.
        name = getattr(tls, "reason", None) or ""
        return f"TLS: {'the server does not speak TLS there' if name in _NO_TLS else 'the handshake failed'}", name
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "the host's name cannot be resolved", ""
        case aiohttp.ClientConnectorError() if error.os_error.errno == errno.ECONNREFUSED:
            return "the connection was refused", ""
        case aiohttp.ClientConnectorError() if isinstance(error.os_error, ConnectionError):
            # So do servers end that refuse a TLS version, or want a certificate of ours.
            return "the connection was closed while it was opened", ""
        case aiohttp.ClientConnectorError():
            number = error.os_error.errno
            return "the host cannot be reached", "" if number is None else errno.errorcode.get(number, str(number))
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | ConnectionError():
            return "the connection was closed before the end of the answer", ""
        case aiohttp.ClientPayloadError():
            return "the answer broke off, or cannot be decoded", ""
        case aiohttp.ClientResponseError():
            return "the answer is not HTTP", ""
        case _:
            return type(error).__name__, ""


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """The error of the `ssl` module behind one of aiohttp's; aiohttp's own are of its classes, without its fields."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, aiohttp.ClientError):
            return cause
        cause = cause.__cause__
    return None
