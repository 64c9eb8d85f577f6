"""How a page of the proxy's own is served: whole, or 304 to a browser that has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from proxy.handlers.errors import as_headers

if TYPE_CHECKING:
    from proxy.pages import Page

# Asked for anew each time, and sent anew only when it has changed: an update of the proxy is an update of the page.
_REVALIDATED: Final = "no-cache"
_WITHOUT_BODY: Final = 304


def serve(request: web.Request, page: Page) -> web.Response:
    """Answer a GET or HEAD with the page."""
    headers = [*as_headers(page.fields), ("Cache-Control", _REVALIDATED)]
    etag = page.etag.decode()
    is_known = any(
        tag.strip().removeprefix("W/") in {etag, "*"}
        for value in request.headers.getall("If-None-Match", ())
        for tag in value.split(",")
    )
    if is_known:
        return web.Response(status=_WITHOUT_BODY, headers=headers)
    return web.Response(body=page.body, headers=headers)
