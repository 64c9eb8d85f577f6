"""Which egress proxy the environment names for a URL: `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, as curl reads them.

Pure. Names in lower case win; an empty variable is none. `http_proxy` is read in lower case only, because a CGI server
puts a request's `Proxy` field into `HTTP_PROXY` (httpoxy, CVE-2016-5385). `NO_PROXY` is `*`, or names and CIDR blocks,
apart by commas or white space: a name stands for itself and what is below it, a leading dot changes nothing, a port
matches nothing.

Departure from curl: hosts that are loopback by their spelling go direct, as in Go's net/http. A mock or a model on this
machine is never what the proxy of a company is for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Final, TypeAlias

from proxy.model import EgressProxy

if TYPE_CHECKING:
    from collections.abc import Mapping

_APART: Final = re.compile(r"[,\s]+")


@dataclass(frozen=True, slots=True)
class NamedProxy:
    """A proxy, and the variable that named it."""

    variable: str
    proxy: EgressProxy


@dataclass(frozen=True, slots=True)
class ProxyVariables:
    """The environment's proxies for URLs of either scheme, and the hosts that go without."""

    http: NamedProxy | None = None
    https: NamedProxy | None = None
    no_proxy: str = ""

    def choose(self, scheme: str, host: str) -> NamedProxy | None:
        """Return the proxy for an origin, or None where it is reached directly."""
        named = self.https if scheme == "https" else self.http
        if named is None or is_local(host) or is_exempt(host, self.no_proxy):
            return None
        return named


# What decides about the proxy on the way: one for all, the environment's by URL, or none.
Egress: TypeAlias = EgressProxy | ProxyVariables | None


def variable_for(scheme: str, environ: Mapping[str, str]) -> str | None:
    """Return the name of the variable that names the proxy for URLs of that scheme, if one does."""
    own = ("https_proxy", "HTTPS_PROXY") if scheme == "https" else ("http_proxy",)
    return next((name for name in (*own, "all_proxy", "ALL_PROXY") if environ.get(name)), None)


def no_proxy_of(environ: Mapping[str, str]) -> str:
    """Return the hosts without a proxy, as the environment has them."""
    return environ.get("no_proxy") or environ.get("NO_PROXY") or ""


def is_local(host: str) -> bool:
    """Whether a host is this machine by its spelling: nothing is looked up."""
    host = host.lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_exempt(host: str, no_proxy: str) -> bool:
    """Whether `NO_PROXY` has a host."""
    if no_proxy.strip() == "*":
        return True
    host = host.lower().rstrip(".")
    entries = [entry for entry in _APART.split(no_proxy.lower()) if entry]
    try:
        address = ip_address(host)
    except ValueError:
        names = (entry.removeprefix(".").rstrip(".") for entry in entries)
        return any(name and (host == name or host.endswith(f".{name}")) for name in names)
    for entry in entries:
        try:
            if address in ip_network(entry.strip("[]"), strict=False):
                return True
        except ValueError:
            continue
    return False
