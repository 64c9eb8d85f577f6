"""One caller's largest bodies, on a process of its own: how long they hold its loop, how much memory they take."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, Peer, Upstream, connect, request
from tests.settings_builder import values
from tests.whole.scenes import OK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]
WAIT_S = 30
SIZE = 30 * 2**20
# Building the document holds the loop for seconds; the promise is 20 ms. In between is room for a machine that shares
# its cores, whose CPU time is longer than its work.
MOST_MS = 100
# Beside the bodies: what the allocator and the sockets keep.
SLACK = 6 * 2**20
# Serves the application on the loop that the command has. A callback that asks for itself runs once in each iteration
# of the loop: the CPU time of the thread from one to the next is the length of the iteration. Each line of standard
# input is answered with what was measured since the one before.
WATCHED = """
import asyncio, json, sys, time
from pathlib import Path
from aiohttp import web
from proxy.app import connection_options, make_app
from proxy.server.run import new_event_loop
from proxy.settings import load_settings

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

async def main():
    loop = asyncio.get_running_loop()
    settings = load_settings(sys.argv[1], {})
    runner = web.AppRunner(make_app(settings), **connection_options(settings))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    seen = longest = began = 0
    def iteration():
        nonlocal seen, longest
        now = time.thread_time_ns()
        longest = max(longest, now - seen)
        seen = now
        loop.call_soon(iteration)
    def tell():
        nonlocal seen, longest, began
        if not sys.stdin.readline():
            sys.exit()
        grown = resident("VmHWM:") - began
        print(json.dumps({"address": runner.addresses[0], "longest_ms": longest / 1e6, "grown": grown}), flush=True)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        began = resident("VmRSS:")
        seen, longest = time.thread_time_ns(), 0
    loop.add_reader(sys.stdin, tell)
    iteration()
    await loop.create_future()

loop = new_event_loop()
loop.run_until_complete(main())
"""


def filled(start: bytes, piece: bytes, end: bytes) -> bytes:
    return start + piece * ((SIZE - len(start) - len(end)) // len(piece)) + end


TWO_MODELS = filled(b'{"model":"gpt-x","y":{"model":1},"x":[', b"{},", b"{}]}")
ONE_MODEL = filled(b'{"model":"gpt-x","x":[', b"{},", b"{}]}")


class Watched:
    """The process with the proxy, and what it tells."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def told(self) -> dict[str, Any]:
        """What was measured since this was called last."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        async with asyncio.timeout(WAIT_S):
            while not (line := await self._process.stdout.readline()).startswith(b'{"address"'):
                assert line, "the process ended"
        told: dict[str, Any] = json.loads(line)
        return told


@asynccontextmanager
async def watched(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Watched]:
    """The application in a process of its own, with an envelope's target at the vendor."""
    target = {"url": f"{upstream.url}/own"}
    envelope = {"targets": [target], "allow_private": ["127.0.0.0/8"]}
    file = tmp_path / "proxy.json"
    file.write_text(json.dumps(values(upstream.url, envelope=envelope)))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", WATCHED, str(file)),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Watched(process)
    finally:
        process.kill()
        await process.communicate()


async def send(client: Peer, data: bytes) -> None:
    for start in range(0, len(data), 2**18):
        await client.send(data[start : start + 2**18])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("path", "body", "copies"),
    [
        pytest.param("/v1/chat/completions", TWO_MODELS, 1, id="a short route"),
        pytest.param("/v1/chat/completions", ONE_MODEL, 1, id="a short route, one model"),
        pytest.param("/v1/chat/completions", ONE_MODEL[: 8 * 2**20 - 4] + b"{}]}", 1, id="a short route, 8 MiB"),
        pytest.param("/forward-sse", TWO_MODELS, 1, id="the front"),
        pytest.param("/forward-sse", b"", 2, id="an envelope's body"),
        pytest.param("/forward-sse/tickets", TWO_MODELS, 2, id="a ticket"),
    ],
)
async def test_large_body(
    tmp_path: Path,
    upstream: Upstream,
    path: str,
    body: bytes,
    copies: int,
) -> None:
    """A body of 30 MiB holds the loop for a piece of it at a time, and is in memory twice at most."""
    body = body or b'{"targetUrl":"%s/own","body":%s}' % (upstream.url.encode(), TWO_MODELS)
    async with watched(tmp_path, upstream) as process:
        address = tuple((await process.told())["address"])
        async with await connect(address) as client:
            # Imports and what is made once are not the body's.
            client.write(request("/v1/chat/completions", {"model": "gpt-x"}, token=token()))
            vendor, _ = await upstream.take()
            vendor.write(OK)
            assert (await client.read_message()).status == 200
            await vendor.gone()
            await process.told()

            await send(client, request(path, body, token=token()))
            if path.endswith("tickets"):
                made = await client.read_message()
                assert made.status == 201
                client.write(request(made.json["url"], method="GET"))
            vendor, received = await upstream.take()
            assert len(received.body) > len(body) - 200
            vendor.write(STREAM_HEAD + LAST)
            assert (await client.read_message()).status == 200

            told = await process.told()
    assert told["longest_ms"] < MOST_MS
    assert told["grown"] < copies * len(body) + SLACK
