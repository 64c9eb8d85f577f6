"""What form of certificates TLS peers may have."""

from __future__ import annotations

import contextlib
import datetime as dt
import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from proxy.protocol.verify_flags import set_verify_flags

if TYPE_CHECKING:
    from pathlib import Path

Signed = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def certificate(name: str, issuer: Signed | None, *, is_authority: bool) -> Signed:
    """A certificate with no more than a name and what it may do: no key identifiers, nothing critical."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("vendor.example")]), critical=False)
    )
    return builder.sign(key if issuer is None else issuer[1], hashes.SHA256()), key


def pem(signed: Signed) -> bytes:
    return signed[0].public_bytes(Encoding.PEM)


@pytest.fixture(scope="module")
def chain() -> list[Signed]:
    """A company's root, its intermediate authority, and a server."""
    root = certificate("Root", None, is_authority=True)
    intermediate = certificate("Intermediate", root, is_authority=True)
    return [root, intermediate, certificate("vendor.example", intermediate, is_authority=False)]


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """Shake hands in memory.

    Raises:
        ssl.SSLCertVerificationError: the client does not accept the server.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    waiting = [
        client.wrap_bio(to_client, to_server, server_hostname="vendor.example"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for side in list(waiting):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
                waiting.remove(side)
    assert not waiting


def server_of(file: Path, chain: list[Signed]) -> ssl.SSLContext:
    _, intermediate, leaf = chain
    key = leaf[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(key + pem(leaf) + pem(intermediate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def client_of(authorities: Path) -> ssl.SSLContext:
    return set_verify_flags(ssl.create_default_context(cafile=authorities))


@pytest.mark.parametrize("listed", ["root", "intermediate"])
def test_company_authority(tmp_path: Path, chain: list[Signed], listed: str) -> None:
    """An authority without key identifiers is accepted with every Python; so is one listed without its root."""
    root, intermediate, _ = chain
    authorities = tmp_path / "authorities.pem"
    authorities.write_bytes(pem(root if listed == "root" else intermediate))
    served = tmp_path / "server.pem"
    shake_hands(client_of(authorities), server_of(served, chain))


def test_other_authority(tmp_path: Path, chain: list[Signed]) -> None:
    """Who is trusted does not change: an authority that is not listed is refused."""
    authorities = tmp_path / "authorities.pem"
    authorities.write_bytes(pem(certificate("Root", None, is_authority=True)))
    served = tmp_path / "server.pem"
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client_of(authorities), server_of(served, chain))
