"""Several workers: an upstream is shown over all of them, and turned off in all of them, later ones included."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from proxy.server.workers.all_workers import merge_reports
from tests.conftest import token
from tests.peers import connect, request
from tests.whole.several import BODY, WORKERS, Several, several

if TYPE_CHECKING:
    from pathlib import Path

    from tests.peers import Message, Upstream


def report(
    state: str, *, running: int = 0, out_for_s: float | None = None, rests_for_s: float = 0.0
) -> dict[str, object]:
    key = {
        "key": "aaaa",
        "running": running,
        "resting": rests_for_s > 0,
        "rests_for_s": rests_for_s,
        "refused_with": 429,
    }
    return {
        "name": "main",
        "state": state,
        "running": running,
        "failures": running,
        "out_for_s": out_for_s,
        "keys": [key],
    }


def test_reports_are_merged() -> None:
    """What runs is summed; of states, times and rests the worst counts, and each worker's own state is there."""
    other = {**report("on"), "name": "other"}
    parts = {
        "w1": [report("on", running=1)],
        "w2": [report("out", running=2, out_for_s=3.5, rests_for_s=9.0), other],
        "w3": [report("on", running=4, rests_for_s=5.0)],
    }
    main, second = merge_reports(parts)

    assert (main["state"], main["running"], main["failures"], main["out_for_s"]) == ("out", 7, 4, 3.5)
    assert main["workers"] == {"w1": "on", "w2": "out", "w3": "on"}
    assert main["keys"] == [{"key": "aaaa", "running": 7, "resting": True, "rests_for_s": 9.0, "refused_with": 429}]
    assert (second["name"], second["workers"]) == ("other", {"w2": "on"})
    assert merge_reports({"w1": [report("off")], "w2": [report("out")]})[0]["state"] == "off"
    assert parts["w1"][0]["running"] == 1


async def put(served: Several, state: str) -> Message:
    async with await connect(served.admin_address) as admin:
        body = b'{"state":"%b"}' % state.encode()
        admin.write(request("/admin/upstreams/main", body, method="PUT"))
        return await admin.read_message()


async def states(served: Several) -> dict[str, str]:
    (main,) = (await served.ask("/admin/upstreams")).json
    return main["workers"]  # type: ignore[no-any-return]  # JSON


@pytest.mark.skipif(sys.platform != "linux", reason="the arbiter is run on Linux")
async def test_off_in_every_worker(tmp_path: Path, upstream: Upstream) -> None:
    """One PUT turns an upstream off everywhere; a worker that takes a dead one's place is told by the others."""
    async with several(tmp_path, upstream) as served:
        assert (await put(served, "off")).json["state"] == "off"
        before = await states(served)
        answers = []
        for _ in range(3 * WORKERS):
            async with await connect(served.address) as client:
                client.write(request(body=BODY, token=token()))
                answers.append((await client.read_message()).get("x-forward-sse-code"))
        name = next(iter(served.pids))
        os.kill(served.pids[name], signal.SIGKILL)
        await served.worker_up()
        async with asyncio.timeout(30):
            # A worker that is busy with its start does not answer in time, and is left out.
            while len(after := await states(served)) < WORKERS:  # noqa: ASYNC110 - it is they who must be asked
                await asyncio.sleep(0.05)
        assert (await put(served, "on")).json["state"] == "on"
        assert set((await states(served)).values()) == {"on"}

    assert set(before.values()) == set(after.values()) == {"off"}
    assert len(before) == WORKERS
    assert answers == ["upstream_off"] * 3 * WORKERS
    assert upstream.is_untouched
