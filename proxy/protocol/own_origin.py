"""Whether a browser's request comes from a page of this listener's own origin, and whether its host is this machine.

Pure functions of fields' values. They protect an application whose credential the browser adds by itself, or that needs
none because it listens on loopback:

1. `Origin` (RFC 6454 §7) is sent with every unsafe request of a page, and names the page's origin. It is compared with
   `Host` without the scheme, which a proxy that ends TLS changes.
2. `Sec-Fetch-Site` (W3C Fetch Metadata §2.3) is sent to a trustworthy origin: https, or loopback. No page can change
   it.
3. A page whose name resolves to a loopback address (DNS rebinding) is of the same origin as what it asks. Its `Host` is
   a name, where this machine's own users write `localhost` or an address.
"""

from __future__ import annotations

import ipaddress
from typing import Final

_SAME: Final = "same-origin"
# Typed, or a bookmark: no page asks.
_NO_PAGE: Final = "none"


def is_own_page(host: str | None, origins: list[str], sites: list[str], *, is_safe: bool) -> bool:
    """Whether the fields allow that a page of the listener's own sent the request, or no page at all.

    Args:
        host: The value of `Host`.
        origins: The values of `Origin`, none where it is not sent.
        sites: The values of `Sec-Fetch-Site`, likewise.
        is_safe: The method is GET or HEAD, which a person may ask for without a page.
    """
    if any(site != _SAME and not (is_safe and site == _NO_PAGE) for site in sites):
        return False
    own = (host or "").lower()
    return all(origin.lower().partition("://")[2] == own != "" for origin in origins)


def is_this_machine(host: str | None) -> bool:
    """Whether `Host` is `localhost` or an IP address, which no name server can point elsewhere; or is not sent."""
    if host is None:
        # HTTP/1.0, which no browser speaks.
        return True
    name = host.lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
