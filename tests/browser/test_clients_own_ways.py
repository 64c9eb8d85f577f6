"""What single clients do besides: their own retries, hidden tabs, pictures and thoughts, fields, foreign origins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.mock.reply import DEFAULT_TEXT, IMAGE_URL, THOUGHT_TEXT
from tests.browser.client_pages import begin, reach, requests_of, shown
from tests.browser.client_scenes import CLIENTS, HELD, TORN, Client, open_client, visit
from tests.browser.recipes import PAGE, recipe, recipes
from tests.browser.stand import Site
from tests.peers import LAST, STREAM_HEAD, chunk, event, request

if TYPE_CHECKING:
    from tests.browser.client_scenes import OpenPage, Stage

pytestmark = pytest.mark.asyncio(loop_scope="session")

BY_NAME = {client.name: client for client in CLIENTS}

# A page that never closes its EventSource, and waits for the browser to give up.
CARELESS = """
export async function ask(prompt, { model, token, onText }) {
  const headers = { Authorization: `Bearer ${token}` };
  const body = JSON.stringify({ model, stream: true, messages: [] });
  const answer = await fetch('BASE/forward-sse/tickets', { method: 'POST', headers, body });
  const source = new EventSource(new URL((await answer.json()).url, 'BASE'));
  source.onmessage = ({ data }) => onText(JSON.parse(data).choices[0].delta.content);
  await new Promise((resolve) => {
    source.onerror = () => { if (source.readyState === EventSource.CLOSED) resolve(); };
  });
}
"""

# A component that has an address and appends to it.
APPENDING = """
export async function ask(prompt, how) {
  const address = await addressFor(prompt, how);
  const source = new EventSource(`${address}/stream?lang=en`);
  await new Promise((resolve, reject) => {
    source.onmessage = ({ data }) => {
      if (data !== '[DONE]') how.onText(JSON.parse(data).choices[0]?.delta.content ?? '');
    };
    source.addEventListener('end', () => { source.close(); resolve(); });
    source.onerror = () => reject(new Error('The connection was lost.'));
  });
}
"""

# A page that asks without a ticket.
WITH_TOKEN = """
export async function ask(prompt, { token, onText }) {
  const source = window.source = new EventSource(`BASE/agent/stream?q=Why&access_token=${token}`);
  source.onmessage = ({ data }) => onText(JSON.parse(data).choices[0].delta.content);
  await new Promise((resolve) => {
    // HERE
  });
}
"""


def without(code: str, line: str, *, lines: int = 1) -> str:
    """The code less some lines, from the one that begins so."""
    before, found, after = code.partition(f"    {line}")
    assert found
    return before + after.split("\n", lines)[lines]


async def test_event_source_comes_back(stage: Stage, open_page: OpenPage, site: Site) -> None:
    """A browser that reconnects after the end gets 204, gives up, and nothing is paid again."""
    scene = await stage(is_scripted=True)
    code = CARELESS.replace("BASE", scene.origin)
    tab = await visit(open_page, site, scene, BY_NAME["eventsource"], code=code)
    vendor, _ = await scene.scripted.take()
    # A vendor's own `retry` reaches the browser, which therefore does not wait its three seconds.
    await vendor.send(STREAM_HEAD + chunk(b"retry: 1\n" + event("Hello")) + LAST)
    await reach(tab.page, "complete")

    assert await shown(tab.page, "text") == "Hello"
    assert [url.partition("?")[0] for url in tab.requested if url.startswith(scene.origin)] == [
        scene.url("/forward-sse/tickets"),
        scene.url("/forward-sse"),
        scene.url("/forward-sse"),
    ]
    assert len(scene.scripted.peers) == 1


async def test_event_source_address_with_a_hash(stage: Stage, open_page: OpenPage, site: Site) -> None:
    """A component that appends a path and a query to a ticket's address streams, for none of that is sent."""
    scene = await stage()
    code = recipe("eventsource-address", scene.origin) + APPENDING
    tab = await visit(open_page, site, scene, BY_NAME["eventsource"], code=code)
    await reach(tab.page, "complete")

    assert await shown(tab.page, "text") == DEFAULT_TEXT
    assert scene.vendor.stats.requests == 1
    assert not tab.errors
    line = await scene.exchange()
    assert (line["path"], line["ending"]) == ("/forward-sse", "complete")


async def test_event_source_address_without_a_hash(stage: Stage, open_page: OpenPage, site: Site) -> None:
    """Without the `#` what is appended is a part of the ticket, which nobody knows; nothing is paid."""
    scene = await stage()
    code = recipe("eventsource-address", scene.origin).replace("}#`", "}`") + APPENDING
    tab = await visit(open_page, site, scene, BY_NAME["eventsource"], code=code)
    await reach(tab.page, "failed")

    assert scene.vendor.stats.requests == 0
    assert any("404" in error for error in tab.errors)


async def test_event_source_with_a_token_pays_again(stage: Stage, open_page: OpenPage, site: Site) -> None:
    """With `?access_token=` and without `close()` a browser asks the vendor again after an orderly end."""
    scene = await stage(is_scripted=True)
    tab = await visit(open_page, site, scene, BY_NAME["eventsource"], code=WITH_TOKEN.replace("BASE", scene.origin))
    vendor, first = await scene.scripted.take()
    # As in the test of a ticket: the browser need not wait its three seconds.
    await vendor.send(STREAM_HEAD + chunk(b"retry: 1\n" + event("one")) + LAST)

    # On the connection that the proxy kept.
    second = await vendor.read_message()
    await vendor.send(STREAM_HEAD + chunk(event("two")))
    await tab.page.locator("#text", has_text="two").wait_for()

    assert first.start == second.start == "GET /stream?q=Why HTTP/1.1"
    assert await shown(tab.page, "text") == "onetwo"
    await tab.page.close()
    await vendor.closed()


async def test_event_source_with_a_token_and_close(stage: Stage, open_page: OpenPage, site: Site) -> None:
    """The line that the page names for it prevents that: the end is the last that the proxy hears of it."""
    scene = await stage(is_scripted=True)
    line = "source.onerror = () => source.close();"
    assert f"`{line}`" in PAGE.read_text()
    code = WITH_TOKEN.replace("BASE", scene.origin).replace(
        "// HERE", f"{line} source.addEventListener('error', resolve);"
    )
    tab = await visit(open_page, site, scene, BY_NAME["eventsource"], code=code)
    vendor, _ = await scene.scripted.take()
    await vendor.send(STREAM_HEAD + chunk(b"retry: 1\n" + event("one")) + LAST)
    await reach(tab.page, "complete")

    assert await tab.page.evaluate("source.readyState === EventSource.CLOSED")
    assert await requests_of(tab, scene.origin) == 1
    assert len(scene.scripted.peers) == 1


async def test_six_connections(stage: Stage, open_page: OpenPage, site: Site) -> None:
    """While six streams run over HTTP/1.1 a `DELETE` waits in the browser; leaving one of them lets it out."""
    scene = await stage(HELD)
    tab = await open_client(open_page, site, scene, BY_NAME["typed"])
    await tab.page.locator("body[data-state='ready']").wait_for()
    await tab.page.evaluate(
        """async ([url, token]) => {
            const headers = { Authorization: `Bearer ${token}` };
            const body = JSON.stringify({ model: "gpt-4o", stream: true, messages: [] });
            window.stops = Array.from({ length: 6 }, () => new AbortController());
            const asked = stops.map(({ signal }) => fetch(url, { method: "POST", headers, body, signal }));
            window.ids = (await Promise.all(asked)).map((answer) => answer.headers.get("X-Forward-Sse-Id"));
            client.cancel(ids[5], { token }).then(() => { window.isCancelled = true; });
            await (await fetch("/fence")).text();
        }""",
        [scene.url("/forward-sse"), scene.token],
    )
    # The proxy answers others at once, and has not heard of it.
    peer = await scene.proxy.client()
    peer.write(request("/healthz", method="GET"))
    assert (await peer.read_message()).status == 200
    assert scene.vendor.stats.cancelled == 0
    assert await tab.page.evaluate("window.isCancelled") is None

    await tab.page.evaluate("stops[0].abort()")
    await tab.page.wait_for_function("window.isCancelled")

    await scene.vendor.wait_for(lambda stats: stats.cancelled == 2)
    await tab.page.close()
    await scene.vendor.wait_for(lambda stats: stats.cancelled == 6)


async def test_fetch_event_source_without_its_lines(stage: Stage, open_page: OpenPage, site: Site) -> None:
    """Without `onerror` this client pays again for a stream that broke: the recipe's line is what prevents it."""
    client = BY_NAME["fetch-event-source"]
    scene = await stage(TORN)
    code = without(recipe(client.name, scene.origin), "onerror", lines=3)
    tab = await visit(open_page, site, scene, client, code=code)
    await scene.vendor.wait_for(lambda stats: stats.finished == 1)
    await scene.proxy.idle()

    async with tab.page.expect_request(scene.url("/forward-sse")):
        await tab.page.clock.run_for(5_000)
    await scene.vendor.wait_for(lambda stats: stats.requests == 2)


async def test_fetch_event_source_typed(stage: Stage, open_page: OpenPage, site: Site) -> None:
    """Typed events end in order even where the vendor broke off, so not even a careless page sends again."""
    client = BY_NAME["fetch-event-source"]
    scene = await stage(TORN)
    code = without(recipe(client.name, scene.origin), "onerror", lines=3)
    code = code.replace("/forward-sse'", "/forward-sse?events=typed'")
    start = code.index("      const { error")
    code = code[:start] + "onText(JSON.parse(data).t);\n" + code[code.index("    },\n", start) :]
    tab = await visit(open_page, site, scene, client, code=code)
    await reach(tab.page, "complete")

    assert (await shown(tab.page, "text")).endswith("Error")
    assert await requests_of(tab, scene.origin) == 1
    assert scene.vendor.stats.requests == 1


async def test_fetch_event_source_hidden(stage: Stage, open_page: OpenPage, site: Site) -> None:
    """A tab that is hidden and shown again goes on with its stream; it is not asked for, and paid, anew."""
    scene = await stage()
    tab = await visit(open_page, site, scene, BY_NAME["fetch-event-source"])
    await tab.page.locator("#text", has_text="Hello from").wait_for()
    for is_hidden in (True, False):
        await tab.page.evaluate(
            """(hidden) => {
                Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            is_hidden,
        )
    await reach(tab.page, "complete")

    assert await shown(tab.page, "text") == DEFAULT_TEXT
    assert await requests_of(tab, scene.origin) == 1
    assert scene.vendor.stats.requests == 1


async def test_typed_thoughts_and_pictures(stage: Stage, open_page: OpenPage, site: Site) -> None:
    """Thoughts, pictures and text come apart, and the usage with the end."""
    scene = await stage()
    tab = await open_client(open_page, site, scene, BY_NAME["typed"])
    await begin(tab.page, model="gpt-thinking-image", token=scene.token)
    await reach(tab.page, "complete")

    assert await shown(tab.page, "thoughts") == THOUGHT_TEXT
    assert await shown(tab.page, "text") == DEFAULT_TEXT
    assert await tab.page.evaluate("[...document.images].map((image) => image.src)") == [IMAGE_URL]
    assert await tab.page.evaluate("result") == {
        "cancelled": False,
        "usage": {"input": 4, "output": 29, "total": 33},
    }
    assert not tab.errors


async def test_typed_cancel(stage: Stage, open_page: OpenPage, site: Site) -> None:
    """A stream that its user cancels by its id is told as cancelled, and the vendor's request is too."""
    scene = await stage(HELD)
    tab = await visit(open_page, site, scene, BY_NAME["typed"])
    await tab.page.locator("#text", has_text="Hello from").wait_for()

    await tab.page.evaluate("(token) => client.cancel(streamId, { token })", scene.token)
    await reach(tab.page, "complete")

    assert (await tab.page.evaluate("result"))["cancelled"] is True
    await scene.vendor.wait_for(lambda stats: stats.cancelled == 1)
    assert (await scene.exchange())["ending"] == "stopped"
    assert scene.proxy.leases_held == 0
    assert not tab.errors


async def test_generator_left_by_break(stage: Stage, open_page: OpenPage, site: Site) -> None:
    """To break out of the loop cancels the vendor's request, without an AbortController."""
    scene = await stage(HELD)
    tab = await open_client(open_page, site, scene, BY_NAME["generator"])
    await tab.page.locator("body[data-state='ready']").wait_for()

    count = await tab.page.evaluate(
        """async ([url, token]) => {
            const headers = { Authorization: `Bearer ${token}` };
            const body = JSON.stringify({ model: "gpt-4o", stream: true, messages: [] });
            const answer = await fetch(url, { method: "POST", headers, body });
            let count = 0;
            for await (const block of client.blocksOf(answer.body)) {
                count += 1;
                if (count === 3) break;
            }
            return count;
        }""",
        [scene.url("/forward-sse"), scene.token],
    )

    assert count == 3
    await scene.check_cancelled()


async def test_stop_button(stage: Stage, open_page: OpenPage, site: Site) -> None:
    """The few lines around every recipe: they show the text, and their button stops it."""
    scene = await stage(HELD)
    code = recipe("fetch", scene.origin).replace("export async function ask", "async function send")
    # The block names what a page has: `ask`, `token`, and `output`, an element.
    code += f"""
        export async function ask(_, {{ token, onText }}) {{
          const ask = send, output = {{ append: onText }};
          {recipes()["stop"]}
        }}"""
    tab = await visit(open_page, site, scene, BY_NAME["fetch"], code=code)
    await tab.page.locator("#text", has_text="Hello from").wait_for()
    await tab.page.click("#stop")
    await reach(tab.page, "stopped")

    await scene.check_cancelled()


async def test_fetch_with_an_event_streams_type(stage: Stage, open_page: OpenPage, site: Site) -> None:
    """A page that sends its JSON as `text/event-stream`, as some do, is let through the preflight and understood."""
    scene = await stage()
    code = recipe("fetch", scene.origin).replace("'application/json'", "'text/event-stream'")
    tab = await visit(open_page, site, scene, BY_NAME["fetch"], code=code)
    await reach(tab.page, "complete")

    assert await shown(tab.page, "text") == DEFAULT_TEXT


# What a page may want to read of each answer, beyond those that every browser shows.
FIELDS = ("x-forward-sse-id", "x-request-id", "ratelimit", "ratelimit-policy", "x-ratelimit-remaining-requests")
REFUSAL_FIELDS = (
    "x-forward-sse-id",
    "x-forward-sse-code",
    "retry-after",
    "ratelimit",
    "x-ratelimit-remaining-requests",
)


async def test_page_reads_fields(stage: Stage, open_page: OpenPage, site: Site) -> None:
    """A page on another origin reads the ids, the limits left, the code of a refusal and when to come back."""
    scene = await stage()
    tab = await open_client(open_page, site, scene, BY_NAME["fetch"])
    read = """async ([url, token, names]) => {
        const headers = { Authorization: `Bearer ${token}` };
        const answer = await fetch(url, { method: "POST", headers, body: '{"model": "gpt-4o"}' });
        return [answer.status, names.filter((name) => answer.headers.get(name) === null)];
    }"""
    url = scene.url("/forward-sse")

    assert await tab.page.evaluate(read, [url, scene.over_limit, FIELDS]) == [200, []]
    assert await tab.page.evaluate(read, [url, scene.over_limit, REFUSAL_FIELDS]) == [429, []]
    assert await tab.page.evaluate(read, [url, "wrong", ("www-authenticate", "x-forward-sse-code")]) == [401, []]


@pytest.mark.parametrize("client", [client for client in CLIENTS if client.name in {"fetch", "eventsource"}], ids=str)
async def test_page_of_an_unlisted_origin(stage: Stage, open_page: OpenPage, client: Client) -> None:
    """A page whose origin is not listed can ask for nothing, whatever token it has."""
    scene = await stage()
    async with Site() as other:
        tab = await visit(open_page, other, scene, client)
        await reach(tab.page, "failed")

        assert await shown(tab.page, "message") == "Failed to fetch"
        assert scene.vendor.stats.requests == 0


async def test_recipes_are_run() -> None:
    """Every block for browsers is one of those that these tests run."""
    assert recipes().keys() == {*BY_NAME, "stop", "eventsource-address"}
