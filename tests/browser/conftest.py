"""The bench for pages: the system's Chromium, the proxy and the mock vendor in the test's own loop, a second origin.

A suite beside these takes `stand` for the proxy, `open_page` for a tab that remembers what went wrong in it, and
`site` for pages of another origin than the proxy's, so that CORS is real. `stand.proxy` is the app itself: its log,
its leases, its address.

One Chromium serves the whole session, each tab in a context of its own: starting it takes longer than most tests. Its
driver belongs to one loop, so every test and fixture here runs in the session's: a module says
`pytestmark = pytest.mark.asyncio(loop_scope="session")`.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from playwright.async_api import async_playwright

from proxy.mock.server import MockVendor
from tests.browser.client_scenes import stage_of
from tests.browser.stand import PACE_MS, Site, Stand, Tab
from tests.conftest import VENDOR_KEY, starter, token
from tests.needs import need
from tests.peers import WAIT_S, Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from playwright.async_api import Browser

    from proxy.observability.logging import Redactor
    from tests.browser.client_scenes import Stage
    from tests.conftest import Start

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Pages wait for a person or a network; here nothing takes long.
_PAGE_WAIT_MS = WAIT_S * 1000

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


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the system's Chromium."""
    return need(*_NAMES)


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


@pytest_asyncio.fixture(loop_scope="session")
async def counting(start: Start, upstream: Upstream, tmp_path: Path) -> AsyncIterator[Stand]:
    """The same with a ledger, a token rate and budgets; and a user whose plan has none of them."""
    limits = "requests: [1000/10s], tokens: [1000000/1m], budgets: [{{usd: 50, every: month}}]"
    config = _CONFIG.replace("default: {{requests: [1000/10s]}}", f"default: {{{{{limits}}}}}")
    config += f'usage: {{{{ledger: "sqlite:///{tmp_path}/ledger.db"}}}}\n'
    async with MockVendor(VENDOR_KEY, interval_ms=PACE_MS) as vendor:
        proxy = await start(config=config.replace("VENDOR", vendor.url))
        yield Stand(proxy, vendor, upstream, token(), token("bob", plan="tiny"))


@pytest_asyncio.fixture(loop_scope="session")
async def stage(start: Start, upstream: Upstream, site: Site) -> AsyncIterator[Stage]:
    """Set scenes up for clients: each a proxy of its own, whose vendor does what the scene is about."""
    async with stage_of(start, upstream, site) as set_up:
        yield set_up
