"""Settings of an issuer's key set (JWKS): its URL, and how the server there is authenticated."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import PlainValidator

from proxy.settings.scalars import is_loopback, read_text, split_http_url, text_schema
from proxy.settings.units import InvalidValue, valid_or_none

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from proxy.settings.model import Contradiction

# Microsoft Entra's discovery document of `common` names `https://login.microsoftonline.com/{tenantid}/v2.0`.
_PLACEHOLDER = re.compile(r"\{[A-Za-z_-]*\}")
_OPEN_TENANT = re.compile(
    r"https://(login\.microsoftonline\.(com|us)|login\.partner\.microsoftonline\.cn|sts\.windows\.net)"
    r"/(common|organizations|consumers)(/|$)",
    re.IGNORECASE,
)


def read_key_set_url(value: object) -> str:
    """Read `jwks_url`. Whether it may be http depends on other keys: see `check_key_set_scheme`.

    Raises:
        InvalidValue: Not an http(s) URL.
    """
    url, _ = split_http_url(value)
    if url.fragment:
        raise InvalidValue("must not have a fragment")
    return str(value)


def check_key_set_scheme(url: str, data: Mapping[str, object]) -> None:
    """Refuse http except to loopback or with `allow_http`: who controls the key set controls who may log in.

    Raises:
        InvalidValue: The URL is http and not allowed.
    """
    origin = split_http_url(url)[1]
    is_allowed = is_loopback(origin.host) or data.get("allow_http") in (True, "true")
    if origin.scheme == "http" and not is_allowed:
        message = "must be https:// (http:// only to loopback, or with `allow_http: true`)"
        raise InvalidValue(message, suggestion=f"https{url[4:]}", echoes=True)


def read_authorities(value: object) -> Path:
    """Read the path of a PEM file of certificate authorities, and load it. Blocks.

    Raises:
        InvalidValue: No such file, or no certificate in it. Never contains any of the file.
    """
    path = Path(read_text(value))
    try:
        if not path.is_file():
            raise InvalidValue("names no readable file")
        ssl.create_default_context(cafile=path)
    except OSError as exc:
        raise InvalidValue(
            "cannot be used as a file of authorities: it must be readable and hold certificates in PEM"
        ) from exc
    return path


KeySetUrl = Annotated[
    str,
    PlainValidator(read_key_set_url),
    text_schema(pattern="^https?://"),
]
AuthoritiesFile = Annotated[Path, PlainValidator(read_authorities), text_schema()]


def source_faults(source: str, data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check that an issuer's keys for fetching fit its source of keys."""
    match source:
        case "secret" | "public_key":
            for name in ("allow_http", "ca_file", "egress_proxy", "client_certificate", "server_name"):
                if data.get(name) not in (None, False, "false"):
                    yield (name,), InvalidValue(f"has no effect with {source}: no key set is fetched")
        case "jwks_url":
            url = valid_or_none(read_key_set_url, data["jwks_url"])
            if url is None:
                return
            try:
                check_key_set_scheme(url, data)
            except InvalidValue as wrong:
                yield ("jwks_url",), wrong
            if url[:5].lower() == "http:":
                for name in ("ca_file", "client_certificate", "server_name"):
                    if data.get(name) is not None:
                        words = "has no effect: the jwks_url is http://, where no certificate is looked at"
                        yield (name,), InvalidValue(words)
        case "discovery" if "issuer" in data:
            try:
                check_key_set_scheme(read_key_set_url(data["issuer"]), data)
            except InvalidValue as wrong:
                yield ("issuer",), InvalidValue(f"with discovery the issuer is a URL; it {wrong.message}")


def placeholder_faults(issuer: object) -> Iterator[Contradiction]:
    """Check for an issuer with a placeholder for its tenant, which no token has."""
    if not isinstance(issuer, str):
        return
    if _OPEN_TENANT.match(issuer) is not None:
        words = "stands for every tenant, but a token has its own tenant's id in its place"
    elif _PLACEHOLDER.search(issuer) is not None:
        words = "has a placeholder, but a token has its own tenant's id in its place"
    else:
        return
    example = "https://login.microsoftonline.com/<tenant id>/v2.0"
    yield ("issuer",), InvalidValue(f"{words}: write that id, such as {example}, an entry a tenant")
