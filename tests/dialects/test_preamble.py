"""What a stream's first events are, in each dialect: nothing, preamble, output or an error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.dialects import DIALECTS
from proxy.dialects.preamble import judge
from proxy.protocol.event_stream import Event


def chat(delta: dict[str, Any] | None = None, **choice: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta or {}, **choice}]}


def candidate(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"role": "model", "parts": list(parts)}, **more}]}


def dashscope(content: Any, finish: str = "null", **message: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": content, **message}
    return {"output": {"choices": [{"message": said, "finish_reason": finish}]}, "usage": {"input_tokens": 3}}


RESPONSE = {"id": "resp_1", "object": "response", "status": "in_progress", "output": []}
CASES: list[tuple[str, bytes, Any, str]] = [
    # Chat completions.
    ("openai", b"", chat({"role": "assistant", "content": ""}), "preamble"),
    ("openai", b"", chat({"role": "assistant", "content": None, "refusal": None}, finish_reason=None), "preamble"),
    ("openai", b"", {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}, "preamble"),
    ("openai", b"", {"choices": [], "usage": {"prompt_tokens": 1}}, "preamble"),
    ("openai", b"", {"id": "x", "provider": "y"}, "preamble"),
    ("openai", b"", chat({"content": "H"}), "output"),
    ("openai", b"", chat({"reasoning_content": "Hm"}), "output"),
    ("openai", b"", chat({"tool_calls": [{"index": 0}]}), "output"),
    ("openai", b"", chat({"audio": {"id": "a"}}), "output"),
    ("openai", b"", chat({}, finish_reason="stop"), "output"),
    ("openai", b"", {"choices": [{"index": 0, "text": "H"}]}, "output"),
    ("openai", b"", {"choices": [{"index": 0, "message": {"content": "whole"}}]}, "output"),
    ("openai", b"", {"answer": "of another API"}, "output"),
    ("openai", b"", {"error": {"message": "m", "type": "server_error", "code": "server_error"}}, "error"),
    ("openai", b"", {"error": {"message": "m", "code": 429}, "choices": [{"finish_reason": "error"}]}, "error"),
    ("openai", b"", {"error": {"code": "insufficient_quota", "type": "insufficient_quota"}}, "error"),
    ("openai", b"", {"error": {"code": "invalid_api_key", "type": "invalid_request_error"}}, "error"),
    ("openai", b"", {"object": "error", "message": "vLLM's", "code": 500}, "error"),
    ("openai", b"", {"error": "a mere text"}, "error"),
    ("openai", b"", {"error": {"message": "m", "type": "invalid_request_error", "code": None}}, "output"),
    ("openai", b"", {"error": {"message": "m", "code": "context_length_exceeded"}}, "output"),
    ("openai", b"", {"error": {"message": "m", "code": 400}}, "output"),
    ("openai", b"", {"error": {"message": "m", "code": "404"}}, "output"),
    ("openai", b"", {"object": "error", "message": "vLLM's", "code": 400}, "output"),
    # Responses.
    ("openai", b"response.created", {"type": "response.created", "response": RESPONSE}, "preamble"),
    ("openai", b"response.in_progress", {"type": "response.in_progress", "response": RESPONSE}, "preamble"),
    ("openai", b"", {"type": "response.output_item.added", "item": {"type": "message", "content": []}}, "preamble"),
    ("openai", b"", {"type": "response.content_part.added", "part": {"text": ""}}, "preamble"),
    ("openai", b"", {"type": "response.output_text.delta", "delta": ""}, "preamble"),
    ("openai", b"", {"type": "response.output_text.delta", "delta": "H"}, "output"),
    ("openai", b"", {"type": "response.reasoning_summary_text.delta", "delta": "H"}, "output"),
    ("openai", b"", {"type": "response.completed", "response": RESPONSE}, "output"),
    ("openai", b"", {"type": "response.of.next.year"}, "output"),
    ("openai", b"", {"type": "error", "code": "server_error", "message": "m", "sequence_number": 2}, "error"),
    ("openai", b"", {"type": "response.failed", "response": {"error": {"code": "server_error"}}}, "error"),
    ("openai", b"", {"type": "response.failed", "response": {"error": {"code": "rate_limit_exceeded"}}}, "error"),
    ("openai", b"", {"type": "response.failed", "response": {"error": {"code": "invalid_prompt"}}}, "output"),
    # Messages.
    ("anthropic", b"message_start", {"type": "message_start", "message": {"content": []}}, "preamble"),
    ("anthropic", b"ping", {"type": "ping"}, "nothing"),
    ("anthropic", b"ping", {}, "nothing"),
    ("anthropic", b"", {"type": "content_block_start", "content_block": {"type": "text", "text": ""}}, "preamble"),
    ("anthropic", b"", {"type": "content_block_start", "content_block": {"type": "text", "text": "H"}}, "output"),
    ("anthropic", b"", {"type": "content_block_start", "content_block": {"type": "tool_use", "name": "t"}}, "output"),
    ("anthropic", b"", {"type": "content_block_delta", "delta": {"type": "text_delta", "text": ""}}, "preamble"),
    ("anthropic", b"", {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "H"}}, "output"),
    ("anthropic", b"", {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, "output"),
    ("anthropic", b"", {"type": "message_delta", "delta": {}}, "preamble"),
    ("anthropic", b"message_stop", {"type": "message_stop"}, "output"),
    ("anthropic", b"error", {"type": "error", "error": {"type": "overloaded_error"}}, "error"),
    ("anthropic", b"error", {"type": "error", "error": {"type": "rate_limit_error"}}, "error"),
    ("anthropic", b"error", {"type": "error", "error": {"type": "invalid_request_error"}}, "output"),
    ("anthropic", b"", {"type": "of_next_year"}, "preamble"),
    # Gemini.
    ("gemini", b"", candidate({"text": ""}), "preamble"),
    ("gemini", b"", {"candidates": [], "usageMetadata": {"promptTokenCount": 3}}, "preamble"),
    ("gemini", b"", {"usageMetadata": {"promptTokenCount": 3}}, "preamble"),
    ("gemini", b"", candidate({"text": "H"}), "output"),
    ("gemini", b"", candidate({"text": "Hm", "thought": True}), "output"),
    ("gemini", b"", candidate({"text": "", "thought": True}), "preamble"),
    ("gemini", b"", candidate({"functionCall": {"name": "f"}}), "output"),
    ("gemini", b"", candidate(finishReason="STOP"), "output"),
    ("gemini", b"", {"promptFeedback": {"blockReason": "SAFETY"}}, "output"),
    ("gemini", b"", {"error": {"code": 503, "status": "UNAVAILABLE"}}, "error"),
    ("gemini", b"", {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}, "error"),
    ("gemini", b"", {"error": {"code": 400, "status": "INVALID_ARGUMENT"}}, "output"),
    # DashScope.
    ("dashscope", b"result", dashscope(""), "preamble"),
    ("dashscope", b"result", dashscope("", reasoning_content="Hm"), "output"),
    ("dashscope", b"result", dashscope("H"), "output"),
    ("dashscope", b"result", dashscope([{"text": "H"}]), "output"),
    ("dashscope", b"result", dashscope("", "stop"), "output"),
    ("dashscope", b"result", {"output": {"text": "", "finish_reason": "null", "session_id": "s"}}, "preamble"),
    ("dashscope", b"result", {"output": {"text": "H", "finish_reason": "null"}}, "output"),
    ("dashscope", b"result", {"request_id": "r"}, "preamble"),
    ("dashscope", b"error", {"code": "Throttling.RateLimit", "message": "m"}, "error"),
    ("dashscope", b"error", {"code": "Arrearage", "message": "m"}, "error"),
    ("dashscope", b"", {"code": "InternalError", "message": "m"}, "error"),
    ("dashscope", b"error", {"code": "InvalidParameter", "message": "m"}, "output"),
    ("dashscope", b"error", {"code": "DataInspectionFailed", "message": "m"}, "output"),
    # Of a raw stream nothing is known.
    ("raw", b"", {"anything": 1}, "output"),
]


@pytest.mark.parametrize(("dialect", "name", "value", "verdict"), CASES)
def test_preamble(dialect: str, name: bytes, value: Any, verdict: str) -> None:
    """Output is what a user would see or pay for; an error for which the request is at fault is the vendor's answer."""
    assert judge(DIALECTS[dialect], Event(name, json.dumps(value).encode())) == verdict


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("data", "verdict"),
    [(b"", "nothing"), (b" ", "nothing"), (b"[DONE]", "nothing"), (b"no JSON", "output"), (b"[1]", "output")],
)
def test_preamble_of_no_object(dialect: str, data: bytes, verdict: str) -> None:
    """An event without data is nothing; what cannot be read is the vendor's answer."""
    assert judge(DIALECTS[dialect], Event(b"", data)) == verdict
