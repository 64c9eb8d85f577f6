from __future__ import annotations

import json

import pytest

from proxy.mock.reply import IMAGE_BASE64, THOUGHT_TEXT
from tests.mock.mock_wire import ask, vendor_of_tests

RESPONSES = "/v1/responses"
STREAM = {"model": "mock-1", "input": "say something", "stream": True}
ITEM = b'"item_id":"msg_000000000000000000000001","output_index":0,"content_index":0'


async def test_responses_stream() -> None:
    """The stream is the full sequence of named, numbered events with usage at the end and no `[DONE]`."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{RESPONSES}?events=2", STREAM)

    names = [chunk.split(b"\n")[0].decode() for chunk in response.chunks]
    assert names == [
        f"event: response.{name}"
        for name in (
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        )
    ]
    assert [data["sequence_number"] for data in response.data] == list(range(10))
    assert [f"event: {data['type']}" for data in response.data] == names
    assert response.fields["content-type"] == "text/event-stream; charset=utf-8"
    assert b"[DONE]" not in response.body
    first, last = response.data[0]["response"], response.data[-1]["response"]
    assert (first["status"], first["usage"], first["output"]) == ("in_progress", None, [])
    assert last["status"] == "completed"
    assert last["output"][0]["content"][0]["text"] == "Hello from"
    assert last["usage"] == {
        "input_tokens": 2,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 4,
    }


async def test_responses_stream_bytes() -> None:
    """A text delta, and what stands around it, is byte for byte as the vendor writes it."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{RESPONSES}?events=1", STREAM)

    assert response.chunks[2:6] == [
        (
            b"event: response.output_item.added\n"
            b'data: {"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"type":"message",'
            b'"id":"msg_000000000000000000000001","status":"in_progress","role":"assistant","content":[]}}\n\n'
        ),
        b"event: response.content_part.added\n"
        b'data: {"type":"response.content_part.added","sequence_number":3,' + ITEM + b',"part":'
        b'{"type":"output_text","text":"","annotations":[],"logprobs":[]}}\n\n',
        b"event: response.output_text.delta\n"
        b'data: {"type":"response.output_text.delta","sequence_number":4,' + ITEM + b',"delta":"Hello","logprobs":[]}'
        b"\n\n",
        b"event: response.output_text.done\n"
        b'data: {"type":"response.output_text.done","sequence_number":5,'
        + ITEM
        + b',"text":"Hello","logprobs":[]}\n\n',
    ]


async def test_responses_stream_thinking_and_image() -> None:
    """Thoughts are a reasoning item before the message, a picture an item after it, and all are in the output."""
    async with vendor_of_tests() as vendor:
        body = {**STREAM, "model": "image", "reasoning": {"summary": "auto"}}
        data = (await ask(vendor, f"{RESPONSES}?events=1", body)).data

    thoughts = [event["delta"] for event in data if event["type"] == "response.reasoning_summary_text.delta"]
    assert "".join(thoughts) == THOUGHT_TEXT
    (partial,) = [event for event in data if event["type"] == "response.image_generation_call.partial_image"]
    assert partial["partial_image_b64"] == IMAGE_BASE64
    added = [event["output_index"] for event in data if event["type"] == "response.output_item.added"]
    assert added == [0, 1, 2]
    output = data[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "image_generation_call"]
    assert output == [event["item"] for event in data if event["type"] == "response.output_item.done"]


@pytest.mark.parametrize("path", [RESPONSES, "/compatible-mode/v1/responses"])
async def test_responses_whole(path: str) -> None:
    """Without `stream` the answer is the completed response."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{path}?events=2", {**STREAM, "stream": False})

    assert response.json["object"] == "response"
    assert response.json["status"] == "completed"
    assert response.json["output"][0]["content"][0]["text"] == "Hello from"
    assert ("openai-processing-ms" in response.fields) == (path == RESPONSES)


async def test_responses_error_event() -> None:
    """An error inside the stream is a flat `error` event with the next number, and nothing after it."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{RESPONSES}?fault=error_event&fault_after=3", STREAM)

    assert len(response.chunks) == 4
    name, data = response.chunks[-1].decode().split("\n")[:2]
    assert name == "event: error"
    assert json.loads(data[6:]) == {
        "type": "error",
        "sequence_number": 3,
        "code": "server_error",
        "message": "The mock was told to fail here.",
        "param": None,
    }


async def test_responses_too_long() -> None:
    """A text that the last events could not repeat is refused before the stream begins."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{RESPONSES}?events=1000&size=1000000", STREAM)

    assert response.status == 400
    assert "events x size" in response.json["error"]["message"]
