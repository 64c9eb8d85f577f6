"""Streams as the mock vendor sends them in each dialect, and the typed events that they become."""

from __future__ import annotations

import json
from typing import Any

import orjson

from proxy.mock.answer import Ask
from proxy.mock.controls import Controls
from proxy.mock.reply import IMAGE_URL, THOUGHTS
from proxy.mock.routes import find_endpoint

TEXT = "/api/v1/services/aigc/text-generation/generation"
MULTIMODAL = "/api/v1/services/aigc/multimodal-generation/generation"
STREAMED = {"stream": True}
WORDS = ("Hello", " from", " the")
INCREMENTAL = {"incremental_output": True}
USAGE = {"input": 1, "output": 6, "total": 7}

THOUGHT = [{"t": "Think", "r": thought} for thought in THOUGHTS]
SAID = [{"t": "Text", "r": word} for word in WORDS]
DRAWN = [{"t": "Image", "r": IMAGE_URL}]


def end(**usage: int) -> dict[str, Any]:
    return {"t": "End", "r": "", "usage": usage} if usage else {"t": "End", "r": ""}


def failed(code: str, message: str = "The mock was told to fail here.") -> dict[str, Any]:
    return {"t": "Error", "r": message, "code": code}


def mocked(path: str, body: dict[str, Any]) -> tuple[list[bytes], bytes]:
    """The events that the mock answers with, and the one by which it fails in the middle."""
    path, _, query = path.partition("?")
    ask = Ask(
        number=1,
        created=1,
        path=path,
        headers={"x-dashscope-sse": "enable"},
        query={"alt": "sse"} if query else {},
        body=body,
        controls=Controls(events=3),
    )
    endpoint = find_endpoint(path, {})
    assert endpoint is not None
    answer = endpoint.answer(ask)
    assert answer.error_event is not None
    return list(answer.pieces), answer.error_event(2)


def read(data: bytes) -> list[dict[str, Any]]:
    *blocks, rest = data.split(b"\n\n")
    assert rest == b""
    return [json.loads(block.removeprefix(b"data: ")) for block in blocks]


def data(*values: object) -> bytes:
    return b"".join(b"data: " + orjson.dumps(value) + b"\n\n" for value in values)


# What the mock sends, in each dialect: body, expected events, the code of its error event.
STREAMS: dict[str, tuple[str, str, dict[str, Any], list[dict[str, Any]], str]] = {
    "chat": (
        "openai",
        "/v1/chat/completions",
        {"model": "think-image", **STREAMED, "stream_options": {"include_usage": True}},
        [*THOUGHT, *SAID, *DRAWN, end(**USAGE)],
        "server_error",
    ),
    "chat without usage": ("openai", "/v1/chat/completions", {**STREAMED}, [*SAID, end()], "server_error"),
    "compatible mode": (
        "openai",
        "/compatible-mode/v1/chat/completions",
        {"enable_thinking": True, **STREAMED},
        [*THOUGHT, *SAID, end()],
        "server_error",
    ),
    "responses": (
        "openai",
        "/v1/responses",
        {"model": "think-image", **STREAMED},
        [*THOUGHT, *SAID, *DRAWN, end(**USAGE)],
        "server_error",
    ),
    "anthropic": (
        "anthropic",
        "/v1/messages",
        {"model": "think", **STREAMED},
        [*THOUGHT, *SAID, end(**USAGE)],
        "overloaded_error",
    ),
    "gemini": (
        "gemini",
        "/v1beta/models/think-image:streamGenerateContent?alt=sse",
        {},
        [*THOUGHT, *SAID, *DRAWN, end(**USAGE)],
        "UNAVAILABLE",
    ),
    "dashscope text": ("dashscope", TEXT, {"model": "think"}, [*THOUGHT, *SAID, end(**USAGE)], "InternalError"),
    "dashscope message": (
        "dashscope",
        TEXT,
        {"model": "think", "parameters": {"result_format": "message"}},
        [*THOUGHT, *SAID, end(**USAGE)],
        "InternalError",
    ),
    "dashscope incremental": (
        "dashscope",
        TEXT,
        {"model": "think", "parameters": {"result_format": "message", **INCREMENTAL}},
        [*THOUGHT, *SAID, end(**USAGE)],
        "InternalError",
    ),
    "dashscope multimodal": (
        "dashscope",
        MULTIMODAL,
        {"model": "think-image"},
        [*THOUGHT, *SAID, *DRAWN, end(**USAGE)],
        "InternalError",
    ),
    "dashscope multimodal incremental": (
        "dashscope",
        MULTIMODAL,
        {"model": "think-image", "parameters": INCREMENTAL},
        [*THOUGHT, *SAID, *DRAWN, end(**USAGE)],
        "InternalError",
    ),
    "dashscope app": (
        "dashscope",
        "/api/v1/apps/a/completion",
        {},
        [*SAID, end(input=1, output=3, total=4)],
        "InternalError",
    ),
}
