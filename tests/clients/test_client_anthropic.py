"""Anthropic's own client, async and blocking, through the proxy."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic

from proxy.mock.reply import DEFAULT_PIECES, DEFAULT_TEXT, THOUGHT_TEXT
from tests.clients.conftest import ENDLESS, Bench, torn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anthropic.types import MessageParam

MESSAGES: list[MessageParam] = [{"role": "user", "content": "say something"}]


def client_of(
    bench: Bench, base: str = "/anthropic", *, key: str | None = None, headers: Mapping[str, str] | None = None
) -> AsyncAnthropic:
    return AsyncAnthropic(
        api_key=bench.token if key is None else key, base_url=bench.url(base), max_retries=0, default_headers=headers
    )


@pytest.mark.parametrize(("base", "model"), [("/anthropic", "mock-thinking"), ("", "claude-thinking")])
async def test_client_anthropic_stream(bench: Bench, base: str, model: str) -> None:
    """Only the base URL and the key are changed, and the whole message arrives: thoughts, text, usage."""
    async with (
        client_of(bench, base) as client,
        client.messages.stream(model=model, max_tokens=100, messages=MESSAGES) as stream,
    ):
        text = "".join([piece async for piece in stream.text_stream])
        message = await stream.get_final_message()

    assert text == DEFAULT_TEXT
    assert message.content[0].type == "thinking"
    assert message.content[0].thinking == THOUGHT_TEXT
    assert (message.usage.input_tokens, message.usage.output_tokens) == (2, len(DEFAULT_PIECES) + 3)
    assert await bench.ending() == "complete"
    await bench.check_keys("x-api-key")


async def test_client_anthropic_key_field(bench: Bench) -> None:
    """A client that sends its key in `x-api-key`, as older ones do, is let in with our token there."""
    async with AsyncAnthropic(
        auth_token=None,
        api_key="",
        base_url=bench.url("/anthropic"),
        max_retries=0,
        default_headers={"Authorization": anthropic.Omit(), "x-api-key": bench.token},  # type: ignore[dict-item]  # how the client is told to leave a field out
    ) as client:
        message = await client.messages.create(model="mock-1", max_tokens=100, messages=MESSAGES)

    assert message.content[0].type == "text"
    assert message.content[0].text == DEFAULT_TEXT
    await bench.check_keys("x-api-key")


async def test_client_anthropic_blocking(bench: Bench) -> None:
    """The blocking client streams, counts tokens and lists models."""

    def use() -> tuple[str, int, list[str]]:
        with Anthropic(api_key=bench.token, base_url=bench.url("/anthropic"), max_retries=0) as client:
            with client.messages.stream(model="mock-1", max_tokens=100, messages=MESSAGES) as stream:
                text = "".join(stream.text_stream)
            tokens = client.messages.count_tokens(model="mock-1", messages=MESSAGES).input_tokens
            return text, tokens, [model.id for model in client.models.list()]

    assert await asyncio.to_thread(use) == (DEFAULT_TEXT, 2, ["mock-1", "mock-1-thinking"])


async def test_client_anthropic_bad_token(bench: Bench) -> None:
    """A bad token is the client's own error for it, with our code, and nothing reaches the vendor."""
    async with client_of(bench, key="wrong") as client:
        with pytest.raises(anthropic.AuthenticationError) as raised:
            await client.messages.create(model="mock-1", max_tokens=100, messages=MESSAGES, stream=True)

    assert raised.value.response.json()["error"] == {
        "type": "authentication_error",
        "message": "The access token is invalid.",
        "code": "invalid_token",
    }
    assert bench.vendor.stats.requests == 0


async def test_client_anthropic_over_limit(bench: Bench) -> None:
    """Over the limit is the client's own error for it."""
    async with client_of(bench, key=bench.over_limit) as client:
        await client.messages.create(model="mock-1", max_tokens=100, messages=MESSAGES)
        with pytest.raises(anthropic.RateLimitError) as raised:
            await client.messages.create(model="mock-1", max_tokens=100, messages=MESSAGES, stream=True)

    assert raised.value.response.headers["x-forward-sse-code"] == "rate_limit_exceeded"
    assert int(raised.value.response.headers["retry-after"]) > 86_300


async def test_client_anthropic_break_between_events(bench: Bench) -> None:
    """A vendor that leaves between two events is the client's own error, in our words."""
    async with client_of(bench, headers=torn(4)) as client:
        stream = await client.messages.create(model="mock-1", max_tokens=100, messages=MESSAGES, stream=True)
        with pytest.raises(anthropic.APIStatusError) as raised:
            _ = [event async for event in stream]

    assert isinstance(raised.value.body, dict)
    assert raised.value.body["error"]["code"] == "upstream_unreachable"
    assert await bench.ending() == "upstream_closed"


async def test_client_anthropic_break_inside_an_event(bench: Bench) -> None:
    """A vendor that leaves inside an event is an error to the client, never an end."""
    async with client_of(bench, "/torn_anthropic") as client:
        tearing = asyncio.create_task(bench.tear(b'event: message_start\ndata: {"type":"mess'))
        stream = await client.messages.create(model="mock-1", max_tokens=100, messages=MESSAGES, stream=True)
        # This client passes its transport's error on as it is, and which transport that is changes with its versions.
        with pytest.raises(Exception, match="incomplete chunked read"):
            _ = [event async for event in stream]
        await tearing

    assert await bench.ending() == "upstream_closed"


async def test_client_anthropic_leaves(bench: Bench) -> None:
    """A client that stops reading cancels the vendor's work."""
    async with client_of(bench, headers=ENDLESS) as client:
        async with client.messages.stream(model="mock-1", max_tokens=100, messages=MESSAGES) as stream:
            async for _ in stream.text_stream:
                break
        await bench.check_cancelled()


async def test_client_anthropic_blocking_leaves(bench: Bench) -> None:
    """So does a blocking client."""

    def use() -> None:
        client = Anthropic(
            api_key=bench.token, base_url=bench.url("/anthropic"), max_retries=0, default_headers=ENDLESS
        )
        with client, client.messages.stream(model="mock-1", max_tokens=100, messages=MESSAGES) as stream:
            next(iter(stream.text_stream))

    await asyncio.to_thread(use)
    await bench.check_cancelled()
