"""The DashScope native dialect: text generation, multimodal generation, applications.

Its event stream is asked for by a field, has no space after a colon, repeats usage on every event, and counts a
running `finish_reason` as the string `"null"`. Without `incremental_output` each event repeats the whole text so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from proxy.mock.answer import FAILURE, JSON_TYPE, Answer, Ask, Fields, bearer, is_key, member
from proxy.mock.reply import IMAGE_URL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.mock.reply import Reply

STREAM_TYPE = "text/event-stream;charset=UTF-8"

_CODES = {
    400: "InvalidParameter",
    401: "InvalidApiKey",
    403: "AccessDenied",
    404: "ModelNotFound",
    429: "Throttling.RateLimit",
    500: "InternalError",
    503: "ServiceUnavailable",
}


@dataclass(frozen=True, slots=True)
class Wording:
    """Where one of the three services keeps its words: `message` and `parts` in choices, `text` and `app` flat."""

    form: str
    is_incremental: bool
    session_id: str = ""

    def output(self, content: str, thought: str, finish_reason: str, image: str | None = None) -> dict[str, Any]:
        """The `output` member of one answer or event."""
        if self.form in {"text", "app"}:
            flat: dict[str, Any] = {"text": content, "finish_reason": finish_reason}
            if self.form == "app":
                flat = {"session_id": self.session_id, **flat}
            if thought:
                flat["reasoning_content"] = thought
            return flat
        message: dict[str, Any] = {"content": content}
        if self.form == "parts":
            parts: list[dict[str, str]] = [{"text": content}] if content else []
            message["content"] = parts if image is None else [*parts, {"image": image}]
        message |= {"reasoning_content": thought} if thought else {}
        return {"choices": [{"message": {**message, "role": "assistant"}, "finish_reason": finish_reason}]}

    def usage(self, reply: Reply, said: int, thought: int, images: int) -> dict[str, Any]:
        """The cumulative `usage` member after that many pieces of each kind."""
        output_tokens = said + thought
        if self.form == "app":
            model = {"input_tokens": reply.prompt_tokens, "output_tokens": output_tokens, "model_id": reply.model}
            return {"models": [model]}
        usage: dict[str, Any] = {
            "total_tokens": reply.prompt_tokens + output_tokens,
            "output_tokens": output_tokens,
            "input_tokens": reply.prompt_tokens,
        }
        if thought:
            usage["output_tokens_details"] = {"reasoning_tokens": thought}
        if images:
            usage["image_count"] = images
        return usage


@dataclass(frozen=True, slots=True)
class DashScope:
    """What the native endpoints share."""

    def has_key(self, ask: Ask, key: str) -> bool:
        """The key comes as a bearer token only."""
        return is_key(bearer(ask), key)

    def error(self, ask: Ask, status: int, message: str) -> Answer:
        """A flat error object; to a request for events it comes as an `error` event under the same status.

        A refused key is answered by the gateway in front, which speaks JSON only.
        """
        if status != 401 and is_event_stream_asked(ask):  # noqa: PLR2004  # a status
            return Answer(status, STREAM_TYPE, (_error_event(ask, status, message, 1),), _fields(ask))
        return Answer(status, JSON_TYPE, (orjson.dumps(_error_body(ask, status, message)),), _fields(ask))

    def text_generation(self, ask: Ask) -> Answer:
        """`POST /api/v1/services/aigc/text-generation/generation`."""
        is_message = member(ask.body.get("parameters"), "result_format") == "message"
        return _answer(ask, "message" if is_message else "text")

    def multimodal_generation(self, ask: Ask) -> Answer:
        """`POST /api/v1/services/aigc/multimodal-generation/generation`; content is a list of parts."""
        return _answer(ask, "parts")

    def app_completion(self, ask: Ask) -> Answer:
        """`POST /api/v1/apps/{id}/completion`; usage is kept by model."""
        return _answer(ask, "app")


def is_event_stream_asked(ask: Ask) -> bool:
    """True when the request asks for events; its body has no say in that."""
    return (
        ask.headers.get("x-dashscope-sse", "").lower() == "enable"
        or "text/event-stream" in ask.headers.get("accept", "").lower()
    )


def _answer(ask: Ask, form: str) -> Answer:
    parameters = ask.body.get("parameters")
    reply = ask.reply(
        model=ask.body.get("model"),
        prompt=ask.body.get("input"),
        thinks=member(parameters, "enable_thinking") is True or member(parameters, "has_thoughts") is True,
    )
    wording = Wording(form, member(parameters, "incremental_output") is True, reply.identifier("session-"))
    if not is_event_stream_asked(ask):
        return Answer(200, JSON_TYPE, (orjson.dumps(whole(reply, wording, _request_id(ask))),), _fields(ask))
    if not wording.is_incremental:
        reply.whole()  # refuses a text that the last events could not repeat
    return Answer(
        200,
        STREAM_TYPE,
        events(reply, wording, _request_id(ask)),
        _fields(ask),
        error_event=lambda sent: _error_event(ask, 500, FAILURE, sent + 1),
    )


def events(reply: Reply, wording: Wording, request_id: str) -> Iterator[bytes]:
    """The events of one answer, the last with `finish_reason` `stop`; then the stream just ends."""
    number = said = thought = images = 0
    text = thinking = ""

    def event(content: str, reasoning: str, finish_reason: str, image: str | None = None) -> bytes:
        body = {
            "output": wording.output(content, reasoning, finish_reason, image),
            "usage": wording.usage(reply, said, thought, images),
            "request_id": request_id,
        }
        return b"id:%d\nevent:result\n:HTTP_STATUS/200\ndata:%b\n\n" % (number, orjson.dumps(body))

    for piece in reply.thoughts:
        number, thought = number + 1, thought + 1
        thinking = piece if wording.is_incremental else thinking + piece
        yield event("", thinking, "null")
    if wording.is_incremental:
        thinking = ""
    for piece in reply.texts():
        number, said = number + 1, said + 1
        text = piece if wording.is_incremental else text + piece
        yield event(text, thinking, "null")
    if wording.is_incremental:
        text = ""
    if reply.has_image and wording.form == "parts":
        number, images = number + 1, 1
        yield event(text, thinking, "null", IMAGE_URL)
    number += 1
    yield event(text, thinking, "stop", IMAGE_URL if images and not wording.is_incremental else None)


def whole(reply: Reply, wording: Wording, request_id: str) -> dict[str, Any]:
    """The answer as one object."""
    has_image = reply.has_image and wording.form == "parts"
    thinking = "".join(reply.thoughts)
    return {
        "output": wording.output(reply.whole(), thinking, "stop", IMAGE_URL if has_image else None),
        "usage": wording.usage(reply, reply.count, len(reply.thoughts), int(has_image)),
        "request_id": request_id,
    }


def _request_id(ask: Ask) -> str:
    digits = f"{ask.number:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _fields(ask: Ask) -> Fields:
    return (("x-request-id", _request_id(ask)),)


def _error_body(ask: Ask, status: int, message: str) -> dict[str, str]:
    usual = "InternalError" if status >= 500 else "InvalidParameter"  # noqa: PLR2004  # the class of a status
    return {"code": _CODES.get(status, usual), "message": message, "request_id": _request_id(ask)}


def _error_event(ask: Ask, status: int, message: str, number: int) -> bytes:
    body = orjson.dumps(_error_body(ask, status, message))
    return b"id:%d\nevent:error\n:HTTP_STATUS/%d\ndata:%b\n\n" % (number, status, body)
