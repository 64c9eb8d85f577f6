"""The playground's two answers: its page, to anybody, and what a user's upstreams are, to that user.

The page is no exchange, as health is none: no credential, no limit, no log line, and served while draining, too. The
list of upstreams is one; the pipeline authenticates it, and here it is only worded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.errors import InvalidRequestError
from proxy.phases.accept import accept
from proxy.phases.answer import Settled, write_answer
from proxy.protocol import cors
from proxy.protocol.fields import values
from proxy.protocol.paths import own_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.exchange import Principal, Upstream
    from proxy.phases.accept import Incoming
    from proxy.protocol.cors import CorsPolicy
    from proxy.web.page import Page

_PAGE: Final = b"/playground"
UPSTREAMS: Final = b"/playground/upstreams"
PATHS: Final = frozenset((_PAGE, UPSTREAMS))
# Asked for anew each time, and sent anew only when it has changed: an update of the proxy is an update of the page.
_REVALIDATED: Final = b"no-cache"


class Playground:
    """What one configuration answers below `/playground`."""

    def __init__(
        self, page: Page, upstreams: Iterable[Upstream], *, default_upstream: str | None, policy: CorsPolicy
    ) -> None:
        self._page = page
        self._policy = policy
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

    def serve(self, request: Incoming) -> Settled | None:
        """Answer a request for the page; None for any other, and for what has to be refused on the way of all."""
        if own_path(request.target.partition(b"?")[0]) != _PAGE or request.method not in {"GET", "HEAD"}:
            return None
        try:
            accept(request.method, request.target, request.version, request.fields, request.index)
        except InvalidRequestError:
            return None
        page = self._page
        is_known = any(
            tag.strip().removeprefix(b"W/") in {page.etag, b"*"}
            for value in values(request.fields, b"if-none-match")
            for tag in value.split(b",")
        )
        return write_answer(
            request.client.transport,
            304 if is_known else 200,
            (*page.fields, *self._policy.answer_fields(cors.request_origin(request.index))),
            b"" if is_known else page.body,
            keep_alive=not request.is_last and request.content.is_complete,
            is_head_request=request.method == "HEAD",
            cache_control=_REVALIDATED,
        )

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
