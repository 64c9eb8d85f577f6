"""Finds egress proxies in the environment (`HTTPS_PROXY`), which are not used, to warn about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# In either case, like curl and most clients; `no_proxy` alone sets none.
_NAMES: Final = frozenset({"https_proxy", "http_proxy", "all_proxy"})


def ignored_proxies(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the variables that set an egress proxy, sorted; values may have a password."""
    return tuple(sorted(name for name, value in environ.items() if name.lower() in _NAMES and value.strip()))
