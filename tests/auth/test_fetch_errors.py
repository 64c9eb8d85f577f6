"""Why a key set could not be fetched, in words: TLS and the network, against real sockets where there can be any."""

from __future__ import annotations

import asyncio
import errno
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from proxy.auth.fetch_errors import KeyFetchError, quoted, redirect_error, transport_error
from proxy.auth.jwks import JwksSource, fetch_jwks, open_session
from proxy.model import TlsFiles
from tests.auth.auth_support import KeyServer
from tests.auth.certificates import ELSEWHERE, CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_BYTES = 1 << 20
PLACE = ConnectionKey("id.internal", 443, is_ssl=True, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None)


async def fetch(source: JwksSource) -> object:
    async with asyncio.timeout(5), open_session(source) as session:
        return await fetch_jwks(session, source, max_bytes=MAX_BYTES)


async def failure(source: JwksSource) -> KeyFetchError:
    with pytest.raises(KeyFetchError) as caught:
        await fetch(source)
    return caught.value


async def failure_at_server(scheme: str, awaited: bytes, data: bytes) -> KeyFetchError:
    """The failure where a server answers with these bytes, once it has read what is awaited, and closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(awaited)
        writer.write(data)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        return await failure(JwksSource("issuer", f"{scheme}://127.0.0.1:{port}/jwks"))


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path)


async def test_own_authority(authority: CertificateAuthority) -> None:
    """A key set's server with a certificate of the operator's own authority is asked, and its keys are taken."""
    async with KeyServer(authority.server()) as server:
        source = JwksSource("issuer", server.url(), tls=TlsFiles(str(authority.file)))
        assert await fetch(source) == {"keys": []}


SERVERS: dict[str, tuple[Callable[[CertificateAuthority], ssl.SSLContext], str]] = {
    "expired": (
        lambda authority: authority.server(begins_in_days=-3),
        "the server's certificate has expired",
    ),
    "early": (
        lambda authority: authority.server(begins_in_days=3),
        "the server's certificate is not valid yet",
    ),
    "another host": (
        lambda authority: authority.server(ELSEWHERE),
        "the server's certificate is for another host",
    ),
}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("case", SERVERS)
async def test_certificate_not_accepted(case: str, host: str, authority: CertificateAuthority) -> None:
    """Who cannot prove to be the key set's server is told apart by why."""
    serve, words = SERVERS[case]
    async with KeyServer(serve(authority)) as server:
        url = server.url().replace("127.0.0.1", host)
        error = await failure(JwksSource("issuer", url, tls=TlsFiles(str(authority.file))))
        assert error.reason == f"key set: TLS: {words}"
        assert error.in_full.startswith(error.reason + ' ("')
        assert server.requests == 0


@pytest.mark.parametrize("trusts_another", [False, True], ids=["system", "another authority"])
async def test_certificate_of_an_unknown_authority(
    trusts_another: bool, authority: CertificateAuthority, tmp_path: Path
) -> None:
    """A certificate of an authority that is not trusted is refused, and the words name the key that would help."""
    ca_file = str(CertificateAuthority(tmp_path, "another").file) if trusts_another else None
    async with KeyServer(authority.server()) as server:
        error = await failure(JwksSource("issuer", server.url(), tls=TlsFiles(ca_file)))
        assert (
            error.reason == "key set: TLS: the server's certificate is not signed by a trusted authority (see ca_file)"
        )
        assert server.requests == 0


async def test_authority_rotated(authority: CertificateAuthority, tmp_path: Path) -> None:
    """The file of authorities is read for each fetch: what was put there since the last one holds."""
    trusted = tmp_path / "trusted.pem"
    async with KeyServer(authority.server()) as server:
        source = JwksSource("issuer", server.url(), tls=TlsFiles(str(trusted)))
        trusted.write_bytes(CertificateAuthority(tmp_path, "old").pem)
        await failure(source)
        trusted.write_bytes(authority.pem)
        assert await fetch(source) == {"keys": []}


@pytest.mark.parametrize("content", [None, b"", b"no certificate"], ids=["gone", "empty", "no PEM"])
async def test_authority_file_unusable(content: bytes | None, tmp_path: Path) -> None:
    """A file of authorities that became unusable is a reason of its own; no server is asked, none trusted."""
    trusted = tmp_path / "trusted.pem"
    if content is not None:
        trusted.write_bytes(content)
    async with KeyServer() as server:
        error = await failure(JwksSource("issuer", server.url(), tls=TlsFiles(str(trusted))))
        assert error.reason == "ca_file cannot be used as a file of authorities"
        assert str(tmp_path) not in error.in_full
        assert server.requests == 0


async def test_server_without_tls() -> None:
    """An https URL of a server that speaks plain HTTP is called that."""
    async with KeyServer() as server:
        error = await failure(JwksSource("issuer", server.url().replace("http:", "https:")))
        assert error.reason == "key set: TLS: the server does not speak TLS there"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_connection_refused(host: str) -> None:
    """A port on which nobody listens is called that, however many addresses the host has."""
    async with KeyServer() as server:
        url = server.url().replace("127.0.0.1", host)
    error = await failure(JwksSource("issuer", url))
    assert error.in_full == "key set: the connection was refused"


RAW = {
    "closed at once": (b"", "the connection was closed before the end of the answer"),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "the answer is not HTTP"),
    "cut short": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "the answer broke off, or cannot be decoded"),
}


@pytest.mark.parametrize("case", RAW)
async def test_answer_that_is_none(case: str) -> None:
    """A server that closes, speaks something else, or stops half way is told apart."""
    data, words = RAW[case]

    error = await failure_at_server("http", b"\r\n\r\n", data)
    assert error.in_full == f"key set: {words}"


async def test_tls_alert() -> None:
    """A server that answers the handshake with an alert has the alert's name in the log's words."""
    handshake_failure = bytes.fromhex("15 0303 0002 0228")
    error = await failure_at_server("https", b"\x16", handshake_failure)
    assert error.reason == "key set: TLS: the handshake failed"
    assert "HANDSHAKE_FAILURE" in error.in_full


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (aiohttp.ClientConnectorDNSError(PLACE, OSError(-2, "x")), "the host's name cannot be resolved"),
        (aiohttp.ClientConnectorError(PLACE, OSError("several")), "the host cannot be reached"),
        (
            aiohttp.ClientConnectorError(PLACE, OSError(errno.EHOSTUNREACH, "x")),
            "the host cannot be reached (EHOSTUNREACH)",
        ),
        (aiohttp.ClientOSError(104, "reset"), "the connection was closed before the end of the answer"),
        (aiohttp.InvalidURL("http://canary/"), "InvalidURL"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_transport_error(error: Any, words: str) -> None:
    """Every other failure of the network has its words, without the host's name."""
    translated = transport_error("key set", error)
    assert translated.in_full == f"key set: {words}"


async def test_client_certificate_demanded(authority: CertificateAuthority) -> None:
    """A server that ends the handshake, for want of a certificate of ours, is told from one that cannot be reached."""
    context = authority.server()
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # in TLS 1.3 it does so after the handshake
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.file)
    async with KeyServer(context) as server:
        error = await failure(JwksSource("issuer", server.url(), tls=TlsFiles(str(authority.file))))
    assert error.in_full == "key set: the connection was closed while it was opened"


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://id.example.com/a?token=canary#canary", ' (to "https://id.example.com/a")'),
        ("https://user:canary@id.example.com/", ' (to "https://id.example.com/")'),
        ("/login", ' (to "/login")'),
        ("/a\r\nb\x1b", ' (to "/a\\r\\nb\\u001b")'),
        ("/" + "x" * 500, f' (to "/{"x" * 199}\\u2026")'),
        (None, ""),
        ("", ""),
    ],
)
def test_redirect_error(location: str | None, shown: str) -> None:
    """Where a redirect points is in the log's words alone: short, escaped, without query and user."""
    error = redirect_error("key set", 307, location)
    assert error.reason == "key set: a redirect (status 307), which is not followed"
    assert error.in_full == error.reason + shown


@pytest.mark.parametrize("value", [None, 5, ["x"], {"canary": 1}])
def test_quoted_other_than_text(value: object) -> None:
    """What is no text is not shown."""
    assert quoted(value) == "no text"
