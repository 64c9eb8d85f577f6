"""What stands around a page under test: its own site, its tab, and the proxy with the vendor behind it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from tests.peers import WAIT_S, only

if TYPE_CHECKING:
    from types import TracebackType

    from playwright.async_api import Page

    from proxy.mock.server import MockVendor
    from tests.conftest import Running
    from tests.peers import Upstream

# Between two events of the mock: long enough for a page to paint in between.
PACE_MS = 20


class Site:
    """A static site on an origin of its own; what it serves may be added at any time."""

    def __init__(self) -> None:
        self._pages: dict[str, tuple[str, str]] = {}
        self._runner: web.ServerRunner | None = None
        self.origin = ""

    def add(self, path: str, text: str, content_type: str = "text/html") -> str:
        """Serve a text, and give its address."""
        self._pages[path] = content_type, text
        return self.origin + path

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        found = self._pages.get(request.path)
        if found is None:
            return web.Response(status=404)
        return web.Response(text=found[1], content_type=found[0], charset="utf-8")

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._serve, access_log=None), shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.origin = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()


@dataclass
class Tab:
    """A page in a browser context of its own, and everything that went wrong or was asked for in it."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Remember what the console says, what is thrown, and what is requested."""
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda asked: self.requested.append(asked.url))


@dataclass
class Stand:
    """The proxy with every dialect behind it, and what a page's test asks of both ends."""

    proxy: Running
    vendor: MockVendor
    scripted: Upstream
    token: str
    over_limit: str

    def url(self, path: str) -> str:
        host, port = self.proxy.address
        return f"http://{host}:{port}{path}"

    async def check_cancelled(self) -> None:
        """The vendor saw its client leave, nothing is held, and the log says who left."""
        async with asyncio.timeout(WAIT_S):
            await self.vendor.wait_for(lambda stats: stats.cancelled == 1)
        assert (await self.exchange())["ending"] == "client_closed"
        assert self.proxy.leases_held == 0

    async def exchange(self) -> dict[str, Any]:
        """The line of the only exchange with a vendor."""
        await self.proxy.idle()
        async with asyncio.timeout(WAIT_S):
            # The log's own thread writes to a file; there is no event to wait for.
            while not (lines := [line for line in self.proxy.lines() if is_with_vendor(line)]):  # noqa: ASYNC110 - as said
                await asyncio.sleep(0.005)
        return only(lines, "exchange.settled")


def is_with_vendor(line: dict[str, Any]) -> bool:
    """Whether a log line is of an exchange with a vendor; that which makes a ticket only names one."""
    return bool(line.get("upstream")) and line.get("path") != "/forward-sse/tickets"
