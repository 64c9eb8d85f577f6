"""TLS towards clients: streams pass as ever, a client that leaves cancels, and a reload takes other certificates."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from proxy.settings.loading import ConfigurationError, load
from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, WAIT_S, Peer, Upstream, chunk, event, request
from tests.whole.scenes import BODY, check_settled, fill
from tests.whole.test_tls import Authority, make_authority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Running


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("listener"))


def tls(certificate: Path, more: str = "") -> str:
    """The file's lines about TLS; a key stands in the same file as its certificate."""
    return f"tls: {{certificate: {certificate}, key: {certificate}{more}}}\n"


async def connect(proxy: Running, authority: Authority, own: Path | None = None) -> Peer:
    """A client that trusts the authority, perhaps with a certificate of its own."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if own is not None:
        context.load_cert_chain(own)
    async with asyncio.timeout(WAIT_S):
        peer = Peer(*await asyncio.open_connection(*proxy.address, ssl=context, server_hostname="localhost"))
    proxy.note(peer)
    return peer


async def test_stream(start: Callable[..., Any], upstream: Upstream, authority: Authority) -> None:
    """A stream over TLS is passed on byte for byte, as it comes."""
    proxy = await start(tls(authority.good))
    client = await connect(proxy, authority)
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    texts = ("one", "two", "x" * 100_000)
    vendor.write(STREAM_HEAD + b"".join(chunk(event(text)) for text in texts) + LAST)

    answer = await client.read_message()

    assert answer.is_whole
    assert answer.body == b"".join(map(event, texts))
    await check_settled(proxy, "complete", events=3)


async def test_client_leaves(start: Callable[..., Any], upstream: Upstream, authority: Authority) -> None:
    """A client that leaves a silent stream closes the upstream at once, here too."""
    proxy = await start(tls(authority.good))
    client = await connect(proxy, authority)
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    await client.read_until(event("one") + b"\r\n")

    client.writer.transport.abort()

    await vendor.closed()
    await check_settled(proxy, "client_closed")


async def test_slow_client(start: Callable[..., Any], upstream: Upstream, authority: Authority) -> None:
    """A client that does not read makes a bounded amount wait, and holds the vendor back."""
    proxy = await start(tls(authority.good))
    client = await connect(proxy, authority)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a stream writer's transport reads, too
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    limit = 2**26

    sent = await fill(vendor, limit=limit)

    assert sent < limit
    waiting = [one.transport.get_write_buffer_size() for one in proxy.server.connections if one.transport is not None]
    # One read, and what TLS adds to it; the socket's own transport below holds another.
    assert max(waiting) <= 280 * 1024


@pytest.mark.parametrize("own", [True, False], ids=["with a certificate", "without"])
async def test_client_certificate(
    start: Callable[..., Any], upstream: Upstream, authority: Authority, *, own: bool
) -> None:
    """With `client_ca` a client without a certificate of theirs gets no answer."""
    proxy = await start(tls(authority.good, f", client_ca: {authority.certificate}"))
    try:
        client = await connect(proxy, authority, authority.elsewhere if own else None)
        client.write(request("/healthz", method="GET"))
        answer = await client.read_to_end() if not own else (await client.read_message()).body
    except (ssl.SSLError, ConnectionError):
        answer = b""

    assert (b"ok" in answer) is own
    assert upstream.is_untouched


async def test_plain_client(start: Callable[..., Any], upstream: Upstream, authority: Authority) -> None:
    """Who speaks plain HTTP to it is cut off, and the next one served; the operator's listener stays plain."""
    proxy = await start(tls(authority.good))
    client = await proxy.client()
    client.write(request("/healthz", method="GET"))

    assert b"ok" not in await client.read_to_end()
    secure = await connect(proxy, authority)
    secure.write(request("/healthz", method="GET"))
    assert (await secure.read_message()).status == 200
    admin = await proxy.admin()
    admin.write(request("/healthz", method="GET"))
    assert (await admin.read_message()).status == 200
    assert upstream.is_untouched


async def test_reload(start: Callable[..., Any], upstream: Upstream, authority: Authority, tmp_path: Path) -> None:
    """A reload takes the files as they are now, for connections that come; a running stream goes on."""
    own = tmp_path / "own.pem"
    own.write_bytes(authority.good.read_bytes())
    proxy = await start(tls(own))
    client = await connect(proxy, authority)
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    await client.read_until(event("one") + b"\r\n")
    before = serial(await connect(proxy, authority))

    other = make_authority(tmp_path)
    own.write_bytes(other.good.read_bytes())
    await proxy.server.reload(load(tmp_path / "proxy.yaml", {}))

    assert serial(await connect(proxy, other)) != before
    with pytest.raises(ssl.SSLCertVerificationError):
        await connect(proxy, authority)
    vendor.write(chunk(event("two")) + LAST)
    assert event("two") in await client.read_until(LAST)


async def test_reload_of_a_broken_file(
    start: Callable[..., Any], upstream: Upstream, authority: Authority, tmp_path: Path
) -> None:
    """Files that cannot be used change nothing."""
    own = tmp_path / "own.pem"
    own.write_bytes(authority.good.read_bytes())
    proxy = await start(tls(own))
    settings = load(tmp_path / "proxy.yaml", {})
    own.write_text("nothing of a certificate")

    with pytest.raises(OSError, match="tls"):
        await proxy.server.reload(settings)

    client = await connect(proxy, authority)
    client.write(request("/healthz", method="GET"))
    assert (await client.read_message()).status == 200
    assert upstream.is_untouched


def test_faults(authority: Authority, tmp_path: Path) -> None:
    """`check` refuses files that are not there, and a key of another certificate, with the line."""
    path = tmp_path / "proxy.yaml"
    path.write_text(
        "auth: none\nupstreams: {main: {url: 'http://127.0.0.1:1', dialect: openai, api_key: none}}\n"
        f"tls:\n  certificate: {authority.good}\n  key: {authority.expired}\n  client_ca: {tmp_path}/none.pem\n"
    )

    with pytest.raises(ConfigurationError) as refused:
        load(path, {})

    found = str(refused.value)
    assert "proxy.yaml:5: tls.key: cannot be used with this certificate" in found
    assert "proxy.yaml:6: tls.client_ca" in found


def serial(client: Peer) -> object:
    """Which certificate the client was shown."""
    return client.writer.get_extra_info("peercert")["serialNumber"]
