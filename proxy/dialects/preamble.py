"""What a stream's first events are: the vendor's preamble, output, or an error. Pure functions, one a dialect.

HTTP 200 is not success: vendors send `response.created`, a role, pings and empty lists of choices, and then an error.
*Output* is whatever a user would see or pay for, and the end of an answer. What is not known is output where it holds
one of the members that hold answers, so that no answer is held back for long; else it is preamble.

An error that says that the request itself is at fault is output, too: every vendor would say the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from proxy.dialects.typed.reader import ANSWERS, mapping, sequence, text_of

if TYPE_CHECKING:
    from proxy.dialects.base import Dialect
    from proxy.protocol.event_stream import Event

Verdict = Literal["nothing", "preamble", "output", "error"]

_DONE: Final = b"[DONE]"
_CLIENT_ERRORS: Final = range(400, 500)
# The key's, or the vendor's own affair, although they are 4xx.
_NOT_THE_REQUESTS: Final = frozenset({401, 402, 403, 408, 409, 425, 429})


def judge(dialect: Dialect, event: Event) -> Verdict:
    """Return what an event is. `nothing`: a ping, or an event without data."""
    data = event.data.strip()
    if not data or data == _DONE:
        return "nothing"
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return "output"
    return dialect.judge(event.name, value) if isinstance(value, dict) else "output"


def judge_openai(value: dict[str, Any]) -> Verdict:
    """Chat completions, completions and responses; what tells them apart is `type`."""
    kind = value.get("type")
    if isinstance(kind, str) and (kind == "error" or kind.startswith("response.")):
        return _judge_response(kind, value)
    if value.get("error") or value.get("object") == "error":
        return _error(_is_openai_request_fault(value.get("error") or value))
    if "choices" not in value:
        return _unknown(value)
    for choice in map(mapping, sequence(value["choices"])):
        delta = mapping(choice.get("delta"))
        said = any(content for name, content in delta.items() if name != "role")
        if said or any(choice.get(name) for name in ("finish_reason", "text", "message")):
            return "output"
    return "preamble"


# What the Responses API sends before there is anything of the answer.
_RESPONSE_PREAMBLE: Final = frozenset(
    {
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_summary_part.added",
    }
)


def _judge_response(kind: str, value: dict[str, Any]) -> Verdict:
    if kind == "error":
        return _error(_is_openai_request_fault(value.get("error") or value))
    if kind == "response.failed":
        return _error(_is_openai_request_fault(mapping(value.get("response")).get("error")))
    if kind in _RESPONSE_PREAMBLE or (kind.endswith(".delta") and value.get("delta") == ""):
        return "preamble"
    return "output"


# https://platform.openai.com/docs/guides/error-codes, and what compatible vendors and Azure add.
_OPENAI_REQUEST_CODES: Final = frozenset(
    {"content_filter", "content_policy_violation", "context_length_exceeded", "invalid_prompt", "model_not_found"}
)
_OPENAI_KEY_CODES: Final = frozenset({"invalid_api_key", "insufficient_quota", "billing_hard_limit_reached"})


def _is_openai_request_fault(error: object) -> bool:
    members = mapping(error)
    code, status = members.get("code"), members.get("status")
    if _is_request_status(code) or _is_request_status(status) or code in _OPENAI_REQUEST_CODES:
        return True
    return members.get("type") == "invalid_request_error" and code not in _OPENAI_KEY_CODES


def judge_anthropic(name: bytes, value: dict[str, Any]) -> Verdict:
    """Messages: by `type`, or by the event's name where a server leaves it out."""
    kind = value.get("type") or name.decode("utf-8", "replace")
    if kind == "ping":
        return "nothing"
    if kind == "error":
        return _error(mapping(value.get("error")).get("type") in _ANTHROPIC_REQUEST_TYPES)
    if kind == "content_block_start":
        block = mapping(value.get("content_block"))
        # A block of text begins empty; one of a tool begins with the tool's name.
        is_empty = block.get("type") in {"text", "thinking"} and not (block.get("text") or block.get("thinking"))
        return "preamble" if is_empty else "output"
    if kind == "content_block_delta":
        return (
            "output"
            if any(text for part, text in mapping(value.get("delta")).items() if part != "type")
            else "preamble"
        )
    if kind == "message_start":
        return "output" if mapping(value.get("message")).get("content") else "preamble"
    if kind == "message_delta":
        return "output" if mapping(value.get("delta")).get("stop_reason") else "preamble"
    return "output" if kind == "message_stop" else _unknown(value)


# https://docs.anthropic.com/en/api/errors
_ANTHROPIC_REQUEST_TYPES: Final = frozenset({"invalid_request_error", "not_found_error", "request_too_large"})


def judge_gemini(value: dict[str, Any]) -> Verdict:
    """Chunks of candidates; a blocked prompt is an answer, and the request's own fault."""
    if error := value.get("error"):
        return _error(_is_request_status(mapping(error).get("code")))
    if mapping(value.get("promptFeedback")).get("blockReason"):
        return "output"
    if "candidates" not in value:
        return _unknown(value)
    for candidate in map(mapping, sequence(value["candidates"])):
        parts = map(mapping, sequence(mapping(candidate.get("content")).get("parts")))
        if candidate.get("finishReason") or any(
            content for part in parts for member, content in part.items() if member != "thought"
        ):
            return "output"
    return "preamble"


def judge_dashscope(name: bytes, value: dict[str, Any]) -> Verdict:
    """The flat form, that of choices, and that of applications."""
    output = value.get("output")
    if name == b"error" or (value.get("code") and not isinstance(output, dict)):
        return _error(text_of(value.get("code")).startswith(_DASHSCOPE_REQUEST_CODES))
    if not isinstance(output, dict):
        return _unknown(value)
    choices = [mapping(choice) for choice in sequence(output.get("choices"))]
    for said in (output, *choices):
        if text_of(said.get("finish_reason")) not in {"", "null"}:
            return "output"
    messages = (mapping(choice.get("message")) for choice in choices)
    if any(content for message in messages for member, content in message.items() if member != "role"):
        return "output"
    return "output" if any(output.get(member) for member in output if member not in _DASHSCOPE_ABOUT) else "preamble"


# Members of `output` that are no part of the answer.
_DASHSCOPE_ABOUT: Final = frozenset({"choices", "finish_reason", "reject_status", "session_id", "task_id"})
# https://help.aliyun.com/zh/model-studio/error-code
_DASHSCOPE_REQUEST_CODES: Final = (
    "InvalidParameter",
    "InvalidURL",
    "BadRequest",
    "DataInspectionFailed",
    "ModelNotFound",
)


def _is_request_status(code: object) -> bool:
    """Whether a code is an HTTP status by which the request itself is at fault."""
    if isinstance(code, str) and code.isascii() and code.isdecimal() and len(code) == len("400"):
        code = int(code)
    return isinstance(code, int) and code in _CLIENT_ERRORS and code not in _NOT_THE_REQUESTS


def _error(is_requests_own: object) -> Verdict:
    return "output" if is_requests_own else "error"


def _unknown(value: dict[str, Any]) -> Verdict:
    return "output" if any(value.get(name) for name in ANSWERS) else "preamble"
