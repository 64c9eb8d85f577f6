"""The URL of a shared limits store (Redis): server, database, credentials."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pydantic import PlainValidator, SecretStr, WithJsonSchema

from proxy.settings.model import closest
from proxy.settings.scalars import read_text
from proxy.settings.secret_values import check_ends
from proxy.settings.units import InvalidValue, is_host

_PORT = 6379
# Redis has 16 databases by default; its setting `databases` is an int.
_MAX_DB = 999_999
_SCHEMES = ("redis", "rediss", "unix")
_EXAMPLES = "must be memory, or redis://host:6379/0, rediss://…, unix:///path/of.sock"
_OTHER_TOPOLOGY = re.compile(
    r"(redis|rediss|valkey|valkeys)?[+-]?(sentinel|cluster|sentinels|socket\+cluster)", re.ASCII
)


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A parsed limits store URL; with the `path` of a Unix socket, host and port are unused."""

    host: str
    port: int
    path: str | None
    db: int
    user: str | None
    password: SecretStr | None
    is_tls: bool
    ca_file: str | None

    def __str__(self) -> str:
        """The URL without credentials."""
        if self.path is not None:
            return f"unix://{self.path}, database {self.db}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.is_tls else 'redis'}://{host}:{self.port}, database {self.db}"


def read_store(value: object) -> Literal["memory"] | StoreUrl:
    """Read `memory`, or the URL of a Redis server (6.2 or later) or of a Valkey server.

    Raises:
        InvalidValue: Neither, or Sentinel or Cluster. Never contains the value, which may have a password.
    """
    text = read_text(value)
    if text == "memory":
        return "memory"
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise InvalidValue(_EXAMPLES, suggestion=closest(text, ["memory"]))
    if _OTHER_TOPOLOGY.fullmatch(scheme.lower()):
        raise InvalidValue(
            "Sentinel and Cluster are not supported: name one server, or an address that follows the primary"
        )
    if scheme in {"valkey", "valkeys"}:
        raise InvalidValue(f"is written {scheme.replace('valkey', 'redis')}:// for Valkey, too")
    if scheme not in _SCHEMES:
        raise InvalidValue(_EXAMPLES, suggestion=None)
    if "," in rest.rpartition("@")[2].partition("/")[0]:
        raise InvalidValue("must name one server: Sentinel and Cluster are not supported")
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError as exc:
        raise InvalidValue("is not a URL (special characters of a password are percent-encoded)") from exc
    if url.fragment or text.endswith("#"):
        raise InvalidValue("must not have a fragment (special characters of a password are percent-encoded)")
    return _unix(url) if scheme == "unix" else _tcp(url)


def _tcp(url: SplitResult) -> StoreUrl:
    host = url.hostname
    if not host or not is_host(host) or url.netloc.endswith(":"):
        raise InvalidValue("must name a host (special characters of a password are percent-encoded)")
    options = _options(url, {"ca_file"} if url.scheme == "rediss" else set())
    ca_file = options.get("ca_file")
    if ca_file is not None and not Path(ca_file).is_file():
        raise InvalidValue("has a ca_file that names no readable file")
    return StoreUrl(
        host=host,
        port=_PORT if url.port is None else url.port,
        path=None,
        db=_db(url.path.removeprefix("/") or "0"),
        user=_user(url),
        password=_password(url),
        is_tls=url.scheme == "rediss",
        ca_file=ca_file,
    )


def _unix(url: SplitResult) -> StoreUrl:
    # unix://user:password@/path, as in redis-py.
    if url.netloc.rpartition("@")[2] or not url.path.strip("/"):
        raise InvalidValue("must name a socket by its absolute path: unix:///run/redis.sock")
    options = _options(url, {"db"})
    return StoreUrl(
        host="",
        port=0,
        path=unquote(url.path),
        db=_db(options.get("db", "0")),
        user=_user(url),
        password=_password(url),
        is_tls=False,
        ca_file=None,
    )


def _db(text: str) -> int:
    if re.fullmatch(r"\d{1,6}", text, re.ASCII) is None or int(text) > _MAX_DB:
        raise InvalidValue("must name its database by a number, such as /0")
    return int(text)


def _user(url: SplitResult) -> str | None:
    if url.username and url.password is None:
        raise InvalidValue("has a user without a password; a password alone is written redis://:password@host")
    return unquote(url.username) if url.username else None


def _password(url: SplitResult) -> SecretStr | None:
    if not url.password:
        return None
    password = unquote(url.password)
    if password == url.password:
        # Percent-encoded ones belong to the password.
        try:
            check_ends(password)
        except InvalidValue as wrong:
            raise InvalidValue(f"has a password that {wrong.message}") from None
    return SecretStr(password)


def _options(url: SplitResult, known: set[str]) -> dict[str, str]:
    options = dict(parse_qsl(url.query, keep_blank_values=True))
    if options.keys() - known:
        which = f"only {', '.join(sorted(known))}" if known else "none"
        raise InvalidValue(f"has an option that is not known: {which} can follow the `?`")
    return options


Store = Annotated[
    Literal["memory"] | StoreUrl,
    PlainValidator(read_store),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^(memory|rediss?://[^\s,]+|unix://\S*/\S+)$",
            "examples": ["memory", "redis://127.0.0.1:6379/0", "unix:///run/redis.sock"],
        }
    ),
]
