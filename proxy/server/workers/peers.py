"""How workers ask each other: one request, one response, over Unix sockets in a directory of mode 0700.

A worker listens on `NAME.sock` in the directory. To ask all workers, it connects to each of the others, sends one line
of JSON, and reads one JSON value up to the end. A worker that does not answer in time is left out: the answers are for
operators and for stopping streams, and must never wait for a worker that is stuck.

Bounded are the size of a question and of an answer, the questions answered at a time, and the time for all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

# An event loop that lags more than this has worse problems than a number that is missing from a scrape.
ANSWER_S = 0.2
MAX_QUESTION_BYTES = 64 * 1024
# Ten thousand streams of a worker, listed.
MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_CALLS = 32

Question = dict[str, str]


@dataclass(frozen=True, slots=True)
class Answers:
    """The other workers' answers, by their names."""

    given: Mapping[str, Any]
    # Workers that listen but did not answer. Those that have ended are in neither.
    silent: frozenset[str] = field(default_factory=frozenset)


class PeerChannel:
    """A worker's connection to the other workers.

    `answer` is called for each question of another worker, must not wait for long, and returns a value that JSON can
    hold, or an awaitable of one; a question that raises KeyError is not answered.
    """

    def __init__(self, directory: Path, name: str, answer: Callable[[Question], Any]) -> None:
        self._directory = directory
        self._name = name
        self._answer = answer
        self._server: asyncio.AbstractServer | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen, in place of an earlier worker of the same name.

        Raises:
            OSError: the directory cannot be used.
        """
        path = self._directory / f"{self._name}.sock"
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._accept, path)

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
                # It has ended.
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

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._calls) >= MAX_CALLS:
            writer.close()
            return
        call = asyncio.create_task(self._serve(reader, writer))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # The worker that asks has given up by then.
            async with asyncio.timeout(ANSWER_S):
                await self._reply(reader, writer)
        except (OSError, TimeoutError, ValueError, KeyError):
            structlog.get_logger().debug("peer.not_answered")
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        question = orjson.loads(line)
        if not isinstance(question, dict) or len(line) > MAX_QUESTION_BYTES:
            raise ValueError
        answer = self._answer(question)
        if isinstance(answer, Awaitable):
            answer = await answer
        writer.write(orjson.dumps(answer))
        with contextlib.suppress(ConnectionError):
            await writer.drain()
