"""Every recipe for browsers, in Chromium, on another origin: text as it comes, Stop, refusals, streams that break.

What none of them may do is send again what was paid, so each scene counts what the page sent and what the vendor got.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.mock.reply import DEFAULT_TEXT
from tests.browser.client_pages import check_growth, reach, requests_of, shown
from tests.browser.client_scenes import CLIENTS, CLOSED, ERRING, HELD, LOST, TORN, UNWELL, Client, visit
from tests.peers import STREAM_HEAD, chunk

if TYPE_CHECKING:
    from tests.browser.client_scenes import OpenPage, Stage
    from tests.browser.stand import Site

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.parametrize("client", CLIENTS, ids=str)]

# The ninth event is the eighth piece of text where a role came first.
SHOWN_OF_NINE = "Hello from the mock vendor! These"


async def test_client_text(stage: Stage, open_page: OpenPage, site: Site, client: Client) -> None:
    """The whole text arrives, and is painted piece by piece as the vendor says it."""
    scene = await stage()
    tab = await visit(open_page, site, scene, client)
    await reach(tab.page, "complete")

    assert await shown(tab.page, "text") == DEFAULT_TEXT
    check_growth(await tab.page.evaluate("paints"), DEFAULT_TEXT)
    assert await requests_of(tab, scene.origin) == client.requests
    assert scene.vendor.stats.requests == 1
    assert not tab.errors
    assert (await scene.exchange())["ending"] == "complete"


async def test_client_stop(stage: Stage, open_page: OpenPage, site: Site, client: Client) -> None:
    """Stop cancels the vendor's request; what came stays, and nothing is sent again."""
    scene = await stage(HELD)
    tab = await visit(open_page, site, scene, client)
    await tab.page.locator("#text", has_text="Hello from").wait_for()

    await tab.page.click("#stop")
    await reach(tab.page, "stopped")

    await scene.check_cancelled()
    assert (await shown(tab.page, "text")).startswith("Hello from")
    assert await requests_of(tab, scene.origin) == client.requests
    assert scene.vendor.stats.requests == 1
    assert not tab.errors


async def test_client_bad_token(stage: Stage, open_page: OpenPage, site: Site, client: Client) -> None:
    """A bad token is told in words, once; nothing is tried again, and nothing reaches the vendor."""
    scene = await stage()
    tab = await visit(open_page, site, scene, client, token="somebody-elses")
    await reach(tab.page, "failed")

    assert await shown(tab.page, "message") == client.refusal(401, "The access token is invalid.")
    assert await requests_of(tab, scene.origin) == 1
    assert scene.vendor.stats.requests == 0


async def test_client_over_limit(stage: Stage, open_page: OpenPage, site: Site, client: Client) -> None:
    """A user over the limit is told which, once; nothing is tried again, and nothing reaches the vendor."""
    scene = await stage()
    await scene.use_up(client)
    tab = await visit(open_page, site, scene, client, token=client.token(scene, tiny=True))
    await reach(tab.page, "failed")

    said = await shown(tab.page, "message")
    assert said.startswith(client.refusal(429, "1 request per 1 d used up; try again in 86"))
    assert await requests_of(tab, scene.origin) == client.requests
    assert scene.vendor.stats.requests == 1


async def test_client_vendor_unwell(stage: Stage, open_page: OpenPage, site: Site, client: Client) -> None:
    """A vendor's own refusal is told in its words, and is not tried again: nobody knows whether it cost."""
    scene = await stage(UNWELL)
    tab = await visit(open_page, site, scene, client)
    await reach(tab.page, "failed")

    assert "503" in await shown(tab.page, "message")
    assert await requests_of(tab, scene.origin) == client.requests
    assert scene.vendor.stats.requests == 1


async def test_client_vendor_error(stage: Stage, open_page: OpenPage, site: Site, client: Client) -> None:
    """A vendor's error within the stream is told in its words; what came before it stays."""
    scene = await stage(ERRING)
    tab = await visit(open_page, site, scene, client)
    await reach(tab.page, "failed")

    assert "mock" in await shown(tab.page, "message")
    assert (await shown(tab.page, "text")).startswith(SHOWN_OF_NINE)
    assert await requests_of(tab, scene.origin) == client.requests
    assert scene.vendor.stats.requests == 1


async def test_client_break(stage: Stage, open_page: OpenPage, site: Site, client: Client) -> None:
    """A stream that breaks between two events is told as broken, in our words; nothing is paid again."""
    scene = await stage(TORN)
    tab = await visit(open_page, site, scene, client)
    await reach(tab.page, "failed")

    assert await shown(tab.page, "message") == CLOSED
    assert (await shown(tab.page, "text")).startswith(SHOWN_OF_NINE)
    assert await requests_of(tab, scene.origin) == client.requests
    assert scene.vendor.stats.requests == 1
    assert (await scene.exchange())["ending"] == "upstream_closed"


async def test_client_break_inside_an_event(stage: Stage, open_page: OpenPage, site: Site, client: Client) -> None:
    """A stream that breaks inside an event is told as broken, never as an end; nothing is paid again."""
    scene = await stage(is_scripted=True)
    tab = await visit(open_page, site, scene, client)
    vendor, _ = await scene.scripted.take()
    begun = client.event("Hello from")
    await vendor.send(STREAM_HEAD + chunk(begun))
    await tab.page.locator("#text", has_text="Hello from").wait_for()
    await vendor.send(chunk(begun[: len(begun) // 2]))
    vendor.close()
    await reach(tab.page, "failed")

    assert await shown(tab.page, "message") in ((CLOSED,) if client.is_told else LOST)
    assert await shown(tab.page, "text") == "Hello from"
    assert await requests_of(tab, scene.origin) == client.requests
    assert len(scene.scripted.peers) == 1
    assert (await scene.exchange())["ending"] == "upstream_closed"
