"""What a dialect's reader is: the meaning of one stream's events, without their form.

A reader is handed JSON objects of a vendor, in which anything may stand. What is no part of the answer (usage, a tool's
input, a citation, an event of a type that nobody knows) is passed over, whatever its type. What is part of it, by its
place or by its name, and cannot be read, is an `UnreadableError`: an answer that lacks it must not look whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final, Literal, NamedTuple

# What `code` says where the vendor gives none.
UNKNOWN_CODE = "upstream_error"
_UNKNOWN_MESSAGE = "The upstream reported an error."


# Members that hold an answer in one API or another. An event of a shape that a reader does not know is nothing to it
# without one of these; with one, it is an answer in somebody else's words.
ANSWERS: Final = (
    *("choices", "candidates", "output", "delta", "message", "content", "parts"),
    *("text", "response", "answer", "token", "generated_text"),
)


class UnreadableError(ValueError):
    """A piece of the answer is of a type or shape that cannot be read."""


class Piece(NamedTuple):
    """A piece of the answer."""

    kind: Literal["Image", "Think", "Text"]
    text: str


class Failure(NamedTuple):
    """An error that the vendor told in the stream, in its words."""

    code: str
    message: str


class Reader(ABC):
    """Reads one stream. Constant memory: nothing of the answer is kept.

    Attributes:
        failure: The error that the vendor told; nothing is read after it.
        is_whole: Whether the vendor has said that the answer is complete. A stream that ends without that was cut off,
            however clean its end.
        is_over: Whether the vendor has said that nothing follows.
    """

    # Whether `data: [DONE]` is the stream's last event; elsewhere it is some gateway's, and means nothing.
    ends_with_done: ClassVar[bool] = False

    def __init__(self) -> None:
        self.failure: Failure | None = None
        self.is_whole = False
        self.is_over = False

    @abstractmethod
    def read(self, name: bytes, value: dict[str, Any]) -> list[Piece]:
        """Read one event, and give what it adds to the answer; texts may be empty.

        Raises:
            UnreadableError: it adds something that cannot be read.
        """


def mapping(value: object) -> dict[str, Any]:
    """The value where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: object) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def text_of(value: object) -> str:
    """The value where it is a string, else an empty one."""
    return value if isinstance(value, str) else ""


def content_of(value: object) -> str:
    """The text of a member that holds a piece of the answer, empty where it is absent or null.

    Raises:
        UnreadableError: it is no string.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise UnreadableError


def content_mapping(value: object) -> dict[str, Any]:
    """The object that holds a piece of the answer, empty where it is absent or null.

    Raises:
        UnreadableError: it is no object.
    """
    if value is None:
        return {}
    if isinstance(value, dict):
        return value
    raise UnreadableError


def content_sequence(value: object) -> list[Any]:
    """The list that holds pieces of the answer, empty where it is absent or null.

    Raises:
        UnreadableError: it is no list.
    """
    if value is None:
        return []
    if isinstance(value, list):
        return value
    raise UnreadableError


def pass_over(value: dict[str, Any]) -> None:
    """Leave out an event of a shape that the reader does not know.

    Raises:
        UnreadableError: it carries an answer.
    """
    if any(value.get(name) for name in ANSWERS):
        raise UnreadableError


def first_of(value: object) -> dict[str, Any]:
    """The answer with the index 0: a request may ask for several, whose texts must not be mixed.

    Raises:
        UnreadableError: this is no list of answers.
    """
    for item in content_sequence(value):
        answer = content_mapping(item)
        index = answer.get("index")
        if index in (0, None):
            # The others are not asked for, so they need not be readable.
            return answer
        if not isinstance(index, int):
            raise UnreadableError
    return {}


def failure_of(error: object, *, code: object = None) -> Failure:
    """The failure that an error object, or a mere message, tells; `code` wins over the object's own."""
    if isinstance(error, str):
        error = {"message": error}
    members = mapping(error)
    codes = (code, members.get("code"), members.get("type"))
    given = next((str(word) for word in codes if isinstance(word, str | int) and word), UNKNOWN_CODE)
    return Failure(given, text_of(members.get("message")) or _UNKNOWN_MESSAGE)
