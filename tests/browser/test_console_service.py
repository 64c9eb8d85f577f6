"""The console of the real command, of two workers: an operator logs in, sees, stops; and what the page never has."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import SECRET, VENDOR_KEY, token
from tests.peers import LAST, WAIT_S, chunk, connect, event, request, secret_free
from tests.whole.several import NO_BOUND, ONCE, one_in_each, several
from tests.whole.test_operators_whole import BOTH, LOOK, OPS, acted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from playwright.async_api import Page, Response

    from tests.browser.stand import Tab
    from tests.peers import Upstream
    from tests.whole.several import Several

    OpenPage = Callable[..., Awaitable[Tab]]

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(sys.platform != "linux", reason="the arbiter is run on Linux"),
]

PROMPT, ANSWER = "prompt-canary-5d", "answer-canary-6e"


async def sign_in(page: Page, served: Several, text: str) -> None:
    host, port = served.admin_address
    await page.goto(f"http://{host}:{port}/console")
    await page.fill("#token", text)
    await page.keyboard.press("Enter")
    await page.locator('html[data-state="live"]').wait_for()


async def test_service_stops_a_user(tmp_path: Path, upstream: Upstream, open_page: OpenPage) -> None:
    """Of a user the page stops the streams of both workers; another user's goes on; there is one line of it."""
    async with (
        several(tmp_path, upstream, NO_BOUND + BOTH, workers=2, admin_token=LOOK) as served,
        one_in_each(served, upstream) as held,
        await connect(served.address) as other,
    ):
        body = {"model": "gpt-x", "stream": True}
        other.write(request(body=body, token=token("bob"), fields=(("X-Request-Id", "of-bob"),)))
        vendor, _ = await upstream.take()
        vendor.write(ONCE + chunk(event("one")))
        await other.read_until(event("one"))

        page = (await open_page()).page
        await sign_in(page, served, OPS)
        await page.locator("#rows .row", has_text="alice").nth(1).locator(".user").click()
        await page.click("#details-stop-user")
        await page.get_by_text("Stop all 2 streams of alice?").wait_for()
        await page.click("#confirm-yes")
        await page.get_by_text("2 streams of alice were stopped.").wait_for()
        assert all([await stream.is_cut() for stream in held.values()])
        for stream in held.values():
            await stream.vendor.gone()
        await page.locator("#rows .row", has_text="alice").first.wait_for(state="detached")
        assert await page.locator("#rows .row", has_text="bob").count() == 1
        vendor.write(LAST)
        assert (await other.read_until(LAST)).endswith(LAST)
        served.signal(signal.SIGTERM)
        lines = await served.rest()

    assert sorted(acted(lines), key=repr) == [("ops", "login", None, "ok"), ("ops", "stop_streams", "alice", "ok")]
    endings = [line["ending"] for line in lines if line["event"] == "exchange.settled"]
    assert (endings.count("stopped"), endings[-1]) == (2, "complete")


async def test_service_shows_no_secret(tmp_path: Path, upstream: Upstream, open_page: OpenPage) -> None:
    """What the page is told and what it shows, the configuration included, has no token, key, prompt or answer."""
    credential = token()
    async with (
        several(tmp_path, upstream, NO_BOUND + BOTH, workers=2) as served,
        await connect(served.address) as client,
    ):
        body = {"model": "gpt-x", "stream": True, "messages": [{"role": "user", "content": PROMPT}]}
        client.write(request(body=body, token=credential, fields=(("X-Request-Id", "mine"),)))
        vendor, asked = await upstream.take()
        assert PROMPT.encode() in asked.body
        vendor.write(ONCE + chunk(event(ANSWER)))
        await client.read_until(event(ANSWER))

        tab = await open_page()
        page = tab.page
        told: list[str] = []
        devtools = await page.context.new_cdp_session(page)
        devtools.on("Network.eventSourceMessageReceived", lambda message: told.append(message["data"]))
        await devtools.send("Network.enable")
        answers: list[Response] = []
        # Playwright cannot listen with a builtin.
        page.on("response", lambda answer: answers.append(answer))  # noqa: PLW0108 - as said
        await sign_in(page, served, OPS)
        await page.locator("#rows .row", has_text="alice").locator(".user").click()
        await page.locator("#details[open]").wait_for()
        shown = await page.content()
        await page.keyboard.press("Escape")
        await page.get_by_text("Configuration in force").click()
        await page.locator("#config-text", has_text='"issuer": "tests"').wait_for()
        shown += await page.content() + await page.evaluate("JSON.stringify({...localStorage, ...sessionStorage})")
        async with asyncio.timeout(WAIT_S):
            # The protocol of the browser tells each event; a picture and what has changed since.
            while len(told) < 3:  # noqa: ASYNC110 - as said
                await asyncio.sleep(0.05)
        read = [answer for answer in answers if answer.request.resource_type != "eventsource" and answer.status == 200]
        told += [await answer.text() for answer in read]
        (cookie,) = await page.context.cookies()

    # The test looks at the right things.
    everything = "\n".join(told)
    assert "alice" in shown
    assert "[redacted]" in shown
    assert any(json.loads(one).get("streams") for one in told if one.startswith("{"))
    assert '"last_reload"' in everything
    signature = credential.rpartition(".")[2]
    secrets = (SECRET, VENDOR_KEY, OPS, LOOK, signature, PROMPT, ANSWER, cookie["value"])
    assert secret_free(shown.encode(), *secrets)
    assert secret_free(everything.encode(), *secrets)
    assert tab.errors == ["Failed to load resource: the server responded with a status of 401 (Unauthorized)"]
