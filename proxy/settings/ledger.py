"""`usage.ledger` and `usage.budget_timezone`: where the rows of usage go, and where a budget's days begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit
from zoneinfo import ZoneInfo, available_timezones

from pydantic import PlainValidator, SecretStr

from proxy.settings.model import closest
from proxy.settings.scalars import pattern_schema, text_schema
from proxy.settings.units import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Iterator

_SCHEMES = ("sqlite", "postgresql")
# Of libpq's.
_SECRET_OPTIONS = frozenset({"password", "sslpassword"})


@dataclass(frozen=True, slots=True)
class LedgerUrl:
    """`path` is the file of an SQLite ledger; None for PostgreSQL, whose whole `url` may hold a password."""

    kind: Literal["sqlite", "postgresql"]
    url: SecretStr
    path: str | None = None

    @property
    def passwords(self) -> Iterator[str]:
        """What is secret of it, as it is written and as it is sent."""
        parts = urlsplit(self.url.get_secret_value())
        if parts.password:
            yield from {parts.password, unquote(parts.password)}
        yield from (value for name, value in parse_qsl(parts.query) if name in _SECRET_OPTIONS)

    def __str__(self) -> str:
        """Without its password."""
        if self.path is not None:
            return f"sqlite:///{self.path}"
        parts = urlsplit(self.url.get_secret_value())
        port = "" if parts.port is None else f":{parts.port}"
        return f"postgresql://{parts.hostname or ''}{port}{parts.path}"


def read_ledger(value: object) -> LedgerUrl | None:
    """Read `off` as None, or a ledger's URL as SQLAlchemy writes it (`sqlite:///relative`, `sqlite:////absolute`).

    Raises:
        InvalidValue: Neither. Never contains the value.
    """
    if value == "off" or value is False:
        return None
    text = value if isinstance(value, str) else ""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InvalidValue("is not a valid URL") from None
    if parts.scheme not in _SCHEMES:
        suggestion = closest(parts.scheme, ("off", *_SCHEMES))
        if parts.scheme in {"postgres", "postgresql+psycopg", "postgresql+asyncpg"}:
            suggestion = "postgresql"
        hint = f"{suggestion}://…" if suggestion in _SCHEMES else suggestion
        raise InvalidValue("must be off, sqlite:///path or postgresql://user:password@host/database", suggestion=hint)
    if parts.scheme == "sqlite":
        return _sqlite(text, parts)
    if "@" in parts.path:
        # The part of a password behind its slash would be shown as the database's name.
        raise InvalidValue("has a password with / or @: write them as %2F and %40")
    if port == 0 or parts.path in {"", "/"} or parts.fragment:
        raise InvalidValue("must name a database: postgresql://user:password@host/database")
    return LedgerUrl("postgresql", SecretStr(text))


def _sqlite(text: str, parts: SplitResult) -> LedgerUrl:
    path = text.removeprefix("sqlite:///")
    if path == text or path in {"", "/", ":memory:"} or path.endswith("/") or parts.query or parts.fragment:
        raise InvalidValue("must name a file: sqlite:///relative/path or sqlite:////absolute/path")
    return LedgerUrl("sqlite", SecretStr(text), path)


def read_timezone(value: object) -> ZoneInfo:
    """Read the name of a time zone.

    Raises:
        InvalidValue: Not one of the IANA's.
    """
    if isinstance(value, ZoneInfo):
        return value
    names = available_timezones()
    if not isinstance(value, str) or value not in names:
        suggestion = closest(value, names)
        raise InvalidValue("is not a time zone's name, such as UTC or Asia/Shanghai", suggestion=suggestion)
    return ZoneInfo(value)


Ledger = Annotated[LedgerUrl | None, PlainValidator(read_ledger), pattern_schema("(off|sqlite:///.+|postgresql://.+)")]
Timezone = Annotated[ZoneInfo, PlainValidator(read_timezone), text_schema()]
