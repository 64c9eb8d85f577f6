"""The playground in a real browser: what a person sees, stops, is told, and can reach."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from proxy.mock.reply import DEFAULT_TEXT, THOUGHT_TEXT
from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, WAIT_S, chunk, event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from playwright.async_api import Page

    from tests.browser.stand import Stand, Tab

    OpenPage = Callable[..., Awaitable[Tab]]

pytestmark = pytest.mark.asyncio(loop_scope="session")

# What a browser says by itself of an answer that is not 2xx, or breaks off; everything else is a fault of the page.
EXPECTED = ("Failed to load resource",)


async def enter(open_page: OpenPage, stand: Stand, *, given: str | None = None, **options: Any) -> Tab:
    """Open the playground by the link that the demo prints, and wait until it is ready."""
    tab = await open_page(stand.url(f"/playground#token={given or stand.token}"), **options)
    await tab.page.locator("#send:enabled").wait_for()
    return tab


async def send(page: Page, upstream: str, *, way: str | None = None, model: str | None = None) -> None:
    """Choose, and send by the keyboard."""
    await page.select_option("#upstream", upstream)
    if way is not None:
        await page.select_option("#way", way)
    if model is not None:
        await page.fill("#model", model)
    if await page.locator("#think").is_visible():
        await page.check("#think")
    await page.focus("#prompt")
    await page.keyboard.press("Control+Enter")


async def reach(page: Page, state: str) -> None:
    """Wait until the answer is in that state."""
    await page.locator(f'#answer[data-state="{state}"]').wait_for()


async def text_of(page: Page, id_: str) -> str:
    return await page.locator(f"#{id_}").text_content() or ""


def unexpected(tab: Tab) -> list[str]:
    return [error for error in tab.errors if not error.startswith(EXPECTED)]


WAYS = [
    ("openai", "chat", "gpt-image-1", False, True),
    ("openai", "responses", "gpt-image-1", True, True),
    ("tongyi", "text", "qwen-plus", True, False),
    ("tongyi", "multimodal", "qwen-image", True, True),
    ("anthropic", None, "claude-x", True, False),
    ("gemini", None, "gemini-image", True, True),
]


@pytest.mark.parametrize(("chosen", "way", "model", "thinks", "draws"), WAYS)
async def test_page_shows_an_answer(
    stand: Stand, open_page: OpenPage, chosen: str, way: str | None, model: str, thinks: bool, draws: bool
) -> None:
    """Every vendor's answer is typed out as it arrives, thinking and pictures apart, with its numbers."""
    tab = await enter(open_page, stand)
    page = tab.page
    await page.evaluate(
        """() => {
            window.paints = new Set();
            const text = document.getElementById("text");
            new MutationObserver(() => window.paints.add(text.textContent)).observe(
                text, { characterData: true, subtree: true, childList: true });
        }"""
    )

    await send(page, chosen, way=way, model=model)
    await reach(page, "complete")

    assert await text_of(page, "text") == DEFAULT_TEXT
    assert await page.evaluate("[...window.paints].filter((text) => text !== '').length") >= 3
    assert await text_of(page, "thoughts") == (THOUGHT_TEXT if thinks else "")
    assert await page.locator("#thinking").is_visible() == thinks
    assert await page.locator("#images img").count() == int(draws)
    if draws:
        await page.locator("#images figcaption", has_text=re.compile("1 . 1")).wait_for()
    for id_ in ("first-byte", "time"):
        assert (await text_of(page, id_)).endswith(("ms", "s"))
    assert float((await text_of(page, "pace")).replace(",", "")) > 0
    told = await text_of(page, "tokens")
    assert told == ("4 in · 26 out" if chosen == "gemini" else f"4 in · {29 if thinks else 26} out")
    assert int(await text_of(page, "count")) == await page.locator("#raw li:not(.raw-comment)").count() > 26
    assert "999 of 1,000 requests per 10 s" in await text_of(page, "limits")
    assert "complete" in await text_of(page, "announcement")
    assert not tab.errors
    assert (await stand.exchange())["ending"] == "complete"


@pytest.mark.parametrize("by", ["key", "button"])
async def test_page_stop(stand: Stand, open_page: OpenPage, by: str) -> None:
    """Stopping cancels the vendor's request; what arrived stays, and the page says that it was stopped."""
    tab = await enter(open_page, stand)
    page = tab.page
    await send(page, "held")
    await page.locator("#text", has_text="Hello from").wait_for()

    if by == "key":
        await page.keyboard.press("Escape")
    else:
        await page.click("#stop")
    await reach(page, "stopped")

    await stand.check_cancelled()
    assert (await text_of(page, "text")).startswith("Hello from")
    assert "Stopped by you after" in await text_of(page, "notice-title")
    assert await page.locator("#send").is_visible()
    assert not tab.errors


async def test_page_closed(stand: Stand, open_page: OpenPage) -> None:
    """A tab that is closed while it streams costs nothing more."""
    tab = await enter(open_page, stand)
    await send(tab.page, "held")
    await tab.page.locator("#text", has_text="Hello from").wait_for()

    await tab.page.close()

    await stand.check_cancelled()


@pytest.mark.parametrize(("chosen", "says"), [("torn", "broke off"), ("erring", "reported an error")])
async def test_page_cut(stand: Stand, open_page: OpenPage, chosen: str, says: str) -> None:
    """Of a stream that breaks half way what arrived stays, marked as cut off; nothing is sent again by itself."""
    tab = await enter(open_page, stand)
    page = tab.page

    await send(page, chosen)
    await reach(page, "cut")

    assert "Hello from the mock" in await text_of(page, "text")
    assert await page.locator("#cut").is_visible()
    assert says in await text_of(page, "notice-title")
    assert await text_of(page, "notice-quote") != ""
    assert await text_of(page, "notice-action") == "Send again"
    assert stand.vendor.stats.requests == 1
    assert unexpected(tab) == []
    line = await stand.exchange()
    assert line["ending"] == ("upstream_closed" if chosen == "torn" else "complete")


async def test_page_end_without_mark(stand: Stand, open_page: OpenPage) -> None:
    """A clean end that the vendor did not announce is not called complete."""
    tab = await enter(open_page, stand)
    await send(tab.page, "scripted", model="gpt-x")
    vendor, _ = await stand.scripted.take()
    vendor.write(STREAM_HEAD + chunk(event("half of it")) + LAST)

    await reach(tab.page, "cut")

    assert await text_of(tab.page, "state") == "Ended early"
    assert await text_of(tab.page, "text") == "half of it"


async def test_page_refused_by_limits(stand: Stand, open_page: OpenPage) -> None:
    """Over the limit the page says how long to wait, counts down, and sends nothing meanwhile."""
    tab = await enter(open_page, stand, given=stand.over_limit)
    page = tab.page
    await send(page, "openai")
    await reach(page, "complete")

    await page.keyboard.press("Control+Enter")
    await reach(page, "refused")

    assert "used up your requests" in await text_of(page, "notice-title")
    assert (await text_of(page, "notice-quote")).startswith("1 request per 1 d used up; try again in 86")
    assert (await text_of(page, "notice-action")).startswith("Send again in 24 h")
    assert await page.locator("#notice-action").is_disabled()
    assert "0 of 1 requests per day" in await text_of(page, "limits")
    assert stand.vendor.stats.requests == 1
    assert unexpected(tab) == []


async def test_page_countdown(stand: Stand, open_page: OpenPage) -> None:
    """A vendor's own 429 is told apart; its wait runs down to a button that sends again when it is pressed."""
    tab = await open_page()
    page = tab.page
    await page.clock.install()
    await page.goto(stand.url(f"/playground#token={stand.token}"))
    await page.locator("#send:enabled").wait_for()
    await send(page, "scripted", model="gpt-x")
    vendor, _ = await stand.scripted.take()
    body = b'{"error":{"message":"Slow down."}}'
    fields = b"Content-Type: application/json\r\nRetry-After: 30\r\nContent-Length: %d\r\n\r\n" % len(body)
    vendor.write(b"HTTP/1.1 429 Too Many Requests\r\n" + fields + body)
    await reach(page, "refused")

    assert "vendor is limiting" in await text_of(page, "notice-title")
    assert await text_of(page, "notice-quote") == "Slow down."
    button = page.locator("#notice-action")
    assert await button.is_disabled()
    await page.clock.run_for(20_000)
    assert (await text_of(page, "notice-action")) in {"Send again in 10 s", "Send again in 9 s"}
    await page.clock.run_for(11_000)
    assert await text_of(page, "notice-action") == "Send again"
    assert "can send again" in await text_of(page, "announcement")

    await button.click()
    await vendor.read_message()
    vendor.write(STREAM_HEAD + chunk(event("at last") + b"data: [DONE]\n\n") + LAST)
    await reach(page, "complete")
    assert await text_of(page, "text") == "at last"


async def test_page_refused_by_vendors_key(stand: Stand, open_page: OpenPage) -> None:
    """A vendor that refuses the proxy's key is not blamed on the user's token."""
    tab = await enter(open_page, stand)

    await send(tab.page, "badkey")
    await reach(tab.page, "refused")

    assert "The vendor refused the proxy" in await text_of(tab.page, "notice-title")
    assert await tab.page.locator("#token-form").is_hidden()
    assert not await tab.page.locator("#notice-action").is_visible()


async def test_page_without_token(stand: Stand, open_page: OpenPage) -> None:
    """Without a token the page asks for one, says what is wrong with a bad one, and takes a good one by keyboard."""
    tab = await open_page(stand.url("/playground"))
    page = tab.page
    assert await page.locator("#token").evaluate("(field) => field === document.activeElement")
    assert await page.locator("#send").is_disabled()
    assert tab.requested == [stand.url("/playground")]

    await page.keyboard.type("not-a-token")
    await page.keyboard.press("Enter")
    await page.locator("#token-problem", has_text="not accepted").wait_for()
    await page.fill("#token", f"Bearer {stand.token}")
    await page.keyboard.press("Enter")

    await page.locator("#send:enabled").wait_for()
    assert await text_of(page, "who") == "alice · plan default"
    assert await page.locator("#token").input_value() == ""
    assert await page.locator("#token-form").is_hidden()
    assert unexpected(tab) == []


async def test_page_token_expires(stand: Stand, open_page: OpenPage) -> None:
    """A token that has run out is told when it is used, and another one is asked for."""
    tab = await enter(open_page, stand)
    old = token(iat=int(time.time()) - 600, exp=int(time.time()) - 300)
    await tab.page.route("**/forward-sse?*", lambda route: route.continue_(headers={"authorization": f"Bearer {old}"}))

    await send(tab.page, "openai")
    await reach(tab.page, "refused")

    assert await text_of(tab.page, "notice-title") == "This token has expired"
    await tab.page.click("#notice-action")
    assert await tab.page.locator("#token").evaluate("(field) => field === document.activeElement")
    assert stand.vendor.stats.requests == 0


async def test_page_keeps_the_token_to_itself(stand: Stand, open_page: OpenPage) -> None:
    """The link's token leaves the address bar, is in no address that is asked for, in no log and in no storage."""
    tab = await enter(open_page, stand)
    page = tab.page
    await send(page, "gemini")
    await reach(page, "complete")

    assert page.url == stand.url("/playground")
    assert not [url for url in tab.requested if stand.token in url.partition("#")[0]]
    assert stand.token not in await page.content()
    assert await page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [0, 0, ""]
    assert stand.token.encode() not in stand.proxy.log_bytes()
    await page.reload()
    await page.locator("#token-form").wait_for()


async def test_page_keeps_the_token_when_asked(stand: Stand, open_page: OpenPage) -> None:
    """By choice it is kept for the tab, until another one is refused."""
    tab = await open_page(stand.url("/playground"))
    page = tab.page
    await page.fill("#token", stand.token)
    await page.check("#keep-token")
    await page.keyboard.press("Enter")
    await page.locator("#send:enabled").wait_for()

    await page.reload()
    await page.locator("#send:enabled").wait_for()
    await page.click("#change-token")
    await page.fill("#token", "not-a-token")
    await page.keyboard.press("Enter")
    await page.locator("#token-problem", has_text="not accepted").wait_for()
    assert await page.evaluate("sessionStorage.length") == 0


async def test_page_shows_markup_as_text(stand: Stand, open_page: OpenPage) -> None:
    """Whatever a model says is text; pictures come from the stream or over https, and from nowhere else."""
    said = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    urls = [
        "javascript:alert(1)",
        "http://127.0.0.1:9/x.png",
        "data:text/html,<script>1</script>",
        "//evil.example/x.png",
        f"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' onload=\"document.title='owned'\"/>",  # noqa: F541 - aligned with the others
    ]
    delta = {"content": said, "reasoning_content": said, "images": [{"image_url": {"url": url}} for url in urls]}
    tab = await enter(open_page, stand)
    page = tab.page
    await send(page, "scripted", model="<b>x</b>")
    vendor, _ = await stand.scripted.take()
    data = json.dumps({"choices": [{"delta": delta, "finish_reason": "stop"}]}).encode()
    vendor.write(STREAM_HEAD + chunk(b"event: <i>x</i>\ndata: " + data + b"\n\n") + LAST)
    await reach(page, "complete")

    assert await text_of(page, "text") == said
    assert await text_of(page, "thoughts") == said
    assert await page.locator("#words script, #words b, #raw i, #raw img").count() == 0
    assert [await image.get_attribute("src") for image in await page.locator("#images img").all()] == [urls[-1]]
    assert "owned" not in await page.title()
    assert tab.errors == []


async def test_page_bounds_what_it_keeps(stand: Stand, open_page: OpenPage) -> None:
    """Of many events the last are kept, the newest in sight, and how many were dropped is told."""
    tab = await enter(open_page, stand)
    page = tab.page

    await send(page, "long")
    await reach(page, "complete")

    assert await page.locator("#raw li").count() == 200
    seen = int(await text_of(page, "count"))
    assert seen > 500
    assert await text_of(page, "raw-count") == f"last 200 of {seen}, {seen - 200} dropped"
    assert await page.locator("#raw li").last.is_visible()
    below = await page.locator("#raw").evaluate("(raw) => raw.scrollHeight - raw.scrollTop - raw.clientHeight")
    assert below < 2


async def test_page_on_a_phone(stand: Stand, open_page: OpenPage) -> None:
    """At 360 pixels nothing is cut off at the side, and what stops the stream stays in sight."""
    viewport = {"width": 360, "height": 640}
    tab = await enter(open_page, stand, viewport=viewport, has_touch=True, is_mobile=True)
    page = tab.page
    await send(page, "held")
    await page.locator("#text", has_text="Hello").wait_for()

    box = await page.locator("#stop").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= 640
    await page.tap("#stop")
    await reach(page, "stopped")
    assert await page.evaluate("document.documentElement.scrollWidth") == 360
    assert unexpected(tab) == []


async def test_page_contrast(stand: Stand, open_page: OpenPage) -> None:
    """Every colour of text has at least 4.5:1 on what it stands on (WCAG 2.2, 1.4.3), in both schemes."""
    tab = await open_page(stand.url("/playground"))
    pairs = [
        *((ink, ground) for ink in ("ink", "muted") for ground in ("page", "card", "sunk")),
        *((ink, f"{ink}-soft") for ink in ("danger", "warn")),
        *(("muted", f"{ground}-soft") for ground in ("danger", "warn")),
        ("danger", "card"),
        ("on-accent", "accent"),
        ("on-accent", "accent-strong"),
        ("accent-strong", "soft"),
        ("accent-strong", "card"),
        ("muted", "line"),
        ("card", "ink"),
    ]
    names = sorted({name for pair in pairs for name in pair})
    for scheme in ("light", "dark"):
        await tab.page.emulate_media(color_scheme=scheme)
        colours = await tab.page.evaluate(
            "(names) => { const style = getComputedStyle(document.documentElement);"
            " return Object.fromEntries(names.map((name) => [name, style.getPropertyValue('--' + name).trim()])); }",
            names,
        )
        ratios = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in pairs}
        assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}, scheme


def contrast(one: str, other: str) -> float:
    """The ratio of two `#rrggbb` (WCAG 2.2, "contrast ratio")."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


async def test_page_by_keyboard(stand: Stand, open_page: OpenPage) -> None:
    """Every control is reached by the tab key, in the order it is seen, has a name, and shows that it has the focus."""
    tab = await enter(open_page, stand)
    page = tab.page
    await send(page, "gemini")
    await reach(page, "complete")

    reached = []
    await page.focus(".skip")
    for _ in range(10):
        reached.append(
            await page.evaluate(
                "[document.activeElement.id || document.activeElement.className || document.activeElement.tagName,"
                " getComputedStyle(document.activeElement).outlineStyle]"
            )
        )
        await page.keyboard.press("Tab")

    order = [name for name, _ in reached]
    assert order == ["skip", "change-token", "upstream", "form", "model", "prompt", "think", "send", "SUMMARY", "raw"]
    assert [name for name, outline in reached[1:] if outline != "solid"] == []
    for label in ("Upstream", "Stream", "Model", "Prompt", "Ask for its thinking"):
        assert await page.get_by_label(label, exact=True).count() == 1


async def test_page_calm_motion(stand: Stand, open_page: OpenPage) -> None:
    """Who asks for less motion gets none."""
    tab = await enter(open_page, stand, reduced_motion="reduce")
    await send(tab.page, "held")
    await reach(tab.page, "streaming")

    assert await tab.page.evaluate("document.getAnimations().length") == 0


async def test_page_of_an_open_proxy(start: Callable[..., Any], stand: Stand, open_page: OpenPage) -> None:
    """Where no token is needed, none is asked for."""
    config = f"""
listen: 127.0.0.1:0
admin_listen: off
auth: none
playground: true
upstreams: {{{{only: {{{{url: "{stand.vendor.url}", dialect: anthropic, api_key: {{key}}}}}}}}}}
"""
    proxy = await start(config=config)
    host, port = proxy.address
    tab = await open_page(f"http://{host}:{port}/playground")
    await tab.page.locator("#send:enabled").wait_for()

    assert await text_of(tab.page, "who") == "No token needed"
    await tab.page.click("#send")
    await reach(tab.page, "complete")
    assert await text_of(tab.page, "text") == DEFAULT_TEXT
    assert tab.errors == []


async def test_page_of_the_demo(open_page: OpenPage) -> None:
    """The demo's link, opened as printed, leads to a page that streams; its token is in no line of the log."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "demo", "--listen", "127.0.0.1:0", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        printed = b""
        async with asyncio.timeout(WAIT_S * 2):
            while b"Ctrl-C here" not in printed:
                printed += await process.stdout.readline()
        link = re.search(rb"http://\S+/playground#token=(\S+)", printed)
        assert link is not None

        tab = await open_page(link[0].decode())
        await tab.page.locator("#send:enabled").wait_for()
        names = await tab.page.locator("#upstream option").all_text_contents()
        await tab.page.click("#send")
        await reach(tab.page, "complete")

        assert names == ["openai", "tongyi", "tongyi-compatible", "anthropic", "gemini"]
        assert await text_of(tab.page, "text") == DEFAULT_TEXT
        assert tab.errors == []
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(WAIT_S * 2):
            rest = await process.stdout.read()
            assert await process.wait() == 0
        assert b"exchange.settled" in rest
        assert link[1] not in rest
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


READER = """(text) => {
    const bytes = new TextEncoder().encode(text);
    const read = (cuts) => {
        const reader = new EventStreamReader();
        const blocks = [];
        let from = 0;
        for (const cut of [...cuts, bytes.length]) {
            blocks.push(...reader.feed(bytes.slice(from, cut)).map(({ name, data, hasData }) => [name, data, hasData]));
            from = cut;
        }
        return JSON.stringify([blocks, reader.isInsideBlock]);
    };
    const whole = read([]);
    const different = [];
    for (let cut = 0; cut <= bytes.length; cut += 1) if (read([cut]) !== whole) different.push(cut);
    if (read(bytes.keys()) !== whole) different.push("every byte");
    return [JSON.parse(whole), different];
}"""


async def test_page_reads_every_split_alike(stand: Stand, open_page: OpenPage) -> None:
    """However the bytes are cut up, the same events are read (WHATWG HTML §9.2.6)."""
    lines = (
        "\ufeffdata: naïve 🙂", "", ": ping", "", "event:x", "data:1", "data:  2", "id: 7", "odd", "", "data", "", "",
        "event: error", "data: {}", "", "data: unfinished",
    )  # fmt: skip
    tab = await open_page(stand.url("/playground"))

    for newline in ("\n", "\r\n", "\r"):
        (blocks, is_inside), different = await tab.page.evaluate(READER, newline.join(lines))

        assert blocks == [
            ["", "naïve 🙂", True],
            ["", "", False],
            ["x", "1\n 2", True],
            ["", "", True],
            ["error", "{}", True],
        ]
        assert is_inside
        assert different == []
