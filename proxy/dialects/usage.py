"""What vendors say of tokens: the five figures that each dialect's `count` makes, whatever their names and sums.

Rule for all: of each figure the last value that is not null counts; never a sum over events; zero is a value. Vendors
repeat running totals, some in every event.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import orjson

from proxy.dialects.typed.reader import mapping, sequence

if TYPE_CHECKING:
    from collections.abc import Sequence


# No model reads or writes as much for one request. A larger number is a fault of the vendor's, and would lock its user
# out until the end of the month: it is none, and what was taken is estimated.
_MAX_COUNT = 10**9
_MAX_MODEL = 256
# Members of a message of OpenAI's, or of its delta: few of them are in one event.
TEXTS: Final = ("content", "reasoning_content", "reasoning")
# Half a character is text to JSON, and to no log.
_SURROGATE = re.compile("[\ud800-\udfff]")


def is_count(value: object) -> TypeGuard[int]:
    """Whether a member of a vendor's is a number of tokens."""
    # By its type: true and false are numbers to `isinstance`.
    return type(value) is int and 0 <= value <= _MAX_COUNT


class Counts:
    """The figures of one exchange so far, None where the vendor has not said; and the model's name, where it has.

    `input` has cache reads and writes in it, `output` has `reasoning`.
    """

    __slots__ = ("cache_write", "cached", "input", "model", "output", "parts", "reasoning")

    def __init__(self) -> None:
        self.input: int | None = None
        self.output: int | None = None
        self.cached: int | None = None
        self.cache_write: int | None = None
        self.reasoning: int | None = None
        self.model: str | None = None
        # Of figures that are told in parts, perhaps in several events.
        self.parts: dict[str, int] = {}

    def copy(self) -> Counts:
        """The same figures, to go on from without changing these."""
        other = Counts()
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        other.parts = dict(self.parts)
        return other

    def keep(self, name: str, *values: object) -> None:
        """Take the first of the values that is a count, if any is."""
        for value in values:
            # As `is_count`, without a call for each of them.
            if type(value) is int and 0 <= value <= _MAX_COUNT:
                setattr(self, name, value)
                return

    def keep_model(self, *values: object) -> None:
        """Take the first that is a name."""
        for value in values:
            if not isinstance(value, str) or not 0 < len(value) <= _MAX_MODEL:
                continue
            if value.isascii() or not _SURROGATE.search(value):
                self.model = value
                return

    def keep_sum(self, name: str, members: dict[str, Any], parts: Sequence[str]) -> None:
        """Take the sum of parts, each of which may have been told before; nothing where none of them ever was."""
        for part in parts:
            value = members.get(part)
            if is_count(value):
                self.parts[part] = value
        told = [self.parts[part] for part in parts if part in self.parts]
        if told:
            setattr(self, name, sum(told))


def size_of(text: object) -> int:
    """The UTF-8 bytes of what is a text."""
    if not isinstance(text, str):
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def choices_bytes(choices: object) -> int:
    """What the choices of a whole answer say, of chat or of completions: text, thoughts, a tool's input."""
    size = 0
    for choice in map(mapping, sequence(choices)):
        message = mapping(choice.get("message"))
        size += size_of(choice.get("text")) + sum(size_of(message.get(name)) for name in TEXTS)
        size += parts_bytes(message.get("content"))
        for call in sequence(message.get("tool_calls")):
            size += size_of(mapping(mapping(call).get("function")).get("arguments"))
    return size


def parts_bytes(parts: object) -> int:
    """What a list of parts or blocks says."""
    return sum(size_of(part.get(name)) for part in map(mapping, sequence(parts)) for name in ("text", "thinking"))


def json_bytes(value: object) -> int:
    """What a tool's input takes as JSON; 0 where there is none, or one nested deeper than is ever written."""
    if value is None:
        return 0
    try:
        return len(orjson.dumps(value))
    except orjson.JSONEncodeError:
        return 0
