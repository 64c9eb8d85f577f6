"""Checks of the way itself: name, addresses, TLS, HTTP version, and whether the proxy is at its end."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from proxy.cli.doctor.verdict import Verdict, fail, ok, warn
from proxy.cli.doctor.way import ECHO, NoAnswerError, why
from proxy.protocol.verify_flags import set_verify_flags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.cli.doctor.way import Answer, Way

_CONNECT_S: Final = 5.0
_MAX_ADDRESSES: Final = 8
_EXPIRES_SOON_S: Final = 14 * 86_400
_DAY_S: Final = 86_400
# As the leeway of tokens: beyond it good ones are refused.
FAILING_S: Final = 30.0
DOUBTFUL_S: Final = 5.0


async def check_name(way: Way) -> list[Verdict]:
    """Resolve the host, and connect to each of its addresses."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_CONNECT_S * 2):
            infos = await loop.getaddrinfo(way.host, way.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        return [fail("name", "unknown", f"{way.host} has no address.")]
    addresses = sorted({str(info[4][0]) for info in infos})[:_MAX_ADDRESSES]
    reached = await asyncio.gather(*(_connects(address, way.port) for address in addresses))
    silent = [address for address, is_reached in zip(addresses, reached, strict=True) if not is_reached]
    if not silent:
        return [ok("name", f"{way.host} is {', '.join(addresses)}.")]
    told = f"{way.host} is {', '.join(addresses)}; port {way.port} does not answer at {', '.join(silent)}."
    return [fail("name", "unreachable", told) if silent == addresses else warn("name", "partly", told)]


async def _connects(address: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


async def check_tls(way: Way) -> list[Verdict]:
    """Shake hands as a browser does, and look at the certificate."""
    if not way.is_tls:
        return [warn("tls", "plain", "The address is http://: tokens and prompts travel unencrypted.")]
    context = set_verify_flags(ssl.create_default_context())
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        async with asyncio.timeout(_CONNECT_S * 2):
            _, writer = await asyncio.open_connection(way.host, way.port, ssl=context)
    except ssl.SSLCertVerificationError as exc:
        is_expired = exc.verify_code == 10  # noqa: PLR2004 - X509_V_ERR_CERT_HAS_EXPIRED
        fault = "expired" if is_expired else "untrusted"
        return [fail("tls", fault, f"The certificate is not trusted: {exc.verify_message}")]
    except (OSError, TimeoutError) as exc:
        return [fail("tls", "handshake", f"No TLS on port {way.port}: {why(exc)}.")]
    connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
    certificate, version, protocol = connection.getpeercert(), connection.version(), connection.selected_alpn_protocol()
    writer.transport.abort()
    left_s = ssl.cert_time_to_seconds(str((certificate or {})["notAfter"])) - time.time()
    says = f"{version}; the certificate is good for {left_s / _DAY_S:.0f} days."
    spoken = "HTTP/2" if protocol == "h2" else "HTTP/1.1 only: a browser keeps at most six streams open to it"
    verdict = warn("tls", "expires", says) if left_s < _EXPIRES_SOON_S else ok("tls", says)
    return [verdict, ok("http", f"Browsers are offered {spoken}.")]


async def check_proxy(way: Way) -> tuple[list[Verdict], Answer | None]:
    """Ask without a token: the proxy refuses it in its own words, or takes everybody. No answer where it is not it."""
    try:
        answer = await way.ask("HEAD", f"{ECHO}?events=1")
    except NoAnswerError as exc:
        return [fail("proxy", "unanswered", f"No answer: {exc}.", way.hops)], None
    verdicts: list[Verdict] = []
    if answer.version < (1, 1):
        verdicts.append(warn("http", "old", "The answer is in HTTP/1.0.", way.hops))
    elif not way.is_tls:
        verdicts.append(ok("http", "HTTP/1.1."))
    seen = f", through {', '.join(sorted(way.hops))}" if way.hops else ""
    if not answer.is_ours:
        leads = ", a redirect: try the address to which it leads" if "Location" in answer.headers else ""
        verdicts.append(fail("proxy", "other", f"Something else answers with status {answer.status}{leads}{seen}."))
        return verdicts, None
    unready = await _unready(way)
    if unready is not None:
        verdicts.append(fail("proxy", "unready", f"The proxy is not ready: {unready}."))
    else:
        verdicts.append(ok("proxy", f"forward-sse answers{seen}."))
    return verdicts, answer


async def _unready(way: Way) -> str | None:
    """Why `/readyz` says that it is not; None where it is, or where that path is not passed on."""
    try:
        answer = await way.ask("GET", "/readyz")
        value = json.loads(answer.body)
    except (NoAnswerError, ValueError):
        return None
    reasons = value.get("reasons") if isinstance(value, dict) else None
    if answer.status != 503 or not isinstance(reasons, list):  # noqa: PLR2004 - contract §3
        return None
    return "; ".join(map(str, reasons)) or "it does not say why"


def clock_verdict(offset_s: float, doubt_s: float, whose: str) -> Verdict:
    """Judge a difference of clocks that is known up to `doubt_s`."""
    says = f"{whose} clock is {abs(offset_s):.1f} s {'ahead of' if offset_s > 0 else 'behind'} this machine's."
    least_s = abs(offset_s) - doubt_s
    if least_s > FAILING_S:
        return fail("clock", "differs", says)
    if least_s > DOUBTFUL_S:
        return warn("clock", "differs", says)
    return ok("clock", f"{whose} clock and this machine's agree to {max(abs(offset_s), doubt_s):.1f} s.")


def date_of(headers: Mapping[str, str]) -> float | None:
    """The Unix time of the field `Date`, in the middle of its second."""
    try:
        date = parsedate_to_datetime(headers["Date"])
    except (KeyError, ValueError, TypeError):
        return None
    return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp() + 0.5


def check_date(answer: Answer) -> list[Verdict]:
    """Compare the clocks by the field `Date`, which has whole seconds."""
    date_s = date_of(answer.headers)
    if date_s is None:
        return [warn("clock", "unknown", "The answer has no Date.")]
    took_s = answer.answered_s - answer.asked_s
    asked_at = time.time() - (time.monotonic() - answer.asked_s)
    return [clock_verdict(date_s - (asked_at + took_s / 2), took_s / 2 + 0.5, "The answer's")]
