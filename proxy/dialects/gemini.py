"""Gemini's dialect: generateContent and its stream; errors as google.rpc.Status."""

from __future__ import annotations

import orjson

from proxy.dialects.base import Dialect
from proxy.protocol.sse import encode_event

# google.rpc.Code by HTTP status (google/rpc/code.proto).
_STATUSES = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def _error(status: int, code: str, message: str) -> bytes:
    return orjson.dumps(
        {
            "error": {
                "code": status,
                "message": message,
                "status": _STATUSES.get(status, "INVALID_ARGUMENT"),
                "details": [
                    {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": code, "domain": "forward-sse"}
                ],
            }
        }
    )


def _event(code: str, message: str, path: bytes) -> bytes:  # noqa: ARG001 - the same everywhere
    return encode_event(_error(502, code, message))


GEMINI = Dialect(
    name="gemini",
    default_path=None,
    default_allow_paths=("/v1/models", "/v1/models/*", "/v1beta/models", "/v1beta/models/*"),
    credential_name=b"x-goog-api-key",
    credential_prefix=b"",
    words_error=_error,
    words_event=_event,
    # google-genai's Python client dies on any comment.
    heartbeat_allowed=False,
    query_credential=True,
)
