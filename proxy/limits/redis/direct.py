"""One command on a connection of its own: a large one, which would hold up all others, or before there is a channel."""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from proxy.limits.redis.address import drop
from proxy.limits.redis.errors import UNEXPECTED, ConnectionLostError, translated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio.connection import AbstractConnection

    from proxy.limits.redis.address import Dialler, Node
    from proxy.limits.redis.channel import Answer, Command

# How long a large command and its answer may take.
LARGE_S = 2.0


@asynccontextmanager
async def connected(dialler: Dialler, node: Node | None) -> AsyncIterator[AbstractConnection]:
    """Give a connection to the server, or to a node, that answers; it is closed afterwards.

    A server that hangs is found out by a `PING`, in the dialler's `timeout_s`.

    Raises:
        StoreError: there is none.
    """
    connection = await dialler.dial(node)
    try:
        await run(connection, ("PING",), timeout_s=dialler.timeout_s)
        yield connection
    finally:
        await drop(connection)


async def run(
    connection: AbstractConnection, command: Command, *, is_asking: bool = False, timeout_s: float = LARGE_S
) -> Answer:
    """Run a command; `is_asking` for a slot that is being moved to this node (ASK).

    Raises:
        StoreError: it failed, or no answer came within `timeout_s`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            if is_asking:
                await run(connection, ("ASKING",))
            # In pieces: a large argument is not copied.
            await connection.send_packed_command(connection.pack_command(*command), check_health=False)
            answer: Answer = await connection.read_response(disable_decoding=True, timeout=math.inf)
            return answer
    except TimeoutError as error:
        raise ConnectionLostError("the server did not answer in time") from error
    except UNEXPECTED as error:
        raise translated(error, "the connection was lost") from error
