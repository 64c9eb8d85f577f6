"""DashScope's own client, straight at the mock; it blocks, so it runs in a thread."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import dashscope
import pytest

from proxy.mock.reply import DEFAULT_PIECES, DEFAULT_TEXT, IMAGE_URL, THOUGHT_TEXT
from tests.mock.mock_wire import vendor_of_tests

MESSAGES = [{"role": "user", "content": "say something"}]


async def stream_of(call: Any, vendor_url: str, **arguments: Any) -> list[Any]:
    """All answers of one streaming call."""
    arguments = {"api_key": "mock-key", "base_address": f"{vendor_url}/api/v1", "stream": True, **arguments}
    return await asyncio.to_thread(lambda: list(call(**arguments)))


@pytest.mark.parametrize("is_incremental", [True, False])
async def test_dashscope_stream(is_incremental: bool) -> None:
    """The client reads thoughts, text and usage, in increments or repeated."""
    async with vendor_of_tests() as vendor:
        answers = await stream_of(
            dashscope.Generation.call,
            vendor.url,
            model="qwen-plus",
            messages=MESSAGES,
            result_format="message",
            incremental_output=is_incremental,
            enable_thinking=True,
        )

    messages = [answer.output.choices[0].message for answer in answers]
    whole = "".join if is_incremental else (lambda parts: parts[-1])
    assert whole([message.content for message in messages]) == DEFAULT_TEXT
    assert whole([message.get("reasoning_content", "") for message in messages]) == THOUGHT_TEXT
    assert answers[-1].output.choices[0].finish_reason == "stop"
    assert answers[-1].usage.output_tokens == len(DEFAULT_PIECES) + 3


async def test_dashscope_stream_text() -> None:
    """The client reads the flat format."""
    async with vendor_of_tests() as vendor:
        answers = await stream_of(dashscope.Generation.call, vendor.url, model="qwen-plus", prompt="say something")
    assert answers[-1].output.text == DEFAULT_TEXT
    assert answers[-1].output.finish_reason == "stop"


async def test_dashscope_multimodal() -> None:
    """The client reads content in parts, pictures too."""
    async with vendor_of_tests() as vendor:
        answers = await stream_of(
            dashscope.MultiModalConversation.call,
            vendor.url,
            model="qwen-image",
            messages=[{"role": "user", "content": [{"text": "draw something"}]}],
        )
    assert answers[-1].output.choices[0].message.content == [{"text": DEFAULT_TEXT}, {"image": IMAGE_URL}]


async def test_dashscope_application() -> None:
    """The client reads an application's answer."""
    async with vendor_of_tests() as vendor:
        answers = await stream_of(dashscope.Application.call, vendor.url, app_id="app-1", prompt="say something")
    assert answers[-1].output.text == DEFAULT_TEXT
    assert answers[-1].usage.models[0].output_tokens == len(DEFAULT_PIECES)


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        ({"api_key": "wrong"}, HTTPStatus.UNAUTHORIZED, "InvalidApiKey"),
        ({"headers": {"X-Mock-Status": "429"}}, HTTPStatus.TOO_MANY_REQUESTS, "Throttling.RateLimit"),
    ],
)
async def test_dashscope_refused(arguments: dict[str, Any], status: int, code: str) -> None:
    """A refusal is an answer with the vendor's code, JSON or event."""
    async with vendor_of_tests() as vendor:
        (answer,) = await stream_of(
            dashscope.Generation.call, vendor.url, model="qwen-plus", messages=MESSAGES, **arguments
        )
    assert (answer.status_code, answer.code) == (status, code)


async def test_dashscope_error_event() -> None:
    """An error inside a stream is the client's last answer."""
    async with vendor_of_tests() as vendor:
        answers = await stream_of(
            dashscope.Generation.call,
            vendor.url,
            model="qwen-plus",
            messages=MESSAGES,
            headers={"X-Mock-Fault": "error_event", "X-Mock-Fault-After": "2"},
        )
    assert len(answers) == 3
    assert (answers[-1].code, answers[-1].message) == ("InternalError", "The mock was told to fail here.")
