"""The OpenAI dialect: key, error shapes, model list, and chat completions, also in DashScope's compatible mode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import orjson

from proxy.mock.answer import FAILURE, JSON_TYPE, Answer, Ask, Fields, bearer, data_event, is_key, member
from proxy.mock.reply import IMAGE_URL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.mock.reply import Reply

STREAM_TYPE = "text/event-stream; charset=utf-8"
_TIMING = "openai-processing-ms"

# Status to type and code of the error object.
_ERRORS: dict[int, tuple[str, str | None]] = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "permission_denied"),
    404: ("invalid_request_error", "model_not_found"),
    405: ("invalid_request_error", "method_not_supported"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("requests", "rate_limit_exceeded"),
    500: ("server_error", "server_error"),
    503: ("service_unavailable_error", "service_unavailable"),
    529: ("overloaded_error", "overloaded"),
}
_RATE_REQUESTS = 10_000
_RATE_TOKENS = 2_000_000


@dataclass(frozen=True, slots=True)
class OpenAI:
    """OpenAI's own service, or with `is_compatible_mode` DashScope's imitation of it, which sends fewer fields."""

    is_compatible_mode: bool = False

    def has_key(self, ask: Ask, key: str) -> bool:
        """The key comes as a bearer token only."""
        return is_key(bearer(ask), key)

    def error(self, ask: Ask, status: int, message: str, code: str | None = None) -> Answer:
        """`{"error": {...}}`, before a stream."""
        return self.answer(ask, orjson.dumps(error_body(status, message, code)), status=status)

    def answer(self, ask: Ask, body: bytes, *, status: int = 200) -> Answer:
        """A JSON answer with this vendor's fields."""
        return Answer(
            status, JSON_TYPE, (body,), self.fields(ask), timing_field=None if self.is_compatible_mode else _TIMING
        )

    def stream(self, ask: Ask, events: Iterator[bytes], error_event: Callable[[int], bytes]) -> Answer:
        """An event stream with this vendor's fields."""
        return replace(self.answer(ask, b""), content_type=STREAM_TYPE, pieces=events, error_event=error_event)

    def fields(self, ask: Ask) -> Fields:
        """The vendor's own fields; the rates are those of a bucket that never runs dry."""
        request_id = ("x-request-id", f"req_{ask.number:032x}")
        if self.is_compatible_mode:
            return (request_id,)
        return (
            request_id,
            ("openai-version", "2020-10-01"),
            ("x-ratelimit-limit-requests", str(_RATE_REQUESTS)),
            ("x-ratelimit-limit-tokens", str(_RATE_TOKENS)),
            ("x-ratelimit-remaining-requests", str(_RATE_REQUESTS - 1)),
            ("x-ratelimit-remaining-tokens", str(_RATE_TOKENS - 1)),
            ("x-ratelimit-reset-requests", "6ms"),
            ("x-ratelimit-reset-tokens", "0s"),
        )

    def chat(self, ask: Ask) -> Answer:
        """`POST …/chat/completions`."""
        reply = ask.reply(
            model=ask.body.get("model"),
            prompt=ask.body.get("messages"),
            thinks=ask.body.get("enable_thinking") is True,
        )
        if ask.body.get("stream") is not True:
            return self.answer(ask, orjson.dumps(chat_whole(reply)))
        wants_usage = member(ask.body.get("stream_options"), "include_usage") is True
        events = chat_events(reply, wants_usage=wants_usage)
        return self.stream(ask, events, lambda _: data_event(error_body(500, FAILURE)))

    def models(self, ask: Ask) -> Answer:
        """`GET …/models`."""
        listed = [
            {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "mock"}
            for name in ("mock-1", "mock-1-thinking", "mock-1-image")
        ]
        return self.answer(ask, orjson.dumps({"object": "list", "data": listed}))


def error_body(status: int, message: str, code: str | None = None) -> dict[str, object]:
    """The error object, as an answer's body and as an event's data alike."""
    kind, usual_code = _ERRORS.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))  # noqa: PLR2004  # the class of a status
    return {"error": {"message": message, "type": kind, "param": None, "code": code or usual_code}}


def chat_usage(reply: Reply) -> dict[str, object]:
    """What the exchange cost, in this dialect's names."""
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.output_tokens,
        "total_tokens": reply.total_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": len(reply.thoughts),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def chat_events(reply: Reply, *, wants_usage: bool) -> Iterator[bytes]:
    """The chunks of a chat completion: role, thoughts, text, picture, finish, usage if wanted, `[DONE]`.

    Each distinct piece of text is worded once. Where usage is wanted, the chunks before it say `"usage":null`.
    """
    head = {
        "id": reply.identifier("chatcmpl-"),
        "object": "chat.completion.chunk",
        "created": reply.created,
        "model": reply.model,
    }
    no_usage: dict[str, object] = {"usage": None} if wants_usage else {}

    def chunk(delta: dict[str, object], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return data_event({**head, "choices": [choice], **no_usage})

    yield chunk({"role": "assistant", "content": ""})
    for thought in reply.thoughts:
        yield chunk({"content": None, "reasoning_content": thought})
    worded = [chunk({"content": piece}) for piece in reply.distinct]
    for index in range(reply.count):
        yield worded[index % len(worded)]
    if reply.has_image:
        yield chunk({"images": _images()})
    yield chunk({}, "stop")
    if wants_usage:
        yield data_event({**head, "choices": [], "usage": chat_usage(reply)})
    yield b"data: [DONE]\n\n"


def chat_whole(reply: Reply) -> dict[str, object]:
    """The chat completion as one object."""
    message: dict[str, object] = {"role": "assistant", "content": reply.whole(), "refusal": None}
    if reply.thoughts:
        message["reasoning_content"] = "".join(reply.thoughts)
    if reply.has_image:
        message["images"] = _images()
    return {
        "id": reply.identifier("chatcmpl-"),
        "object": "chat.completion",
        "created": reply.created,
        "model": reply.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": chat_usage(reply),
    }


def _images() -> list[dict[str, object]]:
    return [{"type": "image_url", "image_url": {"url": IMAGE_URL}, "index": 0}]
