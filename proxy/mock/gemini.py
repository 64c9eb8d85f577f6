"""The Gemini dialect: content generation in its three forms, token counting, model list.

The method stands behind a colon in the path, the model before it; usage is on every chunk; the stream just ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from proxy.mock.answer import FAILURE, JSON_TYPE, Answer, Ask, data_event, is_key, member
from proxy.mock.reply import IMAGE_BASE64, IMAGE_TYPE, Reply, count_words

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAM_TYPE = "text/event-stream"
ANSWER_TYPE = "application/json; charset=UTF-8"

_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    529: "UNAVAILABLE",
}


@dataclass(frozen=True, slots=True)
class Gemini:
    """What the endpoints share."""

    def has_key(self, ask: Ask, key: str) -> bool:
        """The key comes in `x-goog-api-key`, or as the query member `key`."""
        return is_key(ask.headers.get("x-goog-api-key"), key) or is_key(ask.query.get("key"), key)

    def error(self, ask: Ask, status: int, message: str) -> Answer:
        """`{"error":{"code","message","status"}}`; in a list where the request asked for a list."""
        body: object = error_body(status, message)
        if ask.path.endswith(":streamGenerateContent") and ask.query.get("alt") != "sse":
            body = [body]
        return Answer(status, ANSWER_TYPE, (orjson.dumps(body),))

    def generate(self, ask: Ask) -> Answer:
        """`POST …/models/{model}:generateContent`."""
        reply = _reply(ask)
        parts = [_thought("".join(reply.thoughts))] if reply.thoughts else []
        parts.append({"text": reply.whole()})
        if reply.has_image:
            parts.append(_image())
        body = _chunk(reply, parts, reply.count, len(reply.thoughts), is_last=True)
        return Answer(200, ANSWER_TYPE, (orjson.dumps(body),))

    def stream(self, ask: Ask) -> Answer:
        """`POST …/models/{model}:streamGenerateContent`: events with `alt=sse`, else a JSON list in pieces."""
        reply = _reply(ask)
        failure = error_body(503, FAILURE)
        if ask.query.get("alt") == "sse":
            events = map(data_event, chunks(reply))
            return Answer(200, STREAM_TYPE, events, error_event=lambda _: data_event(failure))

        def error_element(sent: int) -> bytes:
            return (b",\n" if sent else b"[") + orjson.dumps(failure) + b"]"

        return Answer(200, ANSWER_TYPE, _listed(chunks(reply)), error_event=error_element)

    def count_tokens(self, ask: Ask) -> Answer:
        """`POST …/models/{model}:countTokens`."""
        return Answer(200, ANSWER_TYPE, (orjson.dumps({"totalTokens": count_words(ask.body.get("contents"))}),))

    def models(self, ask: Ask) -> Answer:
        """`GET /v1beta/models`."""
        _ = ask
        listed = [
            {
                "name": f"models/{name}",
                "version": "1",
                "displayName": name,
                "inputTokenLimit": 1_048_576,
                "outputTokenLimit": 65_536,
                "supportedGenerationMethods": ["generateContent", "streamGenerateContent", "countTokens"],
            }
            for name in ("mock-1", "mock-1-thinking", "mock-1-image")
        ]
        return Answer(200, JSON_TYPE, (orjson.dumps({"models": listed}),))


def chunks(reply: Reply) -> Iterator[dict[str, Any]]:
    """The chunks of one answer: thoughts, text, picture; the last of them has the finish reason."""
    for index, thought in enumerate(reply.thoughts, 1):
        yield _chunk(reply, [_thought(thought)], 0, index)
    thought_tokens = len(reply.thoughts)
    for index, piece in enumerate(reply.texts(), 1):
        is_last = index == reply.count and not reply.has_image
        yield _chunk(reply, [{"text": piece}], index, thought_tokens, is_last=is_last)
    if reply.has_image:
        yield _chunk(reply, [_image()], reply.count, thought_tokens, is_last=True)
    elif not reply.count:
        yield _chunk(reply, [{"text": ""}], 0, thought_tokens, is_last=True)


def error_body(status: int, message: str) -> dict[str, object]:
    """The error object, as an answer's body and as an event's data alike."""
    usual = "INTERNAL" if status >= 500 else "INVALID_ARGUMENT"  # noqa: PLR2004  # the class of a status
    return {"error": {"code": status, "message": message, "status": _STATUSES.get(status, usual)}}


def _reply(ask: Ask) -> Reply:
    model = ask.path.rpartition("/")[2].rpartition(":")[0]
    thinking = member(ask.body.get("generationConfig"), "thinkingConfig")
    return ask.reply(
        model=model,
        prompt=[ask.body.get("systemInstruction"), ask.body.get("contents")],
        thinks=member(thinking, "includeThoughts") is True,
    )


def _listed(elements: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """A JSON list, a piece an element; the closing bracket comes with the last."""
    separator = b"["
    waiting = orjson.dumps(next(elements))
    for element in elements:
        yield separator + waiting
        separator, waiting = b",\n", orjson.dumps(element)
    yield separator + waiting + b"]"


def _chunk(
    reply: Reply, parts: list[dict[str, Any]], said: int, thought: int, *, is_last: bool = False
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    if is_last:
        candidate["finishReason"] = "STOP"
    usage = {"promptTokenCount": reply.prompt_tokens, "candidatesTokenCount": said}
    if thought:
        usage["thoughtsTokenCount"] = thought
    usage["totalTokenCount"] = reply.prompt_tokens + said + thought
    return {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": reply.model,
        "responseId": reply.identifier(""),
    }


def _thought(text: str) -> dict[str, Any]:
    return {"text": text, "thought": True}


def _image() -> dict[str, Any]:
    return {"inlineData": {"mimeType": IMAGE_TYPE, "data": IMAGE_BASE64}}
