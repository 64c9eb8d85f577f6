"""The echo on the wire: its log line, a client that leaves, its path."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import token
from tests.needs import need
from tests.peers import Peer, Upstream, request
from tests.whole.scenes import check_settled

if TYPE_CHECKING:
    from tests.conftest import Running

PATH = "/forward-sse/echo"


@pytest.mark.parametrize("path", [f"{PATH}?interval_ms=0", f"{PATH}/?interval_ms=0"])
async def test_echo_settled(proxy: Running, upstream: Upstream, path: str) -> None:
    """It ends as a stream does, with a line like any exchange's and no upstream; a slash at its end changes nothing."""
    client = await proxy.client()
    client.write(request(path, method="GET", token=token()))
    answer = await client.read_message()

    assert (answer.status, answer.is_whole, answer.body.count(b"\n\n")) == (200, True, 10)
    await check_settled(proxy, "complete", path=PATH, upstream=None, events=10, bytes=len(answer.body), user="alice")
    assert upstream.is_untouched


async def test_echo_client_leaves(proxy: Running) -> None:
    """A client that leaves in the silence ends it at once, and frees its lease."""
    client = await proxy.client()
    client.write(request(f"{PATH}?events=2&interval_ms=0&silence_ms=290000", method="GET", token=token()))
    await client.read_until(b"\n\n\r\n")

    client.reset()

    await check_settled(proxy, "client_closed", path=PATH, events=1)
    assert proxy.leases_held == 0


async def test_echo_client_that_does_not_read(proxy: Running) -> None:
    """While a client does not read, nothing is kept for it; later it gets the rest, in order."""
    client = await proxy.client(receive_buffer=4096)
    client.write(request(f"{PATH}?events=10000&interval_ms=0", method="GET", token=token()))
    answer = await client.read_message()

    numbers = [int(event.split(b",")[0].rpartition(b":")[2]) for event in answer.body[:-2].split(b"\n\n")]
    assert numbers == list(range(10000))
    await check_settled(proxy, "complete", path=PATH, events=10000)


async def test_echo_http_1_0(proxy: Running) -> None:
    """To a client of HTTP/1.0 the connection's end is the stream's."""
    client = await proxy.client()
    data = request(f"{PATH}?events=2&interval_ms=0", method="GET", token=token()).replace(b"HTTP/1.1", b"HTTP/1.0")
    client.write(data)
    answer = await client.read_message()

    assert (answer.status, answer.body.count(b"\n\n")) == (200, 2)


async def test_echo_preflight(proxy: Running) -> None:
    """A browser may ask for permission, as on every own path."""
    client: Peer = await proxy.client()
    fields = (("Origin", "https://a.example"), ("Access-Control-Request-Method", "GET"))
    client.write(request(PATH, method="OPTIONS", fields=fields))

    assert (await client.read_message()).status == 204


async def test_echo_recipe(proxy: Running) -> None:
    """The command of `docs/clients.md` prints ten events."""
    need("curl")
    section = (Path(__file__).parents[2] / "docs/clients.md").read_text().partition("\n## Echo")[2]
    code = section.partition("```sh\n")[2].partition("```")[0]
    address = f"http://127.0.0.1:{proxy.address[1]}"
    assert "https://llm.example.com" in code
    process = await asyncio.create_subprocess_shell(
        code.replace("https://llm.example.com", address).replace("interval_ms=500", "interval_ms=1"),
        env={**os.environ, "LLM_TOKEN": token()},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()

    assert (process.returncode, out.count(b"sent_ms")) == (0, 10)
