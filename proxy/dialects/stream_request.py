"""Whether a request asks for an event stream: known before anything has been answered.

What an answer is, its own `Content-Type` says; this is for those who must know earlier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.errors import Field

# A larger body is not parsed for this, which would hold up every stream of the worker: it counts as not asking.
MAX_BODY_BYTES: Final = 64 * 1024
_EVENT_STREAM: Final = b"text/event-stream"


def asks_for_stream(dialect_name: str, method: str, fields: Iterable[Field], body: bytes) -> bool:
    """Whether a request says, in its dialect's way, that its answer is to be an event stream.

    The SDKs of OpenAI and Anthropic send `Accept: application/json` with streams, so there the body's member counts,
    and nothing else. Gemini's streams are told by their path, but nothing may be written into one. Where it is not
    certain the answer is no. Takes time in proportion to the body, of at most `MAX_BODY_BYTES`.
    """
    if method == "HEAD":
        return False
    match dialect_name:
        case "openai" | "anthropic":
            return _asks_in_body(body)
        case "dashscope":
            names = {name.lower(): value.strip().lower() for name, value in fields}
            return names.get(b"x-dashscope-sse") == b"enable" or _accepts_stream(names.get(b"accept", b""))
        case "raw":
            return any(name.lower() == b"accept" and _accepts_stream(value.lower()) for name, value in fields)
        case _:
            return False


def _asks_in_body(body: bytes) -> bool:
    if len(body) > MAX_BODY_BYTES or b'"stream"' not in body:
        return False
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(request, dict) and request.get("stream") is True


def _accepts_stream(value: bytes) -> bool:
    return any(part.partition(b";")[0].strip() == _EVENT_STREAM for part in value.split(b","))
