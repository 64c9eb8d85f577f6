"""What the mock says to one request, before any dialect words it: text, thoughts, a picture, and what they cost.

Pure and deterministic: the same request number, body and controls give the same reply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxy.mock.controls import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.mock.controls import Controls

# One piece of text an event. Beyond ASCII on purpose: a relay that splits or re-encodes characters shows it here.
DEFAULT_PIECES = (
    "Hello", " from", " the", " mock", " vendor", "!", " These", " words", " travel", " one", " event", " at", " a",
    " time", ",", " naïve", " café", ",", " 你好", ",", " 🙂", " and", " then", " they", " stop", ".",
)  # fmt: skip
DEFAULT_TEXT = "".join(DEFAULT_PIECES)
THOUGHTS = ("The user", " wants a stream", ", so I stream.")
THOUGHT_TEXT = "".join(THOUGHTS)

# A picture of one transparent pixel.
IMAGE_TYPE = "image/png"
IMAGE_BASE64 = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
IMAGE_URL = f"data:{IMAGE_TYPE};base64,{IMAGE_BASE64}"

# Where a dialect repeats the whole text in one event, that event must fit in memory.
MAX_WHOLE_BYTES = 16 * 1024 * 1024

_FILLER = "abcdefghijklmnopqrstuvwxyz "
_NOT_PROMPT = frozenset({"role", "type", "id", "name", "mimeType", "media_type"})


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply: `count` pieces of text, taken in turn from `distinct`, so that a long one needs no memory.

    A token is a piece of text or of thought on the way out, and a word on the way in.
    """

    number: int
    created: int
    model: str
    prompt_tokens: int
    count: int
    distinct: tuple[str, ...]
    thoughts: tuple[str, ...] = ()
    has_image: bool = False

    @property
    def output_tokens(self) -> int:
        """What the reply costs, thoughts included."""
        return self.count + len(self.thoughts)

    @property
    def total_tokens(self) -> int:
        """What the whole exchange costs."""
        return self.prompt_tokens + self.output_tokens

    def identifier(self, prefix: str) -> str:
        """An id as vendors make them, the same for the same request number."""
        return f"{prefix}{self.number:024x}"

    def texts(self) -> Iterator[str]:
        """The pieces of text in order."""
        period = len(self.distinct)
        return (self.distinct[index % period] for index in range(self.count))

    def whole(self) -> str:
        """The whole text.

        Raises:
            RefusedError: It would take more than 16 MiB (400).
        """
        if self.count * max(len(piece.encode()) for piece in self.distinct) > MAX_WHOLE_BYTES:
            raise RefusedError(400, f"this answer repeats the whole text: events x size must be <= {MAX_WHOLE_BYTES}")
        return "".join(self.texts())


def make_reply(*, number: int, created: int, model: str, prompt: object, thinks: bool, controls: Controls) -> Reply:
    """Make the reply to a prompt, which is whatever JSON the dialect holds it in.

    A model whose name has `image` in it adds a picture; one with `think` or `reason`, or `thinks`, thinks first.
    """
    name = model.lower()
    return Reply(
        number=number,
        created=created,
        model=model,
        prompt_tokens=count_words(prompt),
        count=len(DEFAULT_PIECES) if controls.events is None else controls.events,
        distinct=DEFAULT_PIECES if controls.size is None else (_filler(controls.size),),
        thoughts=THOUGHTS if thinks or "think" in name or "reason" in name else (),
        has_image="image" in name,
    )


def count_words(prompt: object) -> int:
    """Count the words of all text in a prompt; at least 1. Needs no recursion, however deep the JSON is."""
    words = 0
    todo: list[Any] = [prompt]
    while todo:
        part = todo.pop()
        if isinstance(part, str):
            words += len(part.split())
        elif isinstance(part, list):
            todo.extend(part)
        elif isinstance(part, dict):
            todo.extend(value for key, value in part.items() if key not in _NOT_PROMPT)
    return max(1, words)


def _filler(size: int) -> str:
    return (_FILLER * (size // len(_FILLER) + 1))[:size]
