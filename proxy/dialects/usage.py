"""What vendors say of tokens: how each dialect's figures become five, whatever their names and sums.

Rule for all: of each figure the last value that is not null counts; never a sum over events; zero is a value. Vendors
repeat running totals, some in every event.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeGuard

from proxy.dialects.typed.reader import mapping, sequence

if TYPE_CHECKING:
    from collections.abc import Sequence


# No model reads or writes as much for one request. A larger number is a fault of the vendor's, and would lock its user
# out until the end of the month: it is none, and what was taken is estimated.
_MAX_COUNT = 10**9
_MAX_MODEL = 256
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


def count_openai(event: dict[str, Any], counts: Counts) -> None:
    """Chat completions, completions, embeddings, and the Responses API, whose events have the response in them.

    https://platform.openai.com/docs/api-reference/chat-streaming, …/responses-streaming
    """
    response = mapping(event.get("response"))
    counts.keep_model(event.get("model"), response.get("model"))
    usage = mapping(event.get("usage")) or mapping(response.get("usage"))
    if not usage:
        return
    counts.keep("input", usage.get("prompt_tokens"), usage.get("input_tokens"))
    counts.keep("output", usage.get("completion_tokens"), usage.get("output_tokens"))
    sent = mapping(usage.get("prompt_tokens_details")) or mapping(usage.get("input_tokens_details"))
    counts.keep("cached", sent.get("cached_tokens"), usage.get("prompt_cache_hit_tokens"))
    counts.keep("cache_write", sent.get("cache_creation_input_tokens"))
    made = mapping(usage.get("completion_tokens_details")) or mapping(usage.get("output_tokens_details"))
    counts.keep("reasoning", made.get("reasoning_tokens"))
    if counts.output is None and counts.input is not None and "total_tokens" in usage:
        # Embeddings: everything is input.
        counts.output = 0


_ANTHROPIC_INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def count_anthropic(event: dict[str, Any], counts: Counts) -> None:
    """`input_tokens` is without what the cache had or took; the output of `message_start` only holds a place.

    https://docs.anthropic.com/en/api/messages-streaming
    """
    message = mapping(event.get("message"))
    counts.keep_model(event.get("model"), message.get("model"))
    usage = mapping(event.get("usage")) or mapping(message.get("usage"))
    counts.keep_sum("input", usage, _ANTHROPIC_INPUT)
    counts.keep("cached", usage.get("cache_read_input_tokens"))
    counts.keep("cache_write", usage.get("cache_creation_input_tokens"))
    if not message:
        counts.keep("output", usage.get("output_tokens"))


def count_gemini(event: dict[str, Any], counts: Counts) -> None:
    """Running totals in every chunk; thoughts are billed as output, and are not among the candidates.

    https://ai.google.dev/api/generate-content#UsageMetadata
    """
    counts.keep_model(event.get("modelVersion"))
    usage = mapping(event.get("usageMetadata"))
    counts.keep_sum("input", usage, ("promptTokenCount", "toolUsePromptTokenCount"))
    counts.keep_sum("output", usage, ("candidatesTokenCount", "thoughtsTokenCount"))
    counts.keep("cached", usage.get("cachedContentTokenCount"))
    counts.keep("reasoning", usage.get("thoughtsTokenCount"))


def count_dashscope(event: dict[str, Any], counts: Counts) -> None:
    """Running totals in every event; an application counts by model.

    https://help.aliyun.com/zh/model-studio/qwen-api-via-dashscope
    """
    usage = mapping(event.get("usage"))
    models = [mapping(model) for model in sequence(usage.get("models"))]
    if models:
        for name, member in (("input", "input_tokens"), ("output", "output_tokens")):
            told = [model[member] for model in models if is_count(model.get(member))]
            if told:
                setattr(counts, name, sum(told))
        counts.keep_model(models[0].get("model_id"))
        return
    counts.keep("input", usage.get("input_tokens"))
    counts.keep("output", usage.get("output_tokens"))
    sent = mapping(usage.get("prompt_tokens_details")) or mapping(usage.get("input_tokens_details"))
    counts.keep("cached", sent.get("cached_tokens"), usage.get("cached_tokens"))
    counts.keep("reasoning", mapping(usage.get("output_tokens_details")).get("reasoning_tokens"))


# Members of a delta: few of them are in one event.
_OPENAI_TEXTS = ("content", "reasoning_content", "reasoning")
_ANTHROPIC_TEXTS = ("text", "thinking", "partial_json")
# An only choice whose delta has one text without escapes, and perhaps members that are null. A quotation mark stands in
# no text unescaped, so that this can be no part of one. Possessive: each byte is looked at once.
OPENAI_PLAIN_TEXT = re.compile(
    rb'"choices":\[\{[^{}\[\]]*+(?<="delta":)\{(?:"\w++":null,)*+"(?:content|reasoning_content|reasoning)":"([^"\\]*+)"'
    rb'(?:,"\w++":null)*+\}[^{}\[\]]*+\}\]'
)
ANTHROPIC_PLAIN_TEXT = re.compile(rb'"delta":\{"type":"\w++","(?:text|thinking|partial_json)":"([^"\\]*+)"\}')


def size_of(text: object) -> int:
    """The UTF-8 bytes of what is a text."""
    if not isinstance(text, str):
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def openai_text_bytes(event: dict[str, Any]) -> int:
    """What an event adds to the answer: text, thoughts, a tool's input."""
    if isinstance(delta := event.get("delta"), str):
        return size_of(delta)
    size = 0
    for choice in sequence(event.get("choices")):
        of = mapping(choice)
        if "text" in of:
            size += size_of(of["text"])
        delta = mapping(of.get("delta"))
        for name in _OPENAI_TEXTS:
            if name in delta:
                size += size_of(delta[name])
        if "tool_calls" in delta:
            for call in sequence(delta["tool_calls"]):
                size += size_of(mapping(mapping(call).get("function")).get("arguments"))
    return size


def anthropic_text_bytes(event: dict[str, Any]) -> int:
    """The same of a `content_block_delta`."""
    delta = mapping(event.get("delta"))
    return sum(size_of(delta[name]) for name in _ANTHROPIC_TEXTS if name in delta)


def gemini_text_bytes(event: dict[str, Any]) -> int:
    """The same of a chunk's candidates."""
    return sum(
        size_of(mapping(part).get("text"))
        for candidate in sequence(event.get("candidates"))
        for part in sequence(mapping(mapping(candidate).get("content")).get("parts"))
    )
