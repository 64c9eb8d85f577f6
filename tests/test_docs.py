"""The pages of `docs/`: contents lists, links, file names and tables of what the code has are true."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from proxy import errors
from proxy.dialects import DIALECTS
from proxy.model import Ending
from proxy.protocol import header_fields

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("docs/decisions/*.md")])
# From this length on a page has a contents list.
LONG = 100
# Shorter lines and sentences may be the same by chance.
LEAST_SAID = 60
# What stands in each of the pages about the code, at least.
LEAST_NAMES = 15
# Made by commands, so not always there.
MADE = ("benchmarks/.venv", "benchmarks/.peers")
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\][]*(?:\[[^\]]*\][^\][]*)*)\]\(([^)\s]+)\)")
_NAMED_FILE = re.compile(r"`((?:proxy|tests|config|benchmarks|docs)/[\w./-]+)`")
_PAGE_IN_CODE = re.compile(r"\b(docs/[\w/-]+\.md)#([\w-]+)")
# Reasons of the limits store that are for nobody but the worker itself: it closes the connection.
UNREPORTED = {"the store is closed"}
# Where any heading may say it in other words, but an operator's search must find a heading.
SEARCHED = {"behaviour.md", "operating.md", "configuration.md", "life-of-a-request.md"}


@cache
def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCED.sub("", page.read_text())


def anchor(heading: str) -> str:
    """What GitHub calls a heading in a link."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@cache
def headings(page: Path) -> list[tuple[int, str]]:
    """Level and text of every heading but the page's own."""
    return [(len(marks), text) for marks, text in _HEADING.findall(prose(page)) if len(marks) > 1]


def contents(page: Path) -> list[tuple[str, str]]:
    """The links of the list above the first section."""
    lead = prose(page).partition("\n## ")[0]
    return re.findall(r"^- \[(.+)\]\(#(.+)\)$", lead, re.MULTILINE)


def is_superseded(page: Path) -> bool:
    """Whether a page is a decision that is only history."""
    return "Status: superseded" in page.read_text()


@pytest.mark.parametrize("page", [page for page in PAGES if "decisions" not in page.parts], ids=lambda page: page.name)
def test_contents_match_headings(page: Path) -> None:
    """A long page has no contents list, or one that leaves out, adds or misspells a section."""
    sections = [(text, anchor(text)) for level, text in headings(page) if level == 2]
    if len(page.read_text().splitlines()) > LONG or contents(page):
        assert contents(page) == sections


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A link within the repository leads to no file, or to no heading of it."""
    for _, target in _LINK.findall(prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, fragment = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if fragment:
            assert fragment in {anchor(text) for _, text in headings(file)}, target


@pytest.mark.parametrize("page", [page for page in PAGES if not is_superseded(page)], ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    """A page names a file of the repository that is not there."""
    named = _NAMED_FILE.findall(page.read_text())
    assert [name for name in named if not (ROOT / name).exists() and not name.startswith(MADE)] == []


def test_code_names_sections() -> None:
    """A comment or docstring points to a page, or a section of it, that is not there."""
    for file in ROOT.glob("proxy/**/*.py"):
        for page, fragment in _PAGE_IN_CODE.findall(file.read_text()):
            assert fragment in {anchor(text) for _, text in headings(ROOT / page)}, (file, page, fragment)


def test_every_dialect_is_listed() -> None:
    """The page of the settings, or the commented file, lacks a dialect."""
    table = (ROOT / "docs/configuration.md").read_text().partition("\n| `dialect` |")[2].partition("\n")[0]
    comment = (ROOT / "config/proxy.yaml").read_text().partition("dialect: openai ")[2].partition("\n")[0]
    for name in DIALECTS:
        assert f"`{name}`" in table
        assert name in comment.strip("# ").split(" | ")


def test_where_is_table() -> None:
    """The table that a newcomer looks into has a row without a file, or a name that its file does not have."""
    page = ROOT / "docs/life-of-a-request.md"
    table = page.read_text().partition("\n## Where is …?\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 7
    for row in rows:
        assert _NAMED_FILE.search(row), row


@pytest.mark.parametrize("page", [page for page in PAGES if not is_superseded(page)], ids=lambda page: page.name)
def test_named_functions_are_where_they_are_named(page: Path) -> None:
    """A page has "`name` in `proxy/…`", and the file has no such name."""
    for name, file in re.findall(r"`(?:\w+\.)?(\w+)`(?: and `\w+`)? in `(proxy/[\w/]+\.\w+)`", page.read_text()):
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), (name, file)


@pytest.mark.parametrize("name", ["embedding.md", "life-of-a-request.md"])
def test_names_of_the_code_exist(name: str) -> None:
    """A page about the code names a function or class that no file of it has."""
    files = [file for file in ROOT.glob("proxy/**/*") if file.suffix in {".py", ".lua", ".js", ".html"}]
    known = set(re.findall(r"\w+", " ".join(file.read_text() for file in files)))
    spans = re.findall(r"`([^`\n]+)`", prose(ROOT / "docs" / name))
    named = {word for span in spans for word in re.findall(r"\b(?:_?[a-z]+_\w+|[A-Z][a-z]+[A-Z]\w+)\b", span)}
    assert len(named) > LEAST_NAMES
    assert named - known == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_name_each_thing_once(page: Path) -> None:
    """A table has a row twice, as a merge of two branches leaves it."""
    for head, body in re.findall(r"^(\|.*\n)\|[ |:-]+\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE):
        first = [line.split(" | ")[0] for line in body.splitlines() if not line.startswith("| |")]
        # Each message of a code has a row there.
        if not head.startswith("| 429 "):
            assert sorted(first) == sorted(set(first)), head


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_said_twice(page: Path) -> None:
    """A page has a sentence or a line of prose twice, as a merge of two branches leaves it."""
    text = re.sub(r"^\|.*\n", "", prose(page), flags=re.MULTILINE)
    lines = [line.strip() for line in text.splitlines()]
    sentences = re.split(r"(?<=[.:;]) ", re.sub(r"\s+", " ", text))
    for parts in (lines, sentences):
        long = [part for part in parts if len(part) >= LEAST_SAID]
        assert sorted(long) == sorted(set(long))


def test_no_placeholder_is_left() -> None:
    """A page has a name in capitals where a figure was to be put, outside code."""
    for page in PAGES:
        text = re.sub(r"`[^`]*`", "", prose(page))
        assert re.findall(r"\b[A-Z]{2,}_[A-Z_]{2,}\b", text) == [], page


def rows(page: Path, heading: str, first: str = "") -> list[list[str]]:
    """The cells of a table below a heading, without its own head: of the first one, or of the one that begins so."""
    section = re.split(r"^#+ ", page.read_text().partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    table = section[section.index(f"\n| {first}") :].strip().partition("\n\n")[0]
    lines = [line.strip("|").split(" | ") for line in table.splitlines()]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def test_troubleshooting_has_every_ending() -> None:
    """An `ending` that a log line can have is missing in the troubleshooting table, or the table has another one."""
    table = rows(ROOT / "docs/operating.md", "`ending`: how the request ended")
    assert sorted(row[0] for row in table) == sorted(f"`{ending}`" for ending in Ending)
    assert all(len(row) == 4 and all(row) for row in table)


def test_troubleshooting_has_every_code() -> None:
    """A status and code with which the proxy refuses is missing in the troubleshooting table, or is never sent."""
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ProxyError)]
    table = rows(ROOT / "docs/operating.md", "`code`: what the proxy refused")
    assert sorted(row[0] for row in table) == sorted({f"{kind.status} `{kind.code}`" for kind in classes})
    assert all(len(row) == 3 and all(row) for row in table)


def test_troubleshooting_has_every_reason_of_the_limits_store() -> None:
    """A reason why the limits server is given up is missing in the table, or the table has one that is not told."""
    told = {
        node.value.strip()
        for file in ROOT.glob("proxy/limits/redis/*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.match(r"(the|no) [a-z]", node.value)
    }
    table = rows(ROOT / "docs/operating.md", "Redis is unavailable: `on_store_error`", "reason in")
    listed = {text for row in table for text in re.findall(r"`([^`]+)`", row[0])}
    # The one answer that has no text of its own and is worth a row.
    assert listed - {"the server answers NOREPLICAS"} == told - UNREPORTED
    assert all(len(row) == 2 and all(row) for row in table)


def test_dropped_request_headers_are_listed() -> None:
    """The page lacks a field, or the beginning of one, that is not forwarded to vendors, or has another one."""
    item = (ROOT / "docs/behaviour.md").read_text().partition("- **Request headers**")[2].partition("  - Added are")[0]
    listed = {name.lower().encode() for name in re.findall(r"`([\w-]{2,})`", item)}
    assert listed == {*header_fields._NOT_UPSTREAM, *header_fields._NOT_UPSTREAM_PREFIXES}


@pytest.mark.parametrize(
    "word",
    [
        "keep-alive",
        "graceful shutdown",
        "buffering",
        "timeout",
        "back pressure",
        "disconnect",
        "troubleshooting",
        "file descriptors",
        "out of memory",
        "rate limits",
        "secret rotation",
    ],
)
def test_headings_have_the_operators_words(word: str) -> None:
    """What an operator searches for stands in no heading."""
    found = [text for page in PAGES if page.name in SEARCHED for _, text in headings(page)]
    assert any(word in text.lower() for text in found)
