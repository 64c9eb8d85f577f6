"""The SDKs' recipes of `docs/clients.md`, run as they are printed with only the proxy's address put in."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from proxy.mock.reply import DEFAULT_PIECES, DEFAULT_TEXT
from tests.clients.programs import NODE_ROOM
from tests.needs import need
from tests.peers import WAIT_S

if TYPE_CHECKING:
    from tests.clients.conftest import Bench

_PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
_ADDRESS = "https://llm.example.com"

# Each runs the recipe in its first argument once for every token in the others, and ends each run's output with NUL:
# loading an SDK costs more than using it.
_RUNNERS = {
    "python": (
        sys.executable,
        "-c",
        """
import os, runpy, sys
for token in sys.argv[2:]:
    os.environ["LLM_TOKEN"] = token
    runpy.run_path(sys.argv[1])
    print(end="\\0")
""",
    ),
    "js": (
        "node",
        "--input-type=module",
        "-e",
        """
const [recipe, ...tokens] = process.argv.slice(1);
for (const [run, token] of tokens.entries()) {
  process.env.LLM_TOKEN = token;
  await import(`file://${recipe}?${run}`);
  process.stdout.write('\\0');
}
""",
    ),
    "sh": (
        "sh",
        "-c",
        'recipe=$1; shift; for LLM_TOKEN; do export LLM_TOKEN; . "$recipe"; printf "\\\\000"; done',
        "-",
    ),
}


class Recipe(NamedTuple):
    title: str
    language: str
    code: str

    def __str__(self) -> str:
        return self.title


def _recipes() -> list[Recipe]:
    """The fenced blocks of the page's section on SDKs."""
    section = _PAGE.read_text(encoding="utf-8").partition("\n## SDKs\n")[2].partition("\n## ")[0]
    return [
        Recipe(part.partition("\n")[0], *block)
        for part in section.split("\n### ")[1:]
        for block in re.findall(r"```(\w+)\n(.*?)```", part, re.DOTALL)
    ]


RECIPES = _recipes()


def test_recipes_found() -> None:
    """Every SDK of the page has its recipe, in a language that the test runs."""
    assert len(RECIPES) >= 15
    assert {recipe.language for recipe in RECIPES} == set(_RUNNERS)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
async def test_recipe(recipe: Recipe, bench: Bench, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The recipe prints the text and what it cost, when to come back, and why a token was refused."""
    if recipe.language == "js":
        request.getfixturevalue("node")
    if recipe.language == "sh":
        need("curl")
    (tmp_path / "node_modules").symlink_to(NODE_ROOM / "node_modules")
    file = tmp_path / ("recipe.mjs" if recipe.language == "js" else "recipe")
    assert _ADDRESS in recipe.code
    file.write_text(recipe.code.replace(_ADDRESS, bench.url("")), encoding="utf-8")

    process = await asyncio.create_subprocess_exec(
        *(*_RUNNERS[recipe.language], str(file), bench.over_limit, bench.over_limit, "sk-somebody-elses"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(3 * WAIT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()

    assert process.returncode == 0
    streamed, limited, refused, _ = output.decode().split("\0")
    if recipe.language == "sh":
        assert streamed.startswith('data: {"id":')
        assert streamed.endswith("data: [DONE]\n\n")
        assert '"code":"rate_limit_exceeded"' in limited
    else:
        tokens = f"\n{len(DEFAULT_PIECES)} tokens\n" if "tokens" in recipe.code else ""
        assert streamed == DEFAULT_TEXT + tokens
        # One request a day.
        assert re.search(r"again in 86[34]\d\d s", limited)
    assert "The access token is invalid." in refused
    assert bench.vendor.stats.requests == 1
