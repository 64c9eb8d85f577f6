"""One connection that all requests of a worker share: commands in order, any number on their way, an answer for each.

redis-py packs, writes, reads and parses. Here is what its clients do not do, which take a connection for each command
that is on its way: what is asked in one turn of the loop leaves in one write, nobody waits for another's answer, and
the commands of a user are done in their order. A command that is not answered in time ends the connection, for the
answers behind it could no longer be told apart from it; so nobody ever gets another's answer, and a caller that is
cancelled needs no care: its answer is handed over all the same.

Answers are handed to plain functions, not to tasks.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from hiredis import pack_command
from redis.exceptions import RedisError

from proxy.limits.redis.address import cut, drop
from proxy.limits.redis.errors import (
    UNEXPECTED,
    ConnectionLostError,
    ServerError,
    StoreError,
    answered_error,
    translated,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection

# A worker that was itself held up finds the answer in its socket, after the timer that says it is late. So it looks
# there once more before it judges.
_SECOND_LOOK_S = 0.005

_Result = TypeVar("_Result")
Answer = object
Command = tuple[bytes | str | int, ...]


class Sent(NamedTuple):
    """A command that waits for its answer. `asked_s` is when it was first asked, here or on another connection."""

    command: Command
    on_answer: Callable[[Answer], None]
    asked_s: float
    deadline_s: float


def settle(answered: asyncio.Future[_Result], answer: _Result) -> None:
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


def ignore(_answer: Answer) -> None:
    """Take an answer that does not matter."""


class Channel:
    """Sends commands and hands over answers. Made within a running loop; `abort` ends it.

    What is handed over is the server's answer (bytes, a number, None, a list), a `ServerError`, or a
    `ConnectionLostError`; exactly one for each command, in order, whatever happens. `on_answer` must not raise.

    Args:
        connection: Open; the channel's own from now on.
        timeout_s: How long an answer may take.
        resend: Told of a refusal before it is handed over, where another answer could still come in time; True where it
            has seen to that.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        *,
        timeout_s: float,
        resend: Callable[[Channel, Sent, ServerError], bool] = lambda _channel, _sent, _error: False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._timeout_s = timeout_s
        self._resend = resend
        self._waiting: deque[Sent] = deque()
        self._unsent: list[Command] = []
        self._wanted = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._is_second_look = False
        self._reason: str | None = None
        # Told why, and how many commands were waiting, when it is over and before these are told.
        self.on_lost: Callable[[str, int], None] | None = None
        self._tasks = [
            asyncio.create_task(self._read(), name="limits.read"),
            asyncio.create_task(self._write(), name="limits.write"),
        ]

    @property
    def is_usable(self) -> bool:
        """Whether commands can be sent."""
        return self._reason is None

    @property
    def waiting(self) -> int:
        """How many commands have no answer yet."""
        return len(self._waiting)

    def send(self, command: Command, on_answer: Callable[[Answer], None], *, asked_s: float | None = None) -> None:
        """Send a command at the end of this turn of the loop; the answer, or its loss, is there within `timeout_s`."""
        if self._reason is not None:
            on_answer(ConnectionLostError(self._reason))
            return
        now_s = self._loop.time()
        deadline_s = now_s + self._timeout_s
        self._waiting.append(Sent(command, on_answer, now_s if asked_s is None else asked_s, deadline_s))
        self._unsent.append(command)
        if self._timer is None:
            self._timer = self._loop.call_at(deadline_s, self._look)
        self._wanted.set()

    def request(self, command: Command) -> asyncio.Future[Answer]:
        """Send a command; its answer, or failure, will be the result."""
        answered: asyncio.Future[Answer] = self._loop.create_future()
        self.send(command, partial(settle, answered))
        return answered

    async def ask(self, *command: bytes | str | int) -> Answer:
        """Send one command and wait for its answer.

        Raises:
            StoreError: it failed, or no answer came.
        """
        return outcome(await self.request(command))

    def abort(self, reason: str) -> None:
        """End it now; whatever waits is lost. Any number of times."""
        if self._reason is not None:
            return
        self._reason = reason
        # At once: the task that also does it may not have begun.
        cut(self._connection)
        for task in self._tasks:
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        try:
            if self.on_lost is not None:
                self.on_lost(reason, len(self._waiting))
        finally:
            self._unsent.clear()
            while self._waiting:
                self._waiting.popleft().on_answer(ConnectionLostError(reason))

    async def _write(self) -> None:
        connection, wanted = self._connection, self._wanted
        try:
            while True:
                await wanted.wait()
                wanted.clear()
                commands, self._unsent = self._unsent, []
                # hiredis' stub has tuples of one word.
                data = b"".join(map(pack_command, commands))  # type: ignore[arg-type]
                await connection.send_packed_command(data, check_health=False)
        except UNEXPECTED as error:
            self.abort(str(translated(error, "the connection was lost")))

    async def _read(self) -> None:
        connection, waiting = self._connection, self._waiting
        try:
            while True:
                answer: Answer
                try:
                    answer = await connection.read_response(
                        disable_decoding=True, timeout=math.inf, disconnect_on_error=False
                    )
                except RedisError as error:
                    answer = answered_error(error)
                    if answer is None:
                        raise
                if not waiting:
                    # Nobody asked: from here on no answer could be trusted to be the asker's own.
                    self.abort("the server spoke unasked")
                    return
                sent = waiting.popleft()
                if not (
                    isinstance(answer, ServerError) and self._may_resend(sent) and self._resend(self, sent, answer)
                ):
                    sent.on_answer(answer)
        except UNEXPECTED as error:
            self.abort(str(translated(error, "the connection was lost")))
        finally:
            await drop(connection)

    def _may_resend(self, sent: Sent) -> bool:
        """Whether another answer can still come within twice the time for one: nobody waits longer."""
        return self._loop.time() < sent.asked_s + self._timeout_s

    def _look(self) -> None:
        """Whether the oldest command is late. One timer for all: they are answered in order."""
        self._timer = None
        if not self._waiting:
            self._is_second_look = False
            return
        now_s, deadline_s = self._loop.time(), self._waiting[0].deadline_s
        if now_s < deadline_s:
            self._is_second_look = False
            self._timer = self._loop.call_at(deadline_s, self._look)
        elif not self._is_second_look:
            self._is_second_look = True
            self._timer = self._loop.call_later(_SECOND_LOOK_S, self._look)
        else:
            self.abort("the server did not answer in time")
