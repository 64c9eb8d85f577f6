"""What is cut for the log and for spans: a secret that stands across the cut must leave no part of itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.collector import SERVER, Collector
from tests.conftest import VENDOR_KEY, token
from tests.peers import WAIT_S, only
from tests.whole.scenes import head
from tests.whole.test_operators_whole import BOTH, OPS, ask

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tests.conftest import Running

# How much of the key would stand before the cut of a path, at its 256th character.
BEFORE_THE_CUT = [0, 1, 6, len(VENDOR_KEY) - 1, len(VENDOR_KEY)]


async def send(proxy: Running, path: str) -> None:
    """Ask for a path that no upstream has; its line is as any other's."""
    client = await proxy.client()
    client.write(head(f"Authorization: Bearer {token()}", "Content-Length: 0", start=f"POST {path} HTTP/1.1"))
    assert (await client.read_message()).status == 404


@pytest.mark.parametrize("before", BEFORE_THE_CUT)
async def test_secret_across_the_cut_of_a_path(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """Log line and span show a part of a vendor's key that a client wrote across the end of what is kept of a path."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    begin = "/none/".ljust(256 - before, "x")
    async with Collector() as collector:
        proxy = await start(f"telemetry: {{otlp: '{collector.url}', traces: true}}\n")
        await send(proxy, f"{begin}{VENDOR_KEY}/and/more")
        line = only(await proxy.settled(), "exchange.settled")
        spans = await collector.wait(1)
    shown = f"{begin}[redacted]/and/more"[:256]
    assert line["path"] == shown
    assert [span.attributes["url.path"] for span in spans if span.raw.kind == SERVER] == [shown]


async def test_very_long_path(start: Callable[..., Any]) -> None:
    """Of a path that is longer than what is searched, something else is shown than its beginning."""
    proxy = await start("max_header: 256KiB\n")
    path = "/none/" + VENDOR_KEY + "y" * 100_000
    await send(proxy, path)
    assert only(await proxy.settled(), "exchange.settled")["path"] == ("/none/[redacted]" + "y" * 256)[:256]


async def test_secret_across_the_cut_of_a_target(start: Callable[..., Any]) -> None:
    """The line of an operator's action shows a part of a key that was written across the end of its target."""
    proxy = await start(BOTH)
    begin = "u" * (200 - 6)
    answer = await ask(
        proxy, "DELETE", f"/admin/streams?user={begin}{VENDOR_KEY}{'z' * 300}", ("Authorization", f"Bearer {OPS}")
    )
    assert answer.json == {"stopped": 0}
    async with asyncio.timeout(WAIT_S):
        # As in `settled`: there is no event to wait for.
        while not (acted := [line for line in proxy.lines() if line["event"] == "operator.acted"]):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert [line["target"] for line in acted] == [f"{begin}[redac"]
