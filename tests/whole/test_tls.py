"""TLS towards upstreams: verified always, with the operator's own authority where there is one, cancelled like all."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.conftest import token
from tests.peers import LAST, STREAM_HEAD, Peer, Upstream, chunk, event, only, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

BODY = {"model": "gpt-x", "stream": True}


@dataclass
class Authority:
    """A certificate authority of the tests', and what it has signed."""

    certificate: Path
    good: Path
    elsewhere: Path
    expired: Path
    early: Path


def make_authority(folder: Path) -> Authority:
    """An authority, and certificates for localhost: a good one, one for another name, two that are out of date."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = dt.datetime.now(dt.UTC)

    def build(
        subject: x509.Name, public_key: ec.EllipticCurvePublicKey, days: tuple[int, int] = (-2, 2)
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(days=days[0]))
            .not_valid_after(now + dt.timedelta(days=days[1]))
        )

    own = build(name, key.public_key()).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    own = own.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    certificate = own.add_extension(usage, critical=True).sign(key, hashes.SHA256())
    path = folder / "authority.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def leaf(file: str, names: list[x509.GeneralName], days: tuple[int, int] = (-1, 1)) -> Path:
        leaf_key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, file)])
        signed = (
            build(subject, leaf_key.public_key(), days)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        target = folder / file
        target.write_bytes(
            leaf_key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + signed.public_bytes(serialization.Encoding.PEM)
        )
        return target

    here: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return Authority(
        certificate=path,
        good=leaf("good.pem", here),
        elsewhere=leaf("elsewhere.pem", [x509.DNSName("elsewhere.example")]),
        expired=leaf("expired.pem", here, (-2, -1)),
        early=leaf("early.pem", here, (1, 2)),
    )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


class SecureUpstream(Upstream):
    """A scripted vendor behind TLS, which notes the name that it is asked for."""

    def __init__(self, certificate: Path) -> None:
        super().__init__()
        self.names: list[str | None] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._context.sni_callback = lambda _socket, name, _context: self.names.append(name)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._context)
        self.address = self._server.sockets[0].getsockname()
        return self

    @property
    def url(self) -> str:
        return f"https://localhost:{self.address[1]}"


@pytest.fixture
async def secure(authority: Authority) -> AsyncIterator[SecureUpstream]:
    async with SecureUpstream(authority.good) as vendor:
        yield vendor


def config(url: str, ca_file: Path | None, more: str = "") -> str:
    trust = "" if ca_file is None else f"    ca_file: {ca_file}\n"
    return f"""
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
auth:
  jwt:
    - {{{{issuer: tests, audience: llm, algorithms: [HS256], secret: "{{secret}}"}}}}
upstreams:
  main:
    url: {url}
    dialect: openai
    api_key: {{key}}
    models: ["gpt-*"]
{trust}{more}"""


async def test_tls_own_authority_streams_and_reuses(
    start: Callable[..., Any], secure: SecureUpstream, authority: Authority
) -> None:
    """With the operator's authority the vendor is trusted, asked for by name, and its connection kept."""
    proxy = await start(config=config(secure.url, authority.certificate))
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await secure.take()
    vendor.write(STREAM_HEAD + chunk(event("one")) + LAST)
    assert (await client.read_message()).body == event("one")

    client.write(request(body=BODY, token=token()))
    await vendor.read_message()
    vendor.write(STREAM_HEAD + chunk(event("two")) + LAST)
    assert (await client.read_message()).body == event("two")

    assert secure.names == ["localhost"]
    assert len(secure.peers) == 1
    assert [line["ending"] for line in await proxy.settled(2)] == ["complete", "complete"]


async def test_tls_client_closed(start: Callable[..., Any], secure: SecureUpstream, authority: Authority) -> None:
    """A client that leaves closes an encrypted upstream connection too, silent as it is."""
    proxy = await start(config=config(secure.url, authority.certificate))
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await secure.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    await client.read_until(event("one"))

    client.reset()

    await vendor.closed()
    assert only(await proxy.settled(), "exchange.settled")["ending"] == "client_closed"
    assert proxy.leases_held == 0


@pytest.mark.parametrize("fault", ["unknown authority", "another name"])
async def test_tls_untrusted_is_unreachable(start: Callable[..., Any], authority: Authority, fault: str) -> None:
    """A certificate of an unknown authority or for another name gets no request, and no key."""
    certificate = authority.good if fault == "unknown authority" else authority.elsewhere
    trusted = None if fault == "unknown authority" else authority.certificate
    async with SecureUpstream(certificate) as vendor:
        proxy = await start(config=config(vendor.url, trusted))
        client = await proxy.client()
        client.write(request(body=BODY, token=token()))
        refusal = await client.read_message()

        assert (refusal.status, refusal.get("x-forward-sse-code")) == (502, "upstream_unreachable")
        assert not any(peer.seen for peer in vendor.peers)
        line = only(await proxy.settled(), "exchange.settled")
        assert line["ending"] == "upstream_error"
        assert proxy.leases_held == 0


async def test_tls_handshake_that_hangs_is_cut_off_by_connect(
    start: Callable[..., Any], upstream: Upstream, authority: Authority
) -> None:
    """The connect clock covers the handshake: 504 that names it, the connection closed."""
    url = f"https://localhost:{upstream.address[1]}"
    proxy = await start(config=config(url, authority.certificate, "timeouts: {{connect: 300ms}}\n"))
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    silent = await upstream.accept()

    refusal = await client.read_message()

    assert (refusal.status, refusal.get("x-forward-sse-code")) == (504, "upstream_timeout")
    assert "connect" in refusal.json["error"]["message"]
    await silent.closed()
    line = only(await proxy.settled(), "exchange.settled")
    assert (line["ending"], line["status"]) == ("timeout_connect", 504)
    assert proxy.leases_held == 0


@pytest.mark.parametrize("leave", [Peer.close, Peer.reset])
async def test_tls_client_closed_during_the_handshake(
    start: Callable[..., Any], upstream: Upstream, authority: Authority, leave: Callable[[Peer], None]
) -> None:
    """A client that leaves while the upstream is still shaking hands ends that as well."""
    url = f"https://localhost:{upstream.address[1]}"
    proxy = await start(config=config(url, authority.certificate))
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    silent = await upstream.accept()

    leave(client)

    await silent.closed()
    assert only(await proxy.settled(), "exchange.settled")["ending"] == "client_closed"
    assert proxy.leases_held == 0
