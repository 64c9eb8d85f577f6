"""The console in a real browser: what an operator sees, finds and stops, by mouse, by keyboard and on a phone."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from proxy.auth.operators import AdminRules
from proxy.console.feed import MAX_CONSOLES
from proxy.handlers.console import FEED
from proxy.handlers.operators import COOKIE
from tests.browser.console_stand import ConsoleSite, console_at
from tests.browser.test_playground_page import unexpected
from tests.console.known import OPERATE, RULES, VIEW, operators
from tests.console.made_up import MadeUp, made_up
from tests.console.watching import watch
from tests.peers import LAST, STREAM_HEAD, WAIT_S, chunk, event, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from playwright.async_api import Page

    from tests.browser.stand import Stand, Tab
    from tests.peers import Peer

    OpenPage = Callable[..., Awaitable[Tab]]

pytestmark = pytest.mark.asyncio(loop_scope="session")

ROWS = "#rows .row"
HOSTILE = '<img src=x onerror="window.hacked=1">'
UPSTREAMS: list[dict[str, Any]] = [
    {
        "name": name,
        "state": state,
        "running": 3,
        "failures": failures,
        "out_for_s": out_for_s,
        "keys": [
            {"key": "e23abb79", "running": 3, "resting": False, "rests_for_s": 0.0, "refused_with": None},
            {"key": "0b51c9de", "running": 0, "resting": True, "rests_for_s": 20.0, "refused_with": 429},
        ],
    }
    for name, state, failures, out_for_s in (("openai", "on", 0, None), ("anthropic", "out", 5, 18.0))
]


def crowd(count: int) -> list[dict[str, Any]]:
    now_ms = time.time_ns() // 1_000_000
    return [made_up(number, started_ms=now_ms - number * 700) for number in range(count)]


@pytest_asyncio.fixture(loop_scope="session")
async def view() -> MadeUp:
    return MadeUp(crowd(12), upstreams=[dict(report) for report in UPSTREAMS])


@pytest_asyncio.fixture(loop_scope="session")
async def made(view: MadeUp) -> AsyncIterator[ConsoleSite]:
    """A console of streams that are made up."""
    async with console_at(view) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def live(stand: Stand) -> str:
    """The operator's listener of a proxy that runs."""
    host, port = stand.proxy.admin_address
    return f"http://{host}:{port}"


async def enter(open_page: OpenPage, running: ConsoleSite | str, **options: Any) -> Tab:
    """Open the console, and wait until it is live."""
    tab = await open_page(running.url if isinstance(running, ConsoleSite) else f"{running}/console", **options)
    await tab.page.locator('html[data-state="live"]').wait_for()
    return tab


async def begin(stand: Stand, id_: str, user: str | None = None) -> tuple[Peer, Peer]:
    """A stream that runs, whose vendor the test speaks for."""
    client = await stand.proxy.client()
    body = {"model": "gpt-4o", "stream": True, "messages": []}
    fields = (("X-Request-Id", id_), ("X-Upstream", "scripted"))
    client.write(request(body=body, token=user or stand.token, fields=fields))
    vendor, _ = await stand.scripted.take()
    vendor.write(STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + chunk(event("one")))
    await client.read_until(event("one"))
    return client, vendor


def row(page: Page, text: str) -> Any:
    return page.locator(ROWS, has_text=text)


async def users(page: Page) -> list[str]:
    """The users of the rows, from top to bottom."""
    script = """(rows) => rows
        .sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top)
        .map((row) => row.querySelector(".user").textContent)"""
    found: list[str] = await page.locator(ROWS).evaluate_all(script)
    return found


async def fits(page: Page) -> bool:
    """Whether nothing is wider than the page."""
    return bool(await page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def only_own(tab: Tab, origin: str) -> bool:
    return all(url.startswith((origin + "/", "data:image/svg")) for url in tab.requested)


async def test_console_streams_come_and_go(stand: Stand, live: str, open_page: OpenPage) -> None:
    """A stream appears while it runs, its figures grow, and it goes when it ends; nothing is asked of anybody else."""
    tab = await enter(open_page, live)
    page = tab.page
    await page.get_by_text("No stream is running.").first.wait_for()
    client, vendor = await begin(stand, "first")
    shown = row(page, "alice")
    await shown.wait_for()
    assert await shown.locator(".phase").text_content() == "Streaming"
    assert await shown.locator(".model").text_content() == "gpt-4o"
    assert await page.locator("#tile-streams").text_content() == "1"
    before = await shown.locator(".bytes").text_content()
    vendor.write(chunk(event("x" * 5000)))
    await page.wait_for_function(
        "(before) => document.querySelector('#rows .bytes').textContent !== before", arg=before
    )
    vendor.write(LAST)
    await client.read_until(LAST)
    await shown.wait_for(state="detached")
    await page.get_by_text("No stream is running.").first.wait_for()
    assert tab.errors == []
    assert only_own(tab, live)


async def test_console_stops_one(stand: Stand, live: str, open_page: OpenPage) -> None:
    """Stop asks first, naming the stream; then the client sees it cut, the vendor sees its client leave."""
    client, vendor = await begin(stand, "doomed")
    tab = await enter(open_page, live)
    page = tab.page
    await row(page, "alice").get_by_role("button").click()
    words = await page.locator("#confirm-text").text_content() or ""
    assert "alice" in words
    assert "doomed" in words
    assert [exchange.id for exchange, _, _ in stand.proxy.service.exchanges.live()] == ["doomed"]
    await page.click("#confirm-yes")
    assert not (await client.read_to_end()).endswith(LAST)
    await vendor.closed()
    await page.get_by_text("The stream was stopped.").wait_for()
    await row(page, "alice").wait_for(state="detached")
    assert (await stand.exchange())["ending"] == "stopped"
    assert stand.proxy.leases_held == 0
    assert tab.errors == []


async def test_console_stops_all_of_a_user(stand: Stand, live: str, open_page: OpenPage) -> None:
    """The question says how many; the user's end, another user's go on."""
    mine = [await begin(stand, f"mine-{number}") for number in range(3)]
    other, vendor = await begin(stand, "other", stand.over_limit)
    tab = await enter(open_page, live)
    page = tab.page
    await row(page, "alice").first.locator(".user").click()
    await page.click("#details-stop-user")
    await page.get_by_text("Stop all 3 streams of alice?").wait_for()
    await page.click("#confirm-yes")
    for client, _ in mine:
        assert not (await client.read_to_end()).endswith(LAST)
    await page.get_by_text("3 streams of alice were stopped.").wait_for()
    vendor.write(chunk(event("on")) + LAST)
    assert (await other.read_until(LAST)).endswith(LAST)
    assert tab.errors == []


async def test_console_stops_all_of_an_upstream(made: ConsoleSite, view: MadeUp, open_page: OpenPage) -> None:
    """With an upstream chosen all of its streams can be stopped; Esc leaves everything as it is."""
    tab = await enter(open_page, made)
    page = tab.page
    await page.select_option("#upstream-filter", "openai")
    await page.click("#stop-upstream")
    await page.get_by_text("Stop all 5 streams of openai?").wait_for()
    await page.keyboard.press("Escape")
    assert view.whose == []
    await page.click("#stop-upstream")
    await page.click("#confirm-yes")
    await page.get_by_text("5 streams of openai were stopped.").wait_for()
    assert view.whose == [{"upstream": "openai"}]


async def test_console_filters_and_sorts(made: ConsoleSite, open_page: OpenPage) -> None:
    """Text, upstream, phase and user narrow the list; a head sorts it, and once more turns it round."""
    tab = await enter(open_page, made)
    page = tab.page
    await page.fill("#filter", "CHEN")
    await page.wait_for_function("() => document.querySelectorAll('#rows .row').length === 2")
    await page.fill("#filter", "nobody at all")
    await page.get_by_text("No stream matches the filter.").wait_for()
    await page.fill("#filter", "")
    await page.select_option("#phase-filter", "paused")
    await page.wait_for_function("() => document.querySelectorAll('#rows .row').length === 1")
    await page.select_option("#phase-filter", "")
    await page.wait_for_function("() => document.querySelectorAll('#rows .row').length === 12")
    for name, order in (("ascending", sorted), ("descending", lambda values: sorted(values, reverse=True))):
        await page.get_by_role("button", name="User", exact=True).click()
        await page.locator(f'.head .user[aria-sort="{name}"]').wait_for()
        expected = order([one["user"] for one in crowd(12)])
        await page.mouse.move(5, 5)
        async with asyncio.timeout(WAIT_S):
            while await users(page) != expected:  # noqa: ASYNC110 - it is the page that must be asked
                await asyncio.sleep(0.05)
    await row(page, "bob-1").locator(".user").click()
    await page.click("#details-user")
    await page.wait_for_function("() => document.querySelectorAll('#rows .row').length === 1")
    await page.get_by_role("button", name="Only bob-1").click()
    await page.wait_for_function("() => document.querySelectorAll('#rows .row').length === 12")
    assert tab.errors == []


async def test_console_by_keyboard(made: ConsoleSite, view: MadeUp, open_page: OpenPage) -> None:
    """Everything of the list goes without a mouse: filter, choose, details, stop, back; the focus can be seen."""
    tab = await enter(open_page, made)
    page = tab.page
    keyboard = page.keyboard
    focused = "document.activeElement.id"
    await keyboard.press("/")
    assert await page.evaluate(focused) == "filter"
    await keyboard.type("bob")
    await page.wait_for_function("() => document.querySelectorAll('#rows .row').length === 2")
    await keyboard.press("Enter")
    assert await page.evaluate(focused) == "grid"
    assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    await keyboard.press("ArrowDown")
    await keyboard.press("ArrowDown")
    chosen = page.locator('#rows [aria-selected="true"]')
    assert await chosen.count() == 1
    assert await page.locator("#grid").get_attribute("aria-activedescendant") == await chosen.get_attribute("id")
    user = await chosen.locator(".user").text_content()
    await keyboard.press("Enter")
    await page.locator("#details[open]").wait_for()
    assert await page.locator("#details-title").text_content() == user
    await keyboard.press("Escape")
    await page.locator("#details").wait_for(state="hidden")
    assert await page.evaluate(focused) == "grid"
    await keyboard.press("s")
    await page.locator("#confirm[open]").wait_for()
    # The first that has the focus does no harm.
    assert await page.evaluate("document.activeElement.textContent") == "Cancel"
    await keyboard.press("Tab")
    await keyboard.press("Enter")
    await page.get_by_text("The stream was stopped.").wait_for()
    assert view.stopped == [next(one["id"] for one in crowd(12) if one["user"] == user)]
    await keyboard.press("Escape")
    await keyboard.press("/")
    await keyboard.press("Escape")
    await page.wait_for_function("() => document.querySelectorAll('#rows .row').length === 11")
    # Tab goes through the page in its order, and into each control of an upstream.
    await page.focus(".skip")
    order = []
    for _ in range(40):
        await keyboard.press("Tab")
        name = await page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
        if name in order:
            break
        order.append(name)
    wanted = ["theme", "filter", "upstream-filter", "phase-filter", "grid", "Turn off", "Turn on"]
    assert [name for name in order if name in wanted] == wanted


async def test_console_switches_an_upstream(made: ConsoleSite, view: MadeUp, open_page: OpenPage) -> None:
    """An upstream shows its breaker, its keys and what failed, and is turned off and on."""
    tab = await enter(open_page, made)
    page = tab.page
    card = page.locator(".upstream-card", has_text="anthropic")
    text = await card.text_content() or ""
    for part in (
        "Out for 18 s",
        "3 running",
        "5 failures in a row",
        "904 attempts",
        "4 × 429",
        "3 tried again",
        "0b51c9de",
        "(429)",
    ):
        assert part in text
    await page.get_by_role("button", name="Turn openai off").click()
    await page.click("#confirm-yes")
    await page.get_by_text("openai is off.").wait_for()
    await page.locator(".upstream-card", has_text="openai").get_by_text("Off", exact=True).wait_for()
    assert view.reports[0]["state"] == "off"
    await page.get_by_role("button", name="Turn openai on").click()
    await page.click("#confirm-yes")
    await page.locator(".upstream-card", has_text="openai").get_by_text("On", exact=True).wait_for()
    assert tab.errors == []


async def test_console_around_the_list(made: ConsoleSite, view: MadeUp, open_page: OpenPage) -> None:
    """Spend, limits store, workers, problems, counters and configuration are shown as the workers tell them."""
    sums = {"requests": 1, "input_tokens": 1000, "output_tokens": 500}
    view.spent = {
        "since": "2026-01-01T00:00:00Z",
        "users": [{"user": "alice", "issuer": "i", "cost_usd": "12.5", **sums}],
        "models": [{"model": "gpt-4o", "cost_usd": "0.000012", **sums}],
        "problem": None,
    }
    view.limits = {"state": "limping", "problem": "the server does not answer"}
    view.given = {"reasons": [], "limping": ["auth: keys of https://id.example.com are old"]}
    view.silent = frozenset({"7-2"})
    tab = await enter(open_page, made)
    page = tab.page
    await page.locator("#spend-users", has_text="alice$12.50 · 1,500").wait_for()
    await page.locator("#spend-models", has_text="gpt-4o$0.000012").wait_for()
    await page.locator("#limits", has_text="Limping the server does not answer").wait_for()
    assert await page.locator("#workers li").all_text_contents() == ["7-1: 12", "7-2: silent"]
    problems = await page.locator("#problems").text_content() or ""
    assert "are old" in problems
    assert "1 worker did not answer" in problems
    await page.locator("#reload", has_text="Last reload: ok").wait_for()
    await page.get_by_text("Configuration in force").click()
    assert '"api_key": "[redacted]"' in (await page.locator("#config-text").text_content() or "")

    view.growth = (50, 30, 20)
    for name in ("requests", "refusals", "endings"):
        await page.wait_for_function(f"() => Number(document.getElementById('tile-{name}').textContent) > 5")
        # A line, once there are two points.
        line = f"() => /^M[0-9.]+,[0-9.]+L/.test(document.querySelector('#spark-{name} .stroke').getAttribute('d'))"
        await page.wait_for_function(line)
    assert re.fullmatch(r"\d+ × rate_limit_exceeded", await page.locator("#tile-codes").text_content() or "")
    assert re.fullmatch(r"\d+ × timeout_idle", await page.locator("#tile-endings-sum").text_content() or "")
    assert tab.errors == []


async def test_console_without_a_ledger(made: ConsoleSite, open_page: OpenPage) -> None:
    """Without a ledger the page says so, instead of showing zeros."""
    tab = await enter(open_page, made)
    await tab.page.get_by_text("No ledger is configured").wait_for()
    assert not await tab.page.locator("#spend").is_visible()


async def test_console_view_role(view: MadeUp, open_page: OpenPage) -> None:
    """Who may view logs in and sees everything, and nothing to stop; what a script tries is refused by the server."""
    async with console_at(view, operators()) as running:
        tab = await open_page(running.url)
        page = tab.page
        await page.locator("#sign-in").wait_for()
        assert not await page.locator("#console").is_visible()
        await page.fill("#token", "wrong")
        await page.keyboard.press("Enter")
        await page.get_by_text("This is no operator's token.").wait_for()
        await page.fill("#token", VIEW)
        await page.keyboard.press("Enter")
        await page.locator(ROWS).first.wait_for()
        assert "vera" in (await page.locator("#who").text_content() or "")
        assert await page.locator("[data-operates]:visible").count() == 0
        await page.locator(ROWS).first.locator(".user").click()
        await page.locator("#details[open]").wait_for()
        assert await page.locator("#details [data-operates]:visible").count() == 0
        await page.keyboard.press("Escape")
        await page.keyboard.press("s")
        assert await page.locator("dialog[open]").count() == 0
        status = await page.evaluate(
            "fetch('/admin/streams/one', {method: 'DELETE', headers: {'X-Requested-With': 'forward-sse-console'}})"
            ".then((answer) => answer.status)"
        )
        assert (status, view.stopped) == (403, [])
        assert VIEW not in await page.content()
        assert await page.evaluate("document.cookie + JSON.stringify({...localStorage, ...sessionStorage})") == "{}"


async def test_console_signs_in_and_out(view: MadeUp, open_page: OpenPage) -> None:
    """Who may operate sees what can be stopped; signed out, by oneself or from outside, nothing is shown any more."""
    known = operators()
    async with console_at(view, known) as running:
        tab = await open_page(running.url)
        page = tab.page
        for ends in ("button", "session"):
            await page.locator("#sign-in").wait_for()
            await page.fill("#token", OPERATE)
            await page.keyboard.press("Enter")
            await page.locator(f"{ROWS} button:visible").first.wait_for()
            if ends == "button":
                await page.click("#sign-out")
            else:
                # As a reload that removes the token: the stream ends within a second, and the page asks why.
                known.rules = AdminRules(needs_credential=True, checks_host=False)
        await page.locator("#sign-in").wait_for()
        assert not await page.locator("#console").is_visible()
        async with asyncio.timeout(WAIT_S):
            while running.app[FEED].consoles:  # noqa: ASYNC110 - a reader's leaving is announced to nobody
                await asyncio.sleep(0.02)


async def test_console_role_lowered(view: MadeUp, open_page: OpenPage) -> None:
    """A reload that lowers the role leaves the operator signed in, and takes what they could stop from the page."""
    known = operators()
    async with console_at(view, known) as running:
        tab = await open_page(running.url)
        page = tab.page
        await page.fill("#token", OPERATE)
        await page.keyboard.press("Enter")
        await page.locator(f"{ROWS} button:visible").first.wait_for()
        known.rules = replace(RULES, tokens=tuple(replace(one, role="view") for one in RULES.tokens))
        await page.locator("#who", has_text="otto · may view").wait_for()
        await page.locator('html[data-state="live"]').wait_for()
        assert await page.locator(ROWS).count() > 0
        assert await page.locator("[data-operates]:visible").count() == 0


async def test_console_with_another_ones_cookie(view: MadeUp, open_page: OpenPage) -> None:
    """A cookie that another port of the host has set beside the operator's own opens nothing, and the page says why."""
    known = operators()
    async with console_at(view, known) as running:
        tab = await open_page(running.url)
        page = tab.page
        theirs = {"name": COOKIE, "value": known.open_session(VIEW)[1], "domain": "127.0.0.1", "path": "/admin"}
        await page.context.add_cookies([theirs])  # type: ignore[list-item]
        await page.fill("#token", OPERATE)
        await page.keyboard.press("Enter")
        await page.locator("#lost").get_by_text(f"Not connected: There are several cookies {COOKIE}").wait_for()
        assert "otto" in (await page.locator("#who").text_content() or "")
        assert await page.locator(ROWS).count() == 0
        assert view.asked == 0
        # The host's cookies are removed, as the page advises.
        await page.context.clear_cookies()
        await page.locator("#sign-in").wait_for()


async def test_console_comes_back(made: ConsoleSite, open_page: OpenPage) -> None:
    """Cut off, the page says that what it shows is old, and comes back by itself."""
    tab = await enter(open_page, made)
    page = tab.page
    await page.evaluate(
        "new MutationObserver(() => window.states = [...(window.states ?? []), document.documentElement.dataset.state])"
        ".observe(document.documentElement, {attributeFilter: ['data-state']})"
    )
    made.app[FEED].end()
    await page.locator('html[data-state="lost"]').wait_for()
    assert "not of now" in (await page.locator("#lost").text_content() or "")
    await page.locator('html[data-state="live"]').wait_for()
    assert await page.locator("#lost").is_hidden()
    assert await page.evaluate("window.states") == ["lost", "live"]


async def test_console_says_why_it_is_refused(made: ConsoleSite, open_page: OpenPage) -> None:
    """Where as many consoles are open as may be, the page says so, and comes back when there is a place again."""
    where = made.app[FEED]
    host, port = made.origin.removeprefix("http://").split(":")
    async with AsyncExitStack() as stack:
        for _ in range(MAX_CONSOLES):
            await stack.enter_async_context(watch((host, int(port))))
        tab = await open_page(made.url)
        lost = tab.page.locator("#lost")
        await lost.get_by_text("Not connected: Too many consoles are open; close one and try again. What is").wait_for()
        assert where.consoles == MAX_CONSOLES
    await tab.page.locator('html[data-state="live"]').wait_for()
    # Cut off by something else, the page does not repeat it.
    where.end()
    await tab.page.locator('html[data-state="lost"]').wait_for()
    assert (await lost.text_content() or "").startswith("Not connected. What is shown is not of now.")
    await tab.page.locator('html[data-state="live"]').wait_for()


async def test_console_hostile_names(view: MadeUp, made: ConsoleSite, open_page: OpenPage) -> None:
    """Names are text wherever they stand, whatever is in them."""
    view.rows = [made_up(1, user=HOSTILE, model=HOSTILE, id=HOSTILE, issuer=HOSTILE, plan=HOSTILE)]
    view.spent = {
        "since": "2026-01-01T00:00:00Z",
        "users": [
            {"user": HOSTILE, "issuer": "i", "requests": 1, "input_tokens": 1, "output_tokens": 1, "cost_usd": "1"}
        ],
        "models": [],
        "problem": None,
    }
    view.given = {"reasons": [], "limping": [HOSTILE]}
    tab = await enter(open_page, made)
    page = tab.page
    shown = page.locator(ROWS)
    await shown.wait_for()
    assert await shown.locator(".user").text_content() == HOSTILE
    await page.locator("#spend-users", has_text=HOSTILE).wait_for()
    await shown.locator(".user").click()
    assert await page.locator("#details-title").text_content() == HOSTILE
    await page.click("#details-stop")
    assert HOSTILE in (await page.locator("#confirm-text").text_content() or "")
    await page.keyboard.press("Escape")
    await page.locator(ROWS).locator(".user").click()
    await page.click("#details-user")
    await page.get_by_role("button", name="Only").wait_for()
    assert await page.locator("img").count() == 0
    assert await page.evaluate("window.hacked ?? null") is None
    assert unexpected(tab) == []


async def test_console_two_thousand(view: MadeUp, made: ConsoleSite, open_page: OpenPage) -> None:
    """Two thousand streams are few elements, an update touches those that are seen, and any stream can be found."""
    view.rows = crowd(2000)
    tab = await enter(open_page, made, viewport={"width": 1400, "height": 1000})
    page = tab.page
    await page.locator(ROWS).first.wait_for()
    assert await page.locator("#tile-streams").text_content() == "2,000"
    assert "First 500 of 2,000 streams" in (await page.locator("#sums").text_content() or "")
    assert await page.locator("#grid").get_attribute("aria-rowcount") == "501"
    assert await page.evaluate("document.querySelectorAll('*').length") < 1200
    await page.evaluate(
        "window.touched = [];"
        "new MutationObserver((seen) => window.touched.push(new Set(seen.map((one) => one.target)).size))"
        ".observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true})"
    )
    await page.wait_for_function("() => window.touched.length > 4")
    assert max(await page.evaluate("window.touched")) < 500
    # The last of those shown, by the keyboard; then one that is not among them.
    await page.focus("#grid")
    await page.keyboard.press("End")
    await page.locator('#rows [aria-rowindex="501"][aria-selected="true"]').wait_for()
    assert await page.locator(ROWS).count() < 60
    await page.fill("#filter", "bob-3")
    await page.locator("#rows .user", has_text=re.compile("^bob-3$")).wait_for()
    assert tab.errors == []


VIEWPORTS: dict[str, dict[str, Any]] = {
    "wide": {"viewport": {"width": 1400, "height": 900}},
    "between": {"viewport": {"width": 900, "height": 800}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True},
    "narrow": {"viewport": {"width": 340, "height": 740}},
}


@pytest.mark.parametrize("name", VIEWPORTS)
async def test_console_fits(view: MadeUp, made: ConsoleSite, open_page: OpenPage, name: str) -> None:
    """At every width the page itself never scrolls sideways, and a stream is stopped with a finger, too."""
    view.rows = [made_up(number, user="a-user-with-a-very-long-name-" * 5, model="m" * 200) for number in range(30)]
    tab = await enter(open_page, made, **VIEWPORTS[name])
    page = tab.page
    shown = page.locator(ROWS).first
    await shown.wait_for()
    assert await fits(page)
    assert await shown.locator(".phase").is_visible()
    await shown.locator(".user").click()
    await page.click("#details-stop")
    assert await fits(page)
    await page.click("#confirm-yes")
    await page.get_by_text("The stream was stopped.").wait_for()
    assert tab.errors == []


async def test_console_colours(made: ConsoleSite, open_page: OpenPage) -> None:
    """The colours are the system's, until the operator chooses others; the choice outlasts the page."""
    tab = await enter(open_page, made, color_scheme="dark")
    page = tab.page
    script = "getComputedStyle(document.body).backgroundColor"
    dark = await page.evaluate(script)
    await page.click("#theme")
    assert await page.locator("#theme-name").text_content() == "light"
    light = await page.evaluate(script)
    assert (dark, light) == ("rgb(18, 20, 22)", "rgb(246, 245, 242)")
    await page.reload()
    assert await page.evaluate(script) == light
    await page.click("#theme")
    assert await page.evaluate(script) == dark
    await page.emulate_media(color_scheme="light")
    assert await page.evaluate(script) == dark
    await page.click("#theme")
    assert await page.evaluate(script) == light


async def test_console_contrast(made: ConsoleSite, open_page: OpenPage) -> None:
    """Text has a contrast of at least 4.5 against what is behind it (WCAG 2.2 §1.4.3), in light and in dark."""
    for scheme in ("light", "dark"):
        tab = await enter(open_page, made, color_scheme=scheme)
        await tab.page.locator(ROWS).first.wait_for()
        assert await tab.page.evaluate(CONTRAST) == []


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b]
    .map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    for (let at = element; at !== null; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim() !== "");
    if (!own || !element.checkVisibility() || element.closest("script, style, option")) continue;
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) faint.push(`${element.tagName}.${element.className}: ${contrast.toFixed(2)}`);
  }
  return faint;
}"""
