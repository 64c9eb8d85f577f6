"""The channel to the server against a scripted one: late, split, wrong and missing answers; and how it is dialled."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection

from proxy.limits.redis.address import Dialler, RedisAddress, drop, run
from proxy.limits.redis.channel import Answer, Channel
from proxy.limits.redis.errors import ConnectionLostError, ServerError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxy.limits.redis.channel import Sent

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

    async def arrived(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.wait_for(self._arrived.get(), WAIT_S)

    @asynccontextmanager
    async def channel(
        self, *, timeout_s: float = WAIT_S
    ) -> AsyncIterator[tuple[Channel, asyncio.StreamReader, asyncio.StreamWriter]]:
        channel = Channel(await Dialler(self.address, timeout_s=timeout_s).dial(), timeout_s=timeout_s)
        reader, writer = await self.arrived()
        try:
            yield channel, reader, writer
        finally:
            channel.abort("the test is over")
            writer.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Scripted]:
    scripted = Scripted(tmp_path / "s.sock")
    listening = await scripted.begin()
    yield scripted
    listening.close()


async def until(condition: asyncio.Event) -> None:
    await asyncio.wait_for(condition.wait(), WAIT_S)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_answers_in_order_for_every_split(server: Scripted, size: int) -> None:
    """Each command gets its own answer, however the bytes are split."""
    answers: list[Answer] = []
    done = asyncio.Event()

    def last(answer: Answer) -> None:
        answers.append(answer)
        done.set()

    async with server.channel() as (channel, _, writer):
        for _ in range(8):
            channel.send(("A",), answers.append)
        channel.send(("B",), last)
        assert channel.waiting == 9
        data = b"+OK\r\n:12\r\n$-1\r\n$2\r\n\r\n\r\n*2\r\n:1\r\n*1\r\n$1\r\nx\r\n"
        data += b"-OOM command\r\n-LOADING data\r\n-NOAUTH Authentication required.\r\n:9007199254740993\r\n"
        for start in range(0, len(data), size):
            writer.write(data[start : start + size])
            await writer.drain()
            await asyncio.sleep(0)
        await until(done)
    assert answers[:5] == [b"OK", 12, None, b"\r\n", [1, [b"x"]]]
    # Of these three redis-py's classes are errors of a command, of a connection, and of a login.
    refused = [answer.code for answer in answers[5:8] if isinstance(answer, ServerError)]
    assert refused == ["OOM", "LOADING", "NOAUTH"]
    assert str(answers[5]) == "the server is out of memory"
    assert answers[8] == 9_007_199_254_740_993


async def test_one_write_for_a_turn(server: Scripted) -> None:
    """What is asked in one turn of the loop leaves together, and in its order."""
    async with server.channel() as (channel, reader, writer):
        answers: list[Answer] = []
        for number in range(100):
            channel.send(("ECHO", number, b"\r\n", "\u00e9"), answers.append)
        # One read has all of it.
        assert await reader.read(100_000) == b"".join(
            b"*4\r\n$4\r\nECHO\r\n$%d\r\n%d\r\n$2\r\n\r\n\r\n$2\r\n\xc3\xa9\r\n" % (len(str(number)), number)
            for number in range(100)
        )
        asking = asyncio.create_task(channel.ask("LAST"))
        writer.write(b":1\r\n" * 100 + b":2\r\n")
        assert await asking == 2
    assert answers == [1] * 100


async def test_late_answer_ends_the_channel(server: Scripted) -> None:
    """Whoever waits too long is told so, once; and the connection is not used again, so nobody gets that answer."""
    answers: list[Answer] = []
    async with server.channel(timeout_s=TIMEOUT_S) as (channel, reader, writer):
        lost = asyncio.Event()
        channel.on_lost = lambda _reason, _commands: lost.set()
        channel.send(("A",), answers.append)
        channel.send(("B",), answers.append)
        writer.write(b":1\r\n")
        await until(lost)
        assert not channel.is_usable
        assert [type(answer) for answer in answers] == [int, ConnectionLostError]
        # It is closed, and nothing more was sent.
        assert await reader.read() == pack_command(("A",)) + pack_command(("B",))
        writer.write(b":2\r\n")
        with pytest.raises(ConnectionLostError, match="in time"):
            await channel.ask("C")
    assert len(answers) == 2


async def test_answered_commands_are_not_late(server: Scripted) -> None:
    """The one timer follows the oldest command that waits: answered ones end nothing."""
    async with server.channel(timeout_s=TIMEOUT_S) as (channel, _, writer):
        for number in range(5):
            asking = asyncio.create_task(channel.ask("A"))
            await asyncio.sleep(TIMEOUT_S / 2)
            writer.write(b":%d\r\n" % number)
            assert await asking == number
        assert channel.is_usable


async def test_a_worker_that_was_held_up(server: Scripted) -> None:
    """An answer that is in the socket already counts, though the worker comes to it late."""
    async with server.channel(timeout_s=TIMEOUT_S) as (channel, reader, writer):
        asking = asyncio.create_task(channel.ask("A"))
        await asyncio.wait_for(reader.readexactly(11), WAIT_S)
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
async def test_wrong_answers_end_the_channel(server: Scripted, data: bytes, reason: str) -> None:
    """A server that says what nobody asked, or no RESP at all, is left at once."""
    async with server.channel() as (channel, reader, writer):
        lost: asyncio.Queue[str] = asyncio.Queue()
        channel.on_lost = lambda why, _commands: lost.put_nowait(why)
        answers: list[Answer] = []
        channel.send(("A",), answers.append)
        await reader.readexactly(11)
        writer.write(data)
        assert reason in await asyncio.wait_for(lost.get(), WAIT_S)
        assert len(answers) == 1
        assert await reader.read() == b""


async def test_server_leaves(server: Scripted) -> None:
    """Everybody who waits is told, in order, and whoever asks later, at once; nobody dials in secret."""
    async with server.channel() as (channel, _, writer):
        answers: list[Answer] = []
        lost = asyncio.Event()

        def lose(_why: str, commands: int) -> None:
            answers.append(commands)
            lost.set()

        channel.on_lost = lose
        for _ in range(3):
            channel.send(("A",), answers.append)
        writer.close()
        await until(lost)
        assert [type(answer) for answer in answers] == [int, *[ConnectionLostError] * 3]
        assert answers[0] == 3
        channel.send(("A",), answers.append)
        channel.abort("again")
        assert len(answers) == 5
        # redis-py connects anew by itself when a closed connection is written to.
        assert server._arrived.empty()


async def test_caller_that_left(server: Scripted) -> None:
    """The answer of a caller that was cancelled goes to nobody, above all not to the next."""
    async with server.channel() as (channel, _, writer):
        first = asyncio.create_task(channel.ask("A"))
        await asyncio.sleep(0)
        first.cancel()
        second = asyncio.create_task(channel.ask("B"))
        await asyncio.sleep(0)
        writer.write(b"+first\r\n+second\r\n")
        assert await second == b"second"
        assert first.cancelled()


async def test_resend(server: Scripted) -> None:
    """A refusal may be seen to elsewhere: then its caller hears nothing of it, and those behind keep their answers."""
    seen: list[tuple[Sent, ServerError]] = []

    def resend(channel: Channel, sent: Sent, error: ServerError) -> bool:
        seen.append((sent, error))
        channel.send(("AGAIN", *sent.command), sent.on_answer, asked_s=sent.asked_s)
        return error.redirect is not None

    channel = Channel(await Dialler(server.address).dial(), timeout_s=WAIT_S, resend=resend)
    reader, writer = await server.arrived()
    asking = [asyncio.create_task(channel.ask(word)) for word in ("A", "B")]
    await reader.readexactly(22)
    writer.write(b"-MOVED 12182 10.0.0.9:6381\r\n+b\r\n")
    assert await asking[1] == b"b"
    assert await reader.readexactly(len(b"*2\r\n$5\r\nAGAIN\r\n$1\r\nA\r\n")) == b"*2\r\n$5\r\nAGAIN\r\n$1\r\nA\r\n"
    writer.write(b"+a\r\n")
    assert await asking[0] == b"a"
    ((sent, error),) = seen
    assert (sent.command, error.code, error.redirect) == (("A",), "MOVED", (12182, "10.0.0.9", 6381))
    channel.abort("")
    writer.close()


async def test_large_command_alone(server: Scripted) -> None:
    """A large command and its answer have a connection of their own, which is found to answer first."""

    async def ask() -> Answer:
        async with Dialler(server.address, timeout_s=WAIT_S).connected(None) as connection:
            return await run(connection, ("SET", b"x" * 300_000))

    asking = asyncio.create_task(ask())
    reader, writer = await server.arrived()
    assert await reader.readexactly(14) == b"*1\r\n$4\r\nPING\r\n"
    writer.write(b"+PONG\r\n")
    expected = pack_command(("SET", b"x" * 300_000))  # type: ignore[arg-type]
    assert await reader.readexactly(len(expected)) == expected
    writer.write(b"$300000\r\n" + b"y" * 300_000 + b"\r\n")
    assert await asking == b"y" * 300_000
    assert await reader.read() == b""
    writer.close()


async def test_hanging_server_alone(server: Scripted) -> None:
    """A server that hangs holds nobody up longer than a small command may take, and keeps nothing of a large one."""
    with pytest.raises(ConnectionLostError, match="in time"):
        async with Dialler(server.address, timeout_s=TIMEOUT_S).connected(None):
            raise AssertionError
    reader, writer = await server.arrived()
    assert await reader.read() == b"*1\r\n$4\r\nPING\r\n"
    writer.close()


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
        if isinstance(outcome, AbstractConnection):
            await drop(outcome)
        assert isinstance(outcome, AbstractConnection | asyncio.CancelledError)
    if password is not None:
        with pytest.raises(StoreError, match="in time"):
            await dialler.dial()
    while not server._arrived.empty():
        reader, writer = server._arrived.get_nowait()
        await asyncio.wait_for(reader.read(), WAIT_S)
        writer.close()


async def test_drop_sends_nothing_more(server: Scripted) -> None:
    """What was not yet sent to a server that does not read is forgotten: redis-py's private `_writer` is for that."""
    connection = await Dialler(server.address).dial()
    assert isinstance(connection._writer, asyncio.StreamWriter)
    transport = connection._writer.transport
    connection._writer.write(b"x" * 5_000_000)
    assert transport.get_write_buffer_size() > 0
    await drop(connection)
    assert transport.is_closing()
    reader, writer = await server.arrived()
    assert len(await asyncio.wait_for(reader.read(), WAIT_S)) < 5_000_000
    writer.close()
