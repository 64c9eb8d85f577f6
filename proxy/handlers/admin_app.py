"""The application of the operator's listener: its routes, and who gets in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from proxy.auth.operators import SECRET_BYTES, AdminRules, Operators
from proxy.console import Feed, load_page
from proxy.exchange.body import expect_later
from proxy.handlers import admin, console
from proxy.handlers import operators as access

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.handlers.admin import View


# What every answer of the operator's listener has.
ADMIN_FIELDS: Final = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


def make_admin_app(
    view: View, operators: Operators | None = None, *, redact: Callable[[bytes], bytes] = bytes
) -> web.Application:
    """Build the application of the operator's listener; `view` tells of all workers.

    `operators` decides who gets in. Without it no credential is asked for, as on loopback: only requests whose `Host`
    is `localhost` or an IP address are answered, and none of another origin's page. `redact` takes configured secrets
    out of a text that is cut for the log.
    """
    app = web.Application(middlewares=[admin.translate, access.admit])
    app[admin.VIEW] = view
    operators = operators or Operators(AdminRules(), secret=os.urandom(SECRET_BYTES))
    app[access.ACCESS] = access.Access(operators, redact=redact)
    app.on_response_prepare.append(_add_admin_fields)
    app[console.PAGE], feed = load_page(), Feed(view)
    app[console.FEED] = feed

    async def end_consoles(_app: web.Application) -> None:
        await feed.close()

    # Before the connections are waited for.
    app.on_shutdown.append(end_consoles)
    # `Expect` is answered once it is known who asks, and what else a client expects is refused by `translate`.
    app.add_routes(
        web.RouteDef(route.method, route.path, route.handler, {**route.kwargs, "expect_handler": expect_later})
        for route in (*console.ROUTES, *admin.ROUTES)
    )
    return app


async def _add_admin_fields(_request: web.Request, response: web.StreamResponse) -> None:
    """Keep what operators see out of caches, and out of other origins' pages, which may embed what they cannot read."""
    # It names the versions of aiohttp and Python.
    response.headers.pop(hdrs.SERVER, None)
    for name, value in ADMIN_FIELDS:
        response.headers.setdefault(name, value)
