"""The playground's page, one document made at start of the files beside this module; and the upstreams it lists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.pages import Page

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.model import Principal, Upstream

_DOCUMENT: Final = Path(__file__).parent / "static" / "playground.html"
# Where the document says whether a token is asked for.
_AUTH: Final = 'data-auth="token"'
_NO_AUTH: Final = 'data-auth="none"'
# An answer's pictures: inside the stream, or where the vendor keeps them.
_IMAGES: Final = "data: https:"


def load_page(*, needs_token: bool) -> Page:
    """Read the files and put them together; blocks, so it is for the start only.

    `needs_token` is all that the page knows of the configuration: whoever asks without a token learns it anyway.

    Raises:
        OSError: a file is missing; the installation is broken.
    """
    return Page.load(_DOCUMENT, images=_IMAGES, replaced={} if needs_token else {_AUTH: _NO_AUTH})


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
