"""Listen addresses: one or several for clients, one for operators (admin), none of them twice."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BeforeValidator, PlainValidator, WithJsonSchema

from proxy.settings.model import Contradiction, sequence
from proxy.settings.units import Address, InvalidValue, read_address, valid_or_none

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LISTEN_DEFAULT: Final = "0.0.0.0:8080"
ADMIN_LISTEN_DEFAULT: Final = "127.0.0.1:9090"
# Each is a socket in every worker.
_MAX_ADDRESSES: Final = 16
_EVERY_V4: Final = "0.0.0.0"  # noqa: S104 - compared with, not bound
_EVERY: Final = "::"
_ADDRESS_SCHEMA: Final = {
    "type": "string",
    "pattern": r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):\d{1,5}$",
    "examples": ["127.0.0.1:8080"],
}


def _one_or_many(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


def read_admin_listen(value: object) -> Address | None:
    """Read `admin_listen`: an address, or `off` as None.

    Raises:
        InvalidValue: Neither.
    """
    if value == "off":
        return None
    if isinstance(value, bool):
        raise InvalidValue("must be HOST:PORT or off", suggestion="off")
    return read_address(value)


ListenAddress = Annotated[Address, PlainValidator(read_address), WithJsonSchema(_ADDRESS_SCHEMA)]
ListenAddresses = Annotated[
    tuple[ListenAddress, ...],
    BeforeValidator(_one_or_many),
    WithJsonSchema({"anyOf": [_ADDRESS_SCHEMA, {"type": "array", "items": _ADDRESS_SCHEMA, "minItems": 1}]}),
]
AdminAddress = Annotated[
    Address | None,
    PlainValidator(read_admin_listen),
    WithJsonSchema({"type": "string", "examples": ["127.0.0.1:9090", "off"]}),
]


def listen_faults(data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check that no two listeners share a port: the second would fail at start, or take the other's clients."""
    listen = data.get("listen", LISTEN_DEFAULT)
    is_list = isinstance(listen, list | tuple)
    values = sequence(listen) if is_list else [listen]
    if not values:
        yield ("listen",), InvalidValue("must not be empty")
    if len(values) > _MAX_ADDRESSES:
        yield ("listen",), InvalidValue(f"must be at most {_MAX_ADDRESSES} addresses")
        return
    known: list[tuple[str, Address]] = []
    for index, value in enumerate(values):
        address = valid_or_none(read_address, value)
        if address is None:
            continue
        for name, other in known:
            if (words := _clash(address, other)) is not None:
                yield ("listen", index), InvalidValue(f"{words} {name}")
                break
        known.append((f"listen[{index}]", address))
    admin = valid_or_none(read_admin_listen, data.get("admin_listen", ADMIN_LISTEN_DEFAULT))
    if admin is not None and any(admin.port and _clash(admin, address) for _, address in known):
        where = "admin_listen" if "admin_listen" in data else "listen"
        yield (where,), InvalidValue("listen and admin_listen must not be the same address")


def _clash(address: Address, other: Address) -> str | None:
    """Return why two addresses conflict, to be followed by the other's name; None if they do not."""
    hosts = {_canonical(address.host), _canonical(other.host)}
    if address.port != other.port:
        return None
    if len(hosts) == 1:
        return "is the same address as"
    # With port 0 the system chooses a free port for each.
    is_taken = address.port != 0 and (
        _EVERY in hosts or (_EVERY_V4 in hosts and not all(":" in host for host in hosts - {_EVERY_V4}))
    )
    return "cannot share its port ([::] stands for every address of both families) with" if is_taken else None


def _canonical(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return "127.0.0.1" if host.lower() == "localhost" else host.lower()
