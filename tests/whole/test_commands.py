"""The commands as processes: how they start, obey signals, and end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.conftest import CONFIG, SECRET, VENDOR_KEY, token
from tests.needs import need
from tests.peers import LAST, STREAM_HEAD, WAIT_S, Upstream, chunk, connect, event, only, request

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator
    from pathlib import Path

BODY = {"model": "gpt-x", "stream": True}


class Served:
    """A `serve` process and the lines it has written."""

    def __init__(self, process: Process, config: Path) -> None:
        self.process = process
        self.config = config
        self.lines: list[dict[str, Any]] = []

    async def line(self, name: str) -> dict[str, Any]:
        """The next line of that event."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S * 2):
            while True:
                raw = await self.process.stdout.readline()
                assert raw, f"no {name}: {self.lines}"
                self.lines.append(json.loads(raw))
                if self.lines[-1]["event"] == name:
                    return self.lines[-1]

    async def rest(self) -> list[dict[str, Any]]:
        """Every line until the end of the process."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S * 2):
            self.lines += [json.loads(raw) for raw in (await self.process.stdout.read()).splitlines()]
            await self.process.wait()
        return self.lines

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@asynccontextmanager
async def serve(tmp_path: Path, upstream: Upstream, more: str = "") -> AsyncIterator[tuple[Served, tuple[str, int]]]:
    """`python -m proxy serve` on a free port."""
    config = tmp_path / "proxy.yaml"
    config.write_text(CONFIG.format(secret=SECRET, url=upstream.url, key=VENDOR_KEY) + more)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "serve", "--config", str(config), stdout=asyncio.subprocess.PIPE
    )
    try:
        served = Served(process, config)
        host, _, port = (await served.line("server.started"))["listen"].rpartition(":")
        yield served, (host, int(port))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_serve_drains_on_sigterm(tmp_path: Path, upstream: Upstream) -> None:
    """A stream that runs is served to its end, then the process exits with 0, every line JSON."""
    async with serve(tmp_path, upstream) as (served, address), await connect(address) as client:
        client.write(request(body=BODY, token=token()))
        vendor, _ = await upstream.take()
        vendor.write(STREAM_HEAD + chunk(event("one")))
        await client.read_until(event("one"))

        served.signal(signal.SIGTERM)
        await served.line("drain.started")
        vendor.write(chunk(event("two")) + LAST)
        rest = await client.read_to_end()
        lines = await served.rest()

    assert event("two") in rest
    assert rest.endswith(LAST)
    assert served.process.returncode == 0
    assert only(lines, "exchange.settled")["ending"] == "complete"
    assert only(lines, "drain.finished")["streams_ended"] == 0


async def test_serve_takes_clients_within_its_delay(tmp_path: Path, upstream: Upstream) -> None:
    """With `drain_delay` readiness is withdrawn first; everybody is served, until a second signal ends the wait."""
    more = "drain_delay: 1h\n"
    async with serve(tmp_path, upstream, more) as (served, address), await connect(address) as client:
        client.write(request("/readyz", method="GET"))
        assert (await client.read_message()).status == 200
        served.signal(signal.SIGTERM)
        assert (await served.line("drain.announced"))["delay_s"] == 3600

        client.write(request("/readyz", method="GET"))
        answer = await client.read_message()
        assert (answer.status, answer.json["reasons"]) == (503, ["draining"])
        # On the kept connection, and on another one.
        async with await connect(address) as other:
            for one in (client, other):
                one.write(request(body=BODY, token=token(), fields=(("Connection", "close"),)))
                vendor, _ = await upstream.take()
                vendor.write(STREAM_HEAD + chunk(event("one")) + LAST)
                assert (await one.read_head()).status == 200
                await one.read_until(LAST)
                await vendor.gone()

        served.signal(signal.SIGTERM)
        lines = await served.rest()
    assert served.process.returncode == 0
    assert [line["ending"] for line in lines if line["event"] == "exchange.settled"] == ["complete"] * 2


async def test_serve_closes_after_its_delay(tmp_path: Path, upstream: Upstream) -> None:
    """When `drain_delay` is over the listener closes, and the drain begins by itself."""
    async with serve(tmp_path, upstream, "drain_delay: 50ms\n") as (served, address):
        served.signal(signal.SIGTERM)
        await served.line("drain.started")
        lines = await served.rest()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
    assert served.process.returncode == 0
    assert [line["event"] for line in lines if line["event"].startswith("drain.")] == [
        "drain.announced",
        "drain.started",
        "drain.finished",
    ]


async def test_serve_ends_streams_on_a_second_signal(tmp_path: Path, upstream: Upstream) -> None:
    """Who asks twice does not wait: running streams end as `drained`, visibly cut off."""
    async with serve(tmp_path, upstream) as (served, address), await connect(address) as client:
        client.write(request(body=BODY, token=token()))
        vendor, _ = await upstream.take()
        vendor.write(STREAM_HEAD + chunk(event("one")))
        await client.read_until(event("one"))

        served.signal(signal.SIGINT)
        await served.line("drain.started")
        served.signal(signal.SIGINT)
        rest = await client.read_to_end()
        lines = await served.rest()

    assert not rest.endswith(LAST)
    assert served.process.returncode == 0
    assert only(lines, "exchange.settled")["ending"] == "drained"


async def test_serve_reloads_on_sighup(tmp_path: Path, upstream: Upstream) -> None:
    """A good file takes effect at once for new requests; the stream that runs goes on; used limits stay used."""
    async with serve(tmp_path, upstream) as (served, address), await connect(address) as client:
        client.write(request(body=BODY, token=token()))
        vendor, _ = await upstream.take()
        vendor.write(STREAM_HEAD + chunk(event("one")))
        await client.read_until(event("one"))

        text = served.config.read_text()
        served.config.write_text(text + "plans:\n  default: {requests: [2/1h], concurrent_streams: 1}\n")
        served.signal(signal.SIGHUP)
        await served.line("configuration.reloaded")
        async with await connect(address) as second:
            second.write(request(body=BODY, token=token()))
            refusal = await second.read_message()
        vendor.write(chunk(event("two")) + LAST)
        rest = await client.read_until(LAST)

    assert (refusal.status, refusal.get("x-forward-sse-code")) == (429, "too_many_streams")
    assert event("two") in rest


async def test_serve_keeps_its_rules_when_the_new_file_is_faulty(tmp_path: Path, upstream: Upstream) -> None:
    """A faulty file changes nothing and is told in one line that names every fault and no secret."""
    async with serve(tmp_path, upstream) as (served, address):
        text = served.config.read_text()
        served.config.write_text(text.replace("dialect: openai", "dialect: opnai") + "plan: {}\n")
        served.signal(signal.SIGHUP)
        line = await served.line("configuration.refused")
        async with await connect(address) as client:
            client.write(request(body=BODY, token=token()))
            vendor, _ = await upstream.take()
            vendor.write(STREAM_HEAD + LAST)
            assert (await client.read_message()).status == 200

    assert len(line["faults"]) == 2
    assert all("proxy.yaml:" in fault for fault in line["faults"])
    assert "did you mean openai?" in str(line)
    assert SECRET not in str(line)
    assert VENDOR_KEY not in str(line)


async def test_serve_says_why_it_cannot_listen(tmp_path: Path, upstream: Upstream) -> None:
    """A port in use is told on standard error, exit code 1."""
    config = tmp_path / "proxy.yaml"
    text = CONFIG.format(secret=SECRET, url=upstream.url, key=VENDOR_KEY)
    config.write_text(text)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "proxy",
        "serve",
        "--config",
        str(config),
        "--listen",
        f"127.0.0.1:{upstream.address[1]}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, error = await asyncio.wait_for(process.communicate(), WAIT_S * 2)
    assert process.returncode == 1
    assert b"cannot start" in error
    assert b"Traceback" not in error


async def test_serve_with_an_egress_proxy(tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start tells which upstreams go through which proxy; one on this machine goes directly whatever is set."""
    monkeypatch.setenv("HTTPS_PROXY", "http://user:proxy-password@127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    for key, value in {"URL": "https://vendor.example", "DIALECT": "openai", "API_KEY": "none"}.items():
        monkeypatch.setenv(f"FORWARD_SSE_UPSTREAMS__AWAY__{key}", value)
    async with serve(tmp_path, upstream) as (served, address), await connect(address) as client:
        line = await served.line("egress_proxy.used")
        client.write(request(body=BODY, token=token()))
        vendor, _ = await upstream.take()
        vendor.write(STREAM_HEAD + LAST)
        assert (await client.read_message()).status == 200
    assert {name: line[name] for name in ("upstream", "proxy", "source")} == {
        "upstream": "away",
        "proxy": "http://127.0.0.1:9",
        "source": "HTTPS_PROXY",
    }
    assert "proxy-password" not in str(served.lines)


async def test_serve_log_survives_a_reader_that_is_gone(tmp_path: Path, upstream: Upstream) -> None:
    """A log pipe that nobody reads, or that breaks, does not touch the streams."""
    config = tmp_path / "proxy.yaml"
    config.write_text(CONFIG.format(secret=SECRET, url=upstream.url, key=VENDOR_KEY))
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "serve", "--config", str(config), stdout=writing
    )
    os.close(writing)
    try:
        line = b""
        while not line.endswith(b"\n"):
            line += await asyncio.to_thread(os.read, reading, 65536)
        host, _, port = json.loads(line)["listen"].rpartition(":")
        os.close(reading)
        async with await connect((host, int(port))) as client:
            for _ in range(3):
                client.write(request(body=BODY))
                assert (await client.read_message()).status == 401
    finally:
        process.kill()
        await process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="curl's exit codes and the demo's signals are checked on Linux")
async def test_demo_prints_a_curl_line_that_streams(tmp_path: Path) -> None:
    """The demo's own command, run as pasted, gets a whole stream, event by event, and its console is served.

    SIGINT ends the demo with 0.
    """
    need("curl")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "demo", "--listen", "127.0.0.1:0", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        printed = b""
        async with asyncio.timeout(WAIT_S * 2):
            while b"Ctrl-C here" not in printed:
                printed += await process.stdout.readline()
        start = printed.index(b"curl -N")
        command = printed[start : printed.index(b"\n\n", start)].decode()
        console = printed[: printed.index(b"/console\n")].rpartition(b"\n")[2].decode()
        async with aiohttp.ClientSession() as session, session.get(f"{console}/console") as answer:
            assert answer.status == 200
            assert "<title>" in await answer.text()
        curl = await asyncio.create_subprocess_shell(f"{command} -sS", stdout=asyncio.subprocess.PIPE)
        assert curl.stdout is not None
        reads = []
        async with asyncio.timeout(WAIT_S * 2):
            while data := await curl.stdout.read(65536):
                reads.append(data)
            assert await curl.wait() == 0
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(WAIT_S * 2):
            await process.stdout.read()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert len(reads) >= 3
    assert b"".join(reads).endswith(b"data: [DONE]\n\n")
