"""DashScope's native dialect: no space after the colons of its events, flat errors."""

from __future__ import annotations

import orjson

from proxy.dialects.base import Dialect


def _error(status: int, code: str, message: str) -> bytes:  # noqa: ARG001 - DashScope's body has no room for the status
    return orjson.dumps({"code": code, "message": message, "request_id": ""})


def _event(code: str, message: str, path: bytes) -> bytes:  # noqa: ARG001 - the same everywhere
    # dashscope-python looks for the very bytes `event:error` (dashscope/common/utils.py), and for the real status in a
    # comment, as the vendor writes it.
    return b"event:error\n:HTTP_STATUS/502\ndata:" + _error(502, code, message) + b"\n\n"


DASHSCOPE = Dialect(
    name="dashscope",
    default_path="/api/v1/services/aigc/text-generation/generation",
    default_allow_paths=("/api/v1/services/aigc/*", "/api/v1/apps/*", "/api/v1/models", "/api/v1/models/*"),
    credential_name=b"Authorization",
    credential_prefix=b"Bearer ",
    words_error=_error,
    words_event=_event,
    stream_field=(b"X-DashScope-SSE", b"enable"),
)
