"""Whether a request asks for an event stream: known before anything has been answered.

What an answer is, its own `Content-Type` says; this is for those who must know earlier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.errors import ProxyError
from proxy.protocol.envelope import read_body

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.errors import Field
    from proxy.protocol.json_text import JsonText, Steps

_EVENT_STREAM: Final = b"text/event-stream"


def asks_for_stream(dialect_name: str, method: str, fields: Iterable[Field], body: JsonText) -> Steps[bool]:
    """Whether a request says, in its dialect's way, that its answer is to be an event stream.

    The SDKs of OpenAI and Anthropic send `Accept: application/json` with streams, so there the body's member counts,
    and nothing else. Gemini's streams are told by their path, but nothing may be written into one. Where it is not
    certain, as with a body in a content coding, the answer is no. Yields after each piece of a large body.
    """
    if method == "HEAD":
        return False
    match dialect_name:
        case "openai" | "anthropic":
            if any(name.lower() == b"content-encoding" for name, _ in fields):
                return False
            return (yield from _asks_in_body(body))
        case "dashscope":
            names = {name.lower(): value.strip().lower() for name, value in fields}
            return names.get(b"x-dashscope-sse") == b"enable" or _accepts_stream(names.get(b"accept", b""))
        case "raw":
            return any(name.lower() == b"accept" and _accepts_stream(value.lower()) for name, value in fields)
        case _:
            return False


def _asks_in_body(body: JsonText) -> Steps[bool]:
    if b'"stream"' not in body:
        return False
    try:
        return (yield from read_body(body)).stream is True
    except ProxyError:
        # The vendor's to judge.
        return False


def _accepts_stream(value: bytes) -> bool:
    return any(part.partition(b";")[0].strip() == _EVENT_STREAM for part in value.split(b","))
