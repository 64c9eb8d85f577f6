"""The bench for pages: the system's Chromium, the proxy and the mock vendor in the test's own loop, a second origin.

A suite beside these takes `stand` for the proxy, `open_page` for a tab that remembers what went wrong in it, and
`site` for pages of another origin than the proxy's, so that CORS is real. `stand.proxy` is the app itself: its log,
its leases, its address.

One Chromium serves the whole session, each tab in a context of its own: starting it takes longer than most tests. Its
driver belongs to one loop, so every test and fixture here runs in the session's: a module says
`pytestmark = pytest.mark.asyncio(loop_scope="session")`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Page, async_playwright

from proxy.mock.server import MockVendor
from tests.conftest import VENDOR_KEY, starter, token
from tests.peers import WAIT_S, Upstream, only

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path
    from types import TracebackType

    from playwright.async_api import Browser

    from proxy.logs import Redactor
    from tests.conftest import Running, Start

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Pages wait for a person or a network; here nothing takes long.
_PAGE_WAIT_MS = WAIT_S * 1000
# Between two events of the mock: long enough for a page to paint in between.
PACE_MS = 20

# `torn`, `erring`, `held`, `long` are the mock's faults and paces; `scripted` is the test's own vendor, byte by byte.
_CONFIG = """
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
playground: true
auth:
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}", leeway: 0s}}
plans:
  default: {{requests: [1000/10s]}}
  tiny: {{requests: [1/1d]}}
upstreams:
  openai: {{url: "VENDOR", dialect: openai, api_key: {key}, models: ["gpt-*"]}}
  tongyi: {{url: "VENDOR", dialect: dashscope, api_key: {key}, models: ["qwen*"]}}
  anthropic: {{url: "VENDOR", dialect: anthropic, api_key: {key}, models: ["claude-*"]}}
  gemini: {{url: "VENDOR", dialect: gemini, api_key: {key}, models: ["gemini-*"]}}
  torn: {{url: "VENDOR", dialect: openai, api_key: {key}, headers: {{X-Mock-Fault: truncate, X-Mock-Fault-After: "9"}}}}
  erring: {{url: "VENDOR", dialect: openai, api_key: {key}, headers: {{X-Mock-Fault: error_event, X-Mock-Fault-After: "9"}}}}
  held: {{url: "VENDOR", dialect: openai, api_key: {key}, headers: {{X-Mock-Events: "1000000"}}}}
  long: {{url: "VENDOR", dialect: openai, api_key: {key}, headers: {{X-Mock-Events: "500", X-Mock-Interval-Ms: "0"}}}}
  badkey: {{url: "VENDOR", dialect: openai, api_key: not-the-vendors}}
  scripted: {{url: "{url}", dialect: openai, api_key: {key}}}
default_upstream: openai
"""  # noqa: E501 - one line an upstream


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
            while not (lines := [line for line in self.proxy.lines() if line.get("upstream")]):  # noqa: ASYNC110 - as said
                await asyncio.sleep(0.005)
        return only(lines, "exchange.settled")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the system's Chromium; without one browser tests are skipped, which under CI is a failure."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        reason = f"no Chromium on the PATH ({', '.join(_NAMES)}): browser tests did not run"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """The browser of all tests."""
    async with async_playwright() as driver:
        running = await driver.chromium.launch(executable_path=chromium)
        yield running
        await running.close()


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(browser: Browser) -> AsyncIterator[Callable[..., Awaitable[Tab]]]:
    """Open a tab in a context of its own; options are those of a context (`viewport`, `color_scheme`, …)."""
    async with AsyncExitStack() as stack:

        async def begin(url: str | None = None, **options: Any) -> Tab:
            context = await browser.new_context(**options)
            stack.push_async_callback(context.close)
            context.set_default_timeout(_PAGE_WAIT_MS)
            tab = Tab(await context.new_page())
            tab.watch()
            if url is not None:
                await tab.page.goto(url)
            return tab

        yield begin


@pytest_asyncio.fixture(loop_scope="session")
async def site() -> AsyncIterator[Site]:
    """A second origin."""
    async with Site() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def upstream() -> AsyncIterator[Upstream]:
    """A scripted vendor."""
    async with Upstream() as vendor:
        yield vendor


@pytest_asyncio.fixture(loop_scope="session")
async def start(tmp_path: Path, log_file: tuple[Path, Redactor], upstream: Upstream) -> AsyncIterator[Start]:
    """Start an app with a configuration."""
    async with starter(tmp_path, log_file, upstream) as begin:
        yield begin


@pytest_asyncio.fixture(loop_scope="session")
async def stand(start: Start, upstream: Upstream, site: Site) -> AsyncIterator[Stand]:
    """The proxy between `site`'s pages, which it lets in, and the mock vendor."""
    async with MockVendor(VENDOR_KEY, interval_ms=PACE_MS) as vendor:
        cors = f'cors: {{origins: ["{site.origin}"]}}\n'
        proxy = await start(cors, config=_CONFIG.replace("VENDOR", vendor.url))
        yield Stand(proxy, vendor, upstream, token(), token("bob", plan="tiny"))
