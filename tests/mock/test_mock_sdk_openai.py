"""OpenAI's own client, straight at the mock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai
import pytest
from openai import AsyncOpenAI

from proxy.mock.reply import DEFAULT_PIECES, DEFAULT_TEXT, THOUGHT_TEXT
from tests.mock.mock_wire import vendor_of_tests

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

    from proxy.mock.server import MockVendor

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "say something"}]


def client_of(vendor: MockVendor, base: str = "/v1", *, key: str = "mock-key", fault: str = "") -> AsyncOpenAI:
    headers = {"X-Mock-Fault": fault, "X-Mock-Fault-After": "3"} if fault else {}
    return AsyncOpenAI(api_key=key, base_url=vendor.url + base, max_retries=0, default_headers=headers)


@pytest.mark.parametrize("base", ["/v1", "/compatible-mode/v1"])
async def test_openai_chat_stream(base: str) -> None:
    """The client reads the whole text and the usage off a stream."""
    async with vendor_of_tests() as vendor, client_of(vendor, base) as client:
        stream = await client.chat.completions.create(
            model="mock-1", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == DEFAULT_TEXT
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (2, len(DEFAULT_PIECES))
    assert vendor.stats.finished == 1


async def test_openai_chat_whole() -> None:
    """The client reads an answer that is no stream."""
    async with vendor_of_tests() as vendor, client_of(vendor) as client:
        completion = await client.chat.completions.create(model="mock-1", messages=MESSAGES)
        assert completion.choices[0].message.content == DEFAULT_TEXT
        assert completion._request_id == "req_" + "1".zfill(32)
        assert "mock-1" in [model.id async for model in client.models.list()]


async def test_openai_responses_stream() -> None:
    """The client puts the response together from its events: thoughts, text, usage."""
    async with vendor_of_tests() as vendor, client_of(vendor) as client:
        async with client.responses.stream(model="mock-reasoner", input="say something") as stream:
            events = [event async for event in stream]
        response = await stream.get_final_response()

    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == DEFAULT_TEXT
    assert response.output_text == DEFAULT_TEXT
    assert response.output[0].type == "reasoning"
    assert response.output[0].summary[0].text == THOUGHT_TEXT
    assert response.usage is not None
    assert response.usage.output_tokens == len(DEFAULT_PIECES) + 3


async def test_openai_bad_key() -> None:
    """A wrong key is the client's own error for it, with the vendor's code."""
    async with vendor_of_tests() as vendor, client_of(vendor, key="wrong") as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            await client.chat.completions.create(model="mock-1", messages=MESSAGES, stream=True)
    assert raised.value.code == "invalid_api_key"


async def test_openai_rate_limit() -> None:
    """429 is the client's own error for it, and says when to come back."""
    async with vendor_of_tests() as vendor, client_of(vendor) as client:
        with pytest.raises(openai.RateLimitError) as raised:
            await client.chat.completions.create(
                model="mock-1", messages=MESSAGES, stream=True, extra_query={"status": "429"}
            )
    assert raised.value.response.headers["retry-after"] == "1"


async def test_openai_error_event() -> None:
    """An error inside a stream is raised with its message."""
    async with vendor_of_tests() as vendor, client_of(vendor, fault="error_event") as client:
        stream = await client.chat.completions.create(model="mock-1", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="told to fail"):
            _ = [chunk async for chunk in stream]


async def test_openai_truncated() -> None:
    """A torn stream is an error to the client, not an end."""
    async with vendor_of_tests() as vendor, client_of(vendor, fault="truncate") as client:
        stream = await client.chat.completions.create(model="mock-1", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIConnectionError):
            _ = [chunk async for chunk in stream]
