"""The Anthropic dialect: messages, token counting, model list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from proxy.mock.answer import FAILURE, JSON_TYPE, Answer, Ask, Fields, bearer, is_key, member, named_event
from proxy.mock.reply import count_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.mock.reply import Reply

STREAM_TYPE = "text/event-stream; charset=utf-8"
SIGNATURE = "bW9jay1zaWduYXR1cmU="

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Anthropic:
    """What the endpoints share."""

    def has_key(self, ask: Ask, key: str) -> bool:
        """The key comes in `x-api-key`, or as a bearer token from newer clients."""
        return is_key(ask.headers.get("x-api-key"), key) or is_key(bearer(ask), key)

    def error(self, ask: Ask, status: int, message: str) -> Answer:
        """`{"type":"error","error":{…},"request_id":…}`."""
        body = {**_error_body(status, message), "request_id": _request_id(ask)}
        return Answer(status, JSON_TYPE, (orjson.dumps(body),), _fields(ask))

    def messages(self, ask: Ask) -> Answer:
        """`POST /v1/messages`. `max_tokens` is not insisted on."""
        thinking = member(ask.body.get("thinking"), "type")
        reply = ask.reply(
            model=ask.body.get("model"),
            prompt=[ask.body.get("system"), ask.body.get("messages")],
            thinks=thinking in {"enabled", "adaptive"},
        )
        if ask.body.get("stream") is not True:
            return Answer(200, JSON_TYPE, (orjson.dumps(whole(reply)),), _fields(ask))
        return Answer(
            200,
            STREAM_TYPE,
            events(reply),
            _fields(ask),
            error_event=lambda _: named_event("error", _error_body(529, FAILURE)),
        )

    def count_tokens(self, ask: Ask) -> Answer:
        """`POST /v1/messages/count_tokens`."""
        tokens = count_words([ask.body.get("system"), ask.body.get("messages")])
        return Answer(200, JSON_TYPE, (orjson.dumps({"input_tokens": tokens}),), _fields(ask))

    def models(self, ask: Ask) -> Answer:
        """`GET /v1/models` with an `anthropic-version`."""
        listed = [
            {"type": "model", "id": name, "display_name": name, "created_at": "2025-01-01T00:00:00Z"}
            for name in ("mock-1", "mock-1-thinking")
        ]
        page = {"data": listed, "has_more": False, "first_id": "mock-1", "last_id": "mock-1-thinking"}
        return Answer(200, JSON_TYPE, (orjson.dumps(page),), _fields(ask))


def events(reply: Reply) -> Iterator[bytes]:
    """The events of one message; each distinct piece of text is worded once.

    Usage is cumulative: the input at the start, the output in `message_delta`.
    """
    started = {**_message(reply), "usage": _usage(reply, 1)}
    yield _event("message_start", message=started)
    yield _event("ping")
    index = 0
    if reply.thoughts:
        empty = {"type": "thinking", "thinking": "", "signature": ""}
        yield _event("content_block_start", index=index, content_block=empty)
        for thought in reply.thoughts:
            yield _event("content_block_delta", index=index, delta={"type": "thinking_delta", "thinking": thought})
        signed = {"type": "signature_delta", "signature": SIGNATURE}
        yield _event("content_block_delta", index=index, delta=signed)
        yield _event("content_block_stop", index=index)
        index += 1
    yield _event("content_block_start", index=index, content_block={"type": "text", "text": ""})
    worded = [
        _event("content_block_delta", index=index, delta={"type": "text_delta", "text": piece})
        for piece in reply.distinct
    ]
    for turn in range(reply.count):
        yield worded[turn % len(worded)]
    yield _event("content_block_stop", index=index)
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    yield _event("message_delta", delta=ended, usage={"output_tokens": reply.output_tokens})
    yield _event("message_stop")


def whole(reply: Reply) -> dict[str, Any]:
    """The message as one object."""
    content: list[dict[str, Any]] = []
    if reply.thoughts:
        content.append({"type": "thinking", "thinking": "".join(reply.thoughts), "signature": SIGNATURE})
    content.append({"type": "text", "text": reply.whole()})
    usage = _usage(reply, reply.output_tokens)
    return {**_message(reply), "content": content, "stop_reason": "end_turn", "usage": usage}


def _event(kind: str, **members: object) -> bytes:
    return named_event(kind, {"type": kind, **members})


def _message(reply: Reply) -> dict[str, Any]:
    return {
        "id": reply.identifier("msg_"),
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": reply.model,
        "stop_reason": None,
        "stop_sequence": None,
    }


def _usage(reply: Reply, output_tokens: int) -> dict[str, int]:
    return {
        "input_tokens": reply.prompt_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
    }


def _error_body(status: int, message: str) -> dict[str, object]:
    usual = "api_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004  # the class of a status
    return {"type": "error", "error": {"type": _TYPES.get(status, usual), "message": message}}


def _request_id(ask: Ask) -> str:
    return f"req_{ask.number:024x}"


def _fields(ask: Ask) -> Fields:
    return (("request-id", _request_id(ask)),)
