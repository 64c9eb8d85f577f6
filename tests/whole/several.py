"""A service of several workers on real processes, with a limits server of its own; and streams held in its workers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.conftest import CONFIG, SECRET, VENDOR_KEY, token
from tests.limits.redis_support import RedisServer, Shared, holds
from tests.peers import LAST, STREAM_HEAD, WAIT_S, Message, Peer, Upstream, chunk, connect, event, request
from tests.whole.test_admin_whole import samples
from tests.whole.test_commands import Served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BODY = {"model": "gpt-x", "stream": True}
NO_BOUND = "plans: {default: {}}\n"
WORKERS = 3
SERVE = ("-m", "proxy", "serve")
# With so many times the time for the limits server: where a machine stands still for a moment, nothing is lost.
PATIENCE = 5
_PATIENT = f"""
from proxy.cli.commands import main
from proxy.limits.redis.store import RedisStore
RedisStore.__init__.__kwdefaults__["timeout_s"] *= {PATIENCE}
main()
"""
SERVE_PATIENTLY = ("-c", _PATIENT, "serve")
# To be gone at once. Two of a kind would be one, to a process that has not looked meanwhile.
HURRY = (signal.SIGTERM, signal.SIGINT)
# Not to be used again: the next stream's connection may then be of another worker.
ONCE = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


class Several(Served):
    """A service of several workers; `admin_token` is an operator's, where one is needed."""

    admin_token: str | None = None
    address: tuple[str, int]
    admin_address: tuple[str, int]
    pids: dict[str, int]

    async def up(self) -> None:
        """Read until the service and each of its workers say that they serve."""
        started = await self.line("server.started")
        self.address, self.admin_address = address_of(started["listen"]), address_of(started["admin_listen"])
        # A worker's line may come before or after the arbiter's.
        self.pids = {line["worker"]: line["pid"] for line in self.lines if line["event"] == "worker.started"}
        while len(self.pids) < started["workers"]:
            await self.worker_up()

    async def worker_up(self) -> str:
        """Read until another worker says that it serves."""
        line = await self.line("worker.started")
        self.pids[line["worker"]] = line["pid"]
        return str(line["worker"])

    async def ask(self, path: str, method: str = "GET") -> Message:
        async with await connect(self.admin_address) as admin:
            admin.write(request(path, method=method, token=self.admin_token))
            return await admin.read_message()

    async def metrics(self) -> dict[str, float]:
        return samples((await self.ask("/metrics")).body.decode())

    async def streams(self) -> dict[str, str]:
        """The worker of each live stream by its id."""
        return {stream["id"]: stream["worker"] for stream in (await self.ask("/admin/streams")).json["streams"]}

    async def worker_of(self, id_: str) -> str:
        """The worker of a live stream; of a worker that is too busy to answer, nothing is listed."""
        async with asyncio.timeout(WAIT_S):
            while (worker := (await self.streams()).get(id_)) is None:  # noqa: ASYNC110 - it is they who must be asked
                await asyncio.sleep(0.02)
        return worker


class Held:
    """A stream that runs in one of the workers."""

    def __init__(self, client: Peer, vendor: Peer, worker: str, id_: str) -> None:
        self.client = client
        self.vendor = vendor
        self.worker = worker
        self.id = id_

    async def goes_on(self) -> bool:
        self.vendor.write(chunk(event("on")))
        return (await self.client.read_until(event("on"))).endswith(event("on"))

    async def ends_well(self) -> bool:
        self.vendor.write(LAST)
        return (await self.client.read_until(LAST)).endswith(LAST)

    async def is_cut(self) -> bool:
        return not (await self.client.read_to_end()).endswith(LAST)


def address_of(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def with_store(store: str, policy: str = "allow") -> str:
    """The part of a configuration that names the limits server; by `allow` a busy machine is no outage."""
    return f"limits: {{store: '{store}', on_store_error: {policy}}}\n"


@asynccontextmanager
async def several(
    tmp_path: Path,
    upstream: Upstream,
    more: str = NO_BOUND,
    workers: int = WORKERS,
    *,
    store: str | None = None,
    command: tuple[str, ...] = SERVE,
    admin_token: str | None = None,
) -> AsyncIterator[Several]:
    """A service on free ports; every process of it has ended when this is left.

    `store` is the URL of a limits server; without one it is given its own.
    """
    server = None if store else RedisServer()
    if server is not None:
        await server.start()
        store = f"unix://{server.path}"
    config = tmp_path / "proxy.yaml"
    config.write_text(CONFIG.format(secret=SECRET, url=upstream.url, key=VENDOR_KEY) + more + with_store(store or ""))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command, "--config", str(config), "--workers", str(workers)),
        stdout=asyncio.subprocess.PIPE,
    )
    served = Several(process, config)
    served.admin_token = admin_token
    try:
        await served.up()
        yield served
    finally:
        # The generation that serves, which may be a later one.
        pids = [line["pid"] for line in served.lines if line["event"] == "server.started"]
        for pid, number in itertools.product(pids[-1:], HURRY):
            with contextlib.suppress(ProcessLookupError):
                if pid != process.pid or process.returncode is None:
                    os.kill(pid, number)
        try:
            async with asyncio.timeout(WAIT_S):
                await process.wait()
                assert process.stdout is not None
                # Then nobody holds the pipe.
                await process.stdout.read()
        finally:
            if process.returncode is None:
                process.kill()
            if server is not None:
                server.close()


async def hold(served: Several, upstream: Upstream, number: int, credential: str | None = None) -> Held:
    id_ = f"held-{number}"
    client = await connect(served.address)
    client.write(request(body=BODY, token=credential or token(), fields=(("X-Request-Id", id_),)))
    vendor, _ = await upstream.take()
    vendor.write(ONCE + chunk(event("one")))
    await client.read_until(event("one"))
    return Held(client, vendor, await served.worker_of(id_), id_)


@asynccontextmanager
async def one_in_each(
    served: Several, upstream: Upstream, credential: str | None = None, *, store: Shared | None = None
) -> AsyncIterator[dict[str, Held]]:
    """A stream in every worker, whoever takes a connection; further ones of a worker are ended.

    With the store given, the next begins when it knows of the end: for a user who may have no more than these.
    """
    held: dict[str, Held] = {}
    clients = []
    try:
        for number in range(200):
            stream = await hold(served, upstream, number, credential)
            clients.append(stream.client)
            if held.setdefault(stream.worker, stream) is not stream:
                assert await stream.ends_well()
                if store is not None:
                    await holds(store, len(held))
            if len(held) == len(served.pids):
                break
        assert set(held) == set(served.pids)
        yield held
    finally:
        for client in clients:
            await client.gone()
