"""The plain aiohttp pipe, a program of its own: `python -m benchmarks.peers.pipe PORT UPSTREAM_PORT`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_SESSION = web.AppKey("session", ClientSession)
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "authorization"}


def application(upstream: str) -> web.Application:
    """One handler for every path."""

    async def pipe(request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        headers["Authorization"] = "Bearer vendor-key"
        async with request.app[_SESSION].request(
            request.method, upstream + request.path_qs, headers=headers, data=await request.read()
        ) as answer:
            fields = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
            response = web.StreamResponse(status=answer.status, headers=fields)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    async def session(app: web.Application) -> AsyncIterator[None]:
        connector = TCPConnector(limit=0)
        async with ClientSession(connector=connector, timeout=ClientTimeout(total=None), auto_decompress=False) as made:
            app[_SESSION] = made
            yield

    app = web.Application()
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", pipe)
    return app


if __name__ == "__main__":
    web.run_app(
        application(f"http://127.0.0.1:{sys.argv[2]}"),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop=uvloop.new_event_loop(),
        backlog=4096,
        access_log=None,
        print=None,
        # Without it a client that leaves is noticed only at the next write.
        handler_cancellation=True,
    )
