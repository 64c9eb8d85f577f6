"""The operator's listener: metrics, the live streams, health of all workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson
from aiohttp import web

from proxy import metrics as names
from proxy.dialects import DIALECTS
from proxy.errors import InvalidRequestError, MethodNotAllowedError, NotFoundError, ProxyError, refusal
from proxy.handlers import health
from proxy.handlers.errors import as_headers
from proxy.view import View

if TYPE_CHECKING:
    from proxy.handlers.errors import Handler

# What the workers tell of themselves; `web.AppKey` wants a class, and a protocol is one.
VIEW: Final[web.AppKey[View]] = web.AppKey("view")


@web.middleware
async def translate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with the error that a handler raises, in OpenAI's shape."""
    try:
        return await handler(request)
    except ProxyError as error:
        answer = refusal(error, DIALECTS["openai"])
        return web.Response(status=answer.status, body=answer.body, headers=as_headers(answer.fields))


async def metrics(request: web.Request) -> web.Response:
    """The text of a scrape, over all workers."""
    body = await request.app[VIEW].metrics()
    return web.Response(body=body, headers={"Content-Type": names.CONTENT_TYPE})


async def streams(request: web.Request) -> web.Response:
    """The live streams of all workers, without anything of what they say."""
    body = orjson.dumps({"streams": await request.app[VIEW].streams()})
    return web.Response(body=body, content_type="application/json")


async def stop(request: web.Request) -> web.Response:
    """End the streams of an id, wherever they run.

    Raises:
        NotFoundError: none is running.
    """
    id_ = request.match_info["id"]
    if not id_:
        raise InvalidRequestError("An id is required.")
    if not await request.app[VIEW].stop(id_):
        raise NotFoundError("No such stream is running.")
    return web.Response(status=204)


async def ready(request: web.Request) -> web.Response:
    """200, or 503 with the reasons: of all workers, where the public listener speaks for its own."""
    return health.readiness(await request.app[VIEW].problems())


async def otherwise(request: web.Request) -> web.Response:
    """Refuse what is not served here.

    Raises:
        NotFoundError, MethodNotAllowedError: always one of them.
    """
    if request.path.startswith("/admin/streams/"):
        raise MethodNotAllowedError("DELETE")
    if request.path in {"/metrics", "/admin/streams", "/healthz", "/readyz"}:
        raise MethodNotAllowedError("GET, HEAD")
    raise NotFoundError


ROUTES: Final = (
    web.get("/metrics", metrics),
    web.get("/admin/streams", streams),
    web.delete("/admin/streams/{id:.*}", stop),
    web.get("/healthz", health.alive),
    web.get("/readyz", ready),
    web.route("*", "/{path:.*}", otherwise),
)
