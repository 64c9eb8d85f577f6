"""The URL of a shared limits store: which servers, which database, whose credentials."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pydantic import PlainValidator, SecretStr

from proxy.settings.model import closest
from proxy.settings.scalars import ESCAPED, pattern_schema, read_text, split_authority
from proxy.settings.secret_values import check_ends
from proxy.settings.units import InvalidValue

_PORT = 6379
_SENTINEL_PORT = 26379
# Redis has 16 databases by default; its setting `databases` is an int.
_MAX_DB = 999_999
_MAX_NODES = 32
_SCHEMES: dict[str, Literal["server", "sentinel", "cluster"]] = {
    "redis": "server",
    "rediss": "server",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
_EXAMPLES = (
    "must be memory, or redis://host:6379/0, rediss://…, unix:///path/of.sock, "
    "redis+sentinel://host1,host2:26379/service, or redis+cluster://host1,host2:6379"
)
_SPELLINGS = re.compile(r"(redis|valkey)(s?)[+-]?(?:(sentinel)|(?:socket\+)?(cluster))?(s?)", re.ASCII)
_TLS_OPTIONS = {"ca_file", "certificate", "key"}


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A parsed limits store URL. A socket has a `path` and no `nodes`; `service` is what sentinels are asked for."""

    kind: Literal["server", "sentinel", "cluster"]
    nodes: tuple[tuple[str, int], ...]
    db: int
    user: str | None
    password: SecretStr | None
    path: str | None = None
    service: str = ""
    sentinel_password: SecretStr | None = None
    is_tls: bool = False
    ca_file: str | None = None
    certificate: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        """The URL without credentials."""
        if self.path is not None:
            return f"unix://{self.path}, database {self.db}"
        scheme = ("rediss" if self.is_tls else "redis") + ("" if self.kind == "server" else f"+{self.kind}")
        nodes = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes)
        service = f"/{self.service}" if self.service else ""
        return f"{scheme}://{nodes}{service}" + ("" if self.kind == "cluster" else f", database {self.db}")


def read_store(value: object) -> Literal["memory"] | StoreUrl:
    """Read `memory`, or the URL of a Redis server (6.2 or later), of its sentinels, of a Cluster; of Valkey the same.

    Raises:
        InvalidValue: None of these. Never contains the value, which may have a password.
    """
    text = read_text(value)
    if text == "memory":
        return "memory"
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise InvalidValue(_EXAMPLES, suggestion=closest(text, ["memory"]))
    if scheme not in _SCHEMES and scheme != "unix":
        _refuse_scheme(scheme)
    # Several hosts are no part of a URL that the library would split.
    before, at, hosts = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")
    rest = rest.removeprefix(f"{before}{at}{hosts}")
    url = urlsplit(f"{scheme}://{before}{at}{'' if scheme == 'unix' else 'hosts'}{rest}")
    if url.fragment or text.endswith("#"):
        raise InvalidValue(f"must not have a fragment ({ESCAPED})")
    return _unix(url, hosts) if scheme == "unix" else _tcp(url, hosts)


def _refuse_scheme(scheme: str) -> NoReturn:
    spelt = _SPELLINGS.fullmatch(scheme.lower())
    if spelt is None:
        raise InvalidValue(_EXAMPLES, suggestion=None)
    name, tls, sentinel, cluster, more = spelt.groups()
    right = ("rediss" if tls or more else "redis") + "".join(f"+{kind}" for kind in (sentinel, cluster) if kind)
    raise InvalidValue(f"is written {right}://" + (" for Valkey, too" if name == "valkey" else ""))


def _tcp(url: SplitResult, hosts: str) -> StoreUrl:
    kind = _SCHEMES[url.scheme]
    is_tls = url.scheme.startswith("rediss")
    nodes = _nodes(hosts, _SENTINEL_PORT if kind == "sentinel" else _PORT)
    if kind == "server" and len(nodes) > 1:
        raise InvalidValue("must name one server; several are written redis+sentinel:// or redis+cluster://")
    known = (_TLS_OPTIONS if is_tls else set()) | ({"sentinel_password"} if kind == "sentinel" else set())
    options = _options(url, known)
    for name in sorted(_TLS_OPTIONS & options.keys()):
        if not Path(options[name]).is_file():
            raise InvalidValue(f"has a {name} that names no readable file")
    if "key" in options and "certificate" not in options:
        raise InvalidValue("has a key without a certificate")
    sentinel_password = options.get("sentinel_password")
    path = url.path.removeprefix("/")
    service = ""
    if kind == "sentinel":
        service, _, path = path.partition("/")
        if not service:
            raise InvalidValue("must name the service that the sentinels watch: redis+sentinel://host:26379/service")
    if kind == "cluster" and path not in {"", "0"}:
        raise InvalidValue("must not name a database: a Cluster has only one")
    return StoreUrl(
        kind=kind,
        nodes=nodes,
        db=_db(path or "0"),
        user=_user(url),
        password=_password(url),
        service=unquote(service),
        sentinel_password=None if not sentinel_password else SecretStr(sentinel_password),
        is_tls=is_tls,
        ca_file=options.get("ca_file"),
        certificate=options.get("certificate"),
        key=options.get("key"),
    )


def _nodes(hosts: str, default: int) -> tuple[tuple[str, int], ...]:
    """The hosts with their ports; where only the last of several has one, as such URLs are written, it is for all."""
    texts = hosts.split(",")
    if len(texts) > _MAX_NODES:
        raise InvalidValue(f"names more than {_MAX_NODES} hosts")
    nodes: list[tuple[str, int | None]] = []
    for text in texts:
        _, host, port = split_authority(text)
        nodes.append((host, port))
    if all(port is None for _, port in nodes[:-1]):
        default = nodes[-1][1] or default
    return tuple(dict.fromkeys((host, default if port is None else port) for host, port in nodes))


def _unix(url: SplitResult, hosts: str) -> StoreUrl:
    # unix://user:password@/path, as redis-py has it.
    if hosts or not url.path.strip("/"):
        raise InvalidValue("must name a socket by its absolute path: unix:///run/redis.sock")
    options = _options(url, {"db"})
    return StoreUrl(
        kind="server",
        nodes=(),
        path=unquote(url.path),
        db=_db(options.get("db", "0")),
        user=_user(url),
        password=_password(url),
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
    pattern_schema(
        r"(memory|rediss?(\+(sentinel|cluster))?://\S+|unix://\S*/\S+)",
        *("memory", "redis://127.0.0.1:6379/0", "unix:///run/redis.sock"),
        *("redis+sentinel://10.0.0.1,10.0.0.2:26379/limits", "redis+cluster://10.0.0.1,10.0.0.2:6379"),
    ),
]
