"""OpenAI's Responses: named events with a sequence number, ended by `response.completed` and no `[DONE]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from proxy.mock.answer import FAILURE, Answer, Ask, named_event
from proxy.mock.reply import IMAGE_BASE64

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    said = {"type": "message", "id": reply.identifier("msg_"), "status": "completed", "role": "assistant"}
    items.append({**said, "content": [_part(text)]})
    if reply.has_image:
        drawn = {"type": "image_generation_call", "id": reply.identifier("ig_"), "status": "completed"}
        items.append({**drawn, "result": IMAGE_BASE64})
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
        begun, steps = _KINDS[item["type"]]
        yield {"type": "response.output_item.added", "output_index": index, "item": {**item, **begun}}
        yield from steps(reply, {"item_id": item["id"], "output_index": index}, text)
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": "response.completed", "response": response(reply, "completed", finished)}


def _thinking(reply: Reply, item: Item, _text: str) -> Iterator[Item]:
    place = {**item, "summary_index": 0}
    empty = {"type": "summary_text", "text": ""}
    yield {"type": "response.reasoning_summary_part.added", **place, "part": empty}
    for thought in reply.thoughts:
        yield {"type": "response.reasoning_summary_text.delta", **place, "delta": thought}
    whole = "".join(reply.thoughts)
    yield {"type": "response.reasoning_summary_text.done", **place, "text": whole}
    yield {"type": "response.reasoning_summary_part.done", **place, "part": {**empty, "text": whole}}


def _saying(reply: Reply, item: Item, text: str) -> Iterator[Item]:
    place = {**item, "content_index": 0}
    yield {"type": "response.content_part.added", **place, "part": _part("")}
    for piece in reply.texts():
        yield {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
    yield {"type": "response.output_text.done", **place, "text": text, "logprobs": []}
    yield {"type": "response.content_part.done", **place, "part": _part(text)}


def _drawing(_reply: Reply, place: Item, _text: str) -> Iterator[Item]:
    yield {"type": "response.image_generation_call.in_progress", **place}
    yield {"type": "response.image_generation_call.generating", **place}
    partial = {"partial_image_index": 0, "partial_image_b64": IMAGE_BASE64}
    yield {"type": "response.image_generation_call.partial_image", **place, **partial}
    yield {"type": "response.image_generation_call.completed", **place}


# For each type of item: the members that differ when it is added, and the events until it is done.
_KINDS: dict[str, tuple[Item, Callable[[Reply, Item, str], Iterator[Item]]]] = {
    "reasoning": ({"summary": []}, _thinking),
    "message": ({"status": "in_progress", "content": []}, _saying),
    "image_generation_call": ({"status": "in_progress", "result": None}, _drawing),
}


def _part(text: str) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _error_event(sequence_number: int) -> bytes:
    """The error event: flat, without an `error` member, unlike everywhere else in this vendor's API."""
    told = {"code": "server_error", "message": FAILURE, "param": None}
    return named_event("error", {"type": "error", "sequence_number": sequence_number, **told})
