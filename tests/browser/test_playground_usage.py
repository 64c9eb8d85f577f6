"""The playground in a real browser: what an answer took and cost, and what is left, for every form of stream."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.test_playground_page import enter, reach, send, text_of, unexpected
from tests.peers import STREAM_HEAD, chunk, event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from playwright.async_api import Page

    from tests.browser.stand import Stand, Tab

    OpenPage = Callable[..., Awaitable[Tab]]

pytestmark = pytest.mark.asyncio(loop_scope="session")

# What the mock's answer to one of these takes: 4 tokens in, 26 out (OpenAI), of known prices.
COST = {"openai": "$0.00027", "anthropic": "$0.000402"}
VIEWPORTS: dict[str, dict[str, Any]] = {
    "wide": {"viewport": {"width": 1360, "height": 900}},
    "between": {"viewport": {"width": 1000, "height": 800}, "color_scheme": "dark"},
    "narrow": {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"},
}


async def fills(page: Page, id_: str) -> str:
    """The text of a figure, once there is one."""
    await page.wait_for_function("(id) => document.getElementById(id).textContent.length > 1", arg=id_)
    return await text_of(page, id_)


@pytest.mark.parametrize("form", ["plain", "typed", "ticket"])
async def test_page_cost(counting: Stand, open_page: OpenPage, form: str) -> None:
    """In every form of stream the page shows what an answer took and cost, and then what is left of the budget."""
    tab = await enter(open_page, counting)
    page = tab.page
    await page.select_option("#form", form)
    await send(page, "openai", model="gpt-4o")
    await reach(page, "complete")

    assert await fills(page, "tokens") == "4 in · 26 out"
    assert await fills(page, "cost") == COST["openai"]
    await page.locator("#spent", has_text="Last 7 days: 30 tokens · $0.00027").wait_for()
    await page.locator("#limits li", has_text="$49.99 of $50.00 this month").wait_for()
    limits = await text_of(page, "limits")
    assert "999 of 1,000 requests per 10 s" in limits
    assert "of 1,000,000 tokens per minute" in limits
    assert tab.errors == []
    line = await counting.exchange()
    assert (line["ending"], line["cost_usd"]) == ("complete", "0.00027")


@pytest.mark.parametrize("name", VIEWPORTS)
async def test_page_cost_in_sight(counting: Stand, open_page: OpenPage, name: str) -> None:
    """On every width each figure stands within its card, none over another, and no row is longer than the page."""
    tab = await enter(open_page, counting, **VIEWPORTS[name])
    page = tab.page
    await send(page, "openai", model="gpt-4o")
    await reach(page, "complete")
    await fills(page, "cost")

    boxes = [await figure.bounding_box() for figure in await page.locator(".numbers dd").all()]
    card = await page.locator("#answer").bounding_box()
    assert card is not None
    assert len(boxes) == 6
    for at, box in enumerate(boxes):
        assert box is not None
        text = await page.locator(".numbers dd").nth(at).evaluate("(figure) => figure.scrollWidth")
        assert text <= box["width"] + 1
        assert box["x"] >= card["x"]
        assert box["x"] + box["width"] <= card["x"] + card["width"]
    width = VIEWPORTS[name]["viewport"]["width"]
    assert await page.evaluate("document.documentElement.scrollWidth") == width


async def test_page_cost_of_a_stopped_stream(counting: Stand, open_page: OpenPage) -> None:
    """A stream that was stopped cost something, which no event of it could tell: it is shown as the estimate it is."""
    tab = await enter(open_page, counting)
    page = tab.page
    await send(page, "held", model="gpt-4o")
    await page.locator("#text", has_text="Hello from").wait_for()
    await page.keyboard.press("Escape")
    await reach(page, "stopped")

    assert (await fills(page, "tokens")).startswith("≈ ")
    assert (await fills(page, "cost")).startswith("≈ $0.0")
    line = await counting.exchange()
    assert (line["ending"], line["usage"]) == ("client_closed", "estimated")


async def test_page_cost_without_a_ledger(stand: Stand, open_page: OpenPage) -> None:
    """Without a ledger a typed stream and a ticket's still tell their cost; of a vendor's own it stays open."""
    tab = await enter(open_page, stand)
    page = tab.page
    for form in ("typed", "ticket"):
        await page.select_option("#form", form)
        await send(page, "anthropic", model="claude-haiku-4-5")
        await reach(page, "complete")
        assert (await fills(page, "cost")).startswith("$0.0")
    assert await page.locator("#spent").is_hidden()
    async with page.expect_response("**/forward-sse/usage"):
        await page.select_option("#form", "plain")
        await send(page, "anthropic", model="claude-haiku-4-5")
        await reach(page, "complete")
    assert len(await text_of(page, "cost")) == 1
    assert unexpected(tab) == []


async def test_page_forms(stand: Stand, open_page: OpenPage) -> None:
    """A form is offered where it can be had: a ticket stands for `POST /forward-sse` only."""
    tab = await enter(open_page, stand)
    page = tab.page

    async def forms() -> list[str]:
        return await page.locator("#form option").all_text_contents()

    await page.select_option("#upstream", "openai")
    assert await forms() == ["Vendor\u2019s own", "Typed events", "By ticket"]
    await page.select_option("#form", "typed")
    await page.select_option("#way", "responses")
    assert await forms() == ["Vendor\u2019s own", "Typed events"]
    assert await page.locator("#form").input_value() == "typed"


async def test_page_ticket_that_breaks(stand: Stand, open_page: OpenPage) -> None:
    """A ticket's stream that breaks says so in its events: what arrived stays, and is not called complete."""
    tab = await enter(open_page, stand)
    page = tab.page
    await page.select_option("#form", "ticket")
    await send(page, "scripted", model="gpt-4o")
    vendor, _ = await stand.scripted.take()
    vendor.write(STREAM_HEAD + chunk(event("half of it")))
    await page.locator("#text", has_text="half of it").wait_for()
    await vendor.gone()
    await reach(page, "cut")

    assert await text_of(page, "text") == "half of it"
    assert (await fills(page, "tokens")).startswith("≈ ")
    assert unexpected(tab) == []


async def test_page_ticket_refused(stand: Stand, open_page: OpenPage) -> None:
    """What refuses a ticket when it is used is told as it is elsewhere: in the proxy's words."""
    tab = await enter(open_page, stand, given=stand.over_limit)
    page = tab.page
    await send(page, "openai")
    await reach(page, "complete")
    await page.select_option("#form", "ticket")
    await send(page, "openai")
    await reach(page, "refused")

    assert (await text_of(page, "notice-action")).startswith("Send again in 24 h")
    assert (await text_of(page, "facts")).startswith("HTTP 429 · rate_limit_exceeded")
    assert await text_of(page, "notice-title") == "You have used up your requests for now"
    assert "1 request per 1 d used up" in await text_of(page, "notice-quote")
    assert stand.vendor.stats.requests == 1


async def test_page_budget_used_up(stand: Stand, open_page: OpenPage) -> None:
    """A budget that is used up is told as such, with the words that name it; sending again is not offered."""
    tab = await enter(open_page, stand)
    page = tab.page
    said = "Your budget of 50 dollars per month is used up; it begins anew in 345600 s (4 d)."
    body = json.dumps({"error": {"message": said, "code": "insufficient_quota"}})
    fields = {"x-forward-sse-code": "insufficient_quota", "retry-after": "345600", "content-type": "application/json"}
    await page.route("**/forward-sse?*", lambda route: route.fulfill(status=429, headers=fields, body=body))
    await send(page, "openai")
    await reach(page, "refused")

    assert await text_of(page, "notice-title") == "Your budget is used up"
    assert await text_of(page, "notice-quote") == said
    assert await page.locator("#notice-action").is_hidden()


LIMITS = [
    # Requests and tokens by the structured fields, each by its own unit.
    (
        {
            "RateLimit-Policy": '"60-per-10s";q=60;w=10, "100000-tokens-per-1m";q=100000;w=60;qu="tokens"',
            "RateLimit": '"60-per-10s";r=59;t=1, "100000-tokens-per-1m";r=900;t=30',
        },
        ["59 of 60 requests per 10 s", "900 of 100000 tokens per minute"],
    ),
    # Tokens by OpenAI's fields where the others do not tell of them.
    (
        {
            "RateLimit-Policy": '"60-per-1m";q=60;w=60',
            "RateLimit": '"60-per-1m";r=1;t=1',
            "x-ratelimit-limit-tokens": "5000",
            "x-ratelimit-remaining-tokens": "17",
        },
        ["1 of 60 requests per minute", "17 of 5000 tokens"],
    ),
    ({"x-upstream-ratelimit-remaining-tokens": "3"}, ["3 of undefined vendor\u2019s tokens"]),
]


@pytest.mark.parametrize(("fields", "expected"), LIMITS)
async def test_page_reads_limits(
    stand: Stand, open_page: OpenPage, fields: dict[str, str], expected: list[str]
) -> None:
    """What is left of requests and of tokens is read from the fields of an answer, whatever their parameters."""
    tab = await open_page(stand.url("/playground"))
    told = await tab.page.evaluate(
        "(fields) => limitsIn(new Headers(fields)).map((one) => `${one.remaining} of ${one.quota} ${one.name}`)", fields
    )
    assert told == expected


# Kind, name, limit, used, reserved; and the words.
STATES = [
    ("usd", "50-usd-per-month", "50", "1.25", "0.0000001", "$48.74 of $50.00 this month"),
    ("usd", "0.5-usd-per-day", "0.5", "0.6", "0", "$0.00 of $0.5 today"),
    ("tokens", "2000000-tokens-per-week", 2000000, 1, 9, "1999990 of 2000000 tokens this week"),
    ("tokens", "100000-tokens-per-1m", 100000, 0, 0, "100000 of 100000 tokens per minute"),
    ("requests", "60-per-10s", 60, 60, 0, "0 of 60 requests per 10 s"),
]


@pytest.mark.parametrize("state", STATES)
async def test_page_words_limits(stand: Stand, open_page: OpenPage, state: tuple[Any, ...]) -> None:
    """What is left of a limit leaves out what running streams have reserved, and is never more than there is."""
    *values, expected = state
    names = ("kind", "name", "limit", "used", "reserved")
    tab = await open_page(stand.url("/playground"))
    told = await tab.page.evaluate(
        "(state) => usage.limits({ limits: [state] }).map(({ name, remaining, quota, write = String }) =>"
        " `${write(remaining)} of ${write(quota)} ${name}`)[0]",
        dict(zip(names, values, strict=True)) | {"resets_at": "2026-02-01T00:00:00Z"},
    )
    assert told == expected


async def test_page_share(stand: Stand, open_page: OpenPage) -> None:
    """What one answer took is told only where nothing else of its model was counted meanwhile."""
    tab = await open_page(stand.url("/playground"))

    def row(
        requests: int, cost: str, *, model: str = "m", day: str = "2026-01-31", unpriced: int = 0
    ) -> dict[str, Any]:
        counts = {"requests": requests, "input_tokens": 10 * requests, "output_tokens": requests, "unpriced": unpriced}
        return {"day": day, "model": model, **counts, "cost_usd": cost}

    async def share(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Any:
        return await tab.page.evaluate(
            "([before, after]) => usage.share({ rows: before }, { rows: after }, 'm')", [before, after]
        )

    assert await share([], [row(1, "0.1")]) == {"input": 10, "output": 1, "cost": 0.1}
    assert await share([row(2, "0.2")], [row(3, "0.3"), row(9, "9", model="n")]) == {
        "input": 10,
        "output": 1,
        "cost": 0.1,
    }
    assert await share([row(2, "0.2", day="2026-01-30")], [row(1, "0.000000001"), row(2, "0.2", day="2026-01-30")]) == {
        "input": 10,
        "output": 1,
        "cost": 1e-9,
    }
    assert await share([row(2, "0.2")], [row(2, "0.2")]) is None
    assert await share([row(2, "0.2")], [row(4, "0.4")]) is None
    unpriced = await share([row(2, "0.2")], [row(3, "0.2", unpriced=1)])
    assert (unpriced["output"], unpriced["cost"]) == (1, None)
