"""How workers ask each other: one question, one answer, over sockets in a directory that only their user can enter.

A worker listens on `NAME.sock` in the directory; whoever wants to know something of all workers connects to each of the
others, sends one line of JSON, and reads one answer of JSON to its end. Whoever does not answer in time is left out:
what is asked here is for operators and for stopping streams, and must never make anybody wait for a worker that is
stuck.

Bounds: the size of a question and of an answer, the questions answered at a time, and the time for all of it. Who may
connect is decided by the directory's mode.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

# An event loop that lags more than this has worse problems than a figure that is missing from a scrape.
ANSWER_S = 0.2
MAX_QUESTION_BYTES = 64 * 1024
# Ten thousand streams of a worker, listed.
MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_CALLS = 32

Question = dict[str, str]


@dataclass(frozen=True, slots=True)
class Answers:
    """What the siblings said, by their names."""

    given: Mapping[str, Any]
    # Listening, as far as the system knows, but not answering. Who is gone is neither here nor there.
    silent: frozenset[str] = field(default_factory=frozenset)


class PeerChannel:
    """A worker's ear and voice among the others.

    `answer` is called for each question of another, must not wait, and gives what JSON can say; a question it does not
    know (KeyError) is left unanswered.
    """

    def __init__(self, directory: Path, name: str, answer: Callable[[Question], Any]) -> None:
        self._directory = directory
        self._name = name
        self._answer = answer
        self._server: asyncio.AbstractServer | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen, in the place of a predecessor of the same name.

        Raises:
            OSError: the directory cannot be used.
        """
        path = self._directory / f"{self._name}.sock"
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._called, path)

    async def close(self) -> None:
        """Stop listening; questions that are being answered are dropped."""
        if self._server is not None:
            self._server.close()
            (self._directory / f"{self._name}.sock").unlink(missing_ok=True)
        calls = tuple(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def ask(self, question: Question) -> Answers:
        """Ask every other worker at the same time; takes at most `ANSWER_S`, and never raises."""
        names = sorted(path.stem for path in self._directory.glob("*.sock") if path.stem != self._name)
        line = orjson.dumps(question) + b"\n"
        given: dict[str, Any] = {}
        silent: set[str] = set()

        async def ask_one(name: str) -> None:
            try:
                async with asyncio.timeout(ANSWER_S):
                    given[name] = await self._exchange(name, line)
            except (ConnectionRefusedError, FileNotFoundError):
                # Gone: what it left behind is its successor's to tell.
                return
            except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
                silent.add(name)

        await asyncio.gather(*map(ask_one, names))
        return Answers(given, frozenset(silent))

    async def _exchange(self, name: str, line: bytes) -> Any:
        reader, writer = await asyncio.open_unix_connection(self._directory / f"{name}.sock")
        try:
            writer.write(line)
            pieces: list[bytes] = []
            size = 0
            while piece := await reader.read(2**18):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_ANSWER_BYTES:
                    raise ValueError
            return orjson.loads(b"".join(pieces))
        finally:
            writer.transport.abort()

    async def _called(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._calls) < MAX_CALLS:
                self._calls.add(task)
                # Whoever asks has given up by then.
                async with asyncio.timeout(ANSWER_S):
                    await self._reply(reader, writer)
        except (OSError, TimeoutError, ValueError, KeyError):
            structlog.get_logger().debug("sibling.left_unanswered")
        finally:
            self._calls.discard(task)
            writer.transport.abort() if task.cancelling() else writer.close()

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        question = orjson.loads(line)
        if not isinstance(question, dict) or len(line) > MAX_QUESTION_BYTES:
            raise ValueError
        writer.write(orjson.dumps(self._answer(question)))
        with contextlib.suppress(ConnectionError):
            await writer.drain()
