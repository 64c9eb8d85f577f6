"""Pages that use a client of `docs/clients.md`, and what a test sees of them.

A page imports the recipe's `ask`, shows what it gives, and says how it ended. It takes no note of time: `paints` is
what a person could see, the text at each frame that showed another one than the frame before.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tests.needs import need, skip_or_fail

if TYPE_CHECKING:
    from playwright.async_api import Page

    from tests.browser.stand import Site, Tab

PACKAGES = Path(__file__).parent / "js"
PROMPT = "Why do streams matter?"

_PAGE = """<!doctype html>
<meta charset="utf-8">
<link rel="icon" href="data:,">
<p id="text"></p>
<p id="thoughts"></p>
<div id="images"></div>
<p id="message"></p>
<button id="stop">Stop</button>
<script type="module">
import * as client from "MODULE";

const text = document.getElementById("text");
const stop = new AbortController();
document.getElementById("stop").onclick = () => stop.abort();

window.client = client;
window.paints = [];
(function look() {
  if (text.textContent !== (window.paints.at(-1) ?? "")) window.paints.push(text.textContent);
  requestAnimationFrame(look);
})();

const use = {
  signal: stop.signal,
  onText: (piece) => text.append(piece),
  onThought: (piece) => document.getElementById("thoughts").append(piece),
  onImage: (url) => document.getElementById("images").append(Object.assign(new Image(), { src: url })),
  onStart: (id) => { window.streamId = id; },
};
window.begin = async (prompt, how) => {
  let state = "complete";
  try {
    window.result = await client.ask(prompt, { ...use, ...how });
  } catch (error) {
    state = error.name === "AbortError" ? "stopped" : "failed";
    document.getElementById("message").textContent = error.message;
  }
  // A page is judged by what it painted, so the last text is painted before the state says that it is there.
  requestAnimationFrame(() => requestAnimationFrame(() => { document.body.dataset.state = state; }));
};
document.body.dataset.state = "ready";
</script>
"""


async def add_page(site: Site, name: str, code: str) -> str:
    """Serve a page that uses this client; its address."""
    module = await bundle(code) if "\nimport " in f"\n{code}" else code
    site.add(f"/{name}.js", module, "text/javascript")
    site.add("/fence", "")
    return site.add(f"/{name}.html", _PAGE.replace("MODULE", f"/{name}.js"))


async def bundle(code: str) -> str:
    """Make one module of the code and the npm packages that it imports; needs Node and these packages."""
    need("node")
    esbuild = PACKAGES / "node_modules" / ".bin" / "esbuild"
    if not esbuild.exists():
        skip_or_fail("tests/browser/js has no node_modules (npm ci installs them)")
    # The tests' warnings are errors; so are esbuild's.
    command = (str(esbuild), "--bundle", "--format=esm", "--target=es2022", "--log-level=warning", "--log-limit=0")
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=PACKAGES,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, said = await process.communicate(code.encode())
    assert (process.returncode, said) == (0, b""), said.decode()
    return output.decode()


async def begin(page: Page, *, model: str, token: str) -> None:
    """Send the prompt; the page goes on by itself."""
    await page.locator("body[data-state='ready']").wait_for()
    await page.evaluate("([prompt, how]) => { begin(prompt, how); }", [PROMPT, {"model": model, "token": token}])


async def reach(page: Page, state: str) -> None:
    """Wait until the page has ended, in that state; one that ended otherwise is told with its message."""
    await page.locator("body[data-state]:not([data-state='ready'])").wait_for()
    reached = await page.locator("body").get_attribute("data-state")
    assert reached == state, await shown(page, "message")


async def shown(page: Page, id_: str) -> str:
    return await page.locator(f"#{id_}").text_content() or ""


def check_growth(paints: list[str], whole: str) -> None:
    """The text grew before the eyes: three times at least, each time longer, and never another text."""
    assert len(paints) >= 3, paints
    for earlier, later in pairwise(paints):
        assert later.startswith(earlier)
    assert paints[-1] == whole


async def requests_of(tab: Tab, origin: str) -> int:
    """How many requests the page has sent there, also those that it puts off: an hour passes on its clock.

    The clock must have been installed before the page was opened. What the page asks of its own site last is asked
    after everything that those timers sent.
    """
    await tab.page.clock.fast_forward("01:00:00")
    await tab.page.evaluate("async () => { await (await fetch('/fence')).text(); }")
    return len([url for url in tab.requested if url.startswith(origin)])
