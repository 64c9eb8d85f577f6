"""The reason of a failure: one word in the exchange's line for the operator, and not a word of it for the client."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CONFIG, token
from tests.peers import LAST, STREAM_HEAD, Message, Peer, Upstream, chunk, event, request
from tests.whole.scenes import BODY, OK, check_settled
from tests.whole.test_tls import Authority, SecureUpstream, config, make_authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Running

WORDS = (
    b"dns refused reset tls_untrusted tls_name tls_expired tls_handshake tls_client_certificate "
    b"not_http head_invalid body_invalid keys_unavailable"
).split()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def refusing() -> Iterator[int]:
    """A port where nobody listens, and that nobody else is given meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


async def ask(proxy: Running, body: dict[str, Any] = BODY) -> Peer:
    client = await proxy.client()
    client.write(request(body=body, token=token()))
    return client


async def check_refused(proxy: Running, refusal: Message, reason: str | None, code: str) -> None:
    """A 502 whose words are the code's alone, and the reason in the line."""
    assert (refusal.status, refusal.get("x-forward-sse-code")) == (502, code)
    assert not any(word in refusal.body for word in WORDS)
    await check_settled(proxy, "upstream_error", reason=reason, code=code)


UNREACHABLE, INVALID = "upstream_unreachable", "upstream_protocol_error"
FAULTS = [
    pytest.param(Peer.close, "closed", UNREACHABLE, id="closes"),
    pytest.param(Peer.reset, "reset", UNREACHABLE, id="resets"),
    pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", "not_http", INVALID, id="speaks SSH"),
    pytest.param(b"\x15\x03\x01\x00\x02\x02\x50", "not_http", INVALID, id="speaks TLS"),
    pytest.param(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", "not_http", INVALID, id="speaks HTTP2"),
    pytest.param(b"ICY 200 OK\r\n\r\n", "not_http", INVALID, id="speaks ICY"),
    pytest.param(b"HTTP/1.1 abc\r\n\r\n", "head_invalid", INVALID, id="status is no number"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "head_invalid", INVALID, id="length is no number"),
    pytest.param(b"HTTP/1.1 101 Switching\r\n\r\n", "head_invalid", INVALID, id="switches protocols"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "head_invalid", INVALID, id="head is too long"),
]


def commit(vendor: Peer, fault: bytes | Callable[[Peer], None]) -> None:
    if isinstance(fault, bytes):
        vendor.write(fault)
    else:
        fault(vendor)


@pytest.mark.parametrize(("fault", "reason", "code"), FAULTS)
async def test_reason_before_the_head(
    proxy: Running, upstream: Upstream, fault: bytes | Callable[[Peer], None], reason: str, code: str
) -> None:
    """What the vendor did instead of answering is in the line."""
    client = await ask(proxy)
    vendor, _ = await upstream.take()
    commit(vendor, fault)

    await check_refused(proxy, await client.read_message(), reason, code)


@pytest.mark.parametrize(("fault", "reason", "code"), FAULTS)
async def test_reason_before_the_head_on_a_kept_connection(
    proxy: Running, upstream: Upstream, fault: bytes | Callable[[Peer], None], reason: str, code: str
) -> None:
    """On a connection that has served an answer before it is the same."""
    client = await ask(proxy)
    vendor, _ = await upstream.take()
    vendor.write(OK)
    assert (await client.read_message()).status == 200
    client.write(request(body=BODY, token=token()))
    await vendor.read_message()
    commit(vendor, fault)

    refusal = await client.read_message()

    assert (refusal.status, refusal.get("x-forward-sse-code")) == (502, code)
    first, second = await proxy.settled(2)
    assert (first["reason"], second["reason"]) == (None, reason)
    assert len(upstream.peers) == 1


async def test_reason_of_garbage_in_pieces(proxy: Running, upstream: Upstream) -> None:
    """What looks like HTTP at first is judged by all of it."""
    client = await ask(proxy)
    vendor, _ = await upstream.take()
    vendor.write(b"HT")
    await vendor.writer.drain()
    vendor.write(b"ML\r\n")

    await check_refused(proxy, await client.read_message(), "not_http", INVALID)


@pytest.mark.parametrize("is_kept", [False, True], ids=["new connection", "kept connection"])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(Peer.close, "closed", id="closes"),
        pytest.param(Peer.reset, "reset", id="resets"),
        pytest.param(b"nonsense\r\n", "body_invalid", id="no chunk"),
    ],
)
async def test_reason_after_the_first_byte(
    proxy: Running, upstream: Upstream, fault: bytes | Callable[[Peer], None], reason: str, *, is_kept: bool
) -> None:
    """A stream that breaks ends as `upstream_closed`, and the line has what broke it."""
    client = await ask(proxy)
    vendor, _ = await upstream.take()
    if is_kept:
        vendor.write(OK)
        await client.read_message()
        client.write(request(body=BODY, token=token()))
        await vendor.read_message()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    await client.read_until(event("one"))
    commit(vendor, fault)
    rest = await client.read_to_end()

    assert not any(word in rest for word in WORDS)
    line = (await proxy.settled(1 + is_kept))[-1]
    assert (line["ending"], line["reason"], line["code"]) == ("upstream_closed", reason, None)


@pytest.mark.parametrize("is_typed", [False, True], ids=["raw", "typed"])
async def test_reason_of_a_break_within_a_typed_stream(proxy: Running, upstream: Upstream, *, is_typed: bool) -> None:
    """A translated stream has the same reason as one that is passed on."""
    client = await proxy.client()
    client.write(request("/forward-sse" + "?events=typed" * is_typed, body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    await client.read_until(b"one")
    vendor.reset()
    await client.read_until(b"upstream_unreachable")

    await check_settled(proxy, "upstream_closed", reason="reset")


@pytest.mark.parametrize(
    ("sent", "ending", "reason"),
    [
        pytest.param(b"data: <html>\n\n", "upstream_error", "body_invalid", id="no JSON"),
        pytest.param(
            b'data: {"choices":[{"delta":{"content":{"a":1}}}]}\n\n', "upstream_error", "body_invalid", id="no text"
        ),
        pytest.param(b'data: {"error":{"message":"m"}}\n\n', "upstream_error", None, id="vendor's error"),
        pytest.param(b": nothing\n\n", "upstream_closed", "incomplete", id="no end"),
        pytest.param(b"data: [DONE]\n\n", "complete", None, id="whole"),
    ],
)
async def test_reason_of_what_a_typed_stream_says(
    proxy: Running, upstream: Upstream, sent: bytes, ending: str, reason: str | None
) -> None:
    """A translated stream that cannot be read, or is not whole, has its reason; the vendor's own error has none."""
    client = await proxy.client()
    client.write(request("/forward-sse?events=typed", body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(sent) + LAST)
    assert (await client.read_message()).is_whole

    await check_settled(proxy, ending, reason=reason)


@pytest.mark.parametrize("status", [200, 429, 500])
async def test_reason_is_null_where_nothing_failed(proxy: Running, upstream: Upstream, status: int) -> None:
    """A vendor's answer, an error as well, is no failure of the way to it."""
    client = await ask(proxy)
    vendor, _ = await upstream.take()
    vendor.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nok" % status)
    assert (await client.read_message()).status == status

    await check_settled(proxy, "complete" if status == 200 else "upstream_error", reason=None)


async def test_reason_is_null_for_refusals(proxy: Running) -> None:
    """The code of a refusal says everything."""
    client = await proxy.client()
    client.write(request(body=BODY))
    assert (await client.read_message()).status == 401

    await check_settled(proxy, "refused", reason=None, code="missing_token")


async def test_reason_of_a_clock_is_its_ending(start: Callable[..., Any], upstream: Upstream) -> None:
    """A clock that ran out is told by the ending alone."""
    proxy = await start("timeouts: {first_byte: 50ms}\n")
    client = await ask(proxy)
    await upstream.take()
    assert (await client.read_message()).status == 504

    await check_settled(proxy, "timeout_first_byte", reason=None)


async def test_reason_refused(start: Callable[..., Any], refusing: int) -> None:
    """A port where nobody listens."""
    proxy = await start(config=CONFIG.replace("{url}", f"http://127.0.0.1:{refusing}"))
    client = await ask(proxy)

    await check_refused(proxy, await client.read_message(), "refused", UNREACHABLE)


async def test_reason_refused_with_tls(start: Callable[..., Any], refusing: int) -> None:
    """A port where nobody listens is that for https, too."""
    proxy = await start(config=CONFIG.replace("{url}", f"https://127.0.0.1:{refusing}"))
    client = await ask(proxy)

    await check_refused(proxy, await client.read_message(), "refused", UNREACHABLE)


async def test_reason_dns(start: Callable[..., Any]) -> None:
    """A name that nobody knows (RFC 6761 §6.4: not even the resolver's own)."""
    proxy = await start(config=CONFIG.replace("{url}", "http://vendor.invalid"))
    client = await ask(proxy)

    await check_refused(proxy, await client.read_message(), "dns", UNREACHABLE)


@pytest.mark.parametrize(
    ("certificate", "is_trusted", "reason"),
    [
        pytest.param("good", False, "tls_untrusted", id="unknown authority"),
        pytest.param("expired", True, "tls_expired", id="expired"),
        pytest.param("early", True, "tls_expired", id="not valid yet"),
        pytest.param("elsewhere", True, "tls_name", id="another name"),
    ],
)
async def test_reason_of_a_certificate(
    start: Callable[..., Any], authority: Authority, certificate: str, reason: str, *, is_trusted: bool
) -> None:
    """What is wrong with the vendor's certificate."""
    async with SecureUpstream(getattr(authority, certificate)) as vendor:
        proxy = await start(config=config(vendor.url, authority.certificate if is_trusted else None))
        client = await ask(proxy)

        await check_refused(proxy, await client.read_message(), reason, UNREACHABLE)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="answers in plain HTTP"),
        pytest.param(Peer.close, id="closes"),
        pytest.param(Peer.reset, id="resets"),
    ],
)
async def test_reason_of_a_server_without_tls(
    start: Callable[..., Any], upstream: Upstream, authority: Authority, fault: bytes | Callable[[Peer], None]
) -> None:
    """A server that speaks no TLS where the url says https."""
    proxy = await start(config=config(f"https://localhost:{upstream.address[1]}", authority.certificate))
    client = await ask(proxy)
    vendor = await upstream.accept()
    await vendor.read_exactly(1)
    commit(vendor, fault)

    await check_refused(proxy, await client.read_message(), "tls_handshake", UNREACHABLE)


@contextlib.contextmanager
def blocking_tls(context: ssl.SSLContext) -> Iterator[str]:
    """A TLS server that sends its alerts, as those on plain OpenSSL do and asyncio's do not; serves one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError), listening.accept()[0] as sock:
                sock.settimeout(30)
                with context.wrap_socket(sock, server_side=True) as secure:
                    secure.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://localhost:{listening.getsockname()[1]}"
        finally:
            thread.join()


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
async def test_reason_of_a_demanded_client_certificate(
    start: Callable[..., Any], authority: Authority, version: ssl.TLSVersion
) -> None:
    """A server that wants a certificate of ours, whether it says so in the handshake or after it."""
    context = server_context(authority.good)
    context.minimum_version = context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.certificate)
    with blocking_tls(context) as url:
        proxy = await start(config=config(url, authority.certificate))
        client = await ask(proxy)

        await check_refused(proxy, await client.read_message(), "tls_client_certificate", UNREACHABLE)


async def test_reason_of_a_handshake_without_a_common_cipher(start: Callable[..., Any], authority: Authority) -> None:
    """The alert that TLS 1.2 has for two faults, where it is the other one."""
    context = server_context(authority.good)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    # For RSA certificates alone, and the server has none.
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    with blocking_tls(context) as url:
        proxy = await start(config=config(url, authority.certificate))
        client = await ask(proxy)

        await check_refused(proxy, await client.read_message(), "tls_handshake", UNREACHABLE)


@pytest.mark.parametrize("entry", ["upstream: main", ""], ids=["upstream's target", "envelope's own target"])
async def test_reason_of_an_envelopes_target(start: Callable[..., Any], refusing: int, entry: str) -> None:
    """A target has its reason like an upstream."""
    url = f"http://127.0.0.1:{refusing}"
    targets = f'envelope: {{{{targets: [{{{{url: "{url}/*", {entry}}}}}], allow_private: ["127.0.0.0/8"]}}}}\n'
    proxy = await start(config=CONFIG.replace("{url}", url) + targets)
    client = await ask(proxy, {"targetUrl": f"{url}/v1/chat/completions", "body": "{}"})

    await check_refused(proxy, await client.read_message(), "refused", UNREACHABLE)


async def test_reason_keys_unavailable(start: Callable[..., Any], refusing: int) -> None:
    """A token that cannot be judged because its issuer's keys were never loaded."""
    issuer = f"{{{{issuer: tests, audience: llm, algorithms: [RS256], jwks_url: 'http://127.0.0.1:{refusing}/'}}}}"
    plain = '{{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}"}}'
    proxy = await start(config=CONFIG.replace(plain, issuer))
    client = await proxy.client()
    header = token().split(".")
    unjudged = ".".join(["eyJhbGciOiJSUzI1NiIsImtpZCI6ImsifQ", *header[1:]])
    client.write(request(body=BODY, token=unjudged))
    assert (await client.read_message()).status == 503

    await check_settled(proxy, "refused", reason="keys_unavailable", code="auth_unavailable")
