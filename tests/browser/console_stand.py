"""What stands around the console: an operator's listener whose streams a test makes up."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from proxy.app import make_admin_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.auth.operators import Operators
    from proxy.handlers.admin import View


@dataclass
class ConsoleSite:
    """Where a console is."""

    origin: str
    app: web.Application

    @property
    def url(self) -> str:
        return f"{self.origin}/console"


@asynccontextmanager
async def console_at(view: View, known: Operators | None = None) -> AsyncIterator[ConsoleSite]:
    """Serve an operator's listener; without operators no token is needed."""
    app = make_admin_app(view, known)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield ConsoleSite(f"http://127.0.0.1:{runner.addresses[0][1]}", app)
    finally:
        await runner.cleanup()
