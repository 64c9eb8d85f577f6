"""OpenAI's dialect: chat completions and responses; what "compatible modes" speak."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.dialects.base import Dialect
from proxy.dialects.output_bound import BoundMembers
from proxy.dialects.preamble import error_verdict, is_request_status, unknown_verdict
from proxy.dialects.typed.openai import OpenAIReader
from proxy.dialects.typed.reader import mapping, sequence
from proxy.dialects.usage import TEXTS, choices_bytes, parts_bytes, size_of
from proxy.dialects.usage_request import ask_usage
from proxy.protocol.sse_observer import encode_event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.dialects.preamble import Verdict
    from proxy.dialects.usage import Counts
    from proxy.errors import Field
    from proxy.protocol.json_text import JsonText, Steps

# An only choice whose delta has one text without escapes, and perhaps members that are null. A quotation mark stands in
# no text unescaped, so that this can be no part of one. Possessive: each byte is looked at once.
_PLAIN_TEXT = re.compile(
    rb'"choices":\[\{[^{}\[\]]*+(?<="delta":)\{(?:"\w++":null,)*+"(?:content|reasoning_content|reasoning)":"([^"\\]*+)"'
    rb'(?:,"\w++":null)*+\}[^{}\[\]]*+\}\]'
)
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
# https://platform.openai.com/docs/guides/error-codes, and what compatible vendors and Azure add.
_REQUEST_CODES: Final = frozenset(
    {"content_filter", "content_policy_violation", "context_length_exceeded", "invalid_prompt", "model_not_found"}
)
_KEY_CODES: Final = frozenset({"invalid_api_key", "insufficient_quota", "billing_hard_limit_reached"})


class OpenAI(Dialect):
    """`{"error": {…}}`, before a stream and in it; the Responses API has an error event of its own."""

    name = "openai"
    provider = "openai"
    default_path = "/v1/chat/completions"
    root_paths = (b"/v1/chat/completions", b"/v1/responses", b"/v1/completions", b"/v1/embeddings")
    models_path = "/v1/models"
    # With `/v1` and without: the operator's url may end in it, as the SDKs' base URLs do. The others are Azure's. No
    # `/v1/responses/*`, files, batches, assistants or voices: what is stored there belongs to everybody who shares the
    # vendor's key. No `/v1/realtime/*`: it hands out credentials of the vendor's.
    generation_paths = tuple(
        version + path
        for version in ("/v1", "", "/openai/v1", "/openai", "/openai/deployments/*")
        for path in (
            "/chat/completions",
            "/completions",
            "/responses",
            "/responses/compact",
            "/responses/input_tokens",
            "/embeddings",
            "/rerank",
            "/moderations",
            "/images/generations",
            "/images/edits",
            "/images/variations",
            "/audio/speech",
            "/audio/transcriptions",
            "/audio/translations",
        )
    )
    counting_ends = (b"/responses/input_tokens",)
    model_paths = tuple(
        version + path for version in ("/v1", "", "/openai/v1", "/openai") for path in ("/models", "/models/*")
    )
    # The SDK sends `Accept: application/json` with streams too, so no field counts.
    has_stream_member = True
    usage_on_request = True
    # The second is what the first became, the third the Responses API's.
    bound_members = BoundMembers(("max_tokens", "max_completion_tokens", "max_output_tokens"), ("n",))
    plain_text = _PLAIN_TEXT

    def smallest_request(self, model: str) -> tuple[str, bytes]:
        """One token of a chat completion."""
        messages = [{"role": "user", "content": "Hi"}]
        return self.default_path, orjson.dumps({"model": model, "max_tokens": 1, "messages": messages})

    def error_event(self, code: str, message: str, path: bytes) -> bytes | None:
        """Data with an `error` member: the SDKs raise on it, whatever the event's name.

        The Responses API's `error` event is flat, and its readers want a `sequence_number`. It is 0, because nobody
        here has counted the events that passed.
        """
        if path.partition(b"?")[0].endswith(b"/responses"):
            flat = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": 0}
            return encode_event(orjson.dumps(flat), b"error")
        return super().error_event(code, message, path)

    def vendor_error_event(self, status: int, body: dict[str, Any]) -> bytes | None:  # noqa: ARG002 - not in the body
        """Data with the vendor's `error` member, in both APIs: the SDKs raise on it."""
        return encode_event(orjson.dumps(body)) if body.get("error") else None

    def ask_usage(self, target: bytes, fields: Sequence[Field], body: JsonText) -> Steps[JsonText | None]:
        """See `usage_request`."""
        return ask_usage(target, fields, body)

    def count(self, event: dict[str, Any], counts: Counts) -> None:
        """Chat completions, completions, embeddings, and the Responses API, whose events have the response in them.

        https://platform.openai.com/docs/api-reference/chat-streaming, …/responses-streaming
        """
        response = mapping(event.get("response"))
        counts.keep_model(event.get("model"), response.get("model"))
        usage = mapping(event.get("usage")) or mapping(response.get("usage"))
        if not usage:
            return
        counts.keep("input", usage.get("prompt_tokens"), usage.get("input_tokens"))
        counts.keep("output", usage.get("completion_tokens"), usage.get("output_tokens"))
        sent = mapping(usage.get("prompt_tokens_details")) or mapping(usage.get("input_tokens_details"))
        counts.keep("cached", sent.get("cached_tokens"), usage.get("prompt_cache_hit_tokens"))
        counts.keep("cache_write", sent.get("cache_creation_input_tokens"))
        made = mapping(usage.get("completion_tokens_details")) or mapping(usage.get("output_tokens_details"))
        counts.keep("reasoning", made.get("reasoning_tokens"))
        if counts.output is None and counts.input is not None and "total_tokens" in usage:
            # Embeddings: everything is input.
            counts.output = 0

    def text_bytes(self, event: dict[str, Any]) -> int:
        """What an event adds to the answer: text, thoughts, a tool's input."""
        if isinstance(delta := event.get("delta"), str):
            return size_of(delta)
        size = 0
        for choice in sequence(event.get("choices")):
            of = mapping(choice)
            if "text" in of:
                size += size_of(of["text"])
            delta = mapping(of.get("delta"))
            for name in TEXTS:
                if name in delta:
                    size += size_of(delta[name])
            if "tool_calls" in delta:
                for call in sequence(delta["tool_calls"]):
                    size += size_of(mapping(mapping(call).get("function")).get("arguments"))
        return size

    def whole_text_bytes(self, answer: dict[str, Any]) -> int:
        """What a whole answer says: of chat, of completions, of responses."""
        size = choices_bytes(answer.get("choices"))
        for item in map(mapping, sequence(answer.get("output"))):
            size += parts_bytes(item.get("content")) + parts_bytes(item.get("summary")) + size_of(item.get("arguments"))
        return size

    def judge(self, name: bytes, value: dict[str, Any]) -> Verdict:  # noqa: ARG002 - events have no names, or repeat them
        """Chat completions, completions and responses; what tells them apart is `type`."""
        kind = value.get("type")
        if isinstance(kind, str) and (kind == "error" or kind.startswith("response.")):
            return _judge_response(kind, value)
        if value.get("error") or value.get("object") == "error":
            return error_verdict(_is_request_fault(value.get("error") or value))
        if "choices" not in value:
            return unknown_verdict(value)
        for choice in map(mapping, sequence(value["choices"])):
            delta = mapping(choice.get("delta"))
            said = any(content for name, content in delta.items() if name != "role")
            if said or any(choice.get(name) for name in ("finish_reason", "text", "message")):
                return "output"
        return "preamble"

    def reader(self, request_body: bytes | bytearray) -> OpenAIReader:  # noqa: ARG002 - the same for every request
        """Needs nothing of the request."""
        return OpenAIReader()


def _judge_response(kind: str, value: dict[str, Any]) -> Verdict:
    if kind == "error":
        return error_verdict(_is_request_fault(value.get("error") or value))
    if kind == "response.failed":
        return error_verdict(_is_request_fault(mapping(value.get("response")).get("error")))
    if kind in _RESPONSE_PREAMBLE or (kind.endswith(".delta") and value.get("delta") == ""):
        return "preamble"
    return "output"


def _is_request_fault(error: object) -> bool:
    members = mapping(error)
    code, status = members.get("code"), members.get("status")
    if is_request_status(code) or is_request_status(status) or code in _REQUEST_CODES:
        return True
    return members.get("type") == "invalid_request_error" and code not in _KEY_CODES
