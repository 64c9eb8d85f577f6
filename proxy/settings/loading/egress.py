"""Reads the environment's egress proxies (`HTTPS_PROXY`), once, with the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from proxy.protocol.proxy_variables import (
    NamedProxy,
    ProxyVariables,
    is_exempt,
    is_local,
    no_proxy_of,
    variable_for,
)
from proxy.settings.loading.faults import Fault, SourceLocation
from proxy.settings.scalars import read_text
from proxy.settings.units import InvalidValue
from proxy.settings.ways import read_proxy_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from proxy.settings.server import Settings


def read_variables(settings: Settings, environ: Mapping[str, str]) -> tuple[ProxyVariables, list[Fault]]:
    """Return the environment's proxies, and a fault for each variable that is used and cannot be.

    A variable that nothing in the file would use is left alone: the environment may be meant for other programs.
    """
    proxies: dict[str, NamedProxy | None] = {}
    faults: list[Fault] = []
    no_proxy = no_proxy_of(environ)
    used = set(_used(settings, no_proxy))
    for scheme in ("http", "https"):
        name = variable_for(scheme, environ)
        proxies[scheme] = None
        if name is not None:
            try:
                proxies[scheme] = NamedProxy(name, read_proxy_url(read_text(environ[name].strip())))
            except InvalidValue as wrong:
                if scheme in used:
                    more = f"{wrong.message}; `egress_proxy` in the file can say otherwise (`none`: directly)"
                    faults.append(Fault(SourceLocation(name), "", more))
    return ProxyVariables(proxies["http"], proxies["https"], no_proxy), faults


def _used(settings: Settings, no_proxy: str) -> Iterator[str]:
    """The schemes of the URLs that are reached as the environment says."""
    urls = [up.url for up in settings.upstreams.values() if settings.egress_value(up.egress_proxy) == "environment"]
    if settings.auth is not None:
        urls += [
            issuer.jwks_url or issuer.issuer
            for issuer in settings.auth.jwt
            if issuer.source in {"jwks_url", "discovery"}
            and settings.egress_value(issuer.egress_proxy) == "environment"
        ]
    if settings.envelope is not None and settings.egress_proxy == "environment":
        urls += [target.url for target in settings.envelope.targets if target.allow_unpinned and not target.upstream]
    for url in urls:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if not is_local(host) and not is_exempt(host, no_proxy):
            yield parts.scheme
