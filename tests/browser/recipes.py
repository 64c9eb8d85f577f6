"""The recipes for browsers of `docs/clients.md`, as they stand there: what the tests run is what a reader pastes.

A recipe is the fenced block after a line `<!-- recipe: NAME -->`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

BASE = "https://llm.example.com"

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
_MARKED = re.compile(r"^<!-- recipe: (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@cache
def recipes() -> dict[str, str]:
    """Every recipe by its name."""
    section = PAGE.read_text().partition("\n## Browsers\n")[2].partition("\n## ")[0]
    found = _MARKED.findall(section)
    assert 2 * len(found) == len(re.findall("^```", section, re.MULTILINE)), "a block has no name, so no test runs it"
    assert len({name for name, _ in found}) == len(found), "a recipe's name stands twice"
    return dict(found)


def recipe(name: str, base: str, *, others: dict[str, str] | None = None) -> str:
    """A recipe with the proxy's address, and further ones, put in; nothing else is changed."""
    text = recipes()[name]
    for there, here in {BASE: base, **(others or {})}.items():
        assert there in text, f"recipe {name} does not name {there}"
        text = text.replace(there, here)
    return text
