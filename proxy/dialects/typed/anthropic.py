"""What Anthropic's message streams say."""

from __future__ import annotations

from typing import Any

from proxy.dialects.typed.reader import (
    Piece,
    Reader,
    UnreadableError,
    content_mapping,
    content_of,
    failure_of,
    mapping,
    pass_over,
)


class AnthropicReader(Reader):
    """`message_stop` is the end."""

    def read(self, name: bytes, value: dict[str, Any]) -> list[Piece]:
        """Go by `type`, or by the event's name where a server leaves it out."""
        kind = value.get("type") or name.decode("utf-8", "replace")
        if kind == "content_block_delta":
            return _pieces(content_mapping(value.get("delta")))
        if kind == "content_block_start":
            return _pieces(content_mapping(value.get("content_block")))
        if kind == "message_delta":
            if mapping(value.get("delta")).get("stop_reason"):
                self.is_whole = True
        elif kind == "message_stop":
            self.is_whole = self.is_over = True
        elif kind == "error":
            error = mapping(value.get("error"))
            self.failure = failure_of(error, code=error.get("type"))
        elif not isinstance(kind, str) or not kind:
            pass_over(value)
        return []


def _pieces(part: dict[str, Any]) -> list[Piece]:
    """What a block begins with, or what is added to it; a signature, a tool's input or a citation is neither.

    Raises:
        UnreadableError: it is text or thought in a form that nobody knows.
    """
    kind = part.get("type")
    if kind in {"text_delta", "text"}:
        return [Piece("Text", content_of(part.get("text")))]
    if kind in {"thinking_delta", "thinking"}:
        return [Piece("Think", content_of(part.get("thinking")))]
    if part.get("text") or part.get("thinking"):
        raise UnreadableError
    return []
