"""`docs/troubleshooting.md` and the doctor's verdicts are the same: checks, changes, and lines for products."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.cli.doctor.changes import CHANGES
from proxy.cli.doctor.hops import LINES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
SECTIONS = dict(re.findall(r"^## `(\w+)`[^\n]*\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
# A verdict is made with its check and its fault as two words.
_MADE = re.compile(r'(?:warn|fail|\))\(\s*"(\w+)",\s*("?\w+"?)')


def rows(section: str) -> list[list[str]]:
    """The cells of a section's one table, without its head."""
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_every_check_has_its_section() -> None:
    """A check has no section on the page, or the page has one of a check that is not made."""
    assert sorted(SECTIONS) == sorted(CHANGES)


@pytest.mark.parametrize("check", CHANGES)
def test_every_change_is_in_its_section(check: str) -> None:
    """A change is missing on the page, or the page has another one."""
    told = [re.sub(r" \(\[lines\]\(#\w+\)\)$", "", row[-1]) for row in rows(SECTIONS[check])]
    assert sorted(told) == sorted(CHANGES[check].values())


@pytest.mark.parametrize("kind", LINES)
def test_every_line_is_on_the_page(kind: str) -> None:
    """A product's line is missing on the page, or is another one there."""
    section = PAGE.partition(f"\n### `{kind}`\n")[2].partition("\n### ")[0]
    assert dict(rows(section)) == LINES[kind]  # type: ignore[index]  # a name of its own


def test_every_verdict_names_a_change() -> None:
    """A check makes a verdict for which there is nothing to change."""
    made = {
        (check, fault.strip('"'))
        for file in (ROOT / "proxy/cli/doctor").glob("*.py")
        for check, fault in _MADE.findall(file.read_text())
        if fault.startswith('"')
    }
    assert len(made) > 40
    assert [one for one in made if one[1] not in CHANGES.get(one[0], {})] == []
