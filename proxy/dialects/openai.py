"""OpenAI's dialect: chat completions and responses; also what "compatible modes" speak."""

from __future__ import annotations

import orjson

from proxy.dialects.base import Dialect
from proxy.protocol.sse import encode_event

# OpenAI's words for kinds of errors (platform docs, "Error codes").
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
    504: "server_error",
}


def error(status: int, code: str, message: str) -> bytes:
    """An error as OpenAI's API answers it."""
    kind = _TYPES.get(status, "invalid_request_error")
    return orjson.dumps({"error": {"message": message, "type": kind, "code": code, "param": None}})


def event(code: str, message: str, path: bytes) -> bytes:
    """An error in a stream: Responses has an event of its own, flat; chat has data with an `error` member."""
    if path.partition(b"?")[0].endswith(b"/responses"):
        data = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": 0}
        return encode_event(orjson.dumps(data), b"error")
    return encode_event(error(502, code, message))


OPENAI = Dialect(
    name="openai",
    default_path="/v1/chat/completions",
    default_allow_paths=(
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/models",
        "/v1/models/*",
    ),
    credential_name=b"Authorization",
    credential_prefix=b"Bearer ",
    words_error=error,
    words_event=event,
)
