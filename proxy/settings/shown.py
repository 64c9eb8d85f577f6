"""The configuration as an operator may see it: every key and its value, without secrets.

What is not known to be harmless is not shown. Numbers, booleans and words of a `Literal` are; text is shown only where
`SHOWN` lists its key. A key that is added to the models is redacted until it is listed there.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin
from zoneinfo import ZoneInfo

from pydantic import SecretStr

from proxy.model import EgressProxy, Rate
from proxy.settings.admin import Admin, OperatorToken
from proxy.settings.auth import ApiKey, JwtIssuer
from proxy.settings.budgets import BudgetSettings
from proxy.settings.envelope import Envelope, EnvelopeTarget
from proxy.settings.ledger import LedgerUrl
from proxy.settings.limits_store import StoreUrl
from proxy.settings.listener_tls import ListenerTls
from proxy.settings.log import Log
from proxy.settings.model import Model
from proxy.settings.routes import RetrySettings, RouteSettings, RouteTargetSettings
from proxy.settings.server import Cors, Limits, PlanSettings, Settings
from proxy.settings.telemetry import TelemetrySettings
from proxy.settings.typed import TypedNames
from proxy.settings.units import Address, duration_text, size_text
from proxy.settings.upstreams import UpstreamSettings
from proxy.settings.usage import PriceSettings, UsageSettings
from proxy.settings.ways import ClientCertificate
from proxy.usage import usd_text

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

REDACTED: Final = "[redacted]"
# The keys whose text is shown, by model: names, patterns, paths, and addresses whose text form has no credentials.
SHOWN: Final[Mapping[type[Model], Collection[str]]] = {
    Admin: (),
    ApiKey: ("user", "plan"),
    BudgetSettings: (),
    ClientCertificate: ("certificate", "key"),
    Cors: ("origins", "headers", "expose"),
    Envelope: ("allow_private",),
    EnvelopeTarget: ("url", "upstream", "methods"),
    JwtIssuer: (
        *("issuer", "audience", "algorithms", "jwks_url", "ca_file", "egress_proxy", "server_name"),
        *("audience_claim", "user_claim", "plan_claim", "required_scopes"),
    ),
    Limits: ("store",),
    ListenerTls: ("certificate", "key", "client_ca"),
    Log: ("fields",),
    OperatorToken: ("name",),
    PlanSettings: ("requests", "tokens", "upstreams"),
    PriceSettings: ("input", "cached_input", "cache_write", "output", "currency"),
    RetrySettings: ("on",),
    RouteSettings: ("models",),
    RouteTargetSettings: ("name", "model"),
    Settings: ("listen", "admin_listen", "trusted_proxies", "auth_failures", "default_upstream", "egress_proxy"),
    TelemetrySettings: ("otlp",),
    TypedNames: TypedNames.model_fields,
    UpstreamSettings: (
        *("url", "dialect", "path", "models", "allow_paths", "credential_header"),
        *("ca_file", "egress_proxy", "server_name"),
    ),
    UsageSettings: ("ledger", "spool", "budget_timezone", "rates"),
}
# Of these an operator can compare the first digits.
_DIGESTS: Final[Mapping[type[Model], str]] = {ApiKey: "sha256", OperatorToken: "sha256"}
_DIGITS: Final = 8
# Their text form has no credentials.
_TEXT_FORMS: Final = (
    *(Address, Decimal, EgressProxy, LedgerUrl, StoreUrl, Path, ZoneInfo),
    *(ipaddress.IPv4Network, ipaddress.IPv6Network),
)
# The readers refuse these in URLs; a second look costs nothing.
_USER_INFO: Final = re.compile(r"(?<=://)[^/@\s]*@")
# A vendor may take a key in any member of a query, but for these.
_QUERY_VALUE: Final = re.compile(r"(?<=[?&])(?!(?:alt|api-version)=)([^=&]+=)[^&#]+")
# What `api_key` may say in place of a key.
_KEY_WORDS: Final = frozenset({"client", "none"})


def shown(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values, by the keys of the file, with durations and sizes as they stand there."""
    values = _model(settings)
    if settings.auth is None:
        values["auth"] = "none"
    if settings.admin is not None and settings.admin.is_open:
        values["admin"] = "open"
    return values


def _model(model: Model) -> dict[str, Any]:
    return {
        field.alias or name: _field(model, name, field, getattr(model, name))
        for name, field in type(model).model_fields.items()
    }


def _field(model: Model, name: str, field: FieldInfo, value: object) -> object:
    if isinstance(value, str) and _DIGESTS.get(type(model)) == name:
        return f"{value[:_DIGITS]}…"
    if isinstance(value, SecretStr) and isinstance(model, UpstreamSettings) and value.get_secret_value() in _KEY_WORDS:
        return value.get_secret_value()
    if isinstance(model, BudgetSettings) and name == "usd" and isinstance(value, int):
        return usd_text(value)
    if name.endswith("_s") and (value is None or isinstance(value, float)):
        return duration_text(value)
    if name.endswith("_bytes") and isinstance(value, int):
        return size_text(value)
    may_be_text = name in SHOWN.get(type(model), ()) or (isinstance(value, str) and value in _words(field.annotation))
    return _value(value, may_be_text=may_be_text)


def _value(value: object, *, may_be_text: bool) -> object:
    match value:
        case None | bool() | int() | float():
            return value
        case Model():
            return _model(value)
        case Rate():
            return f"{value.quota}/{duration_text(value.window_s)}"
        case SecretStr():
            return REDACTED
        case Mapping():
            return {str(key): _value(item, may_be_text=may_be_text) for key, item in value.items()}
        case _ if not may_be_text and not isinstance(value, tuple | list):
            return REDACTED
        case str():
            return _QUERY_VALUE.sub(rf"\1{REDACTED}", _USER_INFO.sub("", value))
        case _ if isinstance(value, _TEXT_FORMS):
            return str(value)
        case tuple() | list():
            return [_value(item, may_be_text=may_be_text) for item in value]
        case _:
            return REDACTED


def _words(annotation: Any) -> set[object]:
    """The words of an annotation's `Literal`s: they stand in the source, so they are no secrets."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return {word for part in get_args(annotation) for word in _words(part)}
