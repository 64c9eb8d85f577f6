"""What stands around the console: an operator's listener, whose streams a test makes up, and its operators."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from proxy.app import make_admin_app
from proxy.auth.operators import AdminRules, Operators, OperatorToken, Role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.handlers.admin import View

# As `key new --admin` makes them, but for the random part.
OPERATE, VIEW = "fssa_operate-token-canary", "fssa_view-token-canary"


def _token(name: str, text: str, role: Role) -> OperatorToken:
    return OperatorToken(name, hashlib.sha256(text.encode()).digest(), role)


RULES = AdminRules(
    (_token("otto", OPERATE, "operate"), _token("vera", VIEW, "view")), needs_credential=True, checks_host=False
)


def operators() -> Operators:
    """Otto, who may operate, and Vera, who may view."""
    return Operators(RULES, secret=b"s" * 32)


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
