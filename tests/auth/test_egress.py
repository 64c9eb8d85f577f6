"""Key sets through egress proxies: real ones, what they refuse, and certificates for the server behind them."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import pytest

from proxy.auth.fetch_errors import KeyFetchError
from proxy.auth.jwks import JwksSource, fetch_jwks, open_session
from proxy.model import EgressProxy, TlsFiles
from proxy.protocol.proxy_variables import NamedProxy, ProxyVariables
from tests.auth.auth_support import KeyServer
from tests.auth.certificates import ELSEWHERE, CertificateAuthority
from tests.proxies import PASSWORD, USER, Microsocks, Tinyproxy, free_port
from tests.whole.test_tls import make_authority

if TYPE_CHECKING:
    from pathlib import Path


async def fetch(source: JwksSource) -> object:
    async with asyncio.timeout(10), open_session(source) as session:
        return await fetch_jwks(session, source, max_bytes=1 << 20)


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path)


def of(kind: str, port: int, password: str = PASSWORD) -> EgressProxy:
    return EgressProxy("http" if kind == "tinyproxy" else "socks5", "127.0.0.1", port, USER, password)


@pytest.mark.parametrize("kind", ["tinyproxy", "microsocks"])
@pytest.mark.parametrize("is_secure", [True, False], ids=["https", "http"])
async def test_key_set_through_a_proxy(
    tmp_path: Path, authority: CertificateAuthority, kind: str, *, is_secure: bool
) -> None:
    """A key set comes through a real proxy with credentials, its server verified as ever."""
    made = Tinyproxy(tmp_path) if kind == "tinyproxy" else Microsocks()
    async with made.run() as egress, KeyServer(authority.server() if is_secure else None) as server:
        trust = TlsFiles(str(authority.file))
        source = JwksSource("issuer", server.url(), tls=trust, egress=of(kind, egress.port))
        assert isinstance(await fetch(source), dict)
        if isinstance(egress, Tinyproxy):
            assert len(egress.asked()) == 1


@pytest.mark.parametrize("kind", ["tinyproxy", "microsocks"])
async def test_key_set_and_a_proxy_that_refuses(tmp_path: Path, kind: str) -> None:
    """What the proxy refuses is said in the failure's reason, without its password."""
    made = Tinyproxy(tmp_path) if kind == "tinyproxy" else Microsocks()
    async with made.run() as egress, KeyServer() as server:
        with pytest.raises(KeyFetchError) as failed:
            await fetch(JwksSource("issuer", server.url(), egress=of(kind, egress.port, "wrong-canary")))
    assert "key set: The egress proxy does not accept this proxy's credentials" in failed.value.reason
    assert "wrong-canary" not in failed.value.in_full


async def test_key_set_and_a_proxy_that_is_away() -> None:
    """A proxy that cannot be reached is named as the cause."""
    with pytest.raises(KeyFetchError) as failed:
        await fetch(JwksSource("issuer", "https://id.example.com/jwks", egress=of("tinyproxy", free_port())))
    assert failed.value.reason == "key set: The egress proxy could not be reached."


async def test_key_set_behind_a_proxy_of_another_authority(tmp_path: Path, authority: CertificateAuthority) -> None:
    """Behind a proxy a certificate is refused with the same words as without one."""
    other = CertificateAuthority(tmp_path, "other")
    async with Microsocks().run() as egress, KeyServer(authority.server()) as server:
        source = JwksSource("issuer", server.url(), tls=TlsFiles(str(other.file)), egress=of("microsocks", egress.port))
        with pytest.raises(KeyFetchError, match="not signed by a trusted authority"):
            await fetch(source)


async def test_key_set_by_the_environment(authority: CertificateAuthority) -> None:
    """A key server on this machine is reached directly, whatever the environment has."""
    named = NamedProxy("HTTPS_PROXY", of("tinyproxy", free_port()))
    async with KeyServer(authority.server()) as server:
        trust = TlsFiles(str(authority.file))
        await fetch(JwksSource("issuer", server.url(), tls=trust, egress=ProxyVariables(named, named)))
    with pytest.raises(KeyFetchError, match="proxy could not be reached"):
        await fetch(JwksSource("issuer", "https://id.example.com/jwks", egress=ProxyVariables(named, named)))


async def test_key_server_that_demands_a_certificate(tmp_path: Path, authority: CertificateAuthority) -> None:
    """The key set's server is shown the client certificate."""
    folder = tmp_path / "clients"
    folder.mkdir()
    clients = make_authority(folder)
    context = authority.server()
    context.load_verify_locations(clients.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    own = str(clients.good)
    async with KeyServer(context) as server:
        await fetch(JwksSource("issuer", server.url(), tls=TlsFiles(str(authority.file), own, own)))
        with pytest.raises(KeyFetchError):
            await fetch(JwksSource("issuer", server.url(), tls=TlsFiles(str(authority.file))))
        with pytest.raises(KeyFetchError, match="client_certificate cannot be used"):
            await fetch(JwksSource("issuer", server.url(), tls=TlsFiles(str(authority.file), own, str(clients.early))))


@pytest.mark.parametrize("is_through", [True, False], ids=["through a proxy", "directly"])
async def test_server_name(authority: CertificateAuthority, *, is_through: bool) -> None:
    """`server_name` is the name that the certificate must have."""
    async with Microsocks().run() as egress, KeyServer(authority.server(ELSEWHERE)) as server:
        source = JwksSource(
            "issuer",
            server.url(),
            tls=TlsFiles(str(authority.file)),
            server_name="elsewhere.example",
            egress=of("microsocks", egress.port) if is_through else None,
        )
        await fetch(source)
