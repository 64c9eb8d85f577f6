"""Settings for tests: a service that works, and what a test changes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.settings import Settings
from tests.conftest import SECRET, VENDOR_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

# Where nobody listens: for tests that reach no vendor.
NOWHERE = "http://127.0.0.1:1"


def values(url: str = NOWHERE, *, main: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A whole configuration as it would stand in the file, by the file's keys: one upstream at `url`.

    `main` is what is changed of that upstream, `changes` of the rest.
    """
    upstream = {"url": url, "dialect": "openai", "api_key": VENDOR_KEY, "models": ["gpt-*"]} | dict(main or {})
    base: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "admin_listen": "127.0.0.1:0",
        "auth": {"jwt": [{"issuer": "tests", "audience": "llm", "algorithms": ["HS256"], "secret": SECRET}]},
        "upstreams": {"main": upstream},
        "default_upstream": "main",
    }
    return base | changes


def settings(url: str = NOWHERE, *, main: Mapping[str, Any] | None = None, **changes: Any) -> Settings:
    """The settings of `values`."""
    return Settings.model_validate(values(url, main=main, **changes))
