"""The recipes of `docs/clients.md` for Python and the shell, run as they stand there."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from proxy.mock.reply import DEFAULT_TEXT
from tests.peers import WAIT_S
from tests.recipes import recipe, recipes

if TYPE_CHECKING:
    from tests.clients.conftest import Bench

# Which package a recipe is for; one that is not installed is skipped.
PACKAGES = {
    "openai-python": "openai",
    "anthropic-python": "anthropic",
    "google-genai-python": "google.genai",
    "dashscope-python": "dashscope",
    "langchain-openai": "langchain_openai",
    "httpx-sse": "httpx_sse",
}


@pytest.mark.parametrize("name", PACKAGES)
async def test_recipe_python(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What is pasted prints the whole text."""
    package: Any = pytest.importorskip(PACKAGES[name])
    for setting in ("base_http_api_url", "api_key") if name == "dashscope-python" else ():
        monkeypatch.setattr(package, setting, getattr(package, setting))
    program = compile(recipe(name, bench.url("")), f"docs/clients.md: {name}", "exec")
    printed: list[str] = []

    def use() -> None:
        exec(program, {"token": bench.token, "print": lambda text, **options: printed.append(text)})

    await asyncio.to_thread(use)

    assert "".join(printed) == DEFAULT_TEXT
    assert len(printed) > 3
    assert await bench.ending() == "complete"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on the PATH")
async def test_recipe_curl(bench: Bench) -> None:
    """What is pasted shows every event."""
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        recipe("curl", bench.url("")),
        env={**os.environ, "TOKEN": bench.token, "NO_PROXY": "*"},
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(WAIT_S):
        output, _ = await process.communicate()

    assert process.returncode == 0
    *events, done, _ = output.decode().split("\n\n")
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content", "") for delta in deltas) == DEFAULT_TEXT
    assert done == "data: [DONE]"


def test_recipes_are_run() -> None:
    """Every block of the page is named by a suite."""
    suites = "".join(path.read_text() for path in Path(__file__).parent.parent.rglob("*.py"))

    assert [name for name in recipes() if f'"{name}"' not in suites] == []
