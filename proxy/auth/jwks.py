"""Fetches an issuer's JWK Set: one attempt, bounded in time and size, no redirects.

When to fetch, and what an answer or a failure means for the keys in use, is left to `keysets`.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import ssl
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from proxy.auth.egress_connector import EgressConnector
from proxy.auth.fetch_errors import KeyFetchError, quoted, redirect_error, transport_error
from proxy.auth.keys import KeyRefusedError, decode_json
from proxy.errors import ProxyError
from proxy.model import NO_TLS_FILES, TlsFiles
from proxy.protocol.proxy_variables import Egress  # noqa: TC001 - the dataclass' own
from proxy.protocol.verify_flags import set_verify_flags

_READ_BYTES: Final = 65536
_HTTP_OK: Final = 200
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# What was being fetched, in every reason of a failure.
_KEY_SET: Final = "key set"
_DISCOVERY: Final = "discovery document"


@dataclass(frozen=True, slots=True)
class JwksSource:
    """The URL of an issuer's keys: `url`, or the one in its discovery document (OpenID Connect Discovery §4).

    `allow_http` lets them come unencrypted from other machines too. `tls` are files that replace the system's
    authorities or are shown to the server, `server_name` is the name in its certificate, `egress` the proxy on the way.
    """

    issuer: str
    url: str | None = None
    allow_http: bool = False
    tls: TlsFiles = NO_TLS_FILES
    server_name: str | None = None
    egress: Egress = None

    def __post_init__(self) -> None:
        """Refuse a URL that would never be fetched.

        Raises:
            ValueError: Not https, nor http where that is allowed: the operator's fault.
        """
        self.start_url()

    def start_url(self) -> URL:
        """The first URL to fetch."""
        # OpenID Connect Discovery §4.1: a terminating slash of the issuer goes before the suffix is added.
        text = self.url or self.issuer.removesuffix("/") + "/.well-known/openid-configuration"
        return checked_url(text, allow_http=self.allow_http)


def checked_url(text: str, *, allow_http: bool = False) -> URL:
    """Check a key set's URL: https, or http to this machine or as the operator allows; without credentials.

    Checked and fetched by the same parser, so that the two cannot disagree on the host.

    Raises:
        ValueError: Any other URL.
    """
    url = URL(text)  # raises ValueError by itself
    if not url.host or url.user is not None or url.password is not None:
        raise ValueError("keys are fetched from a URL with a host and without credentials")
    if url.scheme != "https" and not (url.scheme == "http" and (allow_http or _is_loopback(url.host))):
        raise ValueError("keys are fetched by https, or by http from loopback only")
    return url


def open_session(source: JwksSource) -> aiohttp.ClientSession:
    """Create the HTTP session for a source's fetches; the caller closes it.

    Fetches are minutes apart, so connections are not kept. No cookies, no netrc; a proxy only as the source says.
    """
    return aiohttp.ClientSession(
        connector=EgressConnector(source.egress),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "forward-sse"},
        trust_env=False,
    )


async def fetch_jwks(session: aiohttp.ClientSession, source: JwksSource, *, max_bytes: int) -> object:
    """Fetch the issuer's JWK Set document and decode its JSON; the keys are not checked.

    Two requests where the set's place must be discovered first. Does not limit its own time: the caller does, and may
    cancel at any point.

    Raises:
        KeyFetchError: No network, a status other than 200 (a redirect too), too large, not JSON, a discovery
            document that is another issuer's or points elsewhere than to an allowed URL, a file of authorities or
            certificates that cannot be used any more, or an egress proxy that does not connect.
    """
    trust = await _trust(source)
    if source.url is not None:
        return await _fetch_json(session, source.start_url(), _KEY_SET, trust, source.server_name, max_bytes)
    document = await _fetch_json(session, source.start_url(), _DISCOVERY, trust, source.server_name, max_bytes)
    key_set = discovered_url(document, source)
    # The name is that of the issuer's own server.
    server_name = source.server_name if key_set.host == source.start_url().host else None
    return await _fetch_json(session, key_set, _KEY_SET, trust, server_name, max_bytes)


def discovered_url(document: object, source: JwksSource) -> URL:
    """Return the key set's URL from a discovery document. Pure.

    Raises:
        KeyFetchError: The document is another issuer's, or points elsewhere than to an allowed URL.
    """
    if not isinstance(document, dict) or not isinstance(document.get("issuer"), str):
        raise KeyFetchError(f"{_DISCOVERY}: it names no issuer")
    issuer = document["issuer"]
    if issuer != source.issuer:
        # OpenID Connect Discovery §4.3: MUST be exactly the same, or any issuer could speak for another.
        by_slash = ", which differs by a trailing slash" if issuer.rstrip("/") == source.issuer.rstrip("/") else ""
        detail = f"it is of {quoted(issuer)}, the file has {quoted(source.issuer)}"
        raise KeyFetchError(f"{_DISCOVERY}: it names another issuer than the file{by_slash}", detail)
    jwks_uri = document.get("jwks_uri")
    if not isinstance(jwks_uri, str):
        raise KeyFetchError(f"{_DISCOVERY}: it has no jwks_uri")
    try:
        jwks_url = checked_url(jwks_uri, allow_http=source.allow_http)
    except ValueError:
        raise KeyFetchError(f"{_DISCOVERY}: its jwks_uri is not an allowed URL", quoted(jwks_uri)) from None
    if source.start_url().scheme == "https" and jwks_url.scheme != "https":
        # A remote document must not send us to a plain port of this machine, nor take the encryption away.
        raise KeyFetchError(f"{_DISCOVERY}: its jwks_uri is not an https URL", quoted(jwks_uri))
    return jwks_url


@functools.cache
def _public_trust() -> ssl.SSLContext:
    """Return the one context with the system's authorities."""
    return set_verify_flags(ssl.create_default_context())


async def _trust(source: JwksSource) -> ssl.SSLContext:
    """Return the TLS context for the key set's server; its files are read each time, because mounted files are rotated.

    They are read in a thread: a bundle of all public authorities takes tens of milliseconds.
    """
    files = source.tls
    if files == NO_TLS_FILES:
        return await asyncio.to_thread(_public_trust)
    try:
        context = set_verify_flags(await asyncio.to_thread(ssl.create_default_context, cafile=files.ca_file))
    except OSError as error:
        raise KeyFetchError("ca_file cannot be used as a file of authorities", type(error).__name__) from error
    if files.certificate is not None:
        try:
            await asyncio.to_thread(context.load_cert_chain, files.certificate, files.key, password=lambda: b"")
        except OSError as error:
            raise KeyFetchError("client_certificate cannot be used", type(error).__name__) from error
    return context


async def _fetch_json(
    session: aiohttp.ClientSession,
    url: URL,
    what: str,
    trust: ssl.SSLContext,
    server_name: str | None,
    max_bytes: int,
) -> object:
    try:
        async with session.get(url, allow_redirects=False, ssl=trust, server_hostname=server_name) as response:
            if response.status in _REDIRECTS:
                raise redirect_error(what, response.status, response.headers.get("Location"))
            if response.status != _HTTP_OK:
                raise KeyFetchError(f"{what}: status {response.status}")
            body = bytearray()
            # Counted after decompression: a server that compresses unasked can send no bomb.
            async for piece in response.content.iter_chunked(_READ_BYTES):
                body += piece
                if len(body) > max_bytes:
                    raise KeyFetchError(f"{what}: larger than {max_bytes} bytes")
    except (aiohttp.ClientError, OSError) as error:
        raise transport_error(what, error) from error
    except ProxyError as error:
        # The egress proxy's: the message names no host.
        raise KeyFetchError(f"{what}: {error.message}") from error
    try:
        return decode_json(bytes(body))
    except KeyRefusedError:
        kind = "a page of HTML or XML" if body.lstrip().startswith(b"<") else "not JSON"
        raise KeyFetchError(f"{what}: {kind}") from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
