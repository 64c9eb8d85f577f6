"""The Lua scripts: each is one atomic step on the server, by the server's clock."""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING

from proxy.limits.redis.resp import Answer, ServerError, outcome, pack, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.limits.redis.resp import Connection

_ROOM = files("proxy.limits.redis") / "lua"


def _read(name: str) -> str:
    return (_ROOM / f"{name}.lua").read_text("utf-8")


class Script:
    """One script: its source, and the commands that run it."""

    def __init__(self, source: str) -> None:
        data = source.encode()
        digest = hashlib.sha1(data, usedforsecurity=False).hexdigest().encode()
        self._by_digest = b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n" % digest
        self._load = pack("SCRIPT", "LOAD", data)
        self._by_source = b"$4\r\nEVAL\r\n$%d\r\n%b\r\n" % (len(data), data)

    def command(self, keys: Sequence[bytes], arguments: Sequence[bytes | str | int]) -> bytes:
        """The command that names the script by its digest."""
        _, _, words = pack(len(keys), *keys, *arguments).partition(b"\r\n")
        return b"*%d\r\n%b%b" % (3 + len(keys) + len(arguments), self._by_digest, words)

    def with_source(self, command: bytes) -> bytes:
        """The same command with the whole source, for a server that does not know it (yet, or any more)."""
        return command.replace(self._by_digest, self._by_source, 1)

    def load(self, connection: Connection) -> None:
        """Have the server keep the script; a failure shows when the script is run."""
        connection.send(self._load, _ignore)

    def run(self, connection: Connection, command: bytes, on_answer: Callable[[Answer], None]) -> None:
        """Send the command, once more spelt out where the server does not know the script."""

        def judge(answer: Answer) -> None:
            if isinstance(answer, ServerError) and answer.code == "NOSCRIPT":
                connection.send(self.with_source(command), on_answer)
            else:
                on_answer(answer)

        connection.send(command, judge)

    async def ask(
        self, connection: Connection, keys: Sequence[bytes], arguments: Sequence[bytes | str | int]
    ) -> Answer:
        """Run it and wait for the answer.

        Raises:
            StoreError: it failed, or no answer came.
        """
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.run(connection, self.command(keys, arguments), partial(settle, answered))
        return outcome(await answered)


def _ignore(_answer: Answer) -> None:
    """Take the answer to a command whose failure does not matter."""


class Scripts:
    """All of them.

    Args:
        clock: Lua that sets `now` to the microseconds of a clock that all workers share. Only tests pass another one;
            nothing that a worker sends can.
    """

    def __init__(self, clock: str | None = None) -> None:
        prelude = (clock or _read("clock")) + _read("rates")
        self.admit, self.refund, self.renew, self.restore, self.greet, self.put_ticket, self.take_ticket = (
            Script(prelude + _read(name))
            for name in ("admit", "refund", "renew", "restore", "greet", "put_ticket", "take_ticket")
        )
