"""Anthropic's own client, straight at the mock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anthropic
import pytest
from anthropic import AsyncAnthropic

from proxy.mock.reply import DEFAULT_PIECES, DEFAULT_TEXT, THOUGHT_TEXT
from tests.mock.mock_wire import vendor_of_tests

if TYPE_CHECKING:
    from anthropic.types import MessageParam

    from proxy.mock.server import MockVendor

MESSAGES: list[MessageParam] = [{"role": "user", "content": "say something"}]


def client_of(vendor: MockVendor, base: str = "", *, key: str = "mock-key") -> AsyncAnthropic:
    return AsyncAnthropic(api_key=key, base_url=vendor.url + base, max_retries=0)


@pytest.mark.parametrize("base", ["", "/anthropic"])
async def test_anthropic_stream(base: str) -> None:
    """The client puts the message together from its events: thoughts, text, usage."""
    async with (
        vendor_of_tests() as vendor,
        client_of(vendor, base) as client,
        client.messages.stream(model="mock-thinking", max_tokens=100, messages=MESSAGES) as stream,
    ):
        text = "".join([piece async for piece in stream.text_stream])
        message = await stream.get_final_message()

    assert text == DEFAULT_TEXT
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].type == "thinking"
    assert message.content[0].thinking == THOUGHT_TEXT
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (2, len(DEFAULT_PIECES) + 3)


async def test_anthropic_whole() -> None:
    """The client reads an answer that is no stream, counts tokens and lists models."""
    async with vendor_of_tests() as vendor, client_of(vendor) as client:
        message = await client.messages.create(model="mock-1", max_tokens=100, messages=MESSAGES)
        assert message.content[0].type == "text"
        assert message.content[0].text == DEFAULT_TEXT
        assert message._request_id == "req_" + "1".zfill(24)
        assert (await client.messages.count_tokens(model="mock-1", messages=MESSAGES)).input_tokens == 2
        assert [model.id async for model in client.models.list()] == ["mock-1", "mock-1-thinking"]


async def test_anthropic_bad_key() -> None:
    """A wrong key is the client's own error for it."""
    async with vendor_of_tests() as vendor, client_of(vendor, key="wrong") as client:
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.create(model="mock-1", max_tokens=100, messages=MESSAGES)


async def test_anthropic_error_event() -> None:
    """An error inside a stream is raised as what it would have been before it."""
    async with vendor_of_tests() as vendor, client_of(vendor) as client:
        query = {"fault": "error_event", "fault_after": "4"}
        stream = await client.messages.create(
            model="mock-1", max_tokens=100, messages=MESSAGES, stream=True, extra_query=query
        )
        with pytest.raises(anthropic.APIStatusError, match="told to fail"):
            _ = [event async for event in stream]
