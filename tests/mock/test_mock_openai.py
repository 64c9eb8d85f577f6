from __future__ import annotations

from typing import Any

import pytest

from proxy.mock.reply import DEFAULT_TEXT, IMAGE_URL, THOUGHT_TEXT
from tests.mock.mock_wire import BEARER, CHAT, CREATED, PROMPT, ask, vendor_of_tests

COMPATIBLE = "/compatible-mode" + CHAT
STREAM = {**PROMPT, "stream": True}
HEAD = (
    b'data: {"id":"chatcmpl-000000000000000000000001","object":"chat.completion.chunk","created":1750000000,'
    b'"model":"mock-1","choices":['
)
USAGE = (
    b'"usage":{"prompt_tokens":2,"completion_tokens":2,"total_tokens":4,'
    b'"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},'
    b'"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,'
    b'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}\n\n'
)


def chunk(delta: bytes, finish_reason: bytes = b"null", rest: bytes = b"}\n\n") -> bytes:
    return HEAD + b'{"index":0,"delta":' + delta + b',"logprobs":null,"finish_reason":' + finish_reason + b"}]" + rest


@pytest.mark.parametrize("path", [CHAT, COMPATIBLE])
async def test_chat_stream(path: str) -> None:
    """A chat stream is role, text, finish, `[DONE]`, each event its own chunk, and no usage unasked."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{path}?events=2", STREAM)

    assert response.chunks == [
        chunk(b'{"role":"assistant","content":""}'),
        chunk(b'{"content":"Hello"}'),
        chunk(b'{"content":" from"}'),
        chunk(b"{}", b'"stop"'),
        b"data: [DONE]\n\n",
    ]
    assert response.status == 200
    assert response.fields["content-type"] == "text/event-stream; charset=utf-8"


async def test_chat_stream_usage() -> None:
    """With `include_usage` the last chunk before `[DONE]` has it and no choices, and the others say null."""
    async with vendor_of_tests() as vendor:
        body = {**STREAM, "stream_options": {"include_usage": True}}
        response = await ask(vendor, f"{CHAT}?events=2", body)

    assert response.chunks[-2] == HEAD + b"]," + USAGE
    assert response.chunks[1] == chunk(b'{"content":"Hello"}', rest=b',"usage":null}\n\n')
    assert [data.get("usage", "absent") for data in response.data[:-1]] == [None] * 4


@pytest.mark.parametrize("extra", [{"model": "deepseek-reasoner"}, {"enable_thinking": True}])
async def test_chat_stream_thinking(extra: dict[str, Any]) -> None:
    """A thinking model's thoughts come before its text, as `reasoning_content`, and are counted."""
    async with vendor_of_tests() as vendor:
        body = {**STREAM, **extra, "stream_options": {"include_usage": True}}
        response = await ask(vendor, f"{CHAT}?events=1", body)

    deltas = [data["choices"][0]["delta"] for data in response.data if data["choices"]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas[1:4]) == THOUGHT_TEXT
    assert deltas[4] == {"content": "Hello"}
    usage = response.data[-1]["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 3
    assert usage["completion_tokens"] == 4


async def test_chat_stream_image() -> None:
    """An image model's picture is a data URL in `delta.images`."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{CHAT}?events=1", {**STREAM, "model": "gemini-image"})

    images = [data["choices"][0]["delta"].get("images") for data in response.data]
    assert images == [None, None, [{"type": "image_url", "image_url": {"url": IMAGE_URL}, "index": 0}], None]


async def test_chat_default_text() -> None:
    """Without controls the stream says the default text, UTF-8 unescaped."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, CHAT, STREAM)

    texts = [data["choices"][0]["delta"].get("content", "") for data in response.data]
    assert "".join(texts) == DEFAULT_TEXT
    assert "你好".encode() in response.body


async def test_chat_whole() -> None:
    """Without `stream` the answer is one JSON object with the text, the thoughts, the picture and usage."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{CHAT}?events=2", {**PROMPT, "model": "image-thinker"})

    assert response.fields["content-type"] == "application/json"
    completion = response.json
    assert completion["object"] == "chat.completion"
    assert completion["created"] == CREATED
    assert completion["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hello from",
                "refusal": None,
                "reasoning_content": THOUGHT_TEXT,
                "images": [{"type": "image_url", "image_url": {"url": IMAGE_URL}, "index": 0}],
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert completion["usage"]["total_tokens"] == 2 + 3 + 2


async def test_openai_fields() -> None:
    """OpenAI tells its request id, rates and time; compatible mode only the id."""
    async with vendor_of_tests() as vendor:
        own = await ask(vendor, f"{CHAT}?first_byte_ms=30", STREAM)
        compatible = await ask(vendor, COMPATIBLE, STREAM)

    assert own.fields["x-request-id"] == "req_" + "1".zfill(32)
    assert own.fields["x-ratelimit-limit-requests"] == "10000"
    assert own.fields["x-ratelimit-remaining-requests"] == "9999"
    assert own.fields["x-ratelimit-reset-requests"] == "6ms"
    assert 30 <= int(own.fields["openai-processing-ms"]) < 10_000
    assert compatible.fields["x-request-id"] == "req_" + "2".zfill(32)
    assert not {name for name in compatible.fields if name.startswith(("openai-", "x-ratelimit-"))}


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "invalid_request_error", None),
        (401, "invalid_request_error", "invalid_api_key"),
        (429, "requests", "rate_limit_exceeded"),
        (500, "server_error", "server_error"),
        (529, "overloaded_error", "overloaded"),
        (418, "invalid_request_error", None),
        (502, "server_error", None),
    ],
)
async def test_openai_status(status: int, kind: str, code: str | None) -> None:
    """An error that is asked for comes as OpenAI's error object; only 429 says when to come back."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{CHAT}?status={status}", STREAM)

    assert response.status == status
    message = f"The mock was told to answer {status}."
    assert response.json == {"error": {"message": message, "type": kind, "param": None, "code": code}}
    assert response.fields.get("retry-after") == ("1" if status == 429 else None)


async def test_chat_error_event() -> None:
    """An error inside a stream is a data line with `error`; then the stream ends without `[DONE]`."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{CHAT}?fault=error_event&fault_after=2", STREAM)

    assert response.chunks[1] == chunk(b'{"content":"Hello"}')
    assert response.chunks[2:] == [
        (
            b'data: {"error":{"message":"The mock was told to fail here.","type":"server_error",'
            b'"param":null,"code":"server_error"}}\n\n'
        )
    ]


@pytest.mark.parametrize("path", ["/v1/models", "/compatible-mode/v1/models"])
async def test_openai_models(path: str) -> None:
    """The model list has OpenAI's shape."""
    async with vendor_of_tests() as vendor:
        listed = (await ask(vendor, path, headers=BEARER)).json

    assert listed["object"] == "list"
    assert [set(model) for model in listed["data"]] == [{"id", "object", "created", "owned_by"}] * 3
