"""What a page's accessibility tree says of it: what has no name, headings out of order, where the focus goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from playwright.async_api import Page

# Roles of ARIA, and of Chromium's own, that are nothing to a person without a name.
NAMED: Final = frozenset(
    """
    alert alertdialog button checkbox columnheader combobox dialog DisclosureTriangle grid image img link listbox log
    meter option progressbar radio region search searchbox slider spinbutton status switch tab table textbox
    """.split()  # noqa: SIM905 - as a list it would be thirty lines
)


class Node(NamedTuple):
    """A node that a screen reader is told of, in the order in which it reads."""

    role: str
    name: str
    properties: dict[str, Any]
    element: int | None

    def __str__(self) -> str:
        return f"{self.role} {self.name!r}"


async def nodes(page: Page) -> list[Node]:
    """The page's accessibility tree, from the top, without what is ignored."""
    session = await page.context.new_cdp_session(page)
    try:
        raw = (await session.send("Accessibility.getFullAXTree"))["nodes"]
    finally:
        await session.detach()
    by_id = {one["nodeId"]: one for one in raw}
    found: list[Node] = []
    waiting = [one["nodeId"] for one in raw if "parentId" not in one]
    while waiting:
        one = by_id.get(waiting.pop())
        if one is None:
            continue
        waiting += reversed(one.get("childIds", []))
        if not one.get("ignored"):
            properties = {each["name"]: each["value"].get("value") for each in one.get("properties", [])}
            name = one.get("name", {}).get("value", "")
            found.append(Node(one["role"]["value"], str(name).strip(), properties, one.get("backendDOMNodeId")))
    return found


def nameless(tree: list[Node]) -> list[str]:
    """What a person would meet without being told what it is: controls, tables, regions, and what is read by itself."""
    return [
        f"{node.role} {node.properties}"
        for node in tree
        if not node.name and (node.role in NAMED or node.properties.get("live", "off") != "off")
    ]


def headings(tree: list[Node]) -> list[tuple[int, str]]:
    """The headings, each with its level, as they are read."""
    return [(node.properties["level"], node.name) for node in tree if node.role == "heading"]


def skipped_levels(tree: list[Node], *, first: int = 1) -> list[str]:
    """The headings that are more than a level below the one before; the first one must be of the level `first`."""
    found, before = [], first - 1
    for level, name in headings(tree):
        if level > before + 1:
            found.append(f"{name!r}: {level} after {before}")
        before = level
    return found


async def by_tab(page: Page, most: int = 80) -> list[int]:
    """The elements that the tab key reaches, in order, from the one that has the focus until it leaves the page."""
    session = await page.context.new_cdp_session(page)
    reached: list[int] = []
    try:
        while len(reached) < most:
            held = (await session.send("Runtime.evaluate", {"expression": "document.activeElement"}))["result"]
            if held["description"].startswith("body"):
                break
            element: int = (await session.send("DOM.describeNode", {"objectId": held["objectId"]}))["node"][
                "backendNodeId"
            ]
            if element in reached:
                break
            reached.append(element)
            await page.keyboard.press("Tab")
    finally:
        await session.detach()
    return reached
