"""What Gemini's content streams say."""

from __future__ import annotations

from typing import Any

from proxy.dialects.typed.reader import (
    Failure,
    Piece,
    Reader,
    content_mapping,
    content_of,
    content_sequence,
    failure_of,
    first_of,
    mapping,
    pass_over,
    text_of,
)


class GeminiReader(Reader):
    """`finishReason` is on the last chunk; then the stream just ends."""

    def read(self, name: bytes, value: dict[str, Any]) -> list[Piece]:  # noqa: ARG002 - events have no names
        """Take the parts of the first candidate."""
        if value.get("error"):
            error = mapping(value["error"])
            self.failure = failure_of(value["error"], code=error.get("status"))
            return []
        # A prompt that is blocked has no candidate, and no other word for it.
        if reason := text_of(mapping(value.get("promptFeedback")).get("blockReason")):
            self.failure = Failure(reason, "The prompt was blocked.")
            return []
        candidates = value.get("candidates")
        if candidates is None:
            pass_over(value)
        candidate = first_of(candidates)
        if candidate.get("finishReason"):
            self.is_whole = True
        parts = content_sequence(content_mapping(candidate.get("content")).get("parts"))
        return [_piece(content_mapping(part)) for part in parts]


def _piece(part: dict[str, Any]) -> Piece:
    inline = content_mapping(part.get("inlineData"))
    if data := content_of(inline.get("data")):
        return Piece("Image", f"data:{text_of(inline.get('mimeType')) or 'image/png'};base64,{data}")
    return Piece("Think" if part.get("thought") is True else "Text", content_of(part.get("text")))
