"""TLS settings of the public listener: certificate, private key, authorities of client certificates."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PlainValidator

from proxy.protocol.verify_flags import set_verify_flags
from proxy.settings.key_sets import AuthoritiesFile  # noqa: TC001 - pydantic reads the annotation
from proxy.settings.model import Contradiction, Model
from proxy.settings.scalars import read_text, text_schema
from proxy.settings.units import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def _read_file(value: object) -> Path:
    path = Path(read_text(value))
    try:
        if path.is_file():
            return path
    except OSError:
        pass
    raise InvalidValue("names no readable file")


# Also for certificates towards upstreams and issuers.
PemFile = Annotated[Path, PlainValidator(_read_file), text_schema()]


class CertificateAndKey(Model):
    """A certificate with its private key."""

    certificate: PemFile = Field(description="A PEM file: the certificate, then those between it and a trusted one.")
    key: PemFile = Field(description="A PEM file: the certificate's private key, without a passphrase.")

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """Check that the key belongs to the certificate and needs no passphrase."""
        certificate, key = data.get("certificate"), data.get("key")
        if not (isinstance(certificate, str) and isinstance(key, str)):
            return
        if Path(certificate).is_file() and Path(key).is_file():
            try:
                make_server_context(Path(certificate), Path(key), None)
            except (OSError, ValueError):
                words = "cannot be used with this certificate: not its key, or not PEM, or in need of a passphrase"
                yield ("key",), InvalidValue(words)


class ListenerTls(CertificateAndKey):
    """TLS towards clients, without a load balancer that terminates it."""

    client_ca: AuthoritiesFile | None = Field(
        None, description="A PEM file of authorities: then a client must have a certificate of theirs."
    )


def make_server_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """Make the public listener's TLS context from the files as they are now. Blocks.

    TLS 1.2 or later; ALPN offers only HTTP/1.1. With `client_ca` the handshake fails for a client without a
    certificate of these authorities.

    Raises:
        OSError: a file cannot be read or used; `ssl.SSLError` is one.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=None if client_ca is None else str(client_ca))
    set_verify_flags(context)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # OpenSSL would ask for a passphrase on the terminal.
    context.load_cert_chain(certificate, key, password=lambda: b"")
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context
