"""The models of the configuration file: frozen pydantic models, with units converted to seconds and bytes.

`max_body: 32MiB` in YAML is `max_body_bytes` here. `load_settings` reads the file, its variables and line numbers by
`proxy.settings.loading`. Only the app and the commands import this package; all others receive plain values.
"""

from proxy.settings.auth import HMAC_SECRET_BYTES, Auth, JwtIssuer
from proxy.settings.budgets import BudgetSettings
from proxy.settings.limits_store import StoreUrl
from proxy.settings.loading import ConfigurationError, load_settings
from proxy.settings.server import PlanSettings, Settings
from proxy.settings.units import Address, InvalidValue, read_duration
from proxy.settings.upstreams import ALL_PATHS, UpstreamSettings
from proxy.settings.usage import PriceSettings

__all__ = [
    "ALL_PATHS",
    "HMAC_SECRET_BYTES",
    "Address",
    "Auth",
    "BudgetSettings",
    "ConfigurationError",
    "InvalidValue",
    "JwtIssuer",
    "PlanSettings",
    "PriceSettings",
    "Settings",
    "StoreUrl",
    "UpstreamSettings",
    "load_settings",
    "read_duration",
]
