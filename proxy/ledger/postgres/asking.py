"""What workers ask the node's shipper, over a socket: a line of JSON each way, and then the end.

`{"ask": "sums" | "used", "query": [since_ms, by, issuer, user]}` is answered by `{"sums": [[[…by], requests, …]]}`, or
by `{}` where the database does not answer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal

import orjson

from proxy.errors import LedgerUnavailableError
from proxy.ledger.row import COLUMNS, Query, Sums

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.ledger.postgres.place import SpoolPlace

Kind = Literal["sums", "used"]
MAX_QUESTION_BYTES: Final = 64 * 1024
# 10,000 groups with the longest names there are.
MAX_ANSWER_BYTES: Final = 64 * 2**20


async def ask(place: SpoolPlace, kind: Kind, query: Query, within_s: float) -> Sequence[Sums]:
    """Ask the shipper; cancelling is safe.

    Raises:
        LedgerUnavailableError: there is none, its database does not answer, or the time is over.
    """
    question = orjson.dumps({"ask": kind, "query": list(query)}) + b"\n"
    try:
        async with asyncio.timeout(within_s):
            with place.socket_path() as path:
                reader, writer = await asyncio.open_unix_connection(path, limit=MAX_ANSWER_BYTES)
            try:
                writer.write(question)
                line = await reader.readline()
            finally:
                writer.transport.abort()
            # Ten thousand groups take some hundredths of a second.
            return await asyncio.to_thread(_read, query, line)
    except (OSError, ValueError, LookupError, TypeError) as exc:
        raise LedgerUnavailableError from exc


def read_question(line: bytes) -> tuple[Kind, Query]:
    """Read a question.

    Raises:
        ValueError: it is none.
    """
    question = orjson.loads(line)
    since_ms, by, issuer, user = question["query"]
    if not set(by) <= set(COLUMNS):
        raise ValueError
    return question["ask"], Query(since_ms, tuple(by), issuer, user)


def write_answer(sums: Sequence[Sums] | None) -> bytes:
    """Write an answer; None where the database does not answer."""
    return orjson.dumps({} if sums is None else {"sums": [[list(one.by.values()), *one[1:]] for one in sums]}) + b"\n"


def _read(query: Query, line: bytes) -> list[Sums]:
    return [Sums(dict(zip(query.by, by, strict=True)), *counts) for by, *counts in orjson.loads(line)["sums"]]
