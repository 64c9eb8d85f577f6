"""The benchmark's own measuring tools, against each other: the numbers of the product's claim hang on them."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.benchmarks.native_support import (
    DONE,
    LAST,
    STOP,
    WAIT_S,
    Load,
    ask,
    check_times,
    chunk,
    event,
    settled,
    talk,
)

if TYPE_CHECKING:
    from pathlib import Path

# ---- against the upstream itself ----


async def test_native_request(load: Load, upstream: int) -> None:
    """A closed loop counts every request once on both sides, and sees the upstream's very bytes."""
    result = await load(upstream, connections=8, requests=500, size=60, expect_exact=True)
    stats = await settled(upstream)

    assert (result["requests"], result["complete"], result["failed"], result["failures"]) == (500, 500, 0, {})
    assert result["events"] == 500
    assert result["bytes"] == 500 * (len(event(0, 60)) + len(STOP) + len(DONE))
    assert (stats["requests"], stats["finished"], stats["cancelled"]) == (500, 500, 0)
    check_times(result)
    assert result["ttfb_us"]["p50"] <= result["request_us"]["p99"]


async def test_native_paced(load: Load, upstream: int) -> None:
    """Paced streams bring each event once, at the pace that was asked for."""
    result = await load(
        upstream, "streams", connections=10, events=20, interval_us=5000, size=40, repeat=2, expect_exact=True
    )

    assert (result["complete"], result["failed"], result["events"]) == (20, 0, 400)
    assert result["wall_s"] >= 2 * 18.5 * 0.005
    check_times(result)


async def test_native_flat(load: Load, upstream: int) -> None:
    """Unpaced streams that fill every buffer on the way arrive whole."""
    result = await load(upstream, "streams", connections=5, events=5000, size=1000, expect_exact=True)

    assert (result["complete"], result["failed"], result["events"]) == (5, 0, 25000)
    assert (await settled(upstream))["finished"] == 5
    check_times(result)


async def test_native_hold(load: Load, upstream: int) -> None:
    """The line `holding` comes when all streams run, and they run on until the time is over."""
    process = await load.start(upstream, "streams", connections=20, interval_us=100_000, ramp_ms=50, hold_s=0.3)
    async with asyncio.timeout(WAIT_S):
        assert process.stdout is not None
        assert await process.stdout.readline() == b"holding 20\n"
        during = await ask(upstream, "/bench/stats")
        result = json.loads(await process.stdout.read())
        assert await process.wait() == 0

    assert during["active"] == 20
    assert (result["complete"], result["failed"]) == (20, 0)
    assert result["events"] >= 40
    assert result["wall_s"] >= 0.3
    assert (await settled(upstream))["cancelled"] == 20


async def test_native_cancel(load: Load, upstream: int) -> None:
    """Every stream left, by FIN or by RST, is seen closing after it was left, under the same id."""
    result = await load(
        upstream, "cancel", connections=8, requests=40, events=100_000, interval_us=1000, leave_ms=20, first_id=7
    )
    stats = await settled(upstream)
    seen = dict(await ask(upstream, "/bench/closes"))

    leaves = dict(result["leaves"])
    assert (result["complete"], result["failed"]) == (40, 0)
    assert sorted(leaves) == sorted(seen) == list(range(7, 47))
    assert all(seen[number] >= left_ns for number, left_ns in leaves.items())
    assert (stats["requests"], stats["finished"], stats["cancelled"]) == (40, 0, 40)


async def test_native_cancel_too_late(load: Load, upstream: int) -> None:
    """A stream that ends before it is left is no cancellation, and counts as a failure."""
    result = await load(upstream, "cancel", requests=3, events=1, leave_ms=1_000_000)

    assert result["failures"] == {"ended before we left": 3}
    assert result["leaves"] == []


async def test_native_slow(load: Load, upstream: int) -> None:
    """A reader that stalls holds the upstream up, and gets all of the answer afterwards."""
    process = await load.start(
        upstream, "slow", connections=3, events=12_000, size=1000, stall_s=0.3, expect_exact=True
    )
    async with asyncio.timeout(WAIT_S):
        assert process.stdout is not None
        assert await process.stdout.readline() == b"stalled 3\n"
        during = await ask(upstream, "/bench/stats")
        result = json.loads(await process.stdout.read())
        assert await process.wait() == 0

    assert during["active"] == 3
    assert (result["complete"], result["failed"], result["events"]) == (3, 0, 36_000)
    assert result["wall_s"] >= 0.3


async def test_native_upstream_reset(load: Load, upstream: int) -> None:
    """A reset forgets the counts and the closes of the runs before."""
    await load(upstream, "cancel", requests=3, events=1000, interval_us=1000, leave_ms=0)
    await settled(upstream)
    await ask(upstream, "/bench/reset", "POST")

    stats = await ask(upstream, "/bench/stats")
    assert (stats["requests"], stats["active"], stats["finished"], stats["cancelled"]) == (0, 0, 0, 0)
    assert await ask(upstream, "/bench/closes") == []


async def test_native_upstream_framings(upstream: int) -> None:
    """A body in chunks is understood, HTTP/1.0 gets a close-delimited answer, and no stream is JSON."""
    post = b"POST /v1/chat/completions HTTP/1.%s\r\nHost: x\r\n%s\r\n\r\n"
    body = b'{"stream": true, "messages": [{"content": "other=1 bench id=1 events=2 unknown=3;"}]}'
    in_chunks = post % (b"1", b"Connection: close\r\nTransfer-Encoding: chunked")
    in_chunks += chunk(body[:60]) + chunk(body[60:]) + LAST

    head, answer = await talk(upstream, in_chunks)
    assert b"chunked" in head
    assert (answer.count(b"@"), answer.endswith(LAST)) == (4, True)
    head, answer = await talk(upstream, post % (b"0", b"Content-Length: %d" % len(body)) + body)
    assert b"chunked" not in head
    assert (answer.count(b"@"), answer.endswith(STOP + DONE)) == (4, True)
    plain = body.replace(b"true", b"false")
    _, answer = await talk(upstream, post % (b"1", b"Content-Length: %d" % len(plain)) + plain)
    assert json.loads(answer)["object"] == "chat.completion"
    assert [model["id"] for model in (await ask(upstream, "/v1/models"))["data"]] == ["bench"]


# ---- the program itself ----


async def test_native_progress(load: Load, upstream: int) -> None:
    """Progress goes to standard error, never above its total, and ends there."""
    process = await load.start(upstream, "streams", connections=2, events=30, interval_us=10_000, progress=True)
    async with asyncio.timeout(WAIT_S):
        output, errors = await process.communicate()

    lines = [line.split() for line in errors.decode().splitlines()]
    assert {line[0] for line in lines} == {"progress"}
    done = [int(line[1]) for line in lines]
    assert done == sorted(done)
    assert lines[-1] == ["progress", "60", "60"]
    assert json.loads(output)["complete"] == 2


async def test_native_terminated(load: Load, upstream: int) -> None:
    """Ended from outside, the run says what it had, and that it is not whole."""
    process = await load.start(upstream, "streams", connections=3, interval_us=1_000_000, hold_s=100)
    async with asyncio.timeout(WAIT_S):
        assert process.stdout is not None
        assert await process.stdout.readline() == b"holding 3\n"
        process.terminate()
        result = json.loads(await process.stdout.read())
        assert await process.wait() == 1

    assert result["failures"] == {"interrupted": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--mode request", "--port is missing"),
        ("--port 1 --mode fast", "--mode is one of"),
        ("--port 1 --conections 2", "unknown option --conections"),
        ("--port 1 --requests", "--requests needs a value"),
        ("--port 1 --requests -1", "--requests: -1 is not a whole number"),
        ("--port 1 --hold-s 1", "--hold-s goes with"),
        ("--port 1 --host example.com", "--host: example.com is not"),
    ],
)
def test_native_wrong_use(native: Path, arguments: str, message: str) -> None:
    """InvalidValue use is exit 2 and names the option."""
    process = subprocess.run([native / "load", *arguments.split()], capture_output=True, text=True, check=False)

    assert (process.returncode, process.stdout) == (2, "")
    assert message in process.stderr


def test_native_descriptor_limit(native: Path) -> None:
    """More connections than the machine allows are refused before the run, with both figures."""
    command = f"ulimit -n 64; exec {native / 'load'} --port 1 --mode streams --connections 100"
    process = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)

    assert process.returncode == 1
    assert "100 connections" in process.stderr
    assert "64" in process.stderr
