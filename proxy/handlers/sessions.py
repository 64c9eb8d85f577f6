"""`/console/session`: an operator logs in with a token, asks who they are, logs out.

The cookie is for scripts of no page to read (`HttpOnly`) and for no other site's page to send (`SameSite=Strict`). It
is good for any worker until it expires, or until its token is removed; logging out removes it from the browser.
"""

from __future__ import annotations

import contextlib
from typing import Final

import orjson
from aiohttp import hdrs, web

from proxy.errors import ExpiredTokenError, InvalidRequestError, OriginNotAllowedError
from proxy.handlers.operators import ACCESS, COOKIE, OPERATOR, PAGE_FIELD, PAGE_VALUE, SESSION_PATH, session_cookie
from proxy.handlers.small_json import read_object

_JSON: Final = "application/json"


async def log_in(request: web.Request) -> web.Response:
    """Set the cookie for an operator's token: `{"token": "…"}`.

    Raises:
        OriginNotAllowedError: a form may have sent it, which would log somebody in as another operator.
        InvalidRequestError: the body is something else, or no token is needed here.
        InvalidTokenError, TooManyFailuresError: it is nobody's token, or the client has tried too often.
    """
    access = request.app[ACCESS]
    if request.content_type != _JSON and request.headers.get(PAGE_FIELD) != PAGE_VALUE:
        raise OriginNotAllowedError(f"To log in takes Content-Type: {_JSON}.")
    if not access.rules.needs_credential:
        raise InvalidRequestError("No token is needed here.")
    token = (await read_object(request)).get("token")
    if not isinstance(token, str) or not token:
        raise InvalidRequestError('The body must be {"token": "…"}.')
    session = access.open_session(request, token)
    response = web.Response(status=204)
    response.set_cookie(
        COOKIE,
        session,
        max_age=access.operators.session_s,
        path="/",
        httponly=True,
        samesite="Strict",
        secure=_is_encrypted(request) or None,
    )
    return response


async def who(request: web.Request) -> web.Response:
    """Who asks, and what they may do."""
    operator = request[OPERATOR]
    body = orjson.dumps({"name": operator.name, "role": operator.role})
    return web.Response(body=body, content_type=_JSON)


async def log_out(request: web.Request) -> web.Response:
    """Remove the cookie, also where it was not good any more."""
    access = request.app[ACCESS]
    # For the line. Of a session that has ended the cookie is removed, too; of several, the one that a login sets.
    with contextlib.suppress(ExpiredTokenError, InvalidRequestError):
        session = session_cookie(request)
        if session is not None and access.rules.needs_credential:
            request[OPERATOR] = access.operators.resume_session(session)
    response = web.Response(status=204)
    response.del_cookie(COOKIE, path="/", httponly=True, samesite="Strict", secure=_is_encrypted(request) or None)
    return response


def _is_encrypted(request: web.Request) -> bool:
    """Whether the browser speaks TLS, by what a proxy in front says.

    Whoever says so untruly keeps only a cookie of their own from being sent.
    """
    forwarded = request.headers.get(hdrs.X_FORWARDED_PROTO, "")
    return request.secure or forwarded.partition(",")[0].strip().lower() == "https"


ROUTES: Final = tuple(
    route
    for slash in ("", "/")
    for route in (
        web.post(SESSION_PATH + slash, log_in),
        web.get(SESSION_PATH + slash, who),
        web.delete(SESSION_PATH + slash, log_out),
    )
)
