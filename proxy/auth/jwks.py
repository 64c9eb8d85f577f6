"""Getting an issuer's JWK Set over the network: one attempt, bounded in time and size, no redirects.

When to fetch, and what an answer or a failure means for the keys in use, is left to `keysets`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from proxy.auth.keys import KeyRefusedError, decode_json

_READ_BYTES: Final = 65536
_HTTP_OK: Final = 200


class KeyFetchError(Exception):
    """The key set could not be got; the message says why, without quoting the answer."""


@dataclass(frozen=True, slots=True)
class JwksSource:
    """Where an issuer's keys are: at `url`, or where its discovery document says (OpenID Connect Discovery §4)."""

    issuer: str
    url: str | None = None

    def __post_init__(self) -> None:
        """Refuse a URL that would never be fetched.

        Raises:
            ValueError: Not https, nor http to loopback: the operator's fault.
        """
        self.start_url()

    def start_url(self) -> URL:
        """The first URL to fetch."""
        # OpenID Connect Discovery §4.1: a terminating slash of the issuer goes before the suffix is added.
        return checked_url(self.url or self.issuer.removesuffix("/") + "/.well-known/openid-configuration")


def checked_url(text: str) -> URL:
    """A URL that keys may come from: https, or http to this machine; without credentials.

    Checked and fetched by the same parser, so that the two cannot disagree on the host.

    Raises:
        ValueError: Any other URL.
    """
    url = URL(text)  # raises ValueError by itself
    if not url.host or url.user is not None or url.password is not None:
        raise ValueError("keys are fetched from a URL with a host and without credentials")
    if url.scheme != "https" and not (url.scheme == "http" and _is_loopback(url.host)):
        raise ValueError("keys are fetched by https, or by http from loopback only")
    return url


def open_session() -> aiohttp.ClientSession:
    """A session for key fetches; the caller closes it.

    Fetches are minutes apart, so connections are not kept. No cookies, no proxy or netrc from the environment.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "forward-sse"},
        trust_env=False,
    )


async def fetch_jwks(session: aiohttp.ClientSession, source: JwksSource, *, max_bytes: int) -> object:
    """The issuer's JWK Set document, decoded but not looked into.

    Two requests where the set's place must be discovered first. Does not limit its own time: the caller does, and may
    cancel at any point.

    Raises:
        KeyFetchError: No network, a status other than 200 (a redirect too), too large, not JSON, or a discovery
            document that is another issuer's or points elsewhere than to an allowed URL.
    """
    document = await _fetch_json(session, source.start_url(), max_bytes=max_bytes)
    if source.url is not None:
        return document
    return await _fetch_json(session, discovered_url(document, source), max_bytes=max_bytes)


def discovered_url(document: object, source: JwksSource) -> URL:
    """Where a discovery document says that its issuer's keys are. Pure.

    Raises:
        KeyFetchError: The document is another issuer's, or points elsewhere than to an allowed URL.
    """
    if not isinstance(document, dict) or document.get("issuer") != source.issuer:
        # OpenID Connect Discovery §4.3: MUST be exactly the same, or any issuer could speak for another.
        raise KeyFetchError("the discovery document is not this issuer's")
    jwks_uri = document.get("jwks_uri")
    if not isinstance(jwks_uri, str):
        raise KeyFetchError("the discovery document has no jwks_uri")
    try:
        jwks_url = checked_url(jwks_uri)
    except ValueError:
        raise KeyFetchError("the jwks_uri is not an allowed URL") from None
    if source.start_url().scheme == "https" and jwks_url.scheme != "https":
        # A remote document must not send us to a plain port of this machine.
        raise KeyFetchError("the jwks_uri is not an https URL")
    return jwks_url


async def _fetch_json(session: aiohttp.ClientSession, url: URL, *, max_bytes: int) -> object:
    try:
        async with session.get(url, allow_redirects=False) as response:
            if response.status != _HTTP_OK:
                raise KeyFetchError(f"status {response.status}")
            body = bytearray()
            # Counted after decompression: a server that compresses unasked can send no bomb.
            async for piece in response.content.iter_chunked(_READ_BYTES):
                body += piece
                if len(body) > max_bytes:
                    raise KeyFetchError(f"larger than {max_bytes} bytes")
    except (aiohttp.ClientError, OSError) as error:
        raise KeyFetchError(type(error).__name__) from error
    try:
        return decode_json(bytes(body))
    except KeyRefusedError:
        raise KeyFetchError("not JSON") from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
