"""What ran in a worker that was killed, with a ledger in PostgreSQL: one row and one line each, and one charge."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.conftest import token
from tests.ledger.postgres.test_postgres_ledger import arrived, comes_true, shipped
from tests.peers import LAST, WAIT_S, connect, request
from tests.postgres import PostgresServer, ask, started
from tests.whole.nodes import configuration, node
from tests.whole.test_ledger_killed import PLAN, begin, check, files, kept, lose_a_worker, running
from tests.whole.test_ledger_postgres import with_ledger
from tests.whole.test_ledger_whole import NO_BOUND, completed, rows_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from proxy.mock.server import MockVendor
    from tests.limits.redis_support import RedisServer
    from tests.peers import Upstream
    from tests.whole.nodes import Node

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the arbiter is run on Linux")


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server that runs."""
    with started() as server:
        yield server


def budgeted(server: PostgresServer, room: Path) -> str:
    return with_ledger(server.url, room / "spool").replace(NO_BOUND, PLAN)


def ids_in(server: PostgresServer) -> list[str]:
    """The exchanges that the database has a row of."""
    return sorted(id_ for (id_,) in ask(server.url, "SELECT id FROM exchanges"))


async def used(one: Node) -> int:
    """What the budget of the user has used, as soon as there is a shipper that answers."""
    async with asyncio.timeout(WAIT_S * 2):
        while True:
            async with await connect(one.address) as asking:
                asking.write(request("/forward-sse/usage", method="GET", token=token()))
                answer = await asking.read_message()
            if answer.status != 503:
                (limit,) = answer.json["limits"]
                return int(limit["used"])
            await asyncio.sleep(0.05)


async def test_killed_process(tmp_path: Path, vendor: MockVendor, upstream: Upstream, server: PostgresServer) -> None:
    """The next process charges what ran from its first request on, though the database has its row only later."""
    text = configuration(vendor, upstream, budgeted(server, tmp_path), "memory", "deny")
    async with node(tmp_path / "proxy.yaml", text, workers=1) as one:
        ended, vendor_of_ended = await begin(one, upstream, "ended")
        broken, vendor_of_broken = await begin(one, upstream, "broken")
        await kept(tmp_path, "ended", "broken")
        vendor_of_ended.write(LAST)
        await ended.read_until(LAST)
        await one.said("exchange.settled", id="ended")
        assert '"id":"ended"' not in running(tmp_path)
        await arrived(server.url, 1)
        one.process.kill()
        first = await one.read_to_end()
        for peer in (ended, broken, vendor_of_ended, vendor_of_broken):
            await peer.gone()

    with psycopg.connect(server.url) as writing:
        # Whoever inserts waits for this transaction's end; whoever reads does not.
        writing.execute("LOCK TABLE exchanges IN SHARE MODE")
        async with node(tmp_path / "proxy.yaml", text, workers=1) as one:
            (line,) = await one.said("exchange.settled")
            check(line)
            assert (line["id"], line["user"]) == ("broken", "alice")
            tokens = line["input_tokens"] + line["output_tokens"]
            expected = tokens + sum(row.input_tokens + row.output_tokens for row in rows_in(first))
            assert await used(one) == expected
            assert shipped(server.url) == (1, 1)
            writing.rollback()
            # As many as there are lines: the last of them may not have been read yet.
            await comes_true(lambda: shipped(server.url) == (len(rows_in(first + one.lines)),) * 2)
            assert await used(one) == expected
            one.process.send_signal(signal.SIGTERM)
            second = await one.read_to_end()
    every = first + second
    assert shipped(server.url) == (len(rows_in(every)),) * 2
    assert [id_ for id_ in ids_in(server) if id_ in {"ended", "broken"}] == ["broken", "ended"]
    assert "0 rows inserted" in completed(tmp_path / "proxy.yaml", every)
    assert not files(tmp_path)


async def test_killed_worker(
    tmp_path: Path, vendor: MockVendor, upstream: Upstream, server: PostgresServer, store: RedisServer
) -> None:
    """The worker that is started in its place accounts for it, once, and charges it; streams of the others go on."""
    text = configuration(vendor, upstream, budgeted(server, tmp_path), f"unix://{store.path}", "allow")
    _, every = await lose_a_worker(tmp_path, text, upstream, used)
    assert shipped(server.url) == (len(rows_in(every)),) * 2
    assert ids_in(server) == sorted(row.id for row in rows_in(every))
    assert not files(tmp_path)
