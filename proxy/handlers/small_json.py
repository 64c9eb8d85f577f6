"""Reads a small JSON object from a request's body, for the operator's endpoints."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import hdrs

from proxy.errors import RequestTimeoutError
from proxy.exchange.body import answer_expectation

if TYPE_CHECKING:
    from aiohttp import web

MAX_BODY_BYTES: Final = 1024
# A body of that size comes with the head.
BODY_S: Final = 10.0


async def read_object(request: web.Request, *, within_s: float = BODY_S) -> dict[str, Any]:
    """Read a body that is a JSON object of at most 1 KiB; empty where it is anything else.

    Raises:
        RequestTimeoutError: it did not come in time.
        InvalidRequestError: the client expects something else than `100 Continue`.
    """
    if hdrs.EXPECT in request.headers:
        await answer_expectation(request)
    body = b""
    try:
        async with asyncio.timeout(within_s):
            while len(body) <= MAX_BODY_BYTES and (piece := await request.content.readany()):
                body += piece
    except TimeoutError:
        raise RequestTimeoutError from None
    if len(body) > MAX_BODY_BYTES:
        return {}
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
