"""The service that nginx's `auth_request` asks: aiohttp and PyJWT, 204 for a good token, 401 for any other.

A program of its own: `python -m benchmarks.peers.judge PORT`, with the secret in BENCH_JUDGE_SECRET.
"""

from __future__ import annotations

import os
import sys

import jwt
import uvloop
from aiohttp import web


def application(secret: str) -> web.Application:
    """One handler, as one would write it."""

    async def judge(request: web.Request) -> web.Response:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return web.Response(status=401)
        try:
            claims = jwt.decode(
                token,
                secret,
                algorithms=["HS256"],
                audience="llm",
                issuer="bench",
                options={"require": ["exp", "aud", "iss", "sub"]},
            )
        except jwt.InvalidTokenError:
            return web.Response(status=401)
        return web.Response(status=204, headers={"X-User": claims["sub"]})

    app = web.Application()
    app.router.add_get("/", judge)
    # nginx asks with the request's own method.
    app.router.add_post("/", judge)
    return app


if __name__ == "__main__":
    web.run_app(
        application(os.environ["BENCH_JUDGE_SECRET"]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop=uvloop.new_event_loop(),
        access_log=None,
        print=None,
    )
