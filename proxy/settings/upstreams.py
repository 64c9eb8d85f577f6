"""The vendors: where each is, what it speaks, which key it gets, which paths and models are its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PlainValidator, SecretStr, WithJsonSchema

from proxy.settings.model import Contradiction, Model, mapping, written
from proxy.settings.scalars import BaseUrl, Clock, Text, UrlPath, VendorKey, read_text
from proxy.settings.typed import TypedNames
from proxy.settings.units import Wrong

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

UPSTREAM_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
# First segments of the proxy's own paths: `ANY /{upstream}/{path}` must not shadow them.
RESERVED_NAMES = frozenset({"forward-sse", "v1", "healthz", "readyz", "playground", "metrics", "admin"})

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)  # RFC 9110 §5.6.2
_FIELD_VALUE = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?")  # RFC 9110 §5.5, without obs-text
_MAX_HEADERS = 64
# The proxy writes these itself (RFC 9112 §3.2, §6; RFC 9110 §7.6.1, §7.6.3), and it asks for no encoding because it
# passes bytes on unread; a second value would split what it and the upstream understand.
_RESERVED_FIELDS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
    }
)


def _read_field_value(value: object) -> str:
    if isinstance(value, bool | int):
        raise Wrong("must be text: put it in quotes")
    if not isinstance(value, str) or _FIELD_VALUE.fullmatch(value) is None:
        raise Wrong("must be a header's value: visible ASCII, no line ends, no spaces around it")
    return value


def _read_ca_file(value: object) -> Path:
    path = Path(read_text(value))
    if not path.is_file():
        raise Wrong("names no readable file")
    return path


FieldValue = Annotated[str, PlainValidator(_read_field_value), WithJsonSchema({"type": "string"})]
CaFile = Annotated[Path, PlainValidator(_read_ca_file), WithJsonSchema({"type": "string", "minLength": 1})]


class UpstreamTimeouts(Model):
    """The clocks of an exchange towards an upstream; `off` stops one, but for `keep_alive`: `off` keeps none."""

    connect_s: Clock = Field(written("5s"), alias="connect", description="Until the connection stands, TLS included.")
    first_byte_s: Clock = Field(written("5m"), alias="first_byte", description="Until the answer's head is complete.")
    idle_s: Clock = Field(
        written("2m"), alias="idle", description="The longest silence after that; every byte restarts it."
    )
    total_s: Clock = Field(written("off"), alias="total", description="The whole exchange.")
    keep_alive_s: Clock = Field(
        written("50s"), alias="keep_alive", description="How long a connection is kept unused; `off` keeps none."
    )


class UpstreamSettings(Model):
    """One vendor. Its name is the first segment of the paths that reach it."""

    url: BaseUrl = Field(description="Where it is: http(s)://host[:port][/base].")
    dialect: Literal["openai", "dashscope", "anthropic", "gemini", "raw"] = Field(
        description="What it speaks: its paths, its credential header, its error shapes."
    )
    path: UrlPath | None = Field(
        None, description="Where POST /forward-sse goes, below `url`; each dialect but gemini and raw has a default."
    )
    api_key: VendorKey | None = Field(
        None,
        description="The vendor's key, file:/path, `client` (from X-Upstream-Authorization) or `none`.",
    )
    api_keys: tuple[VendorKey, ...] | None = Field(None, description="Several keys, used in turn.")
    models: tuple[Text, ...] = Field((), description="Globs of `model`: requests that name no upstream go by them.")
    allow_paths: tuple[UrlPath, ...] | None = Field(
        None, description="Globs of the paths allowed below `url`; by default the dialect's own, for raw only `path`."
    )
    headers: dict[str, FieldValue] = Field(
        default_factory=dict, repr=False, description="Headers added to each request, replacing the client's."
    )
    timeouts: UpstreamTimeouts = Field(
        default_factory=UpstreamTimeouts, description="Clocks that differ from the top-level `timeouts`."
    )
    heartbeat_s: Clock = Field(
        written("off"),
        alias="heartbeat",
        description="Silence after which `: ping` is sent; default: the top-level one.",
    )
    ca_file: CaFile | None = Field(None, description="A PEM file that replaces the system's trusted authorities.")
    events: Literal["raw", "typed"] = Field(
        "raw",
        description="How streams are passed on: `raw` as they come (and typed where ?events=typed asks), `typed`.",
    )
    typed_names: TypedNames = Field(
        default_factory=TypedNames, description="Names that differ from the top-level `typed_names`."
    )

    @property
    def key_source(self) -> Literal["own", "client", "none"]:
        """Where the vendor's credential comes from."""
        word = None if self.api_key is None else self.api_key.get_secret_value()
        if word == "client":
            return "client"
        return "none" if word == "none" else "own"

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        """Its own keys, in turn; none unless `key_source` is `own`."""
        if self.api_keys is not None:
            return self.api_keys
        return (self.api_key,) if self.api_key is not None and self.key_source == "own" else ()

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """A way to the vendor that is complete, and nothing that its dialect has no place for."""
        dialect = data.get("dialect")
        yield from _key_faults(data)
        if dialect == "raw" and "path" not in data:
            yield ("path",), Wrong("is required: the dialect raw has no path of its own")
        if dialect == "gemini" and data.get("heartbeat", "off") != "off":
            yield ("heartbeat",), Wrong("must be off: Gemini's clients take a comment for an event", suggestion="off")
        if dialect == "raw" and data.get("events") == "typed":
            yield ("events",), Wrong("must be raw: it is not known what the dialect raw streams", suggestion="raw")
        yield from _header_faults(mapping(data.get("headers")))


def _header_faults(headers: Mapping[str, object]) -> Iterator[Contradiction]:
    """Names that no header may have, or not this one, or not twice."""
    seen: set[str] = set()
    if len(headers) > _MAX_HEADERS:
        yield ("headers",), Wrong(f"must be at most {_MAX_HEADERS}")
    for name in headers:
        lowered = name.lower()
        if _TOKEN.fullmatch(name) is None:
            yield ("headers", name), Wrong("is not a header's name (RFC 9110 §5.6.2)")
        elif lowered in _RESERVED_FIELDS:
            yield ("headers", name), Wrong("is written by the proxy itself and cannot be set")
        elif lowered in seen:
            yield ("headers", name), Wrong("is the same header as another one here")
        seen.add(lowered)


def _key_faults(data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Keys given once, in one way; an upstream without a key says so."""
    if "api_key" in data and "api_keys" in data:
        yield ("api_keys",), Wrong("give api_key or api_keys, not both")
    elif "api_key" not in data and "api_keys" not in data:
        yield ("api_key",), Wrong("is required; `api_key: none` says that the upstream needs none")
    keys = data.get("api_keys")
    if keys in ([], ()):
        yield ("api_keys",), Wrong("must not be empty")
    if isinstance(keys, list | tuple):
        for index, key in enumerate(keys):
            if key in ("client", "none"):
                yield ("api_keys", index), Wrong("is a word of `api_key`, not a key")
