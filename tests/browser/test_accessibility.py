"""The pages as a screen reader is told of them, by the browser's own accessibility tree: names, headings, focus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.browser.accessibility import by_tab, headings, nameless, nodes, skipped_levels
from tests.browser.console_stand import console_at
from tests.browser.test_console_page import UPSTREAMS, crowd
from tests.browser.test_console_page import enter as enter_console
from tests.browser.test_playground_page import enter as enter_playground
from tests.browser.test_playground_page import reach, send
from tests.console.known import VIEW, operators
from tests.console.made_up import MadeUp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from playwright.async_api import Page

    from tests.browser.accessibility import Node
    from tests.browser.console_stand import ConsoleSite
    from tests.browser.stand import Stand, Tab

    OpenPage = Callable[..., Awaitable[Tab]]

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZES = [
    pytest.param({"width": 1280, "height": 900}, id="desk"),
    pytest.param({"width": 390, "height": 800}, id="phone"),
]
# What can be operated; the options of a select are reached within it.
OPERATED = {"button", "checkbox", "combobox", "DisclosureTriangle", "grid", "link", "searchbox", "textbox"}


@pytest_asyncio.fixture(loop_scope="session")
async def made() -> AsyncIterator[ConsoleSite]:
    """A console of streams that are made up, with something of each kind to see."""
    view = MadeUp(crowd(12), upstreams=[dict(report) for report in UPSTREAMS])
    async with console_at(view) as running:
        yield running


async def check(page: Page, *, first: int = 1, live: set[str]) -> list[Node]:
    """Names and headings of what is seen now; `live` are the names of what is read by itself when it changes."""
    tree = await nodes(page)
    assert nameless(tree) == []
    assert skipped_levels(tree, first=first) == []
    assert sum(level == 1 for level, _ in headings(tree)) == (first == 1)
    assert {node.name for node in tree if node.properties.get("live", "off") != "off"} == live
    return tree


async def check_order(page: Page, tree: list[Node], *, unreached: str | None = None) -> None:
    """The tab key goes where it is read on, and to everything that can be operated, but to what begins `unreached`."""
    reached = await by_tab(page)
    read = [node for node in tree if node.element in set(reached)]
    assert [node.element for node in read] == reached
    left = [str(node) for node in tree if _can_be_operated(node) and node.element not in reached]
    assert [each for each in left if unreached is None or unreached not in each] == []


def _can_be_operated(node: Node) -> bool:
    return bool(node.role in OPERATED and node.properties.get("focusable"))


@pytest.mark.parametrize("size", SIZES)
async def test_console(made: ConsoleSite, open_page: OpenPage, size: dict[str, int]) -> None:
    """A control, a table or what is read by itself has no name, headings skip a level, or the focus jumps."""
    page = (await enter_console(open_page, made, viewport=size)).page
    tree = await check(page, live={"Connection", "What was done"})
    assert [node.name for node in tree if node.role == "grid"] == ["Live streams"]
    # A row's button is pressed by the grid's own key.
    await page.focus(".skip")
    await check_order(page, tree, unreached="'Stop the stream of ")


async def test_console_dialogs(made: ConsoleSite, open_page: OpenPage) -> None:
    """A dialog has no name, the focus leaves it for what is behind, or does not come back to the grid."""
    page = (await enter_console(open_page, made)).page
    await page.focus("#grid")
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    for dialog, first in (("details", "#details-stop"), ("confirm", "#confirm .close")):
        await page.locator(f"#{dialog}[open]").wait_for()
        tree = await check(page, first=2, live=set())
        assert [node.role for node in tree if node.role.endswith("dialog")] == [
            "alertdialog" if dialog == "confirm" else "dialog"
        ]
        await page.focus(first)
        await check_order(page, tree)
        await page.focus("#details-stop")
        await page.keyboard.press("Enter")
    await page.keyboard.press("Escape")
    await page.locator("#confirm").wait_for(state="hidden")
    assert await page.evaluate("document.activeElement.id") == "grid"


@pytest.mark.parametrize("size", SIZES)
async def test_console_sign_in(open_page: OpenPage, size: dict[str, int]) -> None:
    """Who signs in meets a field or a button without a name, or is not told what is wrong with the token."""
    async with console_at(MadeUp(crowd(2)), operators()) as running:
        page = (await open_page(running.url, viewport=size)).page
        await page.locator("#sign-in").wait_for()
        tree = await check(page, live={"Connection", "What was done", "Problem"})
        await page.focus(".skip")
        await check_order(page, tree)
        await page.fill("#token", "wrong")
        await page.keyboard.press("Enter")
        await page.get_by_text("This is no operator's token.").wait_for()
        (field,) = [node for node in await nodes(page) if node.role == "textbox"]
        assert field.properties.get("invalid") == "true"
        await page.fill("#token", VIEW)
        await page.keyboard.press("Enter")
        await page.locator('html[data-state="live"]').wait_for()
        await check(page, live={"Connection", "What was done"})


@pytest.mark.parametrize("size", SIZES)
async def test_playground_token(stand: Stand, open_page: OpenPage, size: dict[str, int]) -> None:
    """Who pastes a token meets a field or a button without a name."""
    page = (await open_page(stand.url("/playground"), viewport=size)).page
    await page.locator("#token-form").wait_for()
    tree = await check(page, live={"Announcements", "Problem"})
    await page.focus(".skip")
    await check_order(page, tree)


@pytest.mark.parametrize("size", SIZES)
async def test_playground(stand: Stand, open_page: OpenPage, size: dict[str, int]) -> None:
    """Before an answer, with one, or with an error something has no name, headings skip a level, or the focus jumps."""
    page = (await enter_playground(open_page, stand, viewport=size)).page
    live = {"Announcements"}
    for upstream, options, state in (
        ("", {}, "idle"),
        ("gemini", {"model": "gemini-image"}, "complete"),
        ("badkey", {}, ""),
    ):
        if upstream:
            arguments: dict[str, Any] = dict(options)
            await send(page, upstream, **arguments)
            await (reach(page, state) if state else page.locator("#notice").wait_for())
        tree = await check(page, live=live)
        await page.focus(".skip")
        await check_order(page, tree)
