"""OTLP over HTTP: one message to a collector, once, and what came of it.

The exporter sends with it, and the doctor asks with it whether the collector would take what the exporter sends. It
keeps no time and tries nothing twice. https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from proxy.protocol.verify_flags import set_verify_flags

if TYPE_CHECKING:
    import requests
    from urllib3 import ProxyManager

# OTLP §"Retryable Response Codes".
_RETRYABLE: Final = frozenset({429, 502, 503, 504})
_OK: Final = range(200, 300)


class Target(NamedTuple):
    """Where one kind of telemetry goes. `headers` may be secrets; `verify` is a file of authorities, or True."""

    url: str
    headers: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 10.0
    is_gzipped: bool = False
    verify: str | bool = True
    certificate: tuple[str, str] | str | None = None

    def __repr__(self) -> str:
        """Without the headers."""
        return f"Target({self.url!r})"


def encode(target: Target, data: bytes, version: str) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a request that carries the message `data`; `version` is the proxy's."""
    fields = {"Content-Type": "application/x-protobuf", "User-Agent": f"forward-sse/{version}"}
    fields |= dict(target.headers)
    if target.is_gzipped:
        data, fields["Content-Encoding"] = gzip.compress(data, 5), "gzip"
    return data, fields


def new_session() -> requests.Session:
    """A session for one target, which verifies certificates as the proxy does elsewhere, with every Python.

    Not for several: the authorities of all would be trusted by each.

    Raises:
        ImportError: the extra `otel` is not installed.
    """
    import requests  # noqa: PLC0415 - 6 MiB with what it loads, which only those pay who export
    from requests.adapters import HTTPAdapter  # noqa: PLC0415 - as above
    from urllib3.util.ssl_ import create_urllib3_context  # noqa: PLC0415 - as above

    context = set_verify_flags(create_urllib3_context())

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **options: Any) -> None:
            super().init_poolmanager(*args, **options, ssl_context=context)

        def proxy_manager_for(self, proxy: str, **options: Any) -> ProxyManager:
            manager: ProxyManager = super().proxy_manager_for(proxy, **options, ssl_context=context)
            return manager

    session = requests.Session()
    session.mount("https://", Adapter())
    return session


def post(
    session: requests.Session, target: Target, body: bytes, fields: dict[str, str], timeout_s: float
) -> tuple[str, float | None]:
    """Send it once. What went wrong, empty for nothing; and after how long to try again: None for never, 0 soon.

    Blocks for up to `timeout_s` to connect, and as long again for each silence of the collector.
    """
    import requests  # noqa: PLC0415 - as in `new_session`

    try:
        answer = session.post(
            target.url,
            data=body,
            headers=fields,
            timeout=timeout_s,
            allow_redirects=False,
            verify=target.verify,
            cert=target.certificate,
        )
    except requests.Timeout:
        return "timeout", 0.0
    except requests.exceptions.SSLError:
        return "tls", None
    except requests.ConnectionError:
        return "unreachable", 0.0
    except (requests.RequestException, OSError, ValueError):
        # An address, a proxy or a file that cannot be used. Their texts may hold a credential.
        return "not_sent", None
    if answer.status_code in _OK:
        return "", None
    if answer.status_code not in _RETRYABLE:
        return f"status {answer.status_code}", None
    after = answer.headers.get("Retry-After", "")
    return f"status {answer.status_code}", float(after) if after.isdigit() else 0.0


def post_nothing(target: Target, version: str) -> str:
    """Send a message without spans or metrics, as the exporter sends them; what went wrong, empty for nothing.

    A message without a field is no bytes at all in protobuf, for traces and for metrics.

    Raises:
        ImportError: the extra `otel` is not installed.
    """
    from proxy.observability import otlp  # noqa: F401, PLC0415 - without its libraries the exporter sends nothing

    with new_session() as session:
        problem, _ = post(session, target, *encode(target, b"", version), target.timeout_s)
    return problem
