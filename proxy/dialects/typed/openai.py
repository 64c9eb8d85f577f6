"""What OpenAI's streams say: chat completions (with what other vendors add to them), completions, and responses.

One reader for all, because each event tells which API it is from; gateways serve them at paths of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from proxy.dialects.typed.reader import (
    Piece,
    Reader,
    UnreadableError,
    content_mapping,
    content_of,
    content_sequence,
    failure_of,
    first_of,
    mapping,
    pass_over,
    sequence,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_FORMATS: Final = frozenset({"png", "jpeg", "webp"})
# Parts of an answer that have no typed event: what it cites, files, sounds.
_UNTOLD_PARTS: Final = frozenset(
    {"reference", "tool_reference", "tool_file", "document_url", "file", "input_audio", "audio"}
)
_TEXTS: Final = frozenset({"response.output_text.delta", "response.refusal.delta"})


class OpenAIReader(Reader):
    """Chat completions end with `[DONE]`, responses with one of three events and no `[DONE]`."""

    ends_with_done = True

    def __init__(self) -> None:
        super().__init__()
        # Of the picture sent last: the finished one often repeats the last partial one. A hash, because it is large.
        self._picture: int | None = None
        # Whether any of the answer has come: then one that is repeated whole at the end says nothing new.
        self._has_said = False

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
        choices = value.get("choices")
        if choices is None:
            pass_over(value)
            return []
        choice = first_of(choices)
        if choice.get("finish_reason"):
            self.is_whole = True
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            delta = content_mapping(delta)
        if not delta and not self._has_said:
            # Some servers send a message in one piece, others repeat it whole at the end.
            delta = content_mapping(choice.get("message"))
        pieces: list[Piece] = []
        # `reasoning` is what some servers call it; those that send both names send the same text twice. `text` is the
        # completions API's. Most chunks have one of these, and each is looked at once.
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            pieces += [Piece("Think", thought)] if isinstance(thought, str) else _parts(thought, "Think")
        if text := delta.get("content") or delta.get("refusal") or choice.get("text"):
            pieces += [Piece("Text", text)] if isinstance(text, str) else _parts(text, "Text")
        if "images" in delta:
            pieces += [_picture(content_mapping(image)) for image in content_sequence(delta["images"])]
        if not pieces and (delta.get("text") or delta.get("parts")):
            raise UnreadableError
        if pieces:
            self._has_said = True
        return pieces

    def _response(self, kind: str, value: dict[str, Any]) -> list[Piece]:
        response = mapping(value.get("response"))
        if kind in _TEXTS:
            self._has_said = True
            return [Piece("Text", content_of(value.get("delta")))]
        # `response.reasoning_text.delta`, `response.reasoning_summary_text.delta`
        if kind.startswith("response.reasoning_") and kind.endswith("text.delta"):
            return [Piece("Think", content_of(value.get("delta")))]
        if kind == "response.image_generation_call.partial_image":
            return self._image(value.get("partial_image_b64"), value)
        if kind == "response.output_item.done":
            item = mapping(value.get("item"))
            return self._image(item.get("result"), item) if item.get("type") == "image_generation_call" else []
        if kind in {"response.completed", "response.incomplete"}:
            self.is_whole = self.is_over = True
            # Servers that send an answer in one piece may send no deltas of it.
            return [] if self._has_said else _said(response)
        if kind == "response.failed":
            self.failure = failure_of(response.get("error"))
        elif kind == "error":
            self.failure = failure_of(
                value.get("error") or {"code": value.get("code"), "message": value.get("message")}
            )
        return []

    def _image(self, data: object, about: Mapping[str, Any]) -> list[Piece]:
        encoded = content_of(data)
        picture = hash(encoded)
        if not encoded or picture == self._picture:
            return []
        self._picture = picture
        given = about.get("output_format")
        return [Piece("Image", f"data:image/{given if given in _FORMATS else 'png'};base64,{encoded}")]


def _parts(value: object, kind: Literal["Think", "Text"]) -> list[Piece]:
    """The pieces of a content that is a list, as Mistral's reasoning models send it: thoughts, text, pictures."""
    return [piece for part in content_sequence(value) for piece in _part(content_mapping(part), kind)]


def _part(part: dict[str, Any], kind: Literal["Think", "Text"]) -> list[Piece]:
    what = part.get("type")
    if what == "thinking":
        thought = part.get("thinking")
        return [Piece("Think", thought)] if isinstance(thought, str) else _parts(thought, "Think")
    if what == "image_url":
        return [_picture(part)]
    if what in _UNTOLD_PARTS:
        return []
    text = content_of(part.get("text") or part.get("refusal"))
    if not text and what not in {"text", "output_text", "refusal"}:
        raise UnreadableError
    return [Piece(kind, text)]


def _picture(part: dict[str, Any]) -> Piece:
    image = part.get("image_url")
    url = image if isinstance(image, str) else content_mapping(image).get("url")
    if not isinstance(url, str):
        raise UnreadableError
    return Piece("Image", url)


def _said(response: dict[str, Any]) -> list[Piece]:
    """The text of a whole response."""
    messages = (item for item in sequence(response.get("output")) if mapping(item).get("type") == "message")
    return [piece for message in messages for piece in _parts(message.get("content"), "Text")]
