"""Builds the ways to upstreams, issuers and targets from settings: proxies, TLS contexts, and what is said of them."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from proxy.model import EgressProxy, TlsFiles, Way
from proxy.protocol.proxy_variables import ProxyVariables
from proxy.settings.ways import tls_files
from proxy.upstream.tls import TlsContexts, make_context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.protocol.proxy_variables import Egress
    from proxy.settings import Settings, UpstreamSettings
    from proxy.settings.envelope import EnvelopeTarget
    from proxy.settings.ways import EgressValue


def way_of(settings: Settings, upstream: UpstreamSettings) -> Way:
    """How an upstream is reached."""
    proxy, _ = proxy_to(settings, upstream.url, upstream.egress_proxy)
    return Way(tls_files(upstream.ca_file, upstream.client_certificate), upstream.server_name, proxy)


def egress_of(settings: Settings, own: EgressValue | None) -> Egress:
    """What decides about the proxy on the way to a URL that is not known yet."""
    value = settings.egress_value(own)
    if value == "none":
        return None
    return settings.proxies if value == "environment" else value


def proxy_to(settings: Settings, url: str, own: EgressValue | None) -> tuple[EgressProxy | None, str]:
    """Return the proxy on the way to a URL, and what names it: a variable, or `egress_proxy`; empty for none."""
    egress, parts = egress_of(settings, own), urlsplit(url)
    if isinstance(egress, ProxyVariables):
        named = egress.choose(parts.scheme, parts.hostname or "")
        return (None, "") if named is None else (named.proxy, named.variable)
    return egress, "" if egress is None else "egress_proxy"


def target_proxy(settings: Settings, target: EnvelopeTarget) -> tuple[EgressProxy | None, str]:
    """The same for an envelope's target: its upstream's own proxy is its own."""
    own = None if target.upstream is None else settings.upstreams[target.upstream].egress_proxy
    return proxy_to(settings, target.url, own)


def ways(settings: Settings) -> Iterator[tuple[str, EgressProxy, str]]:
    """Yield each upstream with a proxy on its way: its name, the proxy, and what names it (a variable, or a key)."""
    for name, upstream in settings.upstreams.items():
        proxy, source = proxy_to(settings, upstream.url, upstream.egress_proxy)
        if proxy is not None:
            yield name, proxy, source


def egress_secrets(settings: Settings) -> Iterator[str]:
    """Yield the proxies' passwords, in every spelling in which one may be sent or repeated."""
    for proxy in _proxies_of(settings):
        if proxy.password:
            pair = f"{proxy.user}:{proxy.password}"
            yield from {proxy.password, quote(proxy.password, safe=""), base64.b64encode(pair.encode()).decode()}


def _proxies_of(settings: Settings) -> Iterator[EgressProxy]:
    """Yield every egress proxy that the file or the environment names."""
    own = [upstream.egress_proxy for upstream in settings.upstreams.values()]
    own += [] if settings.auth is None else [issuer.egress_proxy for issuer in settings.auth.jwt]
    yield from (value for value in (settings.egress_proxy, *own) if isinstance(value, EgressProxy))
    yield from (named.proxy for named in (settings.proxies.http, settings.proxies.https) if named is not None)


def trust(settings: Settings) -> TlsContexts:
    """The TLS contexts of all upstreams, read now: a file that cannot be used is found at once, a new one taken.

    Raises:
        OSError: a file of authorities or certificates cannot be used.
    """
    tls = TlsContexts()
    for name, upstream in settings.upstreams.items():
        if upstream.url.startswith("https:"):
            files = tls_files(upstream.ca_file, upstream.client_certificate)
            try:
                if files.certificate is not None and files.ca_file is not None:
                    # So that the message says which of the two.
                    make_context(TlsFiles(ca_file=files.ca_file))
            except OSError as exc:
                raise OSError(f"upstreams.{name}.ca_file: cannot be used as a file of authorities") from exc
            try:
                tls.get(files)
            except OSError as exc:
                what = "ca_file: cannot be used as a file of authorities"
                if files.certificate is not None:
                    what = "client_certificate: the key cannot be used with the certificate"
                raise OSError(f"upstreams.{name}.{what}") from exc
    return tls
