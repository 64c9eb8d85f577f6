"""What DashScope's native streams say: text, multimodal and application generation.

Unless `parameters.incremental_output` is true, each event repeats the whole text so far; typed events are the
differences. Some models are incremental of themselves where the request does not say: when a text does not begin with
the one before it, the stream is taken for that.
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

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
    text_of,
)

# So often in a row no incremental stream begins each text with the one before, not even "a", "an", "and".
_SURE_AFTER: Final = 3
# Within a string the quotation marks would be escaped: what matches is a member of some object.
_INCREMENTAL: Final = re.compile(rb'(?<!\\)"incremental_output"[ \t\r\n]*+:[ \t\r\n]*+(true|false)')
_LOOKED_AT_BYTES: Final = 64 * 1024
# Pictures whose repetition is noticed; a stream has one or a few.
_MAX_PICTURES: Final = 64
# What parts of an answer hold; the last ones have no typed event.
_PARTS: Final = frozenset({"text", "image", "audio", "video", "file", "box", "ocr_result"})
# What a text ends with that was cut inside a character: half of a surrogate pair, or the mark for broken UTF-8.
# The next event has the character whole.
_CUT: Final = "\ufffd" + "".join(map(chr, range(0xD800, 0xDC00)))


class Cumulative:
    """Differences of one text that is repeated and grows. Keeps a length and a hash, not the text.

    `is_certain`: the request said so. Then a text that does not begin with the one before it is a new one, as after a
    tool's turn; nothing of it is left out.
    """

    __slots__ = ("_growths", "_hash", "_is_certain", "_length", "is_incremental")

    def __init__(self, *, is_incremental: bool, is_certain: bool) -> None:
        self.is_incremental = is_incremental
        self._is_certain = is_certain
        self._length = 0
        self._hash = hash("")
        self._growths = 0

    def added(self, text: str, *, is_last: bool) -> str:
        """What `text` adds to the texts before it. An empty one says nothing, whatever the stream is."""
        if self.is_incremental:
            return text
        if not is_last:
            text = text.rstrip(_CUT)
        if not text:
            return ""
        if len(text) < self._length or hash(text[: self._length]) != self._hash:
            self.is_incremental = not self._is_certain and self._growths < _SURE_AFTER
            self._length = 0
        added = text[self._length :]
        self._growths += bool(added)
        self._length, self._hash = len(text), hash(text)
        return added


class DashScopeReader(Reader):
    """`finish_reason` is the word "null" until it is one; then the stream just ends."""

    def __init__(self, *, asked: bool | None) -> None:
        super().__init__()
        self._text = Cumulative(is_incremental=asked is True, is_certain=asked is not None)
        self._thought = Cumulative(is_incremental=asked is True, is_certain=asked is not None)
        self._pictures: set[int] = set()

    def read(self, name: bytes, value: dict[str, Any]) -> list[Piece]:
        """Read the flat form and that of choices."""
        output = value.get("output")
        if name == b"error" or (value.get("code") and not isinstance(output, dict)):
            self.failure = failure_of(value)
            return []
        if output is None:
            pass_over(value)
        output = content_mapping(output)
        choice = first_of(output.get("choices")) or output
        message = content_mapping(choice.get("message")) or choice
        is_last = text_of(choice.get("finish_reason")) not in {"", "null"}
        self.is_whole = self.is_whole or is_last
        content = message.get("content", message.get("text"))
        if isinstance(content, str):
            text, parts = content, []
        else:
            parts = [_part(part) for part in content_sequence(content)]
            text = "".join(content_of(part.get("text")) for part in parts)
        thought = content_of(message.get("reasoning_content"))
        pieces = [
            Piece("Think", self._thought.added(thought, is_last=is_last)),
            Piece("Text", self._text.added(text, is_last=is_last)),
        ]
        # What one text has shown holds for the other.
        if self._thought.is_incremental:
            self._text.is_incremental = True
        return pieces + [Piece("Image", url) for part in parts if self._is_new(url := content_of(part.get("image")))]

    def _is_new(self, url: str) -> bool:
        picture = hash(url)
        if not url or picture in self._pictures:
            return False
        if len(self._pictures) < _MAX_PICTURES:
            self._pictures.add(picture)
        return True


def _part(part: object) -> dict[str, Any]:
    """A part of a multimodal answer.

    Raises:
        UnreadableError: nobody knows what it is.
    """
    members = content_mapping(part)
    if members and _PARTS.isdisjoint(members):
        raise UnreadableError
    return members


def asks_for_increments(body: bytes | bytearray) -> bool | None:
    """Whether a request asks for each text once, or repeated; None where it does not say.

    A large body, with pictures in it, is looked at only where it begins and ends: the parameters stand before the input
    or after it.
    """
    if len(body) > 2 * _LOOKED_AT_BYTES:
        found = {
            match[1]
            for part in (body[:_LOOKED_AT_BYTES], body[-_LOOKED_AT_BYTES:])
            for match in _INCREMENTAL.finditer(part)
        }
        return found.pop() == b"true" if len(found) == 1 else None
    if b'"incremental_output"' not in body:
        return None
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    asked = mapping(mapping(request).get("parameters")).get("incremental_output")
    return asked if isinstance(asked, bool) else None
