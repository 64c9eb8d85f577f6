"""The console's event stream on real streams: of one worker, and of a service of two."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import VENDOR_KEY, token
from tests.console.watching import watch
from tests.peers import LAST, STREAM_HEAD, WAIT_S, Upstream, chunk, event, request
from tests.whole.several import NO_BOUND, ONCE, one_in_each, several
from tests.whole.test_admin_whole import begin, get
from tests.whole.test_operators_whole import BOTH, LOOK, OPS, admin_yaml, ask, log_in

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Running, Start
    from tests.console.watching import Watching
    from tests.whole.several import Several

MODEL = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "prompt-canary"}]}
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":7}}\n\n'
# A session that can be waited for.
SHORT_SESSIONS = """
from proxy.auth.operators import Operators
from proxy.cli.commands import main
Operators.__init__.__kwdefaults__["session_s"] = 5
main()
"""


def phase(id_: str, name: str) -> Any:
    return lambda told: told.by_id.get(id_, {}).get("phase") == name


async def test_stream_from_beginning_to_end(proxy: Running, upstream: Upstream) -> None:
    """A stream is shown as it goes: waiting, streaming, its figures, gone; nothing of what it says, no credential."""
    async with watch(proxy.admin_address) as watching:
        await watching.next()
        assert watching.rows == {}
        client = await proxy.client()
        client.write(request("/v1/chat/completions", MODEL, token=token(), fields=(("X-Request-Id", "mine"),)))
        vendor, _ = await upstream.take()
        await watching.until(phase("mine", "waiting"))
        row = watching.by_id["mine"]
        assert (row["user"], row["issuer"], row["plan"], row["upstream"]) == ("alice", "tests", "default", "main")
        assert (row["model"], row["attempts"], row["first_byte_ms"], row["bytes"]) == ("gpt-4o", 1, None, 0)
        assert row["usage"] == "estimated"

        vendor.write(STREAM_HEAD + chunk(event("answer-canary")))
        await client.read_until(event("answer-canary"))
        await watching.until(phase("mine", "streaming"))
        row = watching.by_id["mine"]
        assert (row["bytes"], row["events"]) == (len(event("answer-canary")), 1)
        assert row["first_byte_ms"] > 0
        await watching.until(lambda told: told.by_id["mine"]["events_per_s"] is not None)

        vendor.write(chunk(USAGE))
        await client.read_until(USAGE)
        await watching.until(lambda told: told.by_id["mine"]["usage"] == "reported")
        row = watching.by_id["mine"]
        # 11 tokens at $2.50 and 7 at $10 a million.
        assert (row["tokens_in"], row["tokens_out"], row["cost_usd"]) == (11, 7, "0.0000975")
        assert watching.members["totals"]["cost_usd"] == "0.0000975"

        told = str(watching.rows) + str(watching.members)
        vendor.write(LAST)
        await client.read_until(LAST)
        await watching.until(lambda told: not told.rows)
        await watching.until(lambda told: told.members["counters"]["endings"] == {"complete": 1})
        assert watching.members["counters"]["attempts"] == {"main": {"ok": 1}}
        assert [one["name"] for one in watching.members["upstreams"]] == ["main"]
    for secret in ("canary", VENDOR_KEY, token().rpartition(".")[2]):
        assert secret not in told
    (line,) = await proxy.settled()
    assert (line["ending"], line["input_tokens"], line["output_tokens"], line["cost_usd"]) == (
        *("complete", 11, 7, "0.0000975"),
    )
    assert proxy.leases_held == 0


async def test_stream_paused(proxy: Running, upstream: Upstream) -> None:
    """A stream whose client does not read is shown as paused, with what waits for it."""
    client = await proxy.client(receive_buffer=4096)
    client.write(request(body=MODEL, token=token(), fields=(("X-Request-Id", "slow"),)))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD)
    filling = asyncio.create_task(vendor.send(200 * chunk(event("x" * 60_000))))
    async with watch(proxy.admin_address) as watching:
        await watching.until(phase("slow", "paused"))
        assert watching.by_id["slow"]["unsent"] > 0
    filling.cancel()
    await asyncio.wait([filling])
    await client.gone()
    (line,) = await proxy.settled()
    assert line["ending"] == "client_closed"


async def test_request_being_received(proxy: Running) -> None:
    """A request whose body is still arriving is shown as such."""
    client = await proxy.client()
    whole = request(body=MODEL, token=token(), fields=(("X-Request-Id", "part"),))
    client.write(whole[:-5])
    async with watch(proxy.admin_address) as watching:
        await watching.until(phase("part", "receiving"))
        assert watching.by_id["part"]["upstream"] is None


async def test_watching_changes_no_figure(start: Start, upstream: Upstream) -> None:
    """Two streams of the same bytes, one of them watched, are settled with the same figures."""
    proxy = await start()
    figures: list[dict[str, Any]] = []
    for is_watched in (False, True):
        client = await proxy.client()
        client.write(request(body=MODEL, token=token(), fields=(("X-Request-Id", f"is-{is_watched}"),)))
        vendor, _ = await upstream.take()
        vendor.write(ONCE)
        for number in range(4):
            usage = b'"usage":{"prompt_tokens":9,"completion_tokens":%d}' % number
            told = b'data: {"choices":[{"delta":{"content":"abc"}}],%b}\n\n' % usage
            vendor.write(chunk(told))
            await client.read_until(told)
            if is_watched:
                async with watch(proxy.admin_address) as watching:
                    await watching.until(lambda told: told.by_id.get("is-True", {}).get("tokens_in") == 9)
        vendor.write(LAST)
        await client.read_until(LAST)
        await proxy.idle()
        line = (await proxy.settled(len(figures) + 1))[-1]
        figures.append({name: line[name] for name in ("input_tokens", "output_tokens", "cost_usd", "usage")})
    assert figures[0] == figures[1]


async def test_drain_ends_consoles(proxy: Running, upstream: Upstream) -> None:
    """A drain ends a console's stream at once; one that comes back sees what still runs, and delays nothing."""
    client, vendor = await begin(proxy, upstream)
    async with watch(proxy.admin_address) as watching:
        await watching.until(lambda told: len(told.rows) == 1)
        draining = asyncio.create_task(proxy.server.drain(WAIT_S))
        while await watching.next() is not None:
            pass
    async with watch(proxy.admin_address) as again:
        await again.next()
        assert again.members["workers"][0]["state"] == "draining"
        assert len(again.rows) == 1
        vendor.write(LAST)
        await client.read_until(LAST)
        async with asyncio.timeout(WAIT_S):
            await draining
            await proxy.server.close()
        while await again.next() is not None:
            pass


async def test_spend_of_the_ledger(start: Start, upstream: Upstream, tmp_path: Path) -> None:
    """Who has spent today is told from the ledger, by user and by model."""
    proxy = await start(f'usage: {{ledger: "sqlite:///{tmp_path}/ledger.db"}}\n')
    client = await proxy.client()
    client.write(request(body=MODEL, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(USAGE) + LAST)
    await client.read_until(LAST)
    await proxy.idle()

    admin = await proxy.admin()
    async with asyncio.timeout(WAIT_S):
        # The ledger's own thread writes; there is no event to wait for.
        while not (await get(admin, "/admin/usage")).json["rows"]:  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.01)
    async with watch(proxy.admin_address) as watching:
        await watching.until(lambda told: told.members.get("spend") is not None)
        spend = watching.members["spend"]
    assert spend["problem"] is None
    assert [(row["user"], row["issuer"], row["cost_usd"]) for row in spend["users"]] == [
        ("alice", "tests", "0.0000975")
    ]
    assert [(row["model"], row["requests"]) for row in spend["models"]] == [("gpt-4o", 1)]


def workers_of(watching: Watching) -> set[str]:
    return {row["worker"] for row in watching.rows.values()}


@pytest.mark.skipif(sys.platform != "linux", reason="the arbiter is run on Linux")
async def test_two_workers(tmp_path: Path, upstream: Upstream) -> None:
    """Streams of both workers are seen by a console of either; each is stopped by its id; the end ends the console."""
    async with (
        several(tmp_path, upstream, workers=2) as served,
        one_in_each(served, upstream) as held,
        watch(served.admin_address) as watching,
        watch(served.admin_address) as other,
    ):
        for told in (watching, other):
            await told.until(lambda told: workers_of(told) == set(served.pids))
            assert told.members["totals"]["count"] == 2
            assert {worker["state"] for worker in told.members["workers"]} == {"answering"}
        first, second = held.values()
        assert (await served.ask(f"/admin/streams/{first.id}", "DELETE")).status == 204
        assert await first.is_cut()
        await watching.until(lambda told: workers_of(told) == {second.worker})
        await watching.until(lambda told: told.members["counters"]["endings"].get("stopped") == 1)
        assert await second.goes_on()

        served.signal(signal.SIGTERM)
        while await watching.next() is not None:
            pass
        assert await second.ends_well()


@pytest.mark.skipif(sys.platform != "linux", reason="the arbiter is run on Linux")
async def test_a_silent_worker(tmp_path: Path, upstream: Upstream) -> None:
    """A worker that stands still is shown as silent, and the others' streams go on being shown."""
    async with several(tmp_path, upstream, workers=2) as served, one_in_each(served, upstream) as held:
        frozen, other = held.values()
        os.kill(served.pids[frozen.worker], signal.SIGSTOP)
        try:
            # Whoever accepts this connection goes on.
            async with watch(served.admin_address) as watching:
                await watching.next()
                assert workers_of(watching) == {other.worker}
                states = {one["name"]: one["state"] for one in watching.members["workers"]}
                assert states == {frozen.worker: "silent", other.worker: "answering"}
                os.kill(served.pids[frozen.worker], signal.SIGCONT)
                await watching.until(lambda told: workers_of(told) == set(served.pids))
        finally:
            os.kill(served.pids[frozen.worker], signal.SIGCONT)


@pytest.mark.skipif(sys.platform != "linux", reason="the arbiter is run on Linux")
async def test_a_reload_that_removes_a_token(tmp_path: Path, upstream: Upstream) -> None:
    """The streams of its sessions, and its own, end in every worker; another operator's go on."""
    async with several(tmp_path, upstream, NO_BOUND + BOTH, workers=2) as served, AsyncExitStack() as stack:
        mine, looks = await log_in(served, OPS), await log_in(served, LOOK)
        credentials = (mine, mine, mine, ("Authorization", f"Bearer {OPS}"))
        ended = [await stack.enter_async_context(watch(served.admin_address, "", one)) for one in credentials]
        others = [await stack.enter_async_context(watch(served.admin_address, "", looks)) for _ in range(3)]
        await asyncio.gather(*(watching.next() for watching in (*ended, *others)))
        served.config.write_text(served.config.read_text().replace(BOTH, admin_yaml(("look", LOOK, "view"))))
        served.signal(signal.SIGHUP)
        await asyncio.gather(*(watching.end() for watching in ended))
        for watching in others:
            seen = len(watching.names)
            await watching.until(lambda told, seen=seen: len(told.names) > seen + 1)  # type: ignore[misc]
        assert {await status_of_events(served, credential) for credential in credentials} == {401}


@pytest.mark.skipif(sys.platform != "linux", reason="the arbiter is run on Linux")
async def test_a_session_that_expires(tmp_path: Path, upstream: Upstream) -> None:
    """Its stream ends in the real command, too; one by the token goes on."""
    async with several(
        tmp_path, upstream, NO_BOUND + BOTH, workers=2, command=("-c", SHORT_SESSIONS, "serve")
    ) as served:
        mine, token_ = await log_in(served, OPS), ("Authorization", f"Bearer {OPS}")
        async with watch(served.admin_address, "", mine) as ended, watch(served.admin_address, "", token_) as other:
            await asyncio.gather(ended.next(), other.next())
            await ended.end()
            seen = len(other.names)
            await other.until(lambda told: len(told.names) > seen)
        assert await status_of_events(served, mine) == 401


async def status_of_events(served: Several, credential: tuple[str, str]) -> int:
    return (await ask(served, "GET", "/admin/events", credential)).status
