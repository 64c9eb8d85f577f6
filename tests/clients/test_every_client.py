"""What every client gets through the proxy, whoever wrote it: text, usage, its own errors, and a way to stop."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from proxy.mock.reply import DEFAULT_PIECES, DEFAULT_TEXT, THOUGHT_TEXT, THOUGHTS
from tests.clients.conftest import ENDLESS, Bench, torn
from tests.clients.every_client import CLIENTS

if TYPE_CHECKING:
    from tests.clients.calls import Client
    from tests.clients.conftest import Hear

pytestmark = [
    pytest.mark.parametrize("client", CLIENTS, indirect=True, ids=str),
    # google-genai subclasses aiohttp's ClientSession, which aiohttp discourages; it can go when google-genai stops.
    pytest.mark.filterwarnings(
        "ignore:Inheritance class AiohttpClientSession from ClientSession is discouraged:DeprecationWarning"
    ),
]


def _data(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


# One whole event and half of the next: some clients take a stream that breaks before its first event for no answer at
# all, and are right to try again.
_HALVES = {
    "chat": _data({"id": "1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hel"}}]})
    + b'data: {"id":"1","choices":[{"index":0,"delta":{"cont',
    "responses": b"event: response.created\n"
    + _data({"type": "response.created", "sequence_number": 0, "response": {"id": "1", "object": "response"}})
    + b'event: response.in_progress\ndata: {"type":"resp',
    "messages": b"event: message_start\n"
    + _data(
        {
            "type": "message_start",
            "message": {
                "id": "1",
                "type": "message",
                "role": "assistant",
                "model": "mock-1",
                "content": [],
                "usage": {"input_tokens": 2, "output_tokens": 1},
            },
        }
    )
    + b'event: content_block_start\ndata: {"type":"cont',
    "generate": _data({"candidates": [{"content": {"role": "model", "parts": [{"text": "Hel"}]}, "index": 0}]})
    + b'data: {"candidates":[{"content":{"pa',
    "generation": b"id:1\nevent:result\n:HTTP_STATUS/200\n"
    b'data:{"output":{"choices":[{"message":{"role":"assistant","content":"Hel"},"finish_reason":"null"}]},'
    b'"usage":{"input_tokens":2,"output_tokens":1},"request_id":"1"}\n\n'
    b'id:2\nevent:result\n:HTTP_STATUS/200\ndata:{"outp',
}


async def test_client_stream(client: Client, bench: Bench, hear: Hear) -> None:
    """Only the base URL and the key are changed, and text, thoughts and usage arrive; the vendor gets its own key."""
    heard = await hear(client)

    assert heard.failure is None
    assert heard.text == DEFAULT_TEXT
    assert heard.thought == ("" if "thought" in client.hides else THOUGHT_TEXT)
    assert heard.usage == (2, len(DEFAULT_PIECES) + len(THOUGHTS))
    assert await bench.ending() == "complete"
    await bench.check_keys(client.dialect)


async def test_client_bad_token(client: Client, bench: Bench, hear: Hear) -> None:
    """A bad token is the client's own error for it, with our code, asked once; nothing reaches the vendor."""
    heard = await hear(client, key="sk-somebody-elses")

    assert heard.failure is not None
    assert (heard.failure.name, heard.failure.status) == (client.refused, 401)
    assert heard.failure.code == "invalid_token"
    assert await bench.ending() == "refused"
    assert bench.vendor.stats.requests == 0


async def test_client_over_limit(client: Client, bench: Bench, hear: Hear) -> None:
    """Over the limit for long is the client's own error for it, at once, and says when to come back.

    The client's own retries are on: nothing of theirs reaches the vendor, and it does not sleep for the day.
    """
    await hear(client, key=bench.over_limit)
    # The `ai` SDK tries again whatever it is told, twice within six seconds.
    heard = await hear(client, key=bench.over_limit, has_own_retries="ai" not in client.name.split())

    assert heard.failure is not None
    assert (heard.failure.name, heard.failure.status) == (client.limited, 429)
    assert heard.failure.code == "rate_limit_exceeded"
    if "retry_after" not in client.hides:
        # One request a day: the next one fits a day after the first.
        assert 86_300 < int(heard.failure.retry_after or 0) <= 86_400
    assert bench.vendor.stats.requests == 1


async def test_client_broken(client: Client, bench: Bench, hear: Hear) -> None:
    """A vendor that leaves between two events is the client's own error, in our words, and is not asked again."""
    heard = await hear(client, headers=torn(9))

    assert heard.failure is not None
    assert heard.failure.name == client.broken
    assert "The upstream closed the stream before its end." in heard.failure.message
    assert DEFAULT_TEXT.startswith(heard.text)
    assert heard.text != DEFAULT_TEXT
    assert await bench.ending() == "upstream_closed"
    assert bench.vendor.stats.requests == 1


async def test_client_torn(client: Client, bench: Bench, hear: Hear) -> None:
    """A vendor that leaves inside an event is an error to the client, never an end, and is not asked again."""
    tearing = asyncio.create_task(bench.tear(_HALVES[client.api]))
    heard = await hear(client, upstream=f"torn_{client.dialect}")
    await tearing

    assert heard.failure is not None
    assert heard.failure.name == client.torn
    assert await bench.ending() == "upstream_closed"
    assert len(bench.scripted.peers) == 1


async def test_client_retries(client: Client, bench: Bench, hear: Hear) -> None:
    """A vendor that fails is asked as often as the client documents, and by the proxy not once more."""
    failing = asyncio.create_task(bench.fail())
    heard = await hear(client, upstream=f"torn_{client.dialect}")
    failing.cancel()

    assert heard.failure is not None
    assert len(bench.scripted.peers) == 1 + client.retries


async def test_client_leaves(client: Client, bench: Bench, hear: Hear) -> None:
    """A client that stops reading cancels the vendor's work."""
    heard = await hear(client, headers=ENDLESS, leaves_after=2)
    await bench.check_cancelled()

    assert heard.failure is None or heard.failure.name == "AbortError"
    assert heard.text.startswith("Hello from")
    assert bench.vendor.stats.requests == 1
