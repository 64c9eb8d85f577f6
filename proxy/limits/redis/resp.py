"""One connection to a Redis server: commands in order, any number on their way, an answer for each.

Made for one thing: many small commands of concurrent requests share one connection, and nobody waits long. A command
that is not answered in time ends the connection, for the answers behind it could no longer be told apart from it; so
nobody ever gets another's answer, and a caller that is cancelled needs no care: its answer is handed over all the same.

Answers are handed to plain functions, not to tasks. RESP2 as hiredis reads it: https://redis.io/docs/reference/protocol-spec/
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

import hiredis

if TYPE_CHECKING:
    from collections.abc import Callable

# Redis answers within a millisecond; ten of these are a network in trouble, a hundred are an outage.
TIMEOUT_S = 0.1
# A worker that was itself held up finds the answer in its socket, after the timer that says it is late. So it looks
# there once more before it judges.
_SECOND_LOOK_S = 0.005
# What one answer may be at most: a ticket, which holds a body.
_LONGEST_WAIT_S = 2.0


class StoreError(Exception):
    """The server did not do what was asked; the text is short, for operators, and holds nothing of a command."""


class ConnectionLostError(StoreError):
    """No answer came: nobody knows whether the command was done."""


class ServerError(StoreError):
    """The server answered that it did not do it; `code` is the first word, such as OOM."""

    def __init__(self, text: str) -> None:
        within = _WITHIN_A_SCRIPT.search(text)
        self.code = text.partition(" ")[0] if within is None else within[1]
        super().__init__(_MEANINGS.get(self.code, f"the server answers {self.code[:32]}"))


# Before Redis 7, what a command within a script answered stands behind an ERR of the script's.
_WITHIN_A_SCRIPT = re.compile(r"@user_script: ?\d+: -([A-Z]+) ")
_MEANINGS = {
    "CLUSTERDOWN": "the server belongs to a cluster",
    "CROSSSLOT": "the server belongs to a cluster",
    "ERR": "the server refuses a command (is it Redis 6.2 or later?)",
    "LOADING": "the server is loading its data",
    "MISCONF": "the server cannot save, and takes no writes",
    "MOVED": "the server belongs to a cluster",
    "NOAUTH": "the server wants a password",
    "NOPERM": "the user of the server may not run the commands",
    "OOM": "the server is out of memory",
    "READONLY": "the server is a replica",
    "WRONGPASS": "the server refuses the password",
}

_LARGE_BYTES = 64 * 1024

Answer = object
_NOT_YET = object()


def pack(*words: bytes | str | int) -> bytes:
    """Write one command."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        if len(data) > _LARGE_BYTES:  # a ticket: copied once, by the join
            parts += (b"$%d\r\n" % len(data), data, b"\r\n")
        else:
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def settle(answered: asyncio.Future[Answer], answer: Answer) -> None:
    """Hand an answer to somebody who waits, if anybody still does."""
    if not answered.done():
        answered.set_result(answer)


def outcome(answer: Answer) -> Answer:
    """The answer, or the failure that it is.

    Raises:
        StoreError: it is one.
    """
    if isinstance(answer, StoreError):
        raise answer
    return answer


class _Waiting(NamedTuple):
    on_answer: Callable[[Answer], None]
    deadline_s: float


class Connection(asyncio.Protocol):
    """Sends commands and hands over answers.

    What is handed over is the server's answer (bytes, a number, None, a list), a `ServerError`, or a
    `ConnectionLostError`; exactly one for each command, in order, whatever happens. It must not raise.

    Args:
        timeout_s: How long an answer may take.
        is_patient: For long answers and commands on a connection of their own: the deadline moves on while bytes do.
    """

    def __init__(self, *, timeout_s: float = TIMEOUT_S, is_patient: bool = False) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=ServerError, notEnoughData=_NOT_YET)
        self._waiting: deque[_Waiting] = deque()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._second_look = False
        self._timeout_s = timeout_s
        self._is_patient = is_patient
        self._moved = (0, 0)
        self._received = 0
        self._reason = "the connection was lost"
        # Told why, and how many commands were waiting, when it is over and before these are told.
        self.on_lost: Callable[[str, int], None] | None = None

    @property
    def is_usable(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None

    @property
    def waiting(self) -> int:
        """How many commands have no answer yet."""
        return len(self._waiting)

    def send(
        self,
        commands: bytes,
        on_answer: Callable[[Answer], None],
        *,
        count: int = 1,
    ) -> None:
        """Send `count` commands at once; each answer is handed over, or the loss of it, within about `timeout_s`."""
        if self._transport is None:
            for _ in range(count):
                on_answer(ConnectionLostError(self._reason))
            return
        waiting = _Waiting(on_answer, self._loop.time() + self._timeout_s)
        self._waiting.append(waiting)
        for _ in range(count - 1):
            self._waiting.append(waiting)
        if self._timer is None:
            self._timer = self._loop.call_at(waiting.deadline_s, self._look)
        self._transport.write(commands)

    async def ask(self, *words: bytes | str | int) -> Answer:
        """Send one command and wait for its answer.

        Raises:
            StoreError: it failed, or no answer came.
        """
        answered: asyncio.Future[Answer] = self._loop.create_future()
        self.send(pack(*words), partial(settle, answered))
        return outcome(await answered)

    def abort(self, reason: str) -> None:
        """End it now; whatever waits is lost."""
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()
            self._lose()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The loop's: it can be used."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """The loop's: hand over every answer that is complete."""
        self._received += len(data)
        self._reader.feed(data)
        waiting, gets = self._waiting, self._reader.gets
        while True:
            try:
                answer = gets()
            except hiredis.HiredisError:
                self.abort("the server does not speak the protocol")
                return
            if answer is _NOT_YET:
                return
            if not waiting:
                # Nobody asked: from here on no answer could be trusted to be the asker's own.
                self.abort("the server spoke unasked")
                return
            waiting.popleft().on_answer(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """The loop's: it is over."""
        del exc
        self._lose()

    def _look(self) -> None:
        """Whether the oldest command is late. One timer for all: they are answered in order."""
        self._timer = None
        if not self._waiting:
            return
        now_s, deadline_s = self._loop.time(), self._waiting[0].deadline_s
        if now_s < deadline_s:
            self._second_look = False
            self._timer = self._loop.call_at(deadline_s, self._look)
        elif self._is_patient and self._has_moved() and now_s < deadline_s + _LONGEST_WAIT_S:
            self._timer = self._loop.call_later(self._timeout_s, self._look)
        elif not self._second_look:
            self._second_look = True
            self._timer = self._loop.call_later(_SECOND_LOOK_S, self._look)
        else:
            self.abort("the server did not answer in time")

    def _has_moved(self) -> bool:
        unsent = 0 if self._transport is None else self._transport.get_write_buffer_size()
        before, self._moved = self._moved, (self._received, unsent)
        return before != self._moved

    def _lose(self) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.on_lost is not None:
            on_lost, self.on_lost = self.on_lost, None
            on_lost(self._reason, len(self._waiting))
        while self._waiting:
            self._waiting.popleft().on_answer(ConnectionLostError(self._reason))
