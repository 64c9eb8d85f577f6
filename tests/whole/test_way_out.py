"""The ways out: egress proxies of other makers and scripted ones, client certificates, names, the environment."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from proxy.app import FILES
from proxy.server.listen import Server
from proxy.settings.loading import load
from tests.auth.certificates import CertificateAuthority
from tests.conftest import CONFIG, SECRET, VENDOR_KEY, Running, token
from tests.peers import LAST, STREAM_HEAD, Message, Peer, Upstream, chunk, event, request, secret_free
from tests.proxies import PASSWORD, USER, Microsocks, Tinyproxy, free_port
from tests.whole.scenes import BODY, OK, check_secrets, check_settled
from tests.whole.test_auth_whole import key_server, passes, readiness, remote_config
from tests.whole.test_tls import Authority, SecureUpstream, make_authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from proxy.observability.logging import Redactor

CREDENTIALS = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("way-out"))


@pytest.fixture
async def fake() -> AsyncIterator[Upstream]:
    """A scripted egress proxy; behind its answer to CONNECT it is the vendor itself."""
    async with Upstream() as proxy:
        yield proxy


def way(url: str, *more: str, top: str = "") -> str:
    """The tests' file with another upstream, and lines of its own."""
    text = CONFIG.replace("url: {url}", "\n    ".join([f"url: {url}", *more]))
    return text + top


def through(fake: Upstream, scheme: str = "http") -> str:
    return f"egress_proxy: {scheme}://{USER}:{PASSWORD}@127.0.0.1:{fake.address[1]}"


async def ask(proxy: Running) -> Peer:
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    return client


async def refused(proxy: Running, client: Peer, status: int, code: str, reason: str | None) -> Message:
    """The client is refused so, the log says why, everything is released, and no secret was told."""
    answer = await client.read_message()
    assert (answer.status, answer.get("x-forward-sse-code")) == (status, code)
    line = (await proxy.settled())[0]
    assert line["reason"] == reason
    assert proxy.leases_held == 0
    check_secrets(proxy, answer.body, secrets=(PASSWORD, CREDENTIALS))
    return answer


@pytest.mark.parametrize("kind", ["tinyproxy", "microsocks"])
@pytest.mark.parametrize("is_secure", [True, False], ids=["https", "http"])
async def test_stream_through_a_proxy(
    start: Callable[..., Any], tmp_path: Path, authority: Authority, kind: str, *, is_secure: bool
) -> None:
    """A stream through a real proxy with credentials is passed byte for byte, and its connection is used again."""
    async with AsyncExitStack() as stack:
        made: Tinyproxy | Microsocks = Tinyproxy(tmp_path) if kind == "tinyproxy" else Microsocks()
        egress: Tinyproxy | Microsocks = await stack.enter_async_context(made.run())
        vendor_of: Upstream = SecureUpstream(authority.good) if is_secure else Upstream()
        upstream = await stack.enter_async_context(vendor_of)
        lines = [f'egress_proxy: "{egress.url()}"', f"ca_file: {authority.certificate}"]
        proxy: Running = await start(config=way(upstream.url, *lines))
        client = await ask(proxy)
        vendor, received = await upstream.take()
        texts = ("one", "two", "x" * 100_000)
        vendor.write(STREAM_HEAD + b"".join(chunk(event(text)) for text in texts) + LAST)

        assert (await client.read_message()).body == b"".join(map(event, texts))
        client.write(request(body=BODY, token=token()))
        await vendor.read_message()
        vendor.write(STREAM_HEAD + LAST)
        assert (await client.read_message()).status == 200

        assert received.get("host") == upstream.url.partition("//")[2]
        assert received.get("proxy-authorization") is None
        assert len(upstream.peers) == 1
        if isinstance(egress, Tinyproxy):
            assert egress.asked() == [f"CONNECT {upstream.url.partition('//')[2]} HTTP/1.1"]
        await proxy.settled(2)
        check_secrets(proxy, secrets=(PASSWORD, CREDENTIALS))


@pytest.mark.parametrize("kind", ["tinyproxy", "microsocks"])
@pytest.mark.parametrize("password", [None, "wrong"])
async def test_credentials_that_a_proxy_refuses(
    start: Callable[..., Any], tmp_path: Path, upstream: Upstream, kind: str, password: str | None
) -> None:
    """Missing and wrong credentials are 502 `egress_refused`, which says so."""
    made = Tinyproxy(tmp_path) if kind == "tinyproxy" else Microsocks()
    async with made.run() as egress:
        proxy: Running = await start(config=way("{url}", f'egress_proxy: "{egress.url(password)}"'))

        answer = await refused(proxy, await ask(proxy), 502, "egress_refused", "egress_credentials")

        assert "credentials" in answer.json["error"]["message"]
        assert ("status 40" if kind == "tinyproxy" else "SOCKS5") in answer.json["error"]["message"]
        assert upstream.is_untouched


async def test_what_is_said_to_an_http_proxy(start: Callable[..., Any], fake: Upstream) -> None:
    """CONNECT names the upstream and carries the credentials, and nothing of the request comes before its answer."""
    proxy: Running = await start(config=way("http://vendor.example", through(fake)))
    client = await ask(proxy)
    peer = await fake.accept()
    said = await peer.read_until(b"\r\n\r\n")
    assert said == (
        b"CONNECT vendor.example:80 HTTP/1.1\r\nHost: vendor.example:80\r\nUser-Agent: forward-sse\r\n"
        b"Proxy-Authorization: Basic " + CREDENTIALS.encode() + b"\r\n\r\n"
    )
    for byte in ESTABLISHED:
        await peer.send(bytes([byte]))
    received = await peer.read_message()
    assert received.start == "POST /v1/chat/completions HTTP/1.1"
    assert received.get("host") == "vendor.example"
    peer.write(OK)
    assert (await client.read_message()).body == b"ok"


async def test_what_is_said_to_a_socks_proxy(start: Callable[..., Any], fake: Upstream) -> None:
    """SOCKS5 gets the credentials and the upstream's name, unresolved."""
    proxy: Running = await start(config=way("http://vendor.example:8080", through(fake, "socks5")))
    client = await ask(proxy)
    peer = await fake.accept()
    assert await peer.read_exactly(4) == b"\x05\x02\x00\x02"
    await peer.send(b"\x05\x02")
    user, password = USER.encode(), PASSWORD.encode()
    expected = b"\x01" + bytes([len(user)]) + user + bytes([len(password)]) + password
    assert await peer.read_exactly(len(expected)) == expected
    await peer.send(b"\x01\x00")
    asked = b"\x05\x01\x00\x03\x0evendor.example\x1f\x90"
    assert await peer.read_exactly(len(asked)) == asked
    for byte in b"\x05\x00\x00\x03\x04host\x00\x00":
        await peer.send(bytes([byte]))
    await peer.read_message()
    peer.write(OK)
    assert (await client.read_message()).body == b"ok"


@pytest.mark.parametrize(
    ("answer", "code", "reason"),
    [
        (b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\n\r\n", "egress_refused", "egress_credentials"),
        (
            b"HTTP/1.1 403 " + PASSWORD.encode() + b"\r\nContent-Length: 3\r\n\r\nno!",
            "egress_refused",
            "egress_refused",
        ),
        (b"HTTP/1.0 503 No\r\n\r\n", "egress_refused", "egress_refused"),
        (b"HTTP/1.1 302\r\nLocation: http://login.example/\r\n\r\n", "egress_refused", "egress_refused"),
        (
            b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "upstream_unreachable",
            "egress_invalid",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "upstream_unreachable", "egress_invalid"),
        (b"HTTP/2 200\r\n\r\n", "upstream_unreachable", "egress_invalid"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "upstream_unreachable", "egress_invalid"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000, "upstream_unreachable", "egress_invalid"),
        (b"HTTP/1.1 200 OK\r\nHalf", "upstream_unreachable", "egress_closed"),
        (b"", "upstream_unreachable", "egress_closed"),
    ],
)
async def test_answers_of_an_http_proxy(
    start: Callable[..., Any], fake: Upstream, answer: bytes, code: str, reason: str
) -> None:
    """Whatever a proxy answers to CONNECT but 2xx and nothing else is 502 with its reason, and the end of it."""
    proxy: Running = await start(config=way("http://vendor.example", through(fake)))
    client = await ask(proxy)
    peer = await fake.accept()
    await peer.read_until(b"\r\n\r\n")
    peer.write(answer)
    if reason == "egress_closed":
        peer.writer.write_eof()

    await refused(proxy, client, 502, code, reason)

    assert await peer.read_to_end() == b""


@pytest.mark.parametrize(
    ("answers", "code", "reason"),
    [
        ([b"\x05\xff"], "egress_refused", "egress_credentials"),
        ([b"\x05\x02", b"\x01\x01"], "egress_refused", "egress_credentials"),
        ([b"\x05\x00", b"\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00"], "egress_refused", "egress_refused"),
        ([b"\x05\x00", b"\x05\x05\x00\x01"], "egress_refused", "egress_refused"),
        ([b"\x04\x00"], "upstream_unreachable", "egress_invalid"),
        ([b"\x05\x01"], "upstream_unreachable", "egress_invalid"),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "upstream_unreachable", "egress_invalid"),
        ([b"\x05\x00", b"\x05\x00\x00\x09\x00\x00\x00\x00\x00\x00"], "upstream_unreachable", "egress_invalid"),
        ([b"\x05\x00", b"\x05\x00\x00"], "upstream_unreachable", "egress_closed"),
        ([b""], "upstream_unreachable", "egress_closed"),
    ],
)
async def test_answers_of_a_socks_proxy(
    start: Callable[..., Any], fake: Upstream, answers: list[bytes], code: str, reason: str
) -> None:
    """Whatever a SOCKS5 proxy answers but success is 502 with its reason, and the end of it."""
    proxy: Running = await start(config=way("http://vendor.example", through(fake, "socks5")))
    client = await ask(proxy)
    peer = await fake.accept()
    await peer.read_exactly(4)
    for number, answer in enumerate(answers):
        peer.write(answer)
        if number + 1 < len(answers):
            await peer.read_exactly(1)
    if reason == "egress_closed":
        peer.writer.write_eof()

    await refused(proxy, client, 502, code, reason)

    await peer.closed()


async def test_proxy_that_is_not_there(start: Callable[..., Any], upstream: Upstream) -> None:
    """A proxy that cannot be reached is 502 with a reason of its own; the upstream is not tried directly."""
    proxy: Running = await start(config=way("{url}", f"egress_proxy: http://127.0.0.1:{free_port()}"))
    await refused(proxy, await ask(proxy), 502, "upstream_unreachable", "egress_unreachable")
    assert upstream.is_untouched


async def test_proxy_without_a_name(start: Callable[..., Any], upstream: Upstream) -> None:
    """A proxy whose name has no address is one that cannot be reached."""
    proxy: Running = await start(config=way("{url}", "egress_proxy: http://proxy.invalid:3128"))
    await refused(proxy, await ask(proxy), 502, "upstream_unreachable", "egress_unreachable")
    assert upstream.is_untouched


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nHalf"])
async def test_slow_proxy(start: Callable[..., Any], fake: Upstream, said: bytes) -> None:
    """The connect clock covers the proxy: 504 that names it, the connection closed."""
    proxy: Running = await start(config=way("http://vendor.example", through(fake), "timeouts: {{connect: 300ms}}"))
    client = await ask(proxy)
    peer = await fake.accept()
    await peer.read_until(b"\r\n\r\n")
    peer.write(said)

    await refused(proxy, client, 504, "upstream_timeout", None)

    await peer.closed()


@pytest.mark.parametrize("phase", ["connecting", "http", "half head", "socks", "handshake"])
@pytest.mark.parametrize("leave", [Peer.close, Peer.reset])
async def test_client_closed_on_the_way(
    start: Callable[..., Any], fake: Upstream, authority: Authority, phase: str, leave: Callable[[Peer], None]
) -> None:
    """A client that leaves while the proxy is asked, or the vendor behind it shakes hands, ends that within 50 ms."""
    scheme = "socks5" if phase == "socks" else "http"
    proxy: Running = await start(
        config=way("https://vendor.example", through(fake, scheme), f"ca_file: {authority.certificate}")
    )
    client = await ask(proxy)
    peer = await fake.accept()
    if phase != "connecting":
        await peer.read_exactly(4)
    if phase == "half head":
        await peer.send(b"HTTP/1.1 200")
    elif phase == "socks":
        await peer.send(b"\x05\x00")
    elif phase == "handshake":
        await peer.read_until(b"\r\n\r\n")
        await peer.send(ESTABLISHED)
        await peer.read_exactly(5)

    started = time.monotonic()
    leave(client)
    await peer.closed()

    assert time.monotonic() - started < 0.05
    await check_settled(proxy, "client_closed")


async def test_tls_behind_a_proxy_is_verified(start: Callable[..., Any], tmp_path: Path, authority: Authority) -> None:
    """The vendor's certificate is judged behind a proxy as ever: no key goes to another one."""
    async with Tinyproxy(tmp_path).run() as egress, SecureUpstream(authority.elsewhere) as vendor:
        lines = [f'egress_proxy: "{egress.url()}"', f"ca_file: {authority.certificate}"]
        proxy: Running = await start(config=way(vendor.url, *lines))
        await refused(proxy, await ask(proxy), 502, "upstream_unreachable", "tls_name")
        assert not any(peer.seen for peer in vendor.peers)


async def test_proxy_in_a_file(start: Callable[..., Any], fake: Upstream, upstream: Upstream, tmp_path: Path) -> None:
    """A proxy's URL in a file is read again when it changes, and neither password is in the log."""
    path = tmp_path / "egress"
    path.write_text(f"http://{USER}:first-canary-8d@127.0.0.1:{upstream.address[1]}\n")
    proxy: Running = await start(config=way("http://vendor.example", f"egress_proxy: file:{path}"))
    path.write_text(f"http://{USER}:{PASSWORD}@127.0.0.1:{fake.address[1]}\n")
    await proxy.server.app[FILES].look()
    client = await ask(proxy)
    peer = await fake.accept()
    assert CREDENTIALS.encode() in await peer.read_until(b"\r\n\r\n")
    peer.write(ESTABLISHED)
    await peer.read_message()
    peer.write(OK)
    assert (await client.read_message()).status == 200
    await proxy.settled()
    check_secrets(proxy, secrets=(PASSWORD, CREDENTIALS, "first-canary-8d"))
    assert upstream.is_untouched


async def test_own_way_over_the_top_level(start: Callable[..., Any], upstream: Upstream, fake: Upstream) -> None:
    """`egress_proxy: none` of an upstream goes directly where the top level names a proxy."""
    top = f"egress_proxy: http://127.0.0.1:{fake.address[1]}\n"
    proxy: Running = await start(config=way("{url}", "egress_proxy: none", top=top))
    client = await ask(proxy)
    vendor, _ = await upstream.take()
    vendor.write(OK)
    assert (await client.read_message()).status == 200
    assert fake.is_untouched


TARGETS = """
envelope:
  allow_private: [127.0.0.0/8]
  targets:
    - {{url: "http://127.0.0.1:PORT/pinned"}}
    - {{url: "http://127.0.0.1:PORT/unpinned", allow_unpinned: true}}
    - {{url: "http://127.0.0.1:PORT/ours", upstream: main}}
    - {{url: "http://127.0.0.1:PORT/ours-unpinned", upstream: main, allow_unpinned: true}}
"""


@pytest.mark.parametrize("path", ["pinned", "unpinned", "ours", "ours-unpinned"])
async def test_envelope_target(start: Callable[..., Any], upstream: Upstream, fake: Upstream, path: str) -> None:
    """An envelope's target is reached directly, where its checked address holds, unless `allow_unpinned` says else."""
    top = TARGETS.replace("PORT", str(upstream.address[1]))
    top += f"egress_proxy: http://127.0.0.1:{fake.address[1]}\n"
    proxy: Running = await start(config=way("{url}", top=top))
    client = await proxy.client()
    client.write(request(body={"targetUrl": f"{upstream.url}/{path}", "body": "x"}, token=token()))
    if path.endswith("unpinned"):
        vendor = await fake.accept()
        assert (await vendor.read_until(b"\r\n\r\n")).startswith(b"CONNECT 127.0.0.1:")
        vendor.write(ESTABLISHED)
        received = await vendor.read_message()
        assert upstream.is_untouched
    else:
        vendor, received = await upstream.take()
        assert fake.is_untouched
    assert received.start == f"POST /{path} HTTP/1.1"
    vendor.write(OK)
    assert (await client.read_message()).status == 200


async def test_environment(tmp_path: Path, log_file: tuple[Path, Redactor], upstream: Upstream, fake: Upstream) -> None:
    """The environment's proxy is used for the upstreams that it is for, and never for this machine."""
    path = tmp_path / "proxy.yaml"
    path.write_text(
        way("{url}").format(secret=SECRET, url=upstream.url, key=VENDOR_KEY)
        + "envelope: {targets: [{url: 'http://a.example/x'}]}\n"
    )
    text = path.read_text().replace(
        "default_upstream:", "  away: {url: 'http://vendor.example', dialect: openai, api_key: none}\ndefault_upstream:"
    )
    path.write_text(text)
    environ = {"http_proxy": f"http://{USER}:{PASSWORD}@127.0.0.1:{fake.address[1]}"}
    server = Server(load(path, environ), log_file[1])
    await server.open()
    proxy = Running(server, log_file[0])
    try:
        client = await ask(proxy)
        vendor, _ = await upstream.take()
        vendor.write(OK)
        assert (await client.read_message()).status == 200
        client.write(request("/away/v1/chat/completions", BODY, token=token()))
        peer = await fake.accept()
        assert (await peer.read_until(b"\r\n\r\n")).startswith(b"CONNECT vendor.example:80 ")
        peer.write(ESTABLISHED)
        await peer.read_message()
        peer.write(OK)
        assert (await client.read_message()).status == 200
    finally:
        await proxy.close()
    assert secret_free(proxy.log_bytes(), PASSWORD, CREDENTIALS)


class Demanding(SecureUpstream):
    """A vendor that demands a client certificate, and notes whose it was shown."""

    def __init__(self, certificate: Path, client_ca: Path) -> None:
        super().__init__(certificate)
        self._context.load_verify_locations(client_ca)
        self._context.verify_mode = ssl.CERT_REQUIRED

    @staticmethod
    def shown(peer: Peer) -> object:
        return peer.writer.get_extra_info("peercert")["serialNumber"]


def own(tmp_path: Path, source: Path) -> tuple[Path, Path]:
    """A certificate and its key in two files."""
    certificate, key = tmp_path / "own.pem", tmp_path / "own.key"
    head, mark, tail = source.read_text().partition("-----BEGIN CERTIFICATE-----")
    for path, text in ((certificate, mark + tail), (key, head)):
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(path)
    return certificate, key


@pytest.mark.parametrize("by", ["themselves", "a reload"])
async def test_client_certificate(start: Callable[..., Any], authority: Authority, tmp_path: Path, by: str) -> None:
    """A vendor that demands a certificate is shown the upstream's; new files are taken without and by a reload."""
    certificate, key = own(tmp_path, authority.good)
    async with Demanding(authority.good, authority.certificate) as upstream:
        lines = [
            f"ca_file: {authority.certificate}",
            f"client_certificate: {{{{certificate: {certificate}, key: {key}}}}}",
            "timeouts: {{keep_alive: off}}",
        ]
        proxy: Running = await start(config=way(upstream.url, *lines))
        client = await ask(proxy)
        vendor, _ = await upstream.take()
        before = upstream.shown(vendor)
        vendor.write(OK)
        assert (await client.read_message()).status == 200

        files = proxy.server.app[FILES]
        await files.look()
        own(tmp_path, authority.elsewhere)
        if by == "a reload":
            await proxy.server.reload(load(tmp_path / "proxy.yaml", {}))
        else:
            await files.look()

        client.write(request(body=BODY, token=token()))
        vendor, _ = await upstream.take()
        vendor.write(OK)
        assert (await client.read_message()).status == 200
        assert upstream.shown(vendor) != before


async def test_without_a_client_certificate(start: Callable[..., Any], authority: Authority) -> None:
    """Without one the vendor's refusal has its reason."""
    async with Demanding(authority.good, authority.certificate) as upstream:
        proxy: Running = await start(config=way(upstream.url, f"ca_file: {authority.certificate}"))
        answer = await (await ask(proxy)).read_message()
        assert answer.status == 502
        assert (await proxy.settled())[0]["reason"] in {"tls_client_certificate", "reset", "closed"}


async def test_server_name(start: Callable[..., Any], authority: Authority) -> None:
    """`server_name` is what TLS asks for and what the certificate must have; `Host` stays the url's."""
    async with SecureUpstream(authority.elsewhere) as upstream:
        lines = [f"ca_file: {authority.certificate}", "server_name: elsewhere.example"]
        proxy: Running = await start(config=way(upstream.url, *lines))
        client = await ask(proxy)
        vendor, received = await upstream.take()
        vendor.write(OK)
        assert (await client.read_message()).status == 200
        assert upstream.names == ["elsewhere.example"]
        assert received.get("host") == f"localhost:{upstream.address[1]}"


async def test_half_replaced_certificate(start: Callable[..., Any], authority: Authority, tmp_path: Path) -> None:
    """A certificate that was replaced before its key changes nothing and is told once; then the pair is taken."""
    certificate, key = own(tmp_path, authority.good)
    lines = [
        f"ca_file: {authority.certificate}",
        f"client_certificate: {{{{certificate: {certificate}, key: {key}}}}}",
    ]
    proxy: Running = await start(config=way("https://localhost:1", *lines))
    files = proxy.server.app[FILES]
    await files.look()
    old_key = key.read_bytes()
    own(tmp_path, authority.elsewhere)
    new_key = key.read_bytes()
    key.write_bytes(old_key)
    await files.look()
    await files.look()
    key.write_bytes(new_key)
    await files.look()
    async with asyncio.timeout(5):
        while not (told := [line for line in proxy.lines() if line["event"].startswith("secret.")]):  # noqa: ASYNC110 - the log's own thread
            await asyncio.sleep(0.005)
        while len(told := [line for line in proxy.lines() if line["event"].startswith("secret.")]) < 3:  # noqa: ASYNC110 - the same
            await asyncio.sleep(0.005)
    assert [(line["event"], line["place"]) for line in told] == [
        ("secret.unreadable", "upstreams.main.client_certificate"),
        ("secret.reread", "upstreams.main.client_certificate.certificate"),
        ("secret.reread", "upstreams.main.client_certificate.key"),
    ]


async def test_key_set_through_a_proxy(
    start: Callable[..., Any], upstream: Upstream, tmp_path: Path, log_file: tuple[Path, Redactor]
) -> None:
    """An issuer's key set comes through its `egress_proxy`; what that refuses is in `/readyz` without a password."""
    del log_file
    own_authority = CertificateAuthority(tmp_path)
    async with Tinyproxy(tmp_path).run() as egress, key_server(own_authority.server()) as issuer:
        for password, is_ready in ((PASSWORD, True), ("wrong-canary", False)):
            entry = f"jwks_url: '{issuer.url}', ca_file: '{own_authority.file}', egress_proxy: '{egress.url(password)}'"
            config = remote_config(issuer, alone=True).replace(f"jwks_url: {issuer.url}", entry)
            proxy: Running = await start(config=config)
            data = request(body=BODY, token=issuer.token("k1"))
            if is_ready:
                await passes(proxy, upstream, data)
                assert len(egress.asked()) == 1
            else:
                client = await proxy.client()
                client.write(data)
                assert (await client.read_message()).get("x-forward-sse-code") == "auth_unavailable"
                words = "key set: The egress proxy does not accept this proxy's credentials (status 401)."
                assert (await readiness(proxy)).json["reasons"] == [f"auth: remote: {words}"]
            check_secrets(proxy, secrets=(password, CREDENTIALS))
