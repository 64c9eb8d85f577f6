"""Proxies that the environment asks for: not used, so said aloud instead of being silently passed by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# As curl and most clients read them, in either case; `no_proxy` alone asks for none.
_NAMES: Final = frozenset({"https_proxy", "http_proxy", "all_proxy"})


def ignored_proxies(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the variables that ask for an egress proxy, sorted; no value, for it may have a password."""
    return tuple(sorted(name for name, value in environ.items() if name.lower() in _NAMES and value.strip()))
