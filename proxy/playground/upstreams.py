"""What one configuration shows in the playground: its page, and the upstreams of a user's plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.model import Principal, Upstream
    from proxy.pages import Page


class Playground:
    """The page of one configuration, and its upstreams as the page lists them."""

    def __init__(self, page: Page, upstreams: Iterable[Upstream], *, default_upstream: str | None) -> None:
        self.page = page
        self._default = default_upstream
        self._upstreams: list[dict[str, Any]] = [
            {
                "name": upstream.name,
                "dialect": upstream.dialect,
                "path": upstream.path,
                "models": upstream.models,
                "needs_key": upstream.key_source == "client",
                "typed_names": dict(upstream.typed_names),
            }
            for upstream in upstreams
        ]

    def upstreams(self, principal: Principal) -> bytes:
        """The upstreams of the user's plan, as JSON: what is asked for where, and in which dialect; no url, no key."""
        allowed = principal.plan.upstreams
        own = [upstream for upstream in self._upstreams if allowed is None or upstream["name"] in allowed]
        is_default_own = any(upstream["name"] == self._default for upstream in own)
        return orjson.dumps(
            {
                "user": principal.user,
                "plan": principal.plan.name,
                "default": self._default if is_default_own else None,
                "upstreams": own,
            }
        )
