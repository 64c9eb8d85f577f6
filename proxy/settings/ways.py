"""Settings of the way to an upstream or an issuer: egress proxy, client certificate, the server's name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import unquote

from pydantic import Field, PlainValidator

from proxy.model import EgressProxy, TlsFiles
from proxy.settings.listener_tls import CertificateAndKey
from proxy.settings.model import Contradiction, closest
from proxy.settings.scalars import ESCAPED, pattern_schema, read_text, split_authority, text_schema
from proxy.settings.units import InvalidValue, is_host

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# curl's.
_PROXY_PORT = 1080
# RFC 1929 §2.
_MAX_CREDENTIAL_BYTES = 255
EGRESS_WORDS = ("environment", "none")
_SCHEMES: dict[str, Literal["http", "socks5"]] = {"http": "http", "socks5": "socks5", "socks5h": "socks5"}
_EXAMPLES = "must be environment, none, http://host:port or socks5://host:port"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

EgressValue = Literal["environment", "none"] | EgressProxy


def read_egress_proxy(value: object) -> EgressValue:
    """Read `egress_proxy`.

    Raises:
        InvalidValue: Not one of its words, nor a proxy's URL. Never contains the value, which may have a password.
    """
    if isinstance(value, EgressProxy):
        return value
    text = read_text(value)
    match text:
        case "environment" | "none":
            return text
        case _ if "://" not in text:
            raise InvalidValue(_EXAMPLES, suggestion=closest(text, EGRESS_WORDS))
        case _:
            return read_proxy_url(text)


def read_proxy_url(text: str) -> EgressProxy:
    """Read the URL of a proxy; without a scheme, as variables have it, it is `http://`.

    Raises:
        InvalidValue: Not such a URL, or a kind of proxy that is not supported. Never contains the value.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    kind = _SCHEMES.get(scheme.lower())
    if kind is None:
        if scheme.lower() == "https":
            raise InvalidValue("TLS to the proxy itself is not supported: http:// (what goes through it is encrypted)")
        raise InvalidValue("is a kind of proxy that is not supported: http:// or socks5://")
    url, host, port = split_authority(rest)
    if url.path not in {"", "/"} or url.query or url.fragment:
        raise InvalidValue(f"must end after the port ({ESCAPED})")
    user = None if url.username is None else unquote(url.username)
    password = None if url.password is None else unquote(url.password)
    for credential in filter(None, (user, password)):
        if len(credential.encode()) > _MAX_CREDENTIAL_BYTES or _CONTROL.search(credential):
            raise InvalidValue("has a user or password of more than 255 bytes, or with control characters")
    if kind == "http" and user is not None and ":" in user:
        raise InvalidValue("has a user with a colon in it, which RFC 7617 does not allow")
    return EgressProxy(kind, host.removesuffix("."), port or _PROXY_PORT, user, password)


def _read_server_name(value: object) -> str:
    text = read_text(value)
    if not is_host(text) or ":" in text:
        raise InvalidValue("must be a host's name")
    return text.removesuffix(".")


EgressText = Annotated[
    EgressValue,
    PlainValidator(read_egress_proxy),
    pattern_schema(
        r"(environment|none|(http|socks5h?)://\S+|file:/\S+)",
        *("environment", "none", "http://proxy.example:3128", "socks5://127.0.0.1:1080"),
    ),
]
ServerName = Annotated[str, PlainValidator(_read_server_name), text_schema()]


class ClientCertificate(CertificateAndKey):
    """The certificate that the proxy shows to a server which demands one."""


# The keys that an issuer has as an upstream has them.
OwnEgress = Annotated[
    EgressText | None,
    Field(description="The proxy on the way, instead of the top level's: `environment`, `none`, http://…, socks5://…"),
]
OwnCertificate = Annotated[
    ClientCertificate | None, Field(description="The certificate that the server demands of its clients.")
]
OwnServerName = Annotated[
    ServerName | None, Field(description="The name in the server's certificate, where it is not the url's host.")
]


def tls_files(ca_file: Path | None, certificate: ClientCertificate | None) -> TlsFiles:
    """The files of a TLS client."""
    return TlsFiles(
        None if ca_file is None else str(ca_file),
        None if certificate is None else str(certificate.certificate),
        None if certificate is None else str(certificate.key),
    )


def plain_faults(url: object, data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check for keys about TLS where there is none."""
    if isinstance(url, str) and url[:5].lower() == "http:":
        for name in ("client_certificate", "server_name"):
            if data.get(name) is not None:
                yield (name,), InvalidValue("has no effect: the url is http://")
