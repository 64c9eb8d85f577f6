"""Types of single values (text, flags, paths, URLs, networks), each with its reader and JSON Schema."""

from __future__ import annotations

import ipaddress
import re
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple
from urllib.parse import SplitResult, urlsplit

from pydantic import BeforeValidator, PlainValidator, WithJsonSchema

from proxy.model import Rate
from proxy.protocol.paths import canonical_path
from proxy.settings import units
from proxy.settings.units import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable

# RFC 3986 §3.3: pchar, which includes `*`, and the slash.
_PATH = re.compile(r"/[A-Za-z0-9\-._~!$&'()*+,;=:@%/]*", re.ASCII)
# A query in a request line; not empty.
_QUERY = re.compile(r'[!"$-~]+')
MIN_HEADER_BYTES = 1024
MAX_HEADER_BYTES = 256 * 1024
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)  # RFC 9110 §5.6.2
_TEXT_LIMIT = 2048
_FIELD_NAME_LIMIT = 128
# Of trusted proxies: each is compared with each hop of a request.
_MAX_NETWORKS = 64
_DEFAULT_PORTS = {"http": 80, "https": 443}


class HttpOrigin(NamedTuple):
    """Scheme, host and port of a URL, normalised (RFC 6454 §4)."""

    scheme: str
    host: str
    port: int


def check_text(value: object) -> str:
    """Return text that is not empty.

    Raises:
        InvalidValue: Anything else; no fault contains it.
    """
    if isinstance(value, bool | int):
        raise InvalidValue("must be text: put it in quotes")
    if not isinstance(value, str):
        raise InvalidValue("must be text")
    if not value.strip():
        raise InvalidValue("must not be empty")
    return value


def read_text(value: object) -> str:
    """Read one line of text that is not empty.

    Raises:
        InvalidValue: Anything else.
    """
    value = check_text(value)
    if len(value) > _TEXT_LIMIT or not value.isprintable():
        raise InvalidValue(f"must be one line of at most {_TEXT_LIMIT} printable characters")
    return value


def read_flag(value: object) -> bool:
    """Read `true` or `false`; none of YAML 1.1's other booleans.

    Raises:
        InvalidValue: Anything else.
    """
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):  # from a variable
        return value == "true"
    lowered = value.lower() if isinstance(value, str) else None
    truth = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
    raise InvalidValue("must be true or false", suggestion=truth.get(lowered or ""))


def read_count(value: object) -> int:
    """Read a whole number of at least 1.

    Raises:
        InvalidValue: Anything else.
    """
    if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,8}", value, re.ASCII):  # from a variable
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 999_999_999:  # noqa: PLR2004 - nine digits
        raise InvalidValue("must be a whole number of at least 1")
    return value


def count_up_to(most: int) -> Callable[[object], int]:
    """Return a reader of whole numbers from 1 to a bound."""

    def read(value: object) -> int:
        count = read_count(value)
        if count > most:
            raise InvalidValue(f"must be at most {most}")
        return count

    return read


def not_empty(words: str = "must not be empty") -> BeforeValidator:
    """Return a validator of lists; `words` is what it says of one without items."""

    def check(value: object) -> object:
        if value in ([], ()):
            raise InvalidValue(words)
        return value

    return BeforeValidator(check)


def is_field_name(text: str) -> bool:
    """Whether the text is a valid header name (RFC 9110 §5.1)."""
    return len(text) <= _FIELD_NAME_LIMIT and _TOKEN.fullmatch(text) is not None


def read_field_name(value: object) -> str:
    """Read a header's name.

    Raises:
        InvalidValue: Not a header name, or `*`, which the grammar allows and no header has.
    """
    text = read_text(value)
    if not is_field_name(text) or "*" in text:
        raise InvalidValue("is not a header's name (RFC 9110 §5.6.2)")
    return text


def read_path(value: object) -> str:
    """Read a path below an upstream's `url`: absolute, without a query, without dot segments.

    Raises:
        InvalidValue: Anything else.
    """
    text = read_text(value)
    if not text.startswith("/"):
        raise InvalidValue("must begin with a slash", suggestion=f"/{text}", echoes=True)
    # Dot segments, encoded or not, would lead to other paths (RFC 3986 §5.2.4).
    segments = re.sub(r"%2e", ".", text, flags=re.IGNORECASE).split("/")
    if _PATH.fullmatch(text) is None or "." in segments or ".." in segments:
        raise InvalidValue("must be a path: no query, fragment, spaces, `.` or `..`")
    return text


def read_asked_path(value: object) -> str:
    """Read an entry of `allow_paths`: a path or a glob.

    Raises:
        InvalidValue: Anything else, or an ambiguous path, which no request can match.
    """
    path = read_path(value)
    if canonical_path(path.encode()) is None:
        raise InvalidValue("must have one reading: no `//`, `;`, `%25` or encoded dots, backslashes or controls")
    return path


def read_front_path(value: object) -> str:
    """Read an upstream's `path`: a path below its `url`, with an optional query.

    Raises:
        InvalidValue: Anything else.
    """
    path, mark, query = read_text(value).partition("?")
    read_asked_path(path)
    if mark and _QUERY.fullmatch(query) is None:
        raise InvalidValue("must have a query of visible ASCII behind its `?`, without a fragment")
    return path + mark + query


def split_http_url(value: object) -> tuple[SplitResult, HttpOrigin]:
    """Split an absolute http(s) URL; anything that parsers read differently is refused.

    Raises:
        InvalidValue: Not such a URL, or one with a user or password (which the message does not contain).
    """
    text = read_text(value)
    if not text.isascii() or re.search(r'[\s\\"<>^`{|}]', text):
        raise InvalidValue("must be a URL in ASCII without spaces or backslashes")
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError as exc:
        raise InvalidValue("is not a URL") from exc
    if url.scheme not in _DEFAULT_PORTS:
        suggestion = f"https://{text}" if re.match(r"[A-Za-z0-9.-]+(:\d+)?(/|$)", text) else None
        raise InvalidValue("must begin with https:// or http://", suggestion=suggestion, echoes=True)
    if "@" in url.netloc:
        raise InvalidValue("must not hold a user or a password")
    if not host or not units.is_host(host) or url.netloc.endswith(":"):
        raise InvalidValue("must name a host")
    return url, HttpOrigin(url.scheme, host.removesuffix("."), _DEFAULT_PORTS[url.scheme] if port is None else port)


# Of a URL that may hold a password, which is in no message.
ESCAPED = "special characters of a password are percent-encoded"


def split_authority(text: str) -> tuple[SplitResult, str, int | None]:
    """Split what stands behind the `://` of a URL, perhaps with a user and password; with its host and its port."""
    try:
        url = urlsplit(f"//{text}")
        host, port = url.hostname, url.port
    except ValueError as exc:
        raise InvalidValue(f"is not a URL ({ESCAPED})") from exc
    if not host or not units.is_host(host) or url.netloc.endswith(":") or port == 0:
        raise InvalidValue(f"must name a host ({ESCAPED})")
    return url, host, port


def read_base_url(value: object) -> str:
    """Read an upstream's `url`: no query, no fragment; a trailing slash is dropped.

    Raises:
        InvalidValue: Not such a URL.
    """
    url, _ = split_http_url(value)
    if url.query or url.fragment or str(value).endswith(("?", "#")):
        raise InvalidValue("must not have a query or a fragment")
    if url.path:
        if "*" in url.path:
            raise InvalidValue("must not have a `*`")
        read_path(url.path)
    return f"{url.scheme}://{url.netloc}{url.path}".rstrip("/")


def read_target_url(value: object) -> str:
    """Read an envelope target's pattern: the origin is exact, `*` may stand in the path.

    Raises:
        InvalidValue: Not such a pattern.
    """
    text = read_text(value)
    if "*" in text.partition("://")[2].partition("/")[0]:
        raise InvalidValue("may have `*` only in the path: a key is bound to its host")
    url, _ = split_http_url(text)
    if not url.path:
        raise InvalidValue("must have a path", suggestion=f"{text}/*", echoes=True)
    if url.query or url.fragment or text.endswith(("?", "#")):
        raise InvalidValue("must not have a query or a fragment")
    read_path(url.path)
    return text


def is_loopback(host: str) -> bool:
    """Whether the host is `localhost` or a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def read_network(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Read a CIDR block.

    Raises:
        InvalidValue: Not a block, or one with host bits.
    """
    text = read_text(value)
    try:
        return ipaddress.ip_network(text)
    except ValueError as exc:
        try:
            suggestion = str(ipaddress.ip_network(text, strict=False))
        except ValueError:
            suggestion = None
        raise InvalidValue("is not a CIDR block, such as 10.0.0.0/8", suggestion=suggestion, echoes=True) from exc


def _read_networks(value: object) -> object:
    if isinstance(value, list | tuple) and len(value) > _MAX_NETWORKS:
        raise InvalidValue(f"must be at most {_MAX_NETWORKS} blocks")
    return value


def _read_failure_rate(value: object) -> Rate | None:
    if value == "off":
        return None
    if isinstance(value, bool):
        raise InvalidValue("must be a rate such as 20/1m, or off", suggestion=None if value else "off")
    return units.read_rate(value)


def read_origin(value: object) -> str:
    """Read a CORS origin as a browser writes it (RFC 6454 §6.2): exact, or `*`, or `null`.

    Raises:
        InvalidValue: Not in that spelling, so no browser sends it.
    """
    text = read_text(value)
    if text in {"*", "null"}:
        return text
    message = "is not an origin: scheme://host[:port] without a path, or `*`, or `null`"
    if "*" in text:
        raise InvalidValue(f"{message}; `*` stands alone")
    _, origin = split_http_url(text)
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    port = "" if origin.port == _DEFAULT_PORTS[origin.scheme] else f":{origin.port}"
    serialised = f"{origin.scheme}://{host}{port}"
    if text != serialised:
        raise InvalidValue(message, suggestion=serialised, echoes=True)
    return text


def pattern_schema(pattern: str, *examples: str) -> WithJsonSchema:
    """Return the schema of text that matches a pattern as a whole."""
    return WithJsonSchema(
        {"type": "string", "pattern": f"^{pattern}$"} | ({"examples": [*examples]} if examples else {})
    )


def text_schema(**more: Any) -> WithJsonSchema:
    """Return the schema of text that is not empty, with more keywords."""
    return WithJsonSchema({"type": "string", "minLength": 1, **more})


def number_schema(bounds: dict[str, int], pattern: str) -> WithJsonSchema:
    """Return the schema of a number within bounds; or as text, in which variables give it."""
    number = {"type": "number", **bounds}
    return WithJsonSchema({"anyOf": [number, {"type": "string", "pattern": f"^{pattern}$"}]})


def at_most(limit_s: float, words: str) -> Callable[[object], float]:
    """Return a reader of durations up to a limit."""

    def read(value: object) -> float:
        seconds = units.read_duration(value)
        if seconds > limit_s:
            raise InvalidValue(f"must be at most {words}")
        return seconds

    return read


def read_header_size(value: object) -> int:
    """Read `max_header`. Any client may occupy four times that much memory.

    Raises:
        InvalidValue: Not a size, or beyond what servers and load balancers use.
    """
    size = units.read_size(value)
    if not MIN_HEADER_BYTES <= size <= MAX_HEADER_BYTES:
        raise InvalidValue("must be between 1KiB and 256KiB")
    return size


_DURATION_SCHEMA = pattern_schema(units.DURATION_PATTERN, "10s")
_CLOCK_SCHEMA = pattern_schema(f"({units.DURATION_PATTERN}|off)", "10s")

Text = Annotated[str, PlainValidator(read_text), text_schema()]
Flag = Annotated[bool, PlainValidator(read_flag), WithJsonSchema({"type": "boolean"})]
Count = Annotated[int, PlainValidator(read_count), WithJsonSchema({"type": "integer", "minimum": 1})]
Duration = Annotated[float, PlainValidator(units.read_duration), _DURATION_SCHEMA]
PositiveDuration = Annotated[float, PlainValidator(units.read_positive_duration), _DURATION_SCHEMA]
Clock = Annotated[float | None, PlainValidator(units.read_clock), _CLOCK_SCHEMA]
Size = Annotated[int, PlainValidator(units.read_size), pattern_schema(units.SIZE_PATTERN, "32MiB")]
HeaderSize = Annotated[int, PlainValidator(read_header_size), pattern_schema(units.SIZE_PATTERN, "16KiB")]
RateText = Annotated[Rate, PlainValidator(units.read_rate), pattern_schema(units.RATE_PATTERN, "60/10s")]
TokenRateText = Annotated[
    Rate,
    PlainValidator(partial(units.read_rate, what="token", example="100000/1m")),
    pattern_schema(units.RATE_PATTERN, "100000/1m"),
]
FieldName = Annotated[str, PlainValidator(read_field_name), text_schema(maxLength=_FIELD_NAME_LIMIT)]
UrlPath = Annotated[str, PlainValidator(read_asked_path), text_schema(pattern="^/")]
FrontPath = Annotated[str, PlainValidator(read_front_path), text_schema(pattern="^/", examples=["/v1/x?alt=sse"])]
BaseUrl = Annotated[str, PlainValidator(read_base_url), text_schema(pattern="^https?://")]
TargetUrl = Annotated[str, PlainValidator(read_target_url), text_schema(pattern="^https?://")]
Network = Annotated[
    ipaddress.IPv4Network | ipaddress.IPv6Network, PlainValidator(read_network), text_schema(examples=["10.0.0.0/8"])
]
TrustedProxies = Annotated[tuple[Network, ...], BeforeValidator(_read_networks)]
FailureRate = Annotated[
    Rate | None, PlainValidator(_read_failure_rate), pattern_schema(f"({units.RATE_PATTERN}|off)", "20/1m", "off")
]
OriginText = Annotated[str, PlainValidator(read_origin), text_schema(examples=["https://app.example.com"])]
LogLevel = Literal["debug", "info", "warning", "error"]
