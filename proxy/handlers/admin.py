"""The operator's listener: metrics, the live streams, usage, the upstreams, health of all workers.

Who may ask for what is decided before, by `operators.admit`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import orjson
from aiohttp import web

from proxy.console import Source
from proxy.dialects import DEFAULT_DIALECT, DIALECTS
from proxy.errors import InvalidRequestError, MethodNotAllowedError, NotFoundError, ProxyError, refusal
from proxy.exchange.body import check_expectation
from proxy.exchange.head import check_head
from proxy.handlers import health, sessions
from proxy.handlers.errors import VERSIONS, as_headers, refuse_version
from proxy.handlers.operators import SESSION_PATH, note, note_more
from proxy.handlers.small_json import read_object
from proxy.handlers.usage import read_members, read_query
from proxy.observability import metrics as names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.handlers.errors import Handler
    from proxy.handlers.service import Problems
    from proxy.ledger import Query

# A live stream, without anything of what it says.
Stream = dict[str, object]
# An upstream's state: name, `on`, `off` or `out`, and its keys without what they are.
UpstreamReport = dict[str, Any]
_STATES: Final = {"on": False, "off": True}
# Those of whom all streams are ended at once.
_WHOSE: Final = ("user", "issuer", "upstream")


class Stopped(NamedTuple):
    """How many streams were ended, and how many workers could not be asked to end theirs."""

    streams: int
    silent: int = 0


class View(Source, Protocol):
    """What an operator may ask; every answer comes soon, whatever the state of other workers."""

    async def metrics(self, *, is_openmetrics: bool = False) -> bytes:
        """The text of a scrape, in the one format or in the other."""
        ...

    async def streams(self) -> list[Stream]:
        """The live streams, without anything of what they say."""
        ...

    async def stop(self, id_: str) -> bool:
        """End the streams of that id, and say whether there were any."""
        ...

    async def stop_all(self, whose: Mapping[str, str]) -> Stopped:
        """End every stream of a `user`, perhaps of one `issuer` only, or of an `upstream`."""
        ...

    async def upstreams(self) -> list[UpstreamReport]:
        """The upstreams and what is known of them."""
        ...

    async def switch(self, name: str, *, is_off: bool) -> bool:
        """Turn an upstream off or on, and say whether there is one of that name."""
        ...

    async def problems(self) -> Problems:
        """What stands against serving a request that arrives now."""
        ...

    async def configuration(self) -> dict[str, Any]:
        """The configuration in force without its secrets, since when, and what the last reload has come to."""
        ...

    async def usage(self, asked: Query) -> tuple[str, bytes]:
        """The moment from which on the node's usage is summed up, and the sums as a JSON list.

        Raises:
            LedgerUnavailableError: the ledger cannot be read right now.
        """
        ...


# What the workers tell of themselves; `web.AppKey` wants a class, and a protocol is one.
VIEW: Final[web.AppKey[View]] = web.AppKey("view")


@web.middleware
async def translate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with the error that a handler raises, in the default dialect; and refuse what clients are refused, too.

    That is another version of HTTP, a target that is no path, and an expectation that nobody here meets.
    """
    if request.version not in VERSIONS:
        return refuse_version(request)
    try:
        check_expectation(request)
        return await handler(request)
    except ProxyError as error:
        return _respond(error)
    except web.HTTPException:
        if request.match_info.http_exception is None:
            raise
        # The router's, as on the clients' listener; what follows on the connection may be meant for a tunnel.
        response = _respond(InvalidRequestError("The request target is malformed."))
        response.force_close()
        return response


def _respond(error: ProxyError) -> web.Response:
    answer = refusal(error, DIALECTS[DEFAULT_DIALECT])
    return web.Response(status=answer.status, body=answer.body, headers=as_headers(answer.fields))


async def metrics(request: web.Request) -> web.Response:
    """The text of a scrape, over all workers; OpenMetrics, which has exemplars, where `Accept` asks for it."""
    is_openmetrics = names.wants_openmetrics(",".join(request.headers.getall("Accept", ())))
    body = await request.app[VIEW].metrics(is_openmetrics=is_openmetrics)
    content_type = names.OPENMETRICS_CONTENT_TYPE if is_openmetrics else names.CONTENT_TYPE
    return web.Response(body=body, headers={"Content-Type": content_type, "Vary": "Accept"})


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
    note(request, id_)
    if not await request.app[VIEW].stop(id_):
        raise NotFoundError("No such stream is running.")
    return web.Response(status=204)


async def stop_all(request: web.Request) -> web.Response:
    """End all streams of a user or of an upstream, in every worker, and tell how many there were.

    Raises:
        InvalidRequestError: the query names neither, or both.
    """
    whose = read_members(check_head(request).query, _WHOSE)
    if set(whose) not in ({"user"}, {"user", "issuer"}, {"upstream"}) or not all(whose.values()):
        raise InvalidRequestError("The query must have user, perhaps with issuer, or upstream.")
    by = "user" if "user" in whose else "upstream"
    note(request, whose[by], by=by, **({"issuer": whose["issuer"]} if "issuer" in whose else {}))
    stopped = await request.app[VIEW].stop_all(whose)
    told = {"stopped": stopped.streams} | ({"silent": stopped.silent} if stopped.silent else {})
    note_more(request, **told)
    return web.Response(body=orjson.dumps(told), content_type="application/json")


async def configuration(request: web.Request) -> web.Response:
    """The configuration in force, without secrets, and the last reload's result; of the worker that answers."""
    body = orjson.dumps(await request.app[VIEW].configuration())
    return web.Response(body=body, content_type="application/json")


async def usage(request: web.Request) -> web.Response:
    """What has been used, of everybody.

    Raises:
        InvalidRequestError: the query asks for what is not there.
        LedgerUnavailableError: the ledger cannot be read right now.
    """
    asked = read_query(check_head(request).query, default="user,model", whose=("user", "issuer"))
    since, rows = await request.app[VIEW].usage(asked)
    body = orjson.dumps({"since": since, "rows": orjson.Fragment(rows)})
    return web.Response(body=body, content_type="application/json")


async def upstreams(request: web.Request) -> web.Response:
    """The upstreams over all workers: on, off or out, and which keys rest."""
    body = orjson.dumps(await request.app[VIEW].upstreams())
    return web.Response(body=body, content_type="application/json")


async def switch(request: web.Request) -> web.Response:
    """Turn an upstream off for new requests, or on, in every worker.

    Raises:
        InvalidRequestError: the body does not say which.
        NotFoundError: there is no such upstream.
    """
    name, view = request.match_info["name"], request.app[VIEW]
    state = (await read_object(request)).get("state")
    is_off = _STATES.get(state) if isinstance(state, str) else None
    if is_off is None:
        raise InvalidRequestError('The body must be {"state": "on"} or {"state": "off"}.')
    note(request, name, state=state)
    if not await view.switch(name, is_off=is_off):
        raise NotFoundError("There is no upstream of this name.")
    report = next((report for report in await view.upstreams() if report["name"] == name), None)
    return web.Response(body=orjson.dumps(report), content_type="application/json")


async def ready(request: web.Request) -> web.Response:
    """200, or 503 with the reasons: of all workers, where the public listener speaks for its own."""
    return health.readiness(await request.app[VIEW].problems())


async def otherwise(request: web.Request) -> web.Response:
    """Refuse what is not served here.

    Raises:
        NotFoundError, MethodNotAllowedError: always one of them.
    """
    path = request.path.removesuffix("/")
    if path in _PATHS:
        raise MethodNotAllowedError("GET, HEAD, DELETE" if path == _STREAMS else "GET, HEAD")
    if path == SESSION_PATH:
        raise MethodNotAllowedError("GET, HEAD, POST, DELETE")
    if path.startswith("/admin/streams/"):
        raise MethodNotAllowedError("DELETE")
    if path.startswith("/admin/upstreams/"):
        raise MethodNotAllowedError("PUT")
    raise NotFoundError


_STREAMS: Final = "/admin/streams"
_PAGES: Final = (
    ("/metrics", metrics),
    (_STREAMS, streams),
    ("/admin/usage", usage),
    ("/admin/config", configuration),
    ("/admin/upstreams", upstreams),
    ("/healthz", health.alive),
    ("/readyz", ready),
)
_PATHS: Final = frozenset(path for path, _ in _PAGES)
# One slash at the end of a path changes nothing.
ROUTES: Final = (
    *(web.get(path + slash, page) for path, page in _PAGES for slash in ("", "/")),
    *(web.delete(_STREAMS + slash, stop_all) for slash in ("", "/")),
    *(web.delete("/admin/streams/{id:[^/]+}" + slash, stop) for slash in ("", "/")),
    *(web.put("/admin/upstreams/{name:[^/]+}" + slash, switch) for slash in ("", "/")),
    *sessions.ROUTES,
    web.route("*", r"/{path:[\s\S]*}", otherwise),
)
