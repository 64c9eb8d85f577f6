"""Pages against the operator's listener: its own may use the session, others may not, be it on the same host."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from proxy.handlers.console import FEED
from proxy.handlers.operators import COOKIE, PAGE_FIELD, PAGE_VALUE
from tests.peers import WAIT_S
from tests.whole.test_admin_whole import begin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.browser.stand import Site, Tab
    from tests.conftest import Running, Start
    from tests.peers import Upstream

    OpenPage = Callable[..., Awaitable[Tab]]

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKEN = "fssa_browser-token-canary"
ADMIN = f'admin: {{tokens: [{{name: ops, sha256: "{hashlib.sha256(TOKEN.encode()).hexdigest()}", role: operate}}]}}\n'

# What a page can try: it returns what it could read, and how it went.
TRY_ALL = """async ([base, fields, stream]) => {
    const seen = [];
    const ask = async (name, path, options) => {
        try {
            const response = await fetch(base + path, { credentials: "include", ...options });
            seen.push([name, response.type === "opaque" ? "opaque" : response.status]);
        } catch {
            seen.push([name, "blocked"]);
        }
    };
    await ask("read", "/admin/streams");
    await ask("read blindly", "/admin/streams", { mode: "no-cors" });
    await ask("stop", "/admin/streams/" + stream, { method: "DELETE" });
    await ask("stop with field", "/admin/streams/" + stream, { method: "DELETE", headers: fields });
    await ask("post blindly", "/console/session", {
        method: "POST", mode: "no-cors", body: '{"token": "wrong"}', headers: { "Content-Type": "text/plain" } });
    await ask("log out", "/console/session", { method: "DELETE", headers: fields });
    for (const withCredentials of [true, false]) {
        seen.push([`events ${withCredentials}`, await new Promise((resolve) => {
            const source = new EventSource(base + "/admin/events", { withCredentials });
            source.onopen = () => { source.close(); resolve("open"); };
            source.onerror = () => { source.close(); resolve("blocked"); };
        })]);
    }
    await ask("read events", "/admin/events");
    await ask("read events without cookie", "/admin/events", { credentials: "omit" });
    await ask("read events blindly", "/admin/events", { mode: "no-cors" });
    seen.push(["image", await new Promise((resolve) => {
        const image = new Image();
        image.onload = () => resolve("loaded");
        image.onerror = () => resolve("blocked");
        image.src = base + "/admin/events?sort=age";
    })]);
    seen.push(["script", await new Promise((resolve) => {
        const script = document.createElement("script");
        script.onload = () => resolve("loaded");
        script.onerror = () => resolve("blocked");
        script.src = base + "/admin/streams";
        document.head.append(script);
    })]);
    return Object.fromEntries(seen);
}"""
# A form is sent by navigating.
FORM = """([base, stream]) => {
    const form = document.createElement("form");
    form.method = "post";
    form.enctype = "text/plain";
    form.action = base + "/console/session";
    const field = document.createElement("input");
    field.name = '{"token": "' + stream + '", "x": "';
    field.value = '"}';
    form.append(field);
    document.body.append(form);
    form.submit();
}"""


# The own page is told events by the same cookie.
OWN_EVENTS = """async () => {
    const asking = new AbortController();
    const response = await fetch("/admin/events", { signal: asking.signal });
    asking.abort();
    return response.status;
}"""


def consoles(proxy: Running) -> int:
    """How many consoles are connected."""
    app = proxy.server._admin_app
    assert app is not None
    return app[FEED].consoles


async def no_console(proxy: Running) -> None:
    """Wait until none is connected."""
    async with asyncio.timeout(WAIT_S):
        while consoles(proxy):  # noqa: ASYNC110 - a reader's leaving is announced to nobody
            await asyncio.sleep(0.02)


async def test_other_origin_with_the_cookie(start: Start, upstream: Upstream, site: Site, open_page: OpenPage) -> None:
    """A page of another port of the same host, to which the cookie is sent, reads, stops and changes nothing."""
    proxy = await start(ADMIN)
    client, vendor = await begin(proxy, upstream)
    base = f"http://127.0.0.1:{proxy.admin_address[1]}"
    tab = await open_page(base + "/healthz")
    page = tab.page
    own: dict[str, Any] = {PAGE_FIELD: PAGE_VALUE}
    logged_in = await page.evaluate(
        """async ([token, fields]) => (await fetch("/console/session", { method: "POST",
            headers: { ...fields, "Content-Type": "application/json" }, body: JSON.stringify({ token }) })).status""",
        [TOKEN, own],
    )
    assert logged_in == 204
    # No script sees the cookie; the own page's requests carry it.
    assert await page.evaluate("document.cookie") == ""
    assert await page.evaluate("async () => (await fetch('/admin/streams')).status") == 200
    assert await page.evaluate(OWN_EVENTS) == 200
    await no_console(proxy)
    (kept,) = await page.context.cookies()
    assert (kept["name"], kept["httpOnly"], kept["sameSite"]) == (COOKIE, True, "Strict")

    await page.goto(site.add("/evil", "<!doctype html><title>evil</title>"))
    seen = await page.evaluate(TRY_ALL, [base, own, "mine-1"])
    await page.evaluate(FORM, [base, TOKEN])
    await page.wait_for_url(base + "/console/session")
    assert "origin_not_allowed" in (await page.text_content("body") or "")

    assert len(seen) == 13
    assert set(seen.values()) == {"blocked"}, seen
    assert consoles(proxy) == 0
    assert len(proxy.service.exchanges.live()) == 1
    # Still logged in, and the own page may do it.
    await page.goto(base + "/healthz")
    own_page = "async (fields) => (await fetch('/admin/streams/mine-1', { method: 'DELETE', headers: fields })).status"
    assert await page.evaluate(own_page, own) == 204
    (line,) = await proxy.settled()
    assert line["ending"] == "stopped"
    acted = [line for line in proxy.lines() if line["event"] == "operator.acted" and line["result"] == "ok"]
    assert [(line["action"], line["operator"]) for line in acted] == [("login", "ops"), ("stop_stream", "ops")]
    for peer in (client, vendor):
        await peer.gone()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
async def test_other_origin_without_credential(
    start: Start, upstream: Upstream, site: Site, open_page: OpenPage, name: str
) -> None:
    """Where no credential is needed, another origin's page reads, stops and changes nothing, either."""
    proxy = await start("")
    client, vendor = await begin(proxy, upstream)
    base = f"http://{name}:{proxy.admin_address[1]}"
    tab = await open_page(site.add("/evil", "<!doctype html><title>evil</title>"))
    seen = await tab.page.evaluate(TRY_ALL, [base, {PAGE_FIELD: PAGE_VALUE}, "mine-1"])
    assert set(seen.values()) == {"blocked"}, seen
    assert consoles(proxy) == 0
    assert len(proxy.service.exchanges.live()) == 1
    for peer in (client, vendor):
        await peer.gone()
