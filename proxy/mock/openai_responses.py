"""OpenAI's Responses: named events with a sequence number, ended by `response.completed` and no `[DONE]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from proxy.mock.answer import FAILURE, Answer, Ask, named_event
from proxy.mock.reply import IMAGE_BASE64

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.mock.openai import OpenAI
    from proxy.mock.reply import Reply

Item = dict[str, Any]


def respond(vendor: OpenAI, ask: Ask) -> Answer:
    """`POST …/responses`.

    Raises:
        RefusedError: The text, which the last events repeat whole, would take more than 16 MiB.
    """
    reply = ask.reply(
        model=ask.body.get("model"),
        prompt=[ask.body.get("instructions"), ask.body.get("input")],
        thinks=isinstance(ask.body.get("reasoning"), dict),
    )
    text = reply.whole()
    if ask.body.get("stream") is not True:
        return vendor.answer(ask, orjson.dumps(response(reply, "completed", output_items(reply, text))))
    return vendor.stream(ask, response_events(reply, text), _error_event)


def response(reply: Reply, status: str, output: list[Item]) -> Item:
    """The response object, which the first and the last events carry; usage only once it is known."""
    usage = {
        "input_tokens": reply.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": reply.output_tokens,
        "output_tokens_details": {"reasoning_tokens": len(reply.thoughts)},
        "total_tokens": reply.total_tokens,
    }
    return {
        "id": reply.identifier("resp_"),
        "object": "response",
        "created_at": reply.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": reply.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage if status == "completed" else None,
        "user": None,
        "metadata": {},
    }


def output_items(reply: Reply, text: str) -> list[Item]:
    """The finished items of the output: what was thought, what was said, what was drawn."""
    items: list[Item] = []
    if reply.thoughts:
        summary = [{"type": "summary_text", "text": "".join(reply.thoughts)}]
        items.append({"id": reply.identifier("rs_"), "type": "reasoning", "summary": summary})
    items.append(_message(reply, "completed", [_part(text)]))
    if reply.has_image:
        items.append(_picture(reply, "completed", IMAGE_BASE64))
    return items


def response_events(reply: Reply, text: str) -> Iterator[bytes]:
    """The whole sequence of events, numbered."""
    for sequence_number, event in enumerate(_unnumbered(reply, text)):
        kind = event.pop("type")
        yield named_event(kind, {"type": kind, "sequence_number": sequence_number, **event})


def _unnumbered(reply: Reply, text: str) -> Iterator[Item]:
    finished = output_items(reply, text)
    yield {"type": "response.created", "response": response(reply, "in_progress", [])}
    yield {"type": "response.in_progress", "response": response(reply, "in_progress", [])}
    for index, item in enumerate(finished):
        kind = item["type"]
        if kind == "reasoning":
            yield from _thinking(reply, index, item)
        elif kind == "message":
            yield from _saying(reply, index, item, text)
        else:
            yield from _drawing(reply, index, item)
    yield {"type": "response.completed", "response": response(reply, "completed", finished)}


def _thinking(reply: Reply, index: int, item: Item) -> Iterator[Item]:
    place = {"item_id": item["id"], "output_index": index, "summary_index": 0}
    empty = {"type": "summary_text", "text": ""}
    yield {"type": "response.output_item.added", "output_index": index, "item": {**item, "summary": []}}
    yield {"type": "response.reasoning_summary_part.added", **place, "part": empty}
    for thought in reply.thoughts:
        yield {"type": "response.reasoning_summary_text.delta", **place, "delta": thought}
    whole = "".join(reply.thoughts)
    yield {"type": "response.reasoning_summary_text.done", **place, "text": whole}
    yield {"type": "response.reasoning_summary_part.done", **place, "part": {**empty, "text": whole}}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _saying(reply: Reply, index: int, item: Item, text: str) -> Iterator[Item]:
    place = {"item_id": item["id"], "output_index": index, "content_index": 0}
    started = _message(reply, "in_progress", [])
    yield {"type": "response.output_item.added", "output_index": index, "item": started}
    yield {"type": "response.content_part.added", **place, "part": _part("")}
    for piece in reply.texts():
        yield {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
    yield {"type": "response.output_text.done", **place, "text": text, "logprobs": []}
    yield {"type": "response.content_part.done", **place, "part": _part(text)}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _drawing(reply: Reply, index: int, item: Item) -> Iterator[Item]:
    place = {"item_id": item["id"], "output_index": index}
    started = _picture(reply, "in_progress", None)
    yield {"type": "response.output_item.added", "output_index": index, "item": started}
    yield {"type": "response.image_generation_call.in_progress", **place}
    yield {"type": "response.image_generation_call.generating", **place}
    partial = {"partial_image_index": 0, "partial_image_b64": IMAGE_BASE64}
    yield {"type": "response.image_generation_call.partial_image", **place, **partial}
    yield {"type": "response.image_generation_call.completed", **place}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _message(reply: Reply, status: str, content: list[Item]) -> Item:
    identifier = reply.identifier("msg_")
    return {"type": "message", "id": identifier, "status": status, "role": "assistant", "content": content}


def _picture(reply: Reply, status: str, result: str | None) -> Item:
    return {"type": "image_generation_call", "id": reply.identifier("ig_"), "status": status, "result": result}


def _part(text: str) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _error_event(sequence_number: int) -> bytes:
    """The error event: flat, without an `error` member, unlike everywhere else in this vendor's API."""
    told = {"code": "server_error", "message": FAILURE, "param": None}
    return named_event("error", {"type": "error", "sequence_number": sequence_number, **told})
