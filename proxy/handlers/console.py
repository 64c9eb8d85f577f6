"""The console: its page, and the event stream of what it shows."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import web

from proxy.console import Choice, Feed
from proxy.console.choice import PHASES, SORTS
from proxy.errors import InvalidRequestError, MethodNotAllowedError
from proxy.handlers.operators import OPERATOR
from proxy.handlers.pages import serve
from proxy.pages import Page
from proxy.protocol.paths import query_members

if TYPE_CHECKING:
    from proxy.console.feed import Console


FEED: Final = web.AppKey("feed", Feed)
PAGE: Final = web.AppKey("page", Page)
_FIELDS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}
# A browser's own reconnecting, where the page does not.
_BEGIN: Final = b"retry: 2000\n\n"
# What a query may have, and of how many characters: all choices of a worker are one question to each of the others.
_MEMBERS: Final = {"filter": 128, "user": 256, "issuer": 256, "upstream": 64, "phase": 16, "sort": 16, "order": 4}
_ORDERS: Final = ("asc", "desc")


async def page(request: web.Request) -> web.Response:
    """The page, or 304 where the browser has it."""
    return serve(request, request.app[PAGE])


async def events(request: web.Request) -> web.StreamResponse:
    """Stream what a console shows: a `snapshot`, then a `delta` about once a second.

    Ends when the reader leaves or does not read, when its credential is no longer valid, and when the worker drains.

    Raises:
        InvalidRequestError: the query asks for what is not there.
        TooManyConsolesError: as many are connected as may be.
        DrainingError: the worker ends.
    """
    choice = read_choice(request)
    with request.app[FEED].open(choice) as console:
        response = web.StreamResponse(headers=_FIELDS)
        try:
            await response.prepare(request)
            await response.write(_BEGIN)
            await _tell(request, response, console)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            # The reader has left.
            pass
        return response


async def _tell(request: web.Request, response: web.StreamResponse, console: Console) -> None:
    operator = request[OPERATOR]
    while (told := await console.next()) is not None:
        if not operator.is_valid():
            return
        async with asyncio.timeout(request.app[FEED].write_s):
            await response.write(told)


def read_choice(request: web.Request) -> Choice:
    """Read which streams are wanted: `filter`, `user`, `issuer`, `upstream`, `phase`, `sort`, `order`.

    Raises:
        InvalidRequestError: another member, one twice, or a value that there is not.
    """
    members: dict[str, str] = {}
    for raw_name, raw_value in query_members(request.rel_url.raw_query_string.encode()):
        name, value = raw_name.decode("utf-8", "replace"), raw_value.decode("utf-8", "replace")
        if name not in _MEMBERS:
            raise InvalidRequestError(f"The query may have the members {', '.join(_MEMBERS)}.")
        if name in members:
            raise InvalidRequestError(f"The query has the member {name} twice.")
        if len(value) > _MEMBERS[name] or not value.isprintable():
            raise InvalidRequestError(f"{name} may have {_MEMBERS[name]} characters that can be printed.")
        members[name] = value
    for name, known in (("phase", PHASES), ("sort", tuple(SORTS)), ("order", _ORDERS)):
        if name in members and members[name] not in known:
            raise InvalidRequestError(f"{name} must be one of {', '.join(known)}.")
    return Choice(
        members.get("filter", ""),
        members.get("user"),
        members.get("issuer"),
        members.get("upstream"),
        members.get("phase"),
        members.get("sort", "age"),
        members.get("order", "desc"),
    )


async def otherwise(_request: web.Request) -> web.Response:
    """Refuse other methods.

    Raises:
        MethodNotAllowedError: always.
    """
    raise MethodNotAllowedError("GET")


_PATHS: Final = (("/console", page), ("/admin/events", events))
ROUTES: Final = tuple(
    route
    for path, handler in _PATHS
    for slash in ("", "/")
    for route in (
        web.get(path + slash, handler, allow_head=handler is page),
        web.route("*", path + slash, otherwise),
    )
)
