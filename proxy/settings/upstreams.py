"""Settings of the upstreams (vendors): URL, dialect, key, paths, models, timeouts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import unquote

from pydantic import BeforeValidator, Field, PlainValidator, SecretStr, WithJsonSchema

from proxy.dialects import DIALECTS
from proxy.settings.key_sets import AuthoritiesFile  # noqa: TC001 - pydantic reads the annotation
from proxy.settings.model import Contradiction, Location, Model, closest, default, mapping, or_word, sequence
from proxy.settings.scalars import BaseUrl, Clock, FieldName, Flag, FrontPath, Text, UrlPath, is_field_name, not_empty
from proxy.settings.secret_values import VendorKey, check_ends, read_vendor_key
from proxy.settings.typed import TypedNames
from proxy.settings.units import InvalidValue
from proxy.settings.upstream_keys import HealthSettings, KeyPoolSettings, ListedKey
from proxy.settings.ways import (
    EGRESS_WORDS,
    OwnCertificate,
    OwnEgress,
    OwnServerName,
    plain_faults,
    read_egress_proxy,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from proxy.dialects import Dialect

UPSTREAM_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
# `allow_paths: all`. Ambiguous paths (dot segments, double encodings) match no glob.
ALL_PATHS = ("/*",)
# First segments of the proxy's own paths: `ANY /{upstream}/{path}` must not shadow them.
RESERVED_NAMES = frozenset({"forward-sse", "v1", "healthz", "readyz", "playground", "metrics", "admin"})

_FIELD_VALUE = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?")  # RFC 9110 §5.5, without obs-text
_MAX_HEADERS = 64
_KEY_WORDS = ("client", "none")
# The proxy writes these itself (RFC 9112 §3.2, §6; RFC 9110 §7.6.1, §7.6.3), and asks for no encoding, because
# it relays bytes unchanged; two values could be read differently by it and by the upstream.
_RESERVED_FIELDS = frozenset(
    {
        *("accept-encoding", "connection", "content-length", "expect", "host", "http2-settings", "keep-alive"),
        *("proxy-authenticate", "proxy-authorization", "proxy-connection"),
        *("te", "trailer", "transfer-encoding", "upgrade", "via"),
    }
)


def _read_dialect(value: object) -> str:
    dialect = _dialect(value)
    if dialect is None:
        raise InvalidValue(f"must be one of {', '.join(DIALECTS)}", suggestion=closest(value, DIALECTS))
    return dialect.name


def _dialect(name: object) -> Dialect | None:
    return DIALECTS.get(name) if isinstance(name, str) else None


def _read_field_value(value: object) -> str | SecretStr:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(text, bool | int):
        raise InvalidValue("must be text: put it in quotes")
    if isinstance(value, SecretStr):
        check_ends(value.get_secret_value())
    if not isinstance(text, str) or _FIELD_VALUE.fullmatch(text) is None:
        raise InvalidValue("must be a header's value: visible ASCII, no line ends, no spaces around it")
    return value if isinstance(value, SecretStr) else text


def _read_rotated_key(text: str) -> SecretStr:
    # The words have a meaning in the YAML file only; a rotated key must not change `key_source`.
    if text in _KEY_WORDS:
        raise InvalidValue("is a word of `api_key`, not a key")
    return read_vendor_key(text)


def _read_allow_paths(value: object) -> object:
    if value == "all":
        return ALL_PATHS
    if isinstance(value, str):
        raise InvalidValue("must be a list of paths, or the word all", suggestion=closest(value, ["all"]))
    return value


def _keys_in_schema(schema: dict[str, Any]) -> None:
    (listed,) = (option for option in schema["anyOf"] if option.get("type") == "array")
    listed["items"] = {"anyOf": [{"type": "string", "minLength": 1}, listed["items"]]}


DialectName = Annotated[str, PlainValidator(_read_dialect), WithJsonSchema({"enum": list(DIALECTS), "type": "string"})]
# A secret if it came from a variable or a file instead of from the YAML file.
FieldValue = Annotated[str | SecretStr, PlainValidator(_read_field_value), WithJsonSchema({"type": "string"})]


class UpstreamTimeouts(Model):
    """Timeouts of an exchange towards an upstream; `off` disables one, `keep_alive: off` keeps no connection."""

    connect_s: Clock = Field(default("5s"), description="Until the connection is established, TLS included.")
    first_byte_s: Clock = Field(default("5m"), description="Until the answer's head is complete.")
    idle_s: Clock = Field(default("2m"), description="The longest silence after that; every byte restarts it.")
    total_s: Clock = Field(default("off"), description="The whole exchange.")
    keep_alive_s: Clock = Field(default("50s"), description="How long a connection is kept unused; `off` keeps none.")


class UpstreamSettings(Model):
    """One upstream. Its name is the first segment of paths to it."""

    url: BaseUrl = Field(description="Where it is: http(s)://host[:port][/base].")
    dialect: DialectName = Field(description="What it speaks: its paths, its credential header, its error shapes.")
    path: FrontPath | None = Field(
        None,
        description="Where POST /forward-sse goes, below `url`; each dialect but gemini and raw has a default. "
        "Members of its query (`?alt=sse`) win over the caller's.",
    )
    api_key: VendorKey | None = Field(
        None, description="The vendor's key, file:/path, `client` (from X-Upstream-Authorization) or `none`."
    )
    api_keys: Annotated[tuple[ListedKey, ...] | None, not_empty()] = Field(
        None, description="Several keys, each as text or as {key, weight}.", json_schema_extra=_keys_in_schema
    )
    key_pool: KeyPoolSettings = Field(
        default_factory=KeyPoolSettings, alias="keys", description="How the keys are used, and how long they rest."
    )
    health: HealthSettings = Field(
        default_factory=HealthSettings, description="When routes leave this upstream out, and for how long."
    )
    credential_header: FieldName | None = Field(
        None, description="The header that carries the bare key, where it is not the dialect's own (Azure: api-key)."
    )
    models: tuple[Text, ...] = Field((), description="Globs of `model`: requests that name no upstream go by them.")
    allow_paths: Annotated[tuple[UrlPath, ...] | None, BeforeValidator(_read_allow_paths)] = Field(
        None,
        description="Globs of the paths allowed below `url`, or the word `all`; by default what the dialect has that "
        "is the caller's own and keeps nothing, for raw only `path`.",
        json_schema_extra=or_word("all"),
    )
    headers: dict[str, FieldValue] = Field(
        default_factory=dict,
        repr=False,
        description="Headers added to each request, replacing the client's; a value may be file:/path.",
    )
    timeouts: UpstreamTimeouts = Field(
        default_factory=UpstreamTimeouts, description="Timeouts that differ from the top-level `timeouts`."
    )
    heartbeat_s: Clock = Field(
        default("off"), description="Silence after which `: ping` is sent; default: the top-level one."
    )
    ca_file: AuthoritiesFile | None = Field(
        None, description="A PEM file that replaces the system's trusted authorities."
    )
    egress_proxy: OwnEgress = None
    client_certificate: OwnCertificate = None
    server_name: OwnServerName = None
    events: Literal["raw", "typed"] = Field(
        "raw",
        description="How streams are passed on: `raw` as they come (and typed where ?events=typed asks), `typed`.",
    )
    typed_names: TypedNames = Field(
        default_factory=TypedNames, description="Names that differ from the top-level `typed_names`."
    )
    ask_usage: Flag = Field(
        default=False,
        description="Whether streams are asked for their usage where the client left that open, and the event that "
        "tells it is taken out again; openai only.",
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
        """The upstream's keys; empty unless `key_source` is `own`."""
        if self.api_keys is not None:
            return tuple(listed.key for listed in self.api_keys)
        return (self.api_key,) if self.api_key is not None and self.key_source == "own" else ()

    def with_secret(self, location: Location, text: str) -> Self | None:
        """Copy the upstream with a new value of the secret at that location; None if it is unchanged.

        Raises:
            InvalidValue: The text is not valid as that secret. Never contains any of it.
        """
        changes: dict[str, object]
        match location:
            case ("api_key",):
                changes = {"api_key": _read_rotated_key(text)}
            case ("api_keys", int(index)) | ("api_keys", int(index), "key") if self.api_keys is not None:
                keys = self.api_keys
                changed = keys[index].model_copy(update={"key": _read_rotated_key(text)})
                changes = {"api_keys": (*keys[:index], changed, *keys[index + 1 :])}
            case ("egress_proxy",):
                if text in EGRESS_WORDS:
                    raise InvalidValue("is a word of `egress_proxy`, not a proxy")
                changes = {"egress_proxy": read_egress_proxy(text)}
            case ("headers", str(name)):
                changes = {"headers": {**self.headers, name: _read_field_value(SecretStr(text))}}
            case _:
                return None
        if all(getattr(self, key) == value for key, value in changes.items()):
            return None
        return self.model_copy(update=changes)

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """Check that the upstream is complete, and that its dialect supports what is set."""
        dialect = _dialect(data.get("dialect"))
        yield from _key_faults(data)
        if (name := _credential_in_query(dialect, data.get("path"))) is not None:
            yield ("path",), InvalidValue(f"must not carry a credential (`{name}`): api_key is for that")
        if dialect is not None:
            yield from _dialect_faults(dialect, data)
        yield from _header_faults(mapping(data.get("headers")))
        yield from _credential_header_faults(data)
        yield from plain_faults(data.get("url"), data)


def _dialect_faults(dialect: Dialect, data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check that what the dialect needs is set, and nothing that it does not support."""
    if not dialect.default_allow_paths and "path" not in data:
        yield ("path",), InvalidValue(f"is required: the dialect {dialect.name} has no path of its own")
    if not dialect.heartbeat_allowed and data.get("heartbeat", "off") != "off":
        words = f"must be off: clients of the dialect {dialect.name} take a comment for an event"
        yield ("heartbeat",), InvalidValue(words, suggestion="off")
    if not dialect.is_readable and data.get("events") == "typed":
        words = f"must be raw: it is not known what the dialect {dialect.name} streams"
        yield ("events",), InvalidValue(words, suggestion="raw")
    if not dialect.usage_on_request and data.get("ask_usage") in (True, "true"):
        words = f"must be false: streams of the dialect {dialect.name} cannot be asked for their usage, only openai's"
        yield ("ask_usage",), InvalidValue(words, suggestion="false")


def _credential_in_query(dialect: Dialect | None, path: object) -> str | None:
    """Return the name of a credential in a path's query; paths are shown in reports and logs."""
    query = path.partition("?")[2] if isinstance(path, str) else ""
    names = {"access_token", "key"} if dialect is not None and dialect.query_credential else {"access_token"}
    given = (unquote(member.partition("=")[0]) for member in query.split("&"))
    return next((name for name in given if name in names), None)


def _header_faults(headers: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check `headers` for invalid, reserved and repeated names."""
    seen: set[str] = set()
    if len(headers) > _MAX_HEADERS:
        yield ("headers",), InvalidValue(f"must be at most {_MAX_HEADERS}")
    for name in headers:
        lowered = name.lower()
        if not is_field_name(name):
            yield ("headers", name), InvalidValue("is not a header's name (RFC 9110 §5.6.2)")
        elif lowered in _RESERVED_FIELDS:
            yield ("headers", name), InvalidValue("is written by the proxy itself and cannot be set")
        elif lowered in seen:
            yield ("headers", name), InvalidValue("is the same header as another one here")
        seen.add(lowered)


def _credential_header_faults(data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check that `credential_header` is not written otherwise, and that there is a key for it."""
    name = data.get("credential_header")
    if not isinstance(name, str):
        return
    if name.lower() in _RESERVED_FIELDS:
        yield ("credential_header",), InvalidValue("is written by the proxy itself and cannot carry a key")
    elif name.lower() in {other.lower() for other in mapping(data.get("headers"))}:
        words = "is also in `headers`: the key and another value cannot both go there"
        yield ("credential_header",), InvalidValue(words)
    elif data.get("api_key") == "none":
        yield ("credential_header",), InvalidValue("has nothing to carry: `api_key` is none")


def _key_faults(data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check for exactly one of `api_key` and `api_keys`."""
    if "api_key" in data and "api_keys" in data:
        yield ("api_keys",), InvalidValue("give api_key or api_keys, not both")
    elif "api_key" not in data and "api_keys" not in data:
        yield ("api_key",), InvalidValue("is required; `api_key: none` says that the upstream needs none")
    for index, listed in enumerate(sequence(data.get("api_keys"))):
        key, where = (listed, ()) if isinstance(listed, str) else (mapping(listed).get("key"), ("key",))
        if key in _KEY_WORDS:
            yield ("api_keys", index, *where), InvalidValue("is a word of `api_key`, not a key")
