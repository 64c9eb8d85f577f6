"""Several addresses to come in by: each is served, named, drained, handed on, and none is an envelope's target."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CONFIG, SECRET, VENDOR_KEY, token
from tests.peers import WAIT_S, Upstream, connect, request
from tests.server.test_sockets import needs_ipv6
from tests.whole.scenes import BODY, OK
from tests.whole.several import several
from tests.whole.test_commands import Served

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BOTH = '["127.0.0.1:0", "[::1]:0"]'
ENVELOPE = """
envelope:
  targets: [{{url: "http://127.0.0.1:{port}/*"}}, {{url: "http://[::1]:{port}/*"}}]
  allow_private: ["127.0.0.0/8", "::1/128"]
"""


def listen_on(addresses: str) -> str:
    return CONFIG.replace("listen: 127.0.0.1:0\nadmin", f"listen: {addresses}\nadmin")


def addresses_of(text: str) -> list[tuple[str, int]]:
    """The addresses of a `server.started`."""
    pairs = [shown.rpartition(":") for shown in text.split(", ")]
    return [(host.strip("[]"), int(port)) for host, _, port in pairs]


async def is_served(address: tuple[str, int], upstream: Upstream) -> bool:
    async with await connect(address) as client:
        client.write(request(body=BODY, token=token()))
        vendor, _ = await upstream.take()
        vendor.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        return (await client.read_message()).status == 200


@needs_ipv6
async def test_listen_on_both(start: Callable[..., Any], upstream: Upstream) -> None:
    """Every address of the list serves."""
    proxy = await start(config=listen_on(BOTH))
    assert [host for host, _ in proxy.server.listens] == ["127.0.0.1", "::1"]
    for address in proxy.server.listens:
        assert await is_served(address, upstream)


@needs_ipv6
async def test_listen_on_every_address(start: Callable[..., Any], upstream: Upstream) -> None:
    """`[::]` serves clients of either family."""
    proxy = await start(config=listen_on('"[::]:0"'))
    for host in ("127.0.0.1", "::1"):
        assert await is_served((host, proxy.address[1]), upstream)


@needs_ipv6
@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
async def test_no_listener_is_a_target(
    start: Callable[..., Any],
    upstream: Upstream,
    unused_tcp_port_factory: Callable[[], int],
    which: int,
) -> None:
    """None of the addresses is an envelope's target, though everything about it is allowed."""
    port = unused_tcp_port_factory()
    hosts = ["127.0.0.1", "[::1]"]
    written = ", ".join(f'"{host}:{port}"' for host in hosts)
    proxy = await start(ENVELOPE.format(port=port), config=listen_on(f"[{written}]"))
    client = await proxy.client()
    body = {"targetUrl": f"http://{hosts[which]}:{port}/healthz", "method": "get"}
    client.write(request(body=body, token=token()))
    answer = await client.read_message()
    assert (answer.status, answer.get("x-forward-sse-code")) == (403, "target_not_allowed")
    assert upstream.is_untouched


@needs_ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_listener_on_every_address_is_no_target(
    start: Callable[..., Any], upstream: Upstream, unused_tcp_port_factory: Callable[[], int], host: str
) -> None:
    """Who listens on `[::]` is at the addresses of both families."""
    port = unused_tcp_port_factory()
    proxy = await start(ENVELOPE.format(port=port), config=listen_on(f'"[::]:{port}"'))
    client = await proxy.client()
    client.write(request(body={"targetUrl": f"http://{host}:{port}/healthz", "method": "get"}, token=token()))
    answer = await client.read_message()
    assert (answer.status, answer.get("x-forward-sse-code")) == (403, "target_not_allowed")
    assert upstream.is_untouched


@needs_ipv6
async def test_listen_option_repeated(tmp_path: Path, upstream: Upstream) -> None:
    """`--listen` may be given several times; all of them are told, serve, and are closed by a drain."""
    config = tmp_path / "proxy.yaml"
    config.write_text(CONFIG.format(secret=SECRET, url=upstream.url, key=VENDOR_KEY))
    options = ("--listen", "127.0.0.1:0", "--listen", "[::1]:0")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "serve", "--config", str(config), *options), stdout=asyncio.subprocess.PIPE
    )
    served = Served(process, config)
    try:
        addresses = addresses_of((await served.line("server.started"))["listen"])
        assert [host for host, _ in addresses] == ["127.0.0.1", "::1"]
        for address in addresses:
            assert await is_served(address, upstream)
        served.signal(signal.SIGTERM)
        await served.rest()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_listen_says_which_it_cannot(tmp_path: Path, upstream: Upstream) -> None:
    """Of several addresses the one that is taken is named, and the proxy does not start with the rest."""
    config = tmp_path / "proxy.yaml"
    config.write_text(CONFIG.format(secret=SECRET, url=upstream.url, key=VENDOR_KEY))
    taken = f"127.0.0.1:{upstream.address[1]}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "serve", "--config", str(config), "--listen", "127.0.0.1:0"),
        *("--listen", taken),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, error = await asyncio.wait_for(process.communicate(), WAIT_S * 2)
    assert process.returncode == 1
    assert f"cannot start: cannot listen on {taken}: ".encode() in error


@needs_ipv6
async def test_workers_share_several_addresses(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers share every address, and the next generation takes all of them over."""
    monkeypatch.setenv("FORWARD_SSE_LISTEN", BOTH)
    async with several(tmp_path, upstream, workers=2) as served:
        (started,) = [line for line in served.lines if line["event"] == "server.started"]
        addresses = addresses_of(started["listen"])
        assert [host for host, _ in addresses] == ["127.0.0.1", "::1"]
        for address in addresses:
            assert await is_served(address, upstream)
        served.signal(signal.SIGUSR2)
        again = await served.line("server.started")
        assert again["listen"] == started["listen"]
        await served.line("server.stopped")
        for address in addresses:
            assert await is_served(address, upstream)
