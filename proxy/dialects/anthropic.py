"""Anthropic's dialect: messages."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.dialects.base import Dialect, broken_stream_status
from proxy.dialects.output_bound import BoundMembers
from proxy.dialects.preamble import error_verdict, unknown_verdict
from proxy.dialects.typed.anthropic import AnthropicReader
from proxy.dialects.typed.reader import mapping, sequence
from proxy.dialects.usage import json_bytes, parts_bytes, size_of
from proxy.protocol.sse_observer import encode_event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.dialects.preamble import Verdict
    from proxy.dialects.usage import Counts

# Anthropic's words for kinds of errors, by status (its API reference, "Errors"). Their 529 is our 503.
_TYPES: Final[Mapping[int, str]] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        408: "timeout_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
    }
)
_SERVER_ERROR: Final = 500
_INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_TEXTS = ("text", "thinking", "partial_json")
# As that of `openai`.
_PLAIN_TEXT = re.compile(rb'"delta":\{"type":"\w++","(?:text|thinking|partial_json)":"([^"\\]*+)"\}')
# https://docs.anthropic.com/en/api/errors
_REQUEST_TYPES: Final = frozenset({"invalid_request_error", "not_found_error", "request_too_large"})


class Anthropic(Dialect):
    """`{"type": "error", "error": {…}}`; in a stream the event must be *named* `error`: the SDKs skip nameless ones."""

    name = "anthropic"
    provider = "anthropic"
    default_path = "/v1/messages"
    root_paths = (b"/v1/messages",)
    models_path = "/v1/models"
    # No `/v1/messages/batches`, no `/v1/files`: what is there belongs to everybody who shares the vendor's key.
    generation_paths = (
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/complete",
        "/messages",
        "/messages/count_tokens",
        "/complete",
    )
    counting_ends = (b"/count_tokens",)
    model_paths = ("/v1/models", "/v1/models/*", "/models", "/models/*")
    credential_name = b"x-api-key"
    credential_prefix = b""
    required_fields = ((b"anthropic-version", b"2023-06-01"),)
    # The SDK sends `Accept: application/json` with streams too, so no field counts.
    has_stream_member = True
    # The second is that of `/v1/complete`.
    bound_members = BoundMembers(("max_tokens", "max_tokens_to_sample"))
    plain_text = _PLAIN_TEXT

    def smallest_request(self, model: str) -> tuple[str, bytes]:
        """One token of a message."""
        messages = [{"role": "user", "content": "Hi"}]
        return self.default_path, orjson.dumps({"model": model, "max_tokens": 1, "messages": messages})

    def error_json(self, status: int, code: str, message: str) -> bytes:
        """Write the error with Anthropic's `error.type`, and the proxy's own code as `code` beside it."""
        kind = _TYPES.get(status, "api_error" if status >= _SERVER_ERROR else "invalid_request_error")
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": message, "code": code}})

    def error_event(self, code: str, message: str, path: bytes) -> bytes | None:  # noqa: ARG002 - the same everywhere
        """Write the error body as an event named `error`."""
        return encode_event(self.error_json(broken_stream_status(code), code, message), b"error")

    def vendor_error_event(self, status: int, body: dict[str, Any]) -> bytes | None:  # noqa: ARG002 - not in the body
        """Write the vendor's error as an event named `error`."""
        return encode_event(orjson.dumps(body), b"error") if body.get("type") == "error" else None

    def count(self, event: dict[str, Any], counts: Counts) -> None:
        """`input_tokens` is without what the cache had or took; the output of `message_start` only holds a place.

        https://docs.anthropic.com/en/api/messages-streaming
        """
        message = mapping(event.get("message"))
        counts.keep_model(event.get("model"), message.get("model"))
        usage = mapping(event.get("usage")) or mapping(message.get("usage"))
        counts.keep_sum("input", usage, _INPUT)
        counts.keep("cached", usage.get("cache_read_input_tokens"))
        counts.keep("cache_write", usage.get("cache_creation_input_tokens"))
        if not message:
            counts.keep("output", usage.get("output_tokens"))

    def text_bytes(self, event: dict[str, Any]) -> int:
        """The text, thought or tool's input of a `content_block_delta`."""
        delta = mapping(event.get("delta"))
        return sum(size_of(delta[name]) for name in _TEXTS if name in delta)

    def whole_text_bytes(self, answer: dict[str, Any]) -> int:
        """The same of a message's blocks; a tool's input is written as JSON."""
        blocks = answer.get("content")
        return parts_bytes(blocks) + sum(json_bytes(mapping(block).get("input")) for block in sequence(blocks))

    def judge(self, name: bytes, value: dict[str, Any]) -> Verdict:
        """Messages: by `type`, or by the event's name where a server leaves it out."""
        kind = value.get("type") or name.decode("utf-8", "replace")
        if kind == "ping":
            return "nothing"
        if kind == "error":
            return error_verdict(mapping(value.get("error")).get("type") in _REQUEST_TYPES)
        if kind == "content_block_start":
            block = mapping(value.get("content_block"))
            # A block of text begins empty; one of a tool begins with the tool's name.
            is_empty = block.get("type") in {"text", "thinking"} and not (block.get("text") or block.get("thinking"))
            return "preamble" if is_empty else "output"
        if kind == "content_block_delta":
            says = any(text for part, text in mapping(value.get("delta")).items() if part != "type")
            return "output" if says else "preamble"
        if kind == "message_start":
            return "output" if mapping(value.get("message")).get("content") else "preamble"
        if kind == "message_delta":
            return "output" if mapping(value.get("delta")).get("stop_reason") else "preamble"
        return "output" if kind == "message_stop" else unknown_verdict(value)

    def reader(self, request_body: bytes | bytearray) -> AnthropicReader:  # noqa: ARG002 - the same for every request
        """Needs nothing of the request."""
        return AnthropicReader()
