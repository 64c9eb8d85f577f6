"""What stands around the console: an operator's listener with a proxy behind it, or with streams that are made up."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from proxy.app import make_admin_app
from proxy.handlers.console import OPERATOR, Operator
from proxy.model import Ending

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.handlers import Service
    from proxy.handlers.admin import View
    from proxy.handlers.errors import Handler

# The stand-in of the operators' credentials: to be deleted with `StandIn` once the listener has its own.
TOKENS = {"operate-token": ("otto", "operate"), "view-token": ("vera", "view")}
_COOKIE = "stand-in-session"


@dataclass
class StandIn:
    """Routes of the operator's listener that are made elsewhere: sessions, many stops, the configuration."""

    service: Service | None
    needs_token: bool
    asked: list[tuple[str, str]] = field(default_factory=list)
    sessions: dict[str, tuple[str, str]] = field(default_factory=dict)

    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method not in {"GET", "HEAD"}:
            self.asked.append((request.method, request.path_qs))
            if request.headers.get("X-Requested-With") != "forward-sse-console":
                return _refused(403, "not the console")
        who = self.sessions.get(request.cookies.get(_COOKIE, "")) if self.needs_token else (None, "operate")
        if request.path == "/console/session":
            return await self._session(request, who)
        if request.path == "/console":
            return await handler(request)
        if who is None:
            return _refused(401, "A token is needed.")
        if request.method not in {"GET", "HEAD"} and who[1] != "operate":
            return _refused(403, "This token may not operate.")
        if request.path == "/admin/config":
            return web.json_response(
                {
                    "config": {"listen": "127.0.0.1:8080", "upstreams": {"main": {"api_key": "[redacted]"}}},
                    "loaded_at": "2026-11-27T05:00:00Z",
                    "last_reload": {"at": "2026-11-27T05:30:00Z", "result": "ok", "needs_restart": [], "faults": []},
                }
            )
        if request.path == "/admin/streams" and request.method == "DELETE":
            return web.json_response({"stopped": self._stop_many(request)})
        request[OPERATOR] = _Operator(self, request.cookies.get(_COOKIE, ""))
        return await handler(request)

    async def _session(self, request: web.Request, who: tuple[str | None, str] | None) -> web.Response:
        if request.method == "POST":
            known = TOKENS.get((await request.json())["token"])
            if known is None:
                return _refused(401, "This token is not known.")
            id_ = secrets.token_hex(8)
            self.sessions[id_] = known
            response = web.Response(status=204)
            response.set_cookie(_COOKIE, id_, httponly=True, samesite="Strict")
            return response
        if request.method == "DELETE":
            self.sessions.pop(request.cookies.get(_COOKIE, ""), None)
            return web.Response(status=204)
        if who is None:
            return _refused(401, "A token is needed.")
        return web.json_response({"name": who[0], "role": who[1]})

    def _stop_many(self, request: web.Request) -> int:
        if self.service is None:
            return 0
        stopped = 0
        for exchange, _, _ in self.service.exchanges.live():
            principal = exchange.principal
            whose = (request.query.get("issuer"), request.query.get("user"))
            is_user = principal is not None and (principal.issuer, principal.user) == whose
            if is_user or exchange.upstream == request.query.get("upstream"):
                exchange.interrupt(Ending.STOPPED)
                stopped += 1
        return stopped


@dataclass
class _Operator(Operator):
    stand: StandIn
    session: str

    def is_valid(self) -> bool:
        return not self.stand.needs_token or self.session in self.stand.sessions


def _refused(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"code": "stand_in", "message": message}}, status=status)


@asynccontextmanager
async def console_at(
    view: View, *, service: Service | None = None, needs_token: bool = False
) -> AsyncIterator[ConsoleSite]:
    """Serve an operator's listener."""
    stand_in = StandIn(service, needs_token)
    app = make_admin_app(view)

    @web.middleware
    async def stand(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await stand_in.handle(request, handler)

    app.middlewares.append(stand)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield ConsoleSite(f"http://127.0.0.1:{runner.addresses[0][1]}", stand_in, app)
    finally:
        await runner.cleanup()


@dataclass
class ConsoleSite:
    """Where the console is."""

    origin: str
    stand_in: StandIn
    app: web.Application

    @property
    def url(self) -> str:
        return f"{self.origin}/console"
