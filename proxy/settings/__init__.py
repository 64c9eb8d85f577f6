"""The models of the configuration file: frozen pydantic models, with units converted to seconds and bytes.

`max_body: 32MiB` in YAML is `max_body_bytes` here. `load_settings` reads the file, its variables and line numbers by
`proxy.settings.loading`. Only the app and the commands import this package; all others receive plain values.
"""

from proxy.settings.auth import HMAC_SECRET_BYTES, ApiKey, Auth, JwtIssuer
from proxy.settings.budgets import BudgetSettings
from proxy.settings.envelope import Envelope, EnvelopeTarget
from proxy.settings.ledger import LedgerUrl
from proxy.settings.limits_store import StoreUrl
from proxy.settings.loading import ConfigurationError, load_settings
from proxy.settings.log import Log
from proxy.settings.model import FAULT, UNKNOWN_KEY, closest
from proxy.settings.server import (
    ClientTimeouts,
    Cors,
    Limits,
    PlanSettings,
    Settings,
)
from proxy.settings.typed import TypedNames
from proxy.settings.units import Address, InvalidValue, read_duration
from proxy.settings.upstreams import ALL_PATHS, UpstreamSettings, UpstreamTimeouts
from proxy.settings.usage import PriceSettings, UsageSettings

__all__ = [
    "ALL_PATHS",
    "FAULT",
    "HMAC_SECRET_BYTES",
    "UNKNOWN_KEY",
    "Address",
    "ApiKey",
    "Auth",
    "BudgetSettings",
    "ClientTimeouts",
    "ConfigurationError",
    "Cors",
    "Envelope",
    "EnvelopeTarget",
    "InvalidValue",
    "JwtIssuer",
    "LedgerUrl",
    "Limits",
    "Log",
    "PlanSettings",
    "PriceSettings",
    "Settings",
    "StoreUrl",
    "TypedNames",
    "UpstreamSettings",
    "UpstreamTimeouts",
    "UsageSettings",
    "closest",
    "load_settings",
    "read_duration",
]
