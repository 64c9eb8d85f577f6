"""Anthropic's dialect: messages."""

from __future__ import annotations

import orjson

from proxy.dialects.base import Dialect
from proxy.protocol.sse import encode_event

# Anthropic's words for kinds of errors (docs, "Errors").
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _error(status: int, code: str, message: str) -> bytes:
    kind = _TYPES.get(status, "invalid_request_error")
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message, "code": code}})


def _event(code: str, message: str, path: bytes) -> bytes:  # noqa: ARG001 - the same everywhere
    return encode_event(_error(502, code, message), b"error")


ANTHROPIC = Dialect(
    name="anthropic",
    default_path="/v1/messages",
    default_allow_paths=("/v1/messages", "/v1/messages/count_tokens", "/v1/models", "/v1/models/*"),
    credential_name=b"x-api-key",
    credential_prefix=b"",
    words_error=_error,
    words_event=_event,
)
