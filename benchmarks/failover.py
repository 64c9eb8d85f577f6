"""What a dead first upstream costs a stream: `python -m benchmarks.failover [--streams N] [--rounds N]`.

Two proxies before one offline vendor: one knows it alone, the other has a route on which an upstream comes first that
nobody listens on. The same streams go through both, in turns; what is printed is the time to the first byte of the
body, in the middle, and what the route has added. The first round finds the upstream dead, the others find it left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp

from proxy.mock.server import MockVendor

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

AT_ONCE: Final = 20
BODY: Final = {"model": "gpt-x", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
PATH: Final = "/v1/chat/completions?events=5&interval_ms=0"
_FILE: Final = """
listen: 127.0.0.1:0
admin_listen: off
auth: none
plans: {{default: {{}}}}
upstreams:
  good: {{url: "http://127.0.0.1:{vendor}", dialect: openai, api_key: mock-key}}
  dead: {{url: "http://127.0.0.1:{dead}", dialect: openai, api_key: mock-key}}
default_upstream: good
"""
_ROUTE: Final = 'routes: [{models: ["gpt-*"], upstreams: [dead, good], retry: {}}]\n'


@asynccontextmanager
async def serve(text: str, config: Path) -> AsyncIterator[str]:
    """A proxy by that configuration; its address."""
    config.write_text(text)  # noqa: ASYNC240 - a few lines
    process: Process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "serve", "--config", str(config)), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    started = json.loads(await process.stdout.readline())
    while started["event"] != "server.started":
        started = json.loads(await process.stdout.readline())
    reading = asyncio.create_task(process.stdout.read())
    try:
        yield f"http://{started['listen']}"
    finally:
        process.terminate()
        await process.wait()
        await reading


async def first_bytes(address: str, streams: int) -> tuple[list[float], int]:
    """The time of each stream until its first byte, in milliseconds; and how many were refused."""
    slots, times, refused = asyncio.Semaphore(AT_ONCE), list[float](), 0

    async def one(session: aiohttp.ClientSession) -> None:
        nonlocal refused
        async with slots:
            began_s = time.perf_counter()
            async with session.post(address + PATH, json=BODY) as response:
                await response.content.readany()
                times.append((time.perf_counter() - began_s) * 1000)
                refused += response.status != 200  # noqa: PLR2004 - OK
                await response.read()

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(one(session) for _ in range(streams)))
    return times, refused


async def run(streams: int, rounds: int) -> None:
    """Print a line a round, and what the route has added in those after the first."""
    with socket.socket() as nobody, tempfile.TemporaryDirectory() as room:
        # Bound, and not listening: a connection is refused.
        nobody.bind(("127.0.0.1", 0))
        async with AsyncExitStack() as stack:
            vendor = await stack.enter_async_context(MockVendor())
            text = _FILE.format(vendor=vendor.port, dead=nobody.getsockname()[1])
            alone = await stack.enter_async_context(serve(text, Path(room, "alone.yaml")))
            routed = await stack.enter_async_context(serve(text + _ROUTE, Path(room, "routed.yaml")))
            added: list[float] = []
            for number in range(rounds):
                plain, _ = await first_bytes(alone, streams)
                through, refused = await first_bytes(routed, streams)
                ours, theirs = statistics.median(through), statistics.median(plain)
                added.append(ours - theirs)
                print(f"round {number}: {theirs:.2f} ms alone, {ours:.2f} ms routed, {refused} refused")
            if rounds > 1:
                print(f"added while it is left out: {statistics.median(added[1:]):+.2f} ms in the middle")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    asyncio.run(run(arguments.streams, arguments.rounds))


if __name__ == "__main__":
    main()
