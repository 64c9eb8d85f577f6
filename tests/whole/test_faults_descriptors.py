"""No descriptor is left: clients are refused or told so, the process does not spin, and all is well afterwards."""

from __future__ import annotations

import asyncio
import resource
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import token
from tests.peers import WAIT_S, connect, request
from tests.whole.nodes import BODY, SILENT, Node, configuration, descriptors, node, used_cpu_s

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.mock.server import MockVendor
    from tests.peers import Peer, Upstream

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sets another process's limits, reads /proc")

NO_BOUND = "plans: {default: {}}\n"
ROOM = 41
CLIENTS = 100
# A loop that spins on a listener it cannot accept from uses all of a core.
MAX_CPU = 0.5
# So many are turned away meanwhile, at least.
ENOUGH = 5


def stream() -> bytes:
    """Made when it is needed: the tests' tokens live for ten minutes, and all tests may take longer."""
    return request(SILENT, BODY, token=token())


HEALTH = request("/healthz", method="GET")


async def ask(served: Node, clients: list[Peer], what: bytes | None = None) -> tuple[int, str | None] | None:
    """Ask for a stream that goes on for ever, or something else; None where the connection is refused."""
    try:
        client = await connect(served.address)
        clients.append(client)
        client.write(stream() if what is None else what)
        head = await client.read_head()
    except (OSError, asyncio.IncompleteReadError):
        return None
    return head.status, head.get("x-forward-sse-code")


async def until_open(pid: int, count: int) -> None:
    """Wait until the process has so many descriptors or fewer."""
    async with asyncio.timeout(WAIT_S):
        while len(descriptors(pid)) > count:  # noqa: ASYNC110 - the other process closes them
            await asyncio.sleep(0.02)


async def test_faults_full_descriptor_table(tmp_path: Path, vendor: MockVendor, upstream: Upstream) -> None:
    """Streams that run go on, who has come in is told 503, who has not is refused at once; no core is burnt on it."""
    text = configuration(vendor, upstream, NO_BOUND, "memory", "")
    clients: list[Peer] = []
    async with node(tmp_path / "node.yaml", text, workers=1) as served:
        (pid,) = served.pids.values()
        before = descriptors(pid)
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(before) + ROOM, hard))

        keeping: list[Peer] = []
        assert await ask(served, keeping, HEALTH) == (200, None)
        seen = [await ask(served, clients) for _ in range(CLIENTS)]
        full = len(descriptors(pid))
        # The one descriptor that this client leaves is enough to come in, not to be served.
        await keeping.pop().gone()
        await until_open(pid, full - 1)
        while await ask(served, keeping, HEALTH) is not None:
            continue
        await keeping[-2].gone()
        await until_open(pid, full - 1)
        told = await ask(served, clients)

        loop = asyncio.get_running_loop()
        spent_s, until_s, refused = used_cpu_s(pid), loop.time() + 1.0, 0
        # Others go on knocking: a connection that waits and cannot be accepted must be no reason to spin.
        while loop.time() < until_s or refused <= ENOUGH:
            refused += await ask(served, clients) is None
            await asyncio.sleep(0.05)
        spent_s = used_cpu_s(pid) - spent_s

        running = vendor.stats.active
        for client in clients + keeping:
            await client.gone()
        await until_open(pid, len(before))
        after = [await served.post(token()) for _ in range(5)]

    assert (200, None) in seen
    assert None in seen
    assert set(seen) <= {(200, None), (503, "overloaded"), None}
    assert told == (503, "overloaded")
    assert seen.count((200, None)) == running
    assert spent_s < MAX_CPU
    assert [asked.status for asked in after] == [200] * 5
    settled = served.all("exchange.settled")
    assert {line["ending"] for line in settled} == {"client_closed", "complete", "refused"}
    assert {line["ending"] for line in settled if line["code"] == "overloaded"} == {"refused"}
    assert served.all("exchange.failed") == []
