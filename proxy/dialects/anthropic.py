"""Anthropic's dialect: messages."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.dialects.base import Dialect, broken_stream_status
from proxy.dialects.output_bound import BoundMembers
from proxy.dialects.preamble import judge_anthropic
from proxy.dialects.typed.anthropic import AnthropicReader
from proxy.dialects.usage import ANTHROPIC_PLAIN_TEXT, anthropic_text_bytes, anthropic_whole_text_bytes, count_anthropic
from proxy.protocol.sse_observer import encode_event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.dialects.preamble import Verdict
    from proxy.dialects.usage import Counts
    from proxy.errors import ProxyError

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
    plain_text = ANTHROPIC_PLAIN_TEXT

    def smallest_request(self, model: str) -> tuple[str, bytes]:
        """One token of a message."""
        messages = [{"role": "user", "content": "Hi"}]
        return self.default_path, orjson.dumps({"model": model, "max_tokens": 1, "messages": messages})

    def error_body(self, error: ProxyError) -> bytes:
        """Write the error with Anthropic's `error.type`, and the proxy's own code as `code` beside it."""
        return _error(error.status, error.code, error.message)

    def error_event(self, code: str, message: str, path: bytes) -> bytes | None:  # noqa: ARG002 - the same everywhere
        """Write the error body as an event named `error`."""
        return encode_event(_error(broken_stream_status(code), code, message), b"error")

    def vendor_error_event(self, status: int, body: dict[str, Any]) -> bytes | None:  # noqa: ARG002 - not in the body
        """Write the vendor's error as an event named `error`."""
        return encode_event(orjson.dumps(body), b"error") if body.get("type") == "error" else None

    def count(self, event: dict[str, Any], counts: Counts) -> None:
        """See `usage`."""
        count_anthropic(event, counts)

    def text_bytes(self, event: dict[str, Any]) -> int:
        """See `usage`."""
        return anthropic_text_bytes(event)

    def whole_text_bytes(self, answer: dict[str, Any]) -> int:
        """See `usage`."""
        return anthropic_whole_text_bytes(answer)

    def judge(self, name: bytes, value: dict[str, Any]) -> Verdict:
        """See `preamble`."""
        return judge_anthropic(name, value)

    def reader(self, request_body: bytes | bytearray) -> AnthropicReader:  # noqa: ARG002 - the same for every request
        """Needs nothing of the request."""
        return AnthropicReader()


def _error(status: int, code: str, message: str) -> bytes:
    kind = _TYPES.get(status, "api_error" if status >= _SERVER_ERROR else "invalid_request_error")
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message, "code": code}})
