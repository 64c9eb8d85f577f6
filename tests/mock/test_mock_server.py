from __future__ import annotations

import asyncio
import errno
import gc
import signal
import socket
import struct
import sys
from contextlib import AsyncExitStack

import pytest

from proxy.mock.server import MockVendor, Stats
from tests.mock.mock_wire import CHAT, PROMPT, TIMEOUT_S, ask, connected, request, vendor_of_tests

STREAM = {**PROMPT, "stream": True}


async def test_stats_path() -> None:
    """The stats need no key and count vendor requests only, however these were answered."""
    async with vendor_of_tests() as vendor:
        for path, body in ((CHAT, STREAM), (CHAT, b"bad"), ("/unknown", {})):
            await ask(vendor, path, body)
        for _ in range(2):
            response = await ask(vendor, "/mock/stats?x=1", headers={})
            assert response.json == {"requests": 3, "active": 0, "finished": 3, "cancelled": 0}
        assert len(vendor.requests) == 3


@pytest.mark.parametrize(
    "controls",
    [
        "fault=stall",
        "fault=stall&fault_after=2",
        "first_byte_ms=86400000",
        "interval_ms=86400000",
        "fault=slow_headers&interval_ms=86400000",
        "size=16777216&events=1000",
    ],
)
@pytest.mark.parametrize("leaving", ["closes", "resets", "half-closes"])
async def test_stats_cancelled(controls: str, leaving: str) -> None:
    """A stream is counted as cancelled as soon as its client goes, in every phase, with nothing being written."""
    async with vendor_of_tests() as vendor, connected(vendor) as client:
        await client.send(request(f"{CHAT}?{controls}", STREAM, closes=False))
        async with asyncio.timeout(TIMEOUT_S):
            await vendor.wait_for(lambda stats: stats.active == 1)
            if "fault_after" in controls or controls.startswith("interval_ms"):
                await client.read_until(b"\r\n\r\n")
            if leaving == "half-closes":
                client.connection.shutdown(socket.SHUT_WR)
                if "size" in controls:  # what was being written must leave first, or the client must go wholly
                    client.connection.close()
            else:
                if leaving == "resets":
                    client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.connection.close()
            assert await vendor.wait_for(lambda stats: stats.cancelled == 1) == Stats(requests=1, cancelled=1)


async def test_stats_cancelled_body() -> None:
    """A client that goes before its body is whole is counted too, and nothing is kept of it."""
    async with vendor_of_tests() as vendor:
        async with connected(vendor) as client:
            await client.send(request(CHAT, STREAM)[:-5])
            await vendor.wait_for(lambda stats: stats.active == 1)
        async with asyncio.timeout(TIMEOUT_S):
            await vendor.wait_for(lambda stats: stats.cancelled == 1)
        assert not vendor.requests


async def test_stats_finished_at_once() -> None:
    """A client that leaves on seeing the last event has not cancelled anything."""
    async with vendor_of_tests() as vendor:
        for _ in range(20):
            async with connected(vendor) as client:
                await client.send(request(f"{CHAT}?events=1", STREAM, closes=False))
                await client.read_until(b"[DONE]\n\n\r\n")
        async with asyncio.timeout(TIMEOUT_S):
            assert (await vendor.wait_for(lambda stats: stats.active == 0)).finished == 20


async def test_wait_for_many() -> None:
    """Each waiter gets the first stats that satisfy it, and a waiter that gives up leaves nothing behind."""
    async with vendor_of_tests() as vendor:
        first = asyncio.create_task(vendor.wait_for(lambda stats: stats.active == 1))
        last = asyncio.create_task(vendor.wait_for(lambda stats: stats.finished == 2))
        never = asyncio.create_task(vendor.wait_for(lambda stats: stats.cancelled == 1))
        await ask(vendor, CHAT, PROMPT)
        await ask(vendor, CHAT, PROMPT)
        async with asyncio.timeout(TIMEOUT_S):
            assert await first == Stats(requests=1, active=1)
            assert await last == Stats(requests=2, finished=2)
        never.cancel()
        with pytest.raises(asyncio.CancelledError):
            await never
        assert not vendor._waiters


async def test_requests_bounded() -> None:
    """Only the newest requests are kept, none where none are wanted."""
    async with vendor_of_tests(kept_requests=2) as vendor:
        for path in ("/a", "/b", "/c"):
            await ask(vendor, path, {})
        assert [received.target for received in vendor.requests] == ["/b", "/c"]
    async with vendor_of_tests(kept_requests=0) as vendor:
        await ask(vendor, "/a", {})
        assert not vendor.requests


async def test_requests_bounded_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is bounded in bytes as well."""
    monkeypatch.setattr("proxy.mock.server.KEPT_BYTES", 250)
    async with vendor_of_tests() as vendor:
        for size in (100, 101, 102, 103):
            await ask(vendor, "/a", b"x" * size)
        assert [len(received.body) for received in vendor.requests] == [102, 103]


async def test_vendor_leaving() -> None:
    """Leaving tears running streams down at once and leaves no task behind."""
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(TIMEOUT_S), vendor_of_tests() as vendor:
            clients = [await stack.enter_async_context(connected(vendor)) for _ in range(3)]
            for client, query in zip(clients, ("fault=stall", "interval_ms=60000", "first_byte_ms=60000"), strict=True):
                await client.send(request(f"{CHAT}?{query}", STREAM))
            await vendor.wait_for(lambda stats: stats.active == 3)
        assert vendor.stats == Stats(requests=3, finished=3)
        for client in clients:
            await client.read_all()
    gc.collect()
    assert asyncio.all_tasks() == before


async def test_vendor_port_taken() -> None:
    """A port that is taken is an OSError, and nothing stays open."""
    async with vendor_of_tests() as vendor:
        with pytest.raises(OSError, match="address already in use") as raised:
            await MockVendor(port=vendor.port).__aenter__()
    assert raised.value.errno == errno.EADDRINUSE


def test_vendor_url_ipv6() -> None:
    """An IPv6 address stands in brackets in the URL."""
    assert MockVendor(host="::1", port=80).url == "http://[::1]:80"


COMMAND = "import sys; from proxy.mock.server import run; sys.exit(run('127.0.0.1', int(sys.argv[1]), key='k'))"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run(number: signal.Signals) -> None:
    """The command says in one line where it listens, serves, and ends cleanly on a signal, streams or not."""
    command = await asyncio.create_subprocess_exec(
        sys.executable, "-c", COMMAND, "0", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert command.stdout is not None
    async with asyncio.timeout(3 * TIMEOUT_S):
        line = (await command.stdout.readline()).decode()
        port = int(line.split()[3].rpartition(":")[2])
        assert f"OpenAI http://127.0.0.1:{port}/v1," in line
        place = MockVendor(port=port)
        async with connected(place) as client:
            await client.send(request(f"{CHAT}?fault=stall&fault_after=2", STREAM, {"Authorization": "Bearer k"}))
            await client.read_until(b"Hello")
            command.send_signal(number)
            rest, errors = await command.communicate()
    assert (command.returncode, rest, errors) == (0, b"", b"")


async def test_run_port_taken() -> None:
    """A command that cannot listen says so in one line and exits with 1."""
    async with vendor_of_tests() as vendor:
        command = await asyncio.create_subprocess_exec(
            sys.executable, "-c", COMMAND, str(vendor.port), stderr=asyncio.subprocess.PIPE
        )
        _, errors = await command.communicate()
    assert command.returncode == 1
    assert errors.decode().startswith(f"mock vendor: cannot listen on 127.0.0.1:{vendor.port}: ")
    assert len(errors.splitlines()) == 1
