"""The connection to the server against a scripted one: late, split, wrong and missing answers."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from proxy.limits.redis.dial import Dialler, RedisAddress
from proxy.limits.redis.resp import Answer, Connection, ConnectionLostError, ServerError, StoreError, pack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TIMEOUT_S = 0.1
WAIT_S = 30.0


class Scripted:
    """A server that says what the test says."""

    def __init__(self, path: Path) -> None:
        self.address = RedisAddress(path=str(path))
        self._arrived: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def begin(self) -> asyncio.Server:
        async def arrive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._arrived.put((reader, writer))

        assert self.address.path is not None
        return await asyncio.start_unix_server(arrive, self.address.path)

    @asynccontextmanager
    async def connection(
        self, *, timeout_s: float = WAIT_S, is_patient: bool = False
    ) -> AsyncIterator[tuple[Connection, asyncio.StreamReader, asyncio.StreamWriter]]:
        connection = await Dialler(self.address, timeout_s=timeout_s).dial(is_patient=is_patient)
        reader, writer = await self._arrived.get()
        try:
            yield connection, reader, writer
        finally:
            connection.abort("the test is over")
            writer.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Scripted]:
    scripted = Scripted(tmp_path / "s.sock")
    listening = await scripted.begin()
    yield scripted
    listening.close()


async def until(condition: asyncio.Event) -> None:
    await asyncio.wait_for(condition.wait(), WAIT_S)


def test_pack() -> None:
    """A command is an array of byte strings, their lengths in bytes."""
    assert pack("SET", "é", b"\r\n", 12) == b"*4\r\n$3\r\nSET\r\n$2\r\n\xc3\xa9\r\n$2\r\n\r\n\r\n$2\r\n12\r\n"
    assert pack("SET", b"x" * 100_000) == b"*2\r\n$3\r\nSET\r\n$100000\r\n" + b"x" * 100_000 + b"\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_answers_in_order_for_every_split(server: Scripted, size: int) -> None:
    """Each command gets its own answer, however the bytes are split."""
    answers: list[Answer] = []
    done = asyncio.Event()

    def last(answer: Answer) -> None:
        answers.append(answer)
        done.set()

    async with server.connection() as (connection, _, writer):
        for _ in range(4):
            connection.send(pack("A"), answers.append)
        connection.send(pack("B") + pack("B"), answers.append, count=2)
        connection.send(pack("C"), last)
        assert connection.waiting == 7
        data = b"+OK\r\n:12\r\n$-1\r\n$2\r\n\r\n\r\n*2\r\n:1\r\n*1\r\n$1\r\nx\r\n-OOM command\r\n:9007199254740993\r\n"
        for start in range(0, len(data), size):
            writer.write(data[start : start + size])
            await writer.drain()
            await asyncio.sleep(0)
        await until(done)
    assert answers[:5] == [b"OK", 12, None, b"\r\n", [1, [b"x"]]]
    assert isinstance(answers[5], ServerError)
    assert (answers[5].code, str(answers[5])) == ("OOM", "the server is out of memory")
    assert answers[6] == 9_007_199_254_740_993


async def test_late_answer_ends_the_connection(server: Scripted) -> None:
    """Whoever waits too long is told so, once; and the connection is not used again, so nobody gets that answer."""
    answers: list[Answer] = []
    async with server.connection(timeout_s=TIMEOUT_S) as (connection, _, writer):
        lost = asyncio.Event()
        connection.on_lost = lambda _reason, _commands: lost.set()
        connection.send(pack("A"), answers.append)
        connection.send(pack("B"), answers.append)
        writer.write(b":1\r\n")
        await until(lost)
        assert not connection.is_usable
        assert [type(answer) for answer in answers] == [int, ConnectionLostError]
        writer.write(b":2\r\n")
        with pytest.raises(ConnectionLostError, match="in time"):
            await connection.ask("C")
    assert len(answers) == 2


async def test_answered_commands_are_not_late(server: Scripted) -> None:
    """The one timer follows the oldest command that waits: answered ones end nothing."""
    async with server.connection(timeout_s=TIMEOUT_S) as (connection, _, writer):
        for number in range(5):
            asking = asyncio.create_task(connection.ask("A"))
            await asyncio.sleep(TIMEOUT_S / 2)
            writer.write(b":%d\r\n" % number)
            assert await asking == number
        assert connection.is_usable


async def test_a_worker_that_was_held_up(server: Scripted) -> None:
    """An answer that is in the socket already counts, though the worker comes to it late."""
    async with server.connection(timeout_s=TIMEOUT_S) as (connection, reader, writer):
        asking = asyncio.create_task(connection.ask("A"))
        await asyncio.wait_for(reader.readexactly(len(pack("A"))), WAIT_S)
        writer.write(b":1\r\n")
        time.sleep(2 * TIMEOUT_S)  # noqa: ASYNC251 - the point
        assert await asking == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b":1\r\n:2\r\n", "spoke unasked"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak the protocol"),
        (b"\x00", "does not speak the protocol"),
        (b"*-7\r\n", "does not speak the protocol"),
    ],
)
async def test_wrong_answers_end_the_connection(server: Scripted, data: bytes, reason: str) -> None:
    """A server that says what nobody asked, or no RESP at all, is left at once."""
    async with server.connection() as (connection, _, writer):
        lost: asyncio.Queue[str] = asyncio.Queue()
        connection.on_lost = lambda why, _commands: lost.put_nowait(why)
        answers: list[Answer] = []
        connection.send(pack("A"), answers.append)
        writer.write(data)
        assert reason in await asyncio.wait_for(lost.get(), WAIT_S)
        assert len(answers) == 1


async def test_server_leaves(server: Scripted) -> None:
    """Everybody who waits is told, in order, and whoever asks later, at once."""
    async with server.connection() as (connection, _, writer):
        answers: list[Answer] = []
        lost = asyncio.Event()

        def lose(_why: str, commands: int) -> None:
            answers.append(commands)
            lost.set()

        connection.on_lost = lose
        for _ in range(3):
            connection.send(pack("A"), answers.append)
        writer.close()
        await until(lost)
        assert [type(answer) for answer in answers] == [int, *[ConnectionLostError] * 3]
        assert answers[0] == 3
        connection.send(pack("A") * 2, answers.append, count=2)
        assert len(answers) == 6


async def test_caller_that_left(server: Scripted) -> None:
    """The answer of a caller that was cancelled goes to nobody, above all not to the next."""
    async with server.connection() as (connection, _, writer):
        first = asyncio.create_task(connection.ask("A"))
        await asyncio.sleep(0)
        first.cancel()
        second = asyncio.create_task(connection.ask("B"))
        await asyncio.sleep(0)
        writer.write(b"+first\r\n+second\r\n")
        assert await second == b"second"
        assert first.cancelled()


async def test_patient_while_bytes_move(server: Scripted) -> None:
    """A long answer may take longer than a short one, as long as it comes."""
    # Far longer than a piece is late, also on a machine that stands still meanwhile, and shorter than the whole answer.
    timeout_s = 0.8
    async with server.connection(timeout_s=timeout_s, is_patient=True) as (connection, _, writer):
        asking = asyncio.create_task(connection.ask("A"))
        writer.write(b"$10\r\n")
        for _ in range(10):
            await asyncio.sleep(timeout_s / 8)
            writer.write(b"x")
        writer.write(b"\r\n")
        assert await asking == b"x" * 10
        with pytest.raises(ConnectionLostError):
            await connection.ask("B")


@pytest.mark.parametrize("password", [None, "p"])
async def test_dial_cancelled(server: Scripted, password: str | None) -> None:
    """Dialling that is cancelled, or that takes too long, leaves no connection."""
    dialler = Dialler(replace(server.address, password=password), timeout_s=TIMEOUT_S)
    for steps in range(12):
        dialling = asyncio.create_task(dialler.dial())
        for _ in range(steps):
            await asyncio.sleep(0)
        dialling.cancel()
        outcome = (await asyncio.gather(dialling, return_exceptions=True))[0]
        if isinstance(outcome, Connection):
            outcome.abort("")
        assert isinstance(outcome, Connection | asyncio.CancelledError)
    if password is not None:
        with pytest.raises(StoreError, match="in time"):
            await dialler.dial()
    while not server._arrived.empty():
        reader, writer = server._arrived.get_nowait()
        await asyncio.wait_for(reader.read(), WAIT_S)
        writer.close()
