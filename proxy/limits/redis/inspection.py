"""What an operator wants to know of a limits server before it serves: version, eviction policy, and how fast it is."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.limits.redis.address import Dialler, run
from proxy.limits.redis.errors import StoreError

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

    from proxy.limits.redis.address import Node, RedisAddress

# More than a worker waits: to say how slow a server is, it must be waited for.
_TIMEOUT_S: Final = 2.0
_PINGS: Final = 5


class ServerFacts(NamedTuple):
    """Of one server; None where its user may not be told. `answer_s` is the middle of a few answers' times."""

    name: str
    version: str | None
    policy: str | None
    answer_s: float


async def inspect(address: RedisAddress) -> list[ServerFacts]:
    """Ask the server, the primary that the sentinels name, or each of a Cluster's nodes that the address has.

    Raises:
        StoreError: one of them cannot be reached.
        OSError: a file of authorities or certificates cannot be used.
    """
    dialler = Dialler(address, timeout_s=_TIMEOUT_S)
    nodes: tuple[Node | None, ...] = address.nodes if address.kind == "cluster" else (None,)
    return [await _inspect(dialler, node) for node in nodes]


async def _inspect(dialler: Dialler, node: Node | None) -> ServerFacts:
    async with dialler.connected(node) as connection:
        took: list[float] = []
        for _ in range(_PINGS):
            began_s = time.perf_counter()
            await run(connection, ("PING",))
            took.append(time.perf_counter() - began_s)
        version = policy = None
        with suppress(StoreError):
            version = _line(await run(connection, ("INFO", "server")), b"redis_version")
        policy = await _policy(connection)
    address = dialler.address
    host, port = node or dialler.primary or address.nodes[0]
    return ServerFacts(address.path or f"{host}:{port}", version, policy, sorted(took)[_PINGS // 2])


async def _policy(connection: AbstractConnection) -> str | None:
    """The eviction policy, by either command that may be allowed."""
    with suppress(StoreError):
        told = await run(connection, ("CONFIG", "GET", "maxmemory-policy"))
        if isinstance(told, list) and len(told) == 2 and isinstance(told[1], bytes):  # noqa: PLR2004 - name and value
            return told[1].decode("ascii", "replace")
    with suppress(StoreError):
        return _line(await run(connection, ("INFO", "memory")), b"maxmemory_policy")
    return None


def _line(told: object, name: bytes) -> str | None:
    """A value of `INFO`'s answer."""
    found = re.search(rb"^%b:(.*)" % name, told, re.MULTILINE) if isinstance(told, bytes) else None
    return None if found is None else found[1].decode("ascii", "replace").strip()
