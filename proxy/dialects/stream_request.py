"""How a request asks for an event stream: by the member `stream` of its body, or by `Accept`.

Which of them counts, each dialect decides. What a response is, its own `Content-Type` says; this is for those who must
know before anything has been answered.
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


def has_true_stream_member(fields: Iterable[Field], body: JsonText) -> Steps[bool]:
    """Check whether the body's member `stream` is true; no for a body in a content coding, which is not read.

    Yields after each piece of a large body.
    """
    # `in` would first try whether the member's name is a number, and fail at some cost.
    if body.find(b'"stream"') < 0 or any(name.lower() == b"content-encoding" for name, _ in fields):
        return False
    try:
        return (yield from read_body(body)).stream is True
    except ProxyError:
        # The vendor's to judge.
        return False


def accepts_event_stream(fields: Iterable[Field]) -> bool:
    """Check whether an `Accept` field names the media type of event streams (RFC 9110 §12.5.1)."""
    return any(name.lower() == b"accept" and _names_event_stream(value) for name, value in fields)


def _names_event_stream(accept: bytes) -> bool:
    return any(part.partition(b";")[0].strip() == _EVENT_STREAM for part in accept.lower().split(b","))
