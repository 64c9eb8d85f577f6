"""OpenAI's own client, async and blocking, through the proxy."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from proxy.mock.reply import DEFAULT_PIECES, DEFAULT_TEXT, THOUGHT_TEXT
from tests.clients.conftest import ENDLESS, Bench, collect, torn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "say something"}]


def client_of(
    bench: Bench, base: str = "/openai/v1", *, key: str | None = None, headers: Mapping[str, str] | None = None
) -> AsyncOpenAI:
    return AsyncOpenAI(
        api_key=bench.token if key is None else key, base_url=bench.url(base), max_retries=0, default_headers=headers
    )


def blocking_client_of(bench: Bench, *, key: str | None = None, headers: Mapping[str, str] | None = None) -> OpenAI:
    return OpenAI(
        api_key=bench.token if key is None else key,
        base_url=bench.url("/openai/v1"),
        max_retries=0,
        default_headers=headers,
    )


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("base", ["/openai/v1", "/tongyi/v1", "/v1"])
async def test_client_openai_chat_stream(bench: Bench, base: str) -> None:
    """Only the base URL and the key are changed, and the whole text and the usage arrive."""
    async with client_of(bench, base) as client:
        stream = await client.chat.completions.create(
            model="mock-1", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]

    assert text_of(chunks) == DEFAULT_TEXT
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (2, len(DEFAULT_PIECES))
    assert await bench.ending() == "complete"
    await bench.check_keys("authorization", "Bearer vendor-key-canary-7c1f")


@pytest.mark.parametrize("base", ["/openai/v1", "/v1"])
async def test_client_openai_responses_stream(bench: Bench, base: str) -> None:
    """The client puts a response together: thoughts, text, usage."""
    async with client_of(bench, base) as client:
        async with client.responses.stream(model="mock-reasoner", input="say something") as stream:
            events = [event async for event in stream]
        response = await stream.get_final_response()

    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == DEFAULT_TEXT
    assert response.output[0].type == "reasoning"
    assert response.output[0].summary[0].text == THOUGHT_TEXT
    assert response.usage is not None
    assert response.usage.output_tokens == len(DEFAULT_PIECES) + 3
    await bench.check_keys("authorization", "Bearer vendor-key-canary-7c1f")


async def test_client_openai_blocking(bench: Bench) -> None:
    """The blocking client reads chat and responses as the async one does."""

    def use() -> tuple[str, str]:
        with blocking_client_of(bench) as client:
            chat = list(client.chat.completions.create(model="mock-1", messages=MESSAGES, stream=True))
            with client.responses.stream(model="mock-1", input="say something") as stream:
                return text_of(chat), stream.get_final_response().output_text

    assert await asyncio.to_thread(use) == (DEFAULT_TEXT, DEFAULT_TEXT)


async def test_client_openai_whole_and_models(bench: Bench) -> None:
    """What is no stream passes as well: an answer in one piece, the list of models."""
    async with client_of(bench) as client:
        completion = await client.chat.completions.create(model="mock-1", messages=MESSAGES)
        models = [model.id async for model in client.models.list()]

    assert completion.choices[0].message.content == DEFAULT_TEXT
    assert completion._request_id == "req_" + "1".zfill(32)
    assert "mock-1" in models


async def test_client_openai_bad_token(bench: Bench) -> None:
    """A bad token is the client's own error for it, with our code, and nothing reaches the vendor."""
    async with client_of(bench, key="sk-somebody-elses") as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            await client.chat.completions.create(model="mock-1", messages=MESSAGES, stream=True)
        with pytest.raises(openai.AuthenticationError):
            await client.responses.create(model="mock-1", input="hi", stream=True)

    assert (raised.value.code, raised.value.type) == ("invalid_token", "authentication_error")
    assert bench.vendor.stats.requests == 0


async def test_client_openai_blocking_bad_token(bench: Bench) -> None:
    """The blocking client gets the same error."""

    def use() -> None:
        with blocking_client_of(bench, key="wrong") as client:
            client.chat.completions.create(model="mock-1", messages=MESSAGES, stream=True)

    with pytest.raises(openai.AuthenticationError):
        await asyncio.to_thread(use)


async def test_client_openai_over_limit(bench: Bench) -> None:
    """Over the limit is the client's own error for it, and says when to come back."""
    async with client_of(bench, key=bench.over_limit) as client:
        stream = await client.chat.completions.create(model="mock-1", messages=MESSAGES, stream=True)
        assert text_of([chunk async for chunk in stream]) == DEFAULT_TEXT
        with pytest.raises(openai.RateLimitError) as raised:
            await client.chat.completions.create(model="mock-1", messages=MESSAGES, stream=True)

    assert raised.value.code == "rate_limit_exceeded"
    # One request a day: the next one fits a day after the first.
    assert 86_300 < int(raised.value.response.headers["retry-after"]) <= 86_400
    assert bench.vendor.stats.requests == 1


async def test_client_openai_break_between_chat_events(bench: Bench) -> None:
    """A vendor that leaves between two events is the client's own error, in our words."""
    async with client_of(bench, headers=torn(3)) as client:
        stream = await client.chat.completions.create(model="mock-1", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError) as raised:
            _ = [chunk async for chunk in stream]

    assert raised.value.code == "upstream_unreachable"
    assert await bench.ending() == "upstream_closed"


async def test_client_openai_break_between_responses_events(bench: Bench) -> None:
    """Responses has an error event of its own, and the client hands it out as one."""
    async with client_of(bench, headers=torn(6)) as client:
        stream = await client.responses.create(model="mock-1", input="hi", stream=True)
        events: list[Any] = []
        with pytest.raises(openai.APIConnectionError):
            await collect(stream, events)

    assert events[-1].type == "error"
    assert events[-1].code == "upstream_unreachable"
    assert await bench.ending() == "upstream_closed"


async def test_client_openai_break_inside_an_event(bench: Bench) -> None:
    """A vendor that leaves inside an event is an error to the client, never an end."""
    async with client_of(bench, "/torn_openai/v1") as client:
        tearing = asyncio.create_task(bench.tear(b'data: {"id":"1","choices":[{"index":0,"delta":{"cont'))
        stream = await client.chat.completions.create(model="mock-1", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIConnectionError):
            _ = [chunk async for chunk in stream]
        await tearing

    assert await bench.ending() == "upstream_closed"


async def test_client_openai_blocking_break_inside_an_event(bench: Bench) -> None:
    """The same for the blocking client."""

    def use() -> None:
        with OpenAI(api_key=bench.token, base_url=bench.url("/torn_openai/v1"), max_retries=0) as client:
            list(client.chat.completions.create(model="mock-1", messages=MESSAGES, stream=True))

    tearing = asyncio.create_task(bench.tear(b'data: {"id":"1","choices":[{"index":0,"delta":{"cont'))
    with pytest.raises(openai.APIConnectionError):
        await asyncio.to_thread(use)
    await tearing


async def test_client_openai_leaves(bench: Bench) -> None:
    """A client that stops reading cancels the vendor's work."""
    async with client_of(bench, headers=ENDLESS) as client:
        stream = await client.chat.completions.create(model="mock-1", messages=MESSAGES, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await bench.check_cancelled()


async def test_client_openai_blocking_leaves(bench: Bench) -> None:
    """So does a blocking client."""

    def use() -> None:
        with (
            blocking_client_of(bench, headers=ENDLESS) as client,
            client.chat.completions.create(model="mock-1", messages=MESSAGES, stream=True) as stream,
        ):
            next(iter(stream))

    await asyncio.to_thread(use)
    await bench.check_cancelled()
