"""The workers' questions to each other: bounded in time and size, whatever the other does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from proxy.server.workers import peers as siblings
from proxy.server.workers.peers import PeerChannel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from proxy.server.workers.peers import Question

WAIT_S = 30.0


@pytest.fixture
async def born(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Open a worker's channel of a name, with what it answers."""
    async with AsyncExitStack() as stack:

        async def be(name: str, answer: Callable[[Question], Any]) -> PeerChannel:
            one = PeerChannel(tmp_path, name, answer)
            await one.open()
            stack.push_async_callback(one.close)
            return one

        yield be


async def to_end(reader: asyncio.StreamReader) -> bytes:
    """Everything until the other hangs up; a reset is an end too, where something was left unread."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65536):
            data += piece
    return data


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def leave(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def never(question: Question) -> Any:
    raise KeyError(question["ask"])


async def test_ask_everybody_else(born: Callable[..., Any]) -> None:
    """Every other worker answers the question it was asked; the one that asks is not among them."""
    one = await born("one", never)
    await born("two", lambda question: {"echo": question["ask"]})
    await born("three", lambda question: [question["ask"], 3])

    answers = await one.ask({"ask": "who"})

    assert answers.given == {"two": {"echo": "who"}, "three": ["who", 3]}
    assert not answers.silent


async def test_ask_one_that_is_gone(born: Callable[..., Any], tmp_path: Path) -> None:
    """A socket's file that nobody listens on any more is neither an answer nor silence."""
    one = await born("one", never)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    answers = await one.ask({"ask": "who"})
    assert answers.given == {}
    assert not answers.silent


async def test_ask_one_that_hangs(born: Callable[..., Any], tmp_path: Path) -> None:
    """Who does not answer is silent after a bounded time, and costs the others nothing."""
    one = await born("one", never)
    await born("two", lambda _: 2)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(tmp_path / "stuck.sock"))
        stuck.listen()
        began_s = loop.time()
        answers = await one.ask({"ask": "who"})
        took_s = loop.time() - began_s
    assert answers.given == {"two": 2}
    assert answers.silent == {"stuck"}
    assert siblings.ANSWER_S * 0.9 <= took_s < siblings.ANSWER_S * 10


async def test_ask_one_that_does_not_know(born: Callable[..., Any]) -> None:
    """A question that another generation does not understand counts as silence, not as an error."""
    one = await born("one", never)
    await born("two", never)
    answers = await one.ask({"ask": "new thing"})
    assert answers.silent == {"two"}


async def test_answer_too_long(born: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer beyond the bound is not taken in."""
    monkeypatch.setattr(siblings, "MAX_ANSWER_BYTES", 1000)
    one = await born("one", never)
    await born("two", lambda _: "x" * 2000)
    assert (await one.ask({"ask": "who"})).silent == {"two"}


@pytest.mark.parametrize("data", [b"\n", b"not json\n", b"[1]\n", b"{}\n", b"x" * 200_000 + b"\n", b'{"ask":', b""])
async def test_called_with_nonsense(born: Callable[..., Any], tmp_path: Path, data: bytes) -> None:
    """Whatever comes in is dropped, and the next is answered."""
    await born("two", lambda question: question["ask"])
    async with asyncio.timeout(WAIT_S):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "two.sock")
        writer.write(data)
        answer = await to_end(reader)
        await leave(writer)
    assert answer == b""
    one = await born("one", never)
    assert (await one.ask({"ask": "who"})).given == {"two": "who"}


async def test_calls_are_bounded(born: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound a caller is hung up on; when the others are through there is room again."""
    monkeypatch.setattr(siblings, "MAX_CALLS", 2)
    await born("two", lambda _: 2)
    path = tmp_path / "two.sock"
    async with asyncio.timeout(WAIT_S):
        idle = [await asyncio.open_unix_connection(path) for _ in range(2)]
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"ask":"who"}\n')
        assert await to_end(reader) == b""
        await leave(writer)
        for reader, writer in idle:
            # Hung up on too: an idle caller has no more time than one that asks.
            assert await to_end(reader) == b""
            await leave(writer)
    one = await born("one", never)
    assert (await one.ask({"ask": "who"})).given == {"two": 2}


async def test_close_leaves_nothing(tmp_path: Path) -> None:
    """The socket's file goes with the worker, and a caller that is half way is dropped."""
    one = PeerChannel(tmp_path, "one", never)
    await one.open()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "one.sock")
    await one.close()
    async with asyncio.timeout(WAIT_S):
        assert await to_end(reader) == b""
        await leave(writer)
    assert names(tmp_path) == []


async def test_open_in_the_place_of_one_that_died(born: Callable[..., Any], tmp_path: Path) -> None:
    """The file of a socket that a killed predecessor left is no obstacle."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "two.sock"))
    await born("two", lambda _: 2)
    one = await born("one", never)
    assert (await one.ask({"ask": "who"})).given == {"two": 2}
