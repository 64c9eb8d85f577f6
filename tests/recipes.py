"""The recipes of `docs/clients.md`, as they stand there: what the suites run is what a reader pastes.

A recipe is the fenced block after a line `<!-- recipe: NAME -->`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

BASE = "https://llm.example.com"

_PAGE = Path(__file__).parent.parent / "docs" / "clients.md"
_MARKED = re.compile(r"^<!-- recipe: (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@cache
def recipes() -> dict[str, str]:
    """Every recipe by its name."""
    page = _PAGE.read_text()
    found = _MARKED.findall(page)
    assert 2 * len(found) == len(re.findall("^```", page, re.MULTILINE)), "a block has no name, so no test runs it"
    assert len({name for name, _ in found}) == len(found), "a recipe's name stands twice"
    return dict(found)


def recipe(name: str, base: str, *, others: dict[str, str] | None = None) -> str:
    """A recipe with the proxy's address, and further ones, put in; nothing else is changed."""
    text = recipes()[name]
    for there, here in {BASE: base, **(others or {})}.items():
        assert there in text, f"recipe {name} does not name {there}"
        text = text.replace(there, here)
    return text
