"""What OpenAI's streams say: chat completions (with what other vendors add to them), completions, and responses.

One reader for all, because each event tells which API it is from; gateways serve them at paths of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from proxy.dialects.typed.reader import (
    Piece,
    Reader,
    count_of,
    failure_of,
    first_of,
    mapping,
    sequence,
    text_of,
    total_of,
)
from proxy.protocol.typed import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

_FORMATS: Final = frozenset({"png", "jpeg", "webp"})
_TEXTS: Final = frozenset({"response.output_text.delta", "response.refusal.delta"})


class OpenAIReader(Reader):
    """Chat completions end with `[DONE]`, responses with one of three events and no `[DONE]`."""

    ends_with_done = True

    def __init__(self) -> None:
        super().__init__()
        # Of the picture sent last: the finished one often repeats the last partial one. A hash, because it is large.
        self._picture: int | None = None

    def read(self, name: bytes, value: dict[str, Any]) -> list[Piece]:  # noqa: ARG002 - some servers send no names
        """Tell the two APIs apart by `type`, which a chat completion's chunk has not."""
        kind = value.get("type")
        if isinstance(kind, str) and (kind == "error" or kind.startswith("response.")):
            return self._response(kind, value)
        if value.get("error"):
            self.failure = failure_of(value["error"])
            return []
        if value.get("object") == "error":
            self.failure = failure_of(value)
            return []
        return self._chunk(value)

    def _chunk(self, value: dict[str, Any]) -> list[Piece]:
        if usage := mapping(value.get("usage")):
            self.usage = _usage(usage, "prompt_tokens", "completion_tokens")
        choice = first_of(value.get("choices"))
        if choice.get("finish_reason"):
            self.is_whole = True
        delta = mapping(choice.get("delta"))
        pieces: list[Piece] = []
        # `reasoning` is what some servers call it; those that send both names send the same text twice. `text` is the
        # completions API's. Most chunks have one of these, and each is looked at once.
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            pieces.append(Piece("Think", text_of(thought)))
        if text := delta.get("content") or delta.get("refusal") or choice.get("text"):
            pieces.append(Piece("Text", text_of(text)))
        if "images" in delta:
            images = map(mapping, sequence(delta["images"]))
            pieces += [Piece("Image", text_of(mapping(image.get("image_url")).get("url"))) for image in images]
        return pieces

    def _response(self, kind: str, value: dict[str, Any]) -> list[Piece]:
        response = mapping(value.get("response"))
        if kind in _TEXTS:
            return [Piece("Text", text_of(value.get("delta")))]
        # `response.reasoning_text.delta`, `response.reasoning_summary_text.delta`
        if kind.startswith("response.reasoning_") and kind.endswith("text.delta"):
            return [Piece("Think", text_of(value.get("delta")))]
        if kind == "response.image_generation_call.partial_image":
            return self._image(value.get("partial_image_b64"), value)
        if kind == "response.output_item.done":
            item = mapping(value.get("item"))
            return self._image(item.get("result"), item) if item.get("type") == "image_generation_call" else []
        if kind in {"response.completed", "response.incomplete"}:
            if usage := mapping(response.get("usage")):
                self.usage = _usage(usage, "input_tokens", "output_tokens")
            self.is_whole = self.is_over = True
        elif kind == "response.failed":
            self.failure = failure_of(response.get("error"))
        elif kind == "error":
            self.failure = failure_of(
                value.get("error") or {"code": value.get("code"), "message": value.get("message")}
            )
        return []

    def _image(self, data: object, about: Mapping[str, Any]) -> list[Piece]:
        encoded = text_of(data)
        picture = hash(encoded)
        if not encoded or picture == self._picture:
            return []
        self._picture = picture
        given = about.get("output_format")
        return [Piece("Image", f"data:image/{given if given in _FORMATS else 'png'};base64,{encoded}")]


def _usage(members: dict[str, Any], sent: str, received: str) -> Usage:
    tokens_in, tokens_out = count_of(members.get(sent)), count_of(members.get(received))
    total = count_of(members.get("total_tokens"))
    return Usage(tokens_in, tokens_out, total_of(tokens_in, tokens_out) if total is None else total)
