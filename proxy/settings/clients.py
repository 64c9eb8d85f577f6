"""Settings about the addresses of clients: the proxies in front, and how many bad credentials an address may send."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, PlainValidator, WithJsonSchema

from proxy.model import Rate
from proxy.settings.scalars import Network
from proxy.settings.units import RATE_PATTERN, InvalidValue, read_rate

# Each is compared with each hop of a request.
_MAX_NETWORKS = 64


def _read_networks(value: object) -> object:
    if isinstance(value, list | tuple) and len(value) > _MAX_NETWORKS:
        raise InvalidValue(f"must be at most {_MAX_NETWORKS} blocks")
    return value


def _read_failure_rate(value: object) -> Rate | None:
    if value == "off":
        return None
    if isinstance(value, bool):
        raise InvalidValue("must be a rate such as 20/1m, or off", suggestion=None if value else "off")
    return read_rate(value)


TrustedProxies = Annotated[tuple[Network, ...], BeforeValidator(_read_networks)]
FailureRate = Annotated[
    Rate | None,
    PlainValidator(_read_failure_rate),
    WithJsonSchema({"type": "string", "pattern": f"^({RATE_PATTERN}|off)$", "examples": ["20/1m", "off"]}),
]
