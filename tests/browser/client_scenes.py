"""The scenes that the clients' pages play in: a proxy of their own, and a vendor that does what the scene is about."""

from __future__ import annotations

import hashlib
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.mock.server import MockVendor
from tests.browser.client_pages import add_page, begin
from tests.browser.recipes import recipe
from tests.browser.stand import PACE_MS, Stand
from tests.conftest import VENDOR_KEY, token
from tests.peers import event, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.browser.stand import Site, Tab
    from tests.conftest import Start
    from tests.peers import Upstream

    OpenPage = Callable[..., Awaitable[Tab]]
    Stage = Callable[..., Awaitable["Scene"]]

_DASHSCOPE = "https://dashscope.aliyuncs.com"
_KEY, _TINY_KEY = "fsk_pages", "fsk_tiny"

_CONFIG = """
listen: 127.0.0.1:0
admin_listen: off
auth:
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}", leeway: 0s}}
  api_keys:
    - {{user: page, sha256: "KEY"}}
    - {{user: page, sha256: "TINY", plan: tiny}}
  envelope_passcode: true
  query_token: true
plans:
  default: {{requests: [1000/10s]}}
  tiny: {{requests: [1/1d]}}
upstreams:
  openai: {{url: "VENDOR", dialect: openai, api_key: {key}, headers: {{CONTROLS}}}}
  tongyi: {{url: "VENDOR", dialect: dashscope, api_key: {key}, headers: {{CONTROLS}}}}
  agent: {{url: "VENDOR", dialect: raw, path: /stream, api_key: {key}, headers: {{CONTROLS}}}}
default_upstream: openai
envelope:
  targets:
    - {{url: "VENDOR/api/v1/*", upstream: tongyi}}
  allow_private: [127.0.0.0/8]
""".replace("KEY", hashlib.sha256(_KEY.encode()).hexdigest()).replace(
    "TINY", hashlib.sha256(_TINY_KEY.encode()).hexdigest()
)

# What the mock is told by the upstream's own fields, so that the recipe needs no word of it.
HELD = {"X-Mock-Events": "1000000"}
TORN = {"X-Mock-Fault": "truncate", "X-Mock-Fault-After": "9"}
ERRING = {"X-Mock-Fault": "error_event", "X-Mock-Fault-After": "9"}
UNWELL = {"X-Mock-Status": "503"}

# What the browser says of a body without its end; sse.js says nothing, and its recipe this.
LOST = ("network error", "The connection was lost.")
CLOSED = "The upstream closed the stream before its end."


@dataclass(frozen=True)
class Client:
    """A recipe, and what is its own: how many requests a stream takes, its words for a refusal."""

    name: str
    requests: int = 1
    is_envelope: bool = False
    # openai puts the status before a message, the others show it as it is.
    prefixes_status: bool = False
    # Those that are told even of a stream that broke inside an event; the others see that the connection is lost.
    is_told: bool = False

    def __str__(self) -> str:
        return self.name

    def token(self, scene: Scene, *, tiny: bool = False) -> str:
        if self.is_envelope:
            return _TINY_KEY if tiny else _KEY
        return scene.over_limit if tiny else scene.token

    def event(self, text: str) -> bytes:
        """An event of the vendor behind this client."""
        if not self.is_envelope:
            return event(text)
        said = {"output": {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "null"}]}}
        return b"id:1\nevent:result\n:HTTP_STATUS/200\ndata:%b\n\n" % json.dumps(said).encode()

    def refusal(self, status: int, message: str) -> str:
        return f"{status} {message}" if self.prefixes_status else message


CLIENTS = [
    Client("fetch"),
    Client("generator"),
    Client("typed", is_told=True),
    Client("eventsource", requests=2, is_told=True),
    Client("fetch-event-source"),
    Client("sse.js"),
    Client("openai-browser", prefixes_status=True),
    Client("envelope", is_envelope=True),
]


@dataclass
class Scene(Stand):
    """The proxy between the page and the vendor at that address."""

    vendor_url: str

    @property
    def origin(self) -> str:
        return self.url("")

    async def use_up(self, client: Client) -> None:
        """Spend the one request of the `tiny` user; the vendor gets it."""
        peer = await self.proxy.client()
        peer.write(request(body={"model": "gpt-4o"}, token=client.token(self, tiny=True)))
        assert (await peer.read_message()).status == 200


@asynccontextmanager
async def stage_of(start: Start, upstream: Upstream, site: Site) -> AsyncIterator[Stage]:
    """Set scenes up."""
    async with MockVendor(VENDOR_KEY, interval_ms=PACE_MS) as vendor:

        async def set_up(controls: dict[str, str] | None = None, *, is_scripted: bool = False) -> Scene:
            """A proxy whose vendor is told these controls, or is the test's own, byte by byte."""
            fields = ", ".join(f'{name}: "{value}"' for name, value in (controls or {}).items())
            vendor_url = upstream.url if is_scripted else vendor.url
            config = _CONFIG.replace("VENDOR", vendor_url).replace("CONTROLS", fields)
            proxy = await start(f'cors: {{origins: ["{site.origin}"]}}\n', config=config)
            return Scene(proxy, vendor, upstream, token(), token("bob", plan="tiny"), vendor_url)

        yield set_up


async def open_client(open_page: OpenPage, site: Site, scene: Scene, client: Client, *, code: str | None = None) -> Tab:
    """Open a page with the client's recipe, or with other code, and an installed clock."""
    if code is None:
        code = recipe(client.name, scene.origin, others={_DASHSCOPE: scene.vendor_url} if client.is_envelope else None)
    tab = await open_page()
    await tab.page.clock.install()
    await tab.page.goto(await add_page(site, client.name, code))
    return tab


async def visit(
    open_page: OpenPage, site: Site, scene: Scene, client: Client, *, token: str | None = None, **options: str
) -> Tab:
    """Open a page with the client, and have it ask."""
    tab = await open_client(open_page, site, scene, client, **options)
    await begin(tab.page, model="gpt-4o", token=client.token(scene) if token is None else token)
    return tab
