from __future__ import annotations

from typing import Any

import pytest

from proxy.mock.reply import IMAGE_URL, THOUGHT_TEXT
from tests.mock.mock_wire import BEARER, ask, vendor_of_tests

TEXT = "/api/v1/services/aigc/text-generation/generation"
MULTIMODAL = "/api/v1/services/aigc/multimodal-generation/generation"
APP = "/api/v1/apps/app-1/completion"
EVENTS = {**BEARER, "X-DashScope-SSE": "enable"}
REQUEST_ID = b'"request_id":"00000000-0000-0000-0000-000000000001"'


def body(model: str = "qwen-plus", **parameters: Any) -> dict[str, Any]:
    return {"model": model, "input": {"prompt": "say something"}, "parameters": parameters}


def event(number: int, output: bytes, output_tokens: int) -> bytes:
    usage = b'{"total_tokens":%d,"output_tokens":%d,"input_tokens":2}' % (output_tokens + 2, output_tokens)
    data = b'{"output":' + output + b',"usage":' + usage + b"," + REQUEST_ID + b"}"
    return b"id:%d\nevent:result\n:HTTP_STATUS/200\ndata:%b\n\n" % (number, data)


async def test_text_generation_cumulative() -> None:
    """Without `incremental_output` each event repeats the text so far, usage grows, and the last says stop."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{TEXT}?events=2", body(), EVENTS)

    assert response.chunks == [
        event(1, b'{"text":"Hello","finish_reason":"null"}', 1),
        event(2, b'{"text":"Hello from","finish_reason":"null"}', 2),
        event(3, b'{"text":"Hello from","finish_reason":"stop"}', 2),
    ]
    assert response.fields["content-type"] == "text/event-stream;charset=UTF-8"
    assert response.fields["x-request-id"] == "00000000-0000-0000-0000-000000000001"


async def test_text_generation_incremental_message() -> None:
    """With `incremental_output` and the message format each event has its own words, in choices."""

    def choice(content: bytes, finish_reason: bytes) -> bytes:
        message = b'{"content":"' + content + b'","role":"assistant"}'
        return b'{"choices":[{"message":' + message + b',"finish_reason":"' + finish_reason + b'"}]}'

    async with vendor_of_tests() as vendor:
        parameters = body(incremental_output=True, result_format="message")
        response = await ask(vendor, f"{TEXT}?events=2", parameters, EVENTS)

    assert response.chunks == [
        event(1, choice(b"Hello", b"null"), 1),
        event(2, choice(b" from", b"null"), 2),
        event(3, choice(b"", b"stop"), 2),
    ]


@pytest.mark.parametrize("is_incremental", [True, False])
async def test_text_generation_thinking(is_incremental: bool) -> None:
    """Thoughts come first, repeated like the text where the text is, and are counted apart."""
    async with vendor_of_tests() as vendor:
        parameters = body(incremental_output=is_incremental, result_format="message", enable_thinking=True)
        data = (await ask(vendor, f"{TEXT}?events=1", parameters, EVENTS)).data

    messages = [event["output"]["choices"][0]["message"] for event in data]
    thoughts = [message.get("reasoning_content", "") for message in messages]
    assert ("".join(thoughts) if is_incremental else thoughts[-1]) == THOUGHT_TEXT
    assert [message["content"] for message in messages[:3]] == ["", "", ""]
    assert data[-1]["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}
    assert [event["usage"]["output_tokens"] for event in data] == [1, 2, 3, 4, 4]


@pytest.mark.parametrize("headers", [EVENTS, {**BEARER, "Accept": "text/event-stream"}])
async def test_multimodal_generation(headers: dict[str, str]) -> None:
    """Multimodal content is a list of parts; a picture is a part, and counted."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{MULTIMODAL}?events=1", body("qwen-image", incremental_output=True), headers)

    contents = [event["output"]["choices"][0]["message"]["content"] for event in response.data]
    assert contents == [[{"text": "Hello"}], [{"image": IMAGE_URL}], []]
    assert response.data[-1]["usage"]["image_count"] == 1


async def test_multimodal_generation_cumulative() -> None:
    """Without `incremental_output` the last event has all the parts."""
    async with vendor_of_tests() as vendor:
        data = (await ask(vendor, f"{MULTIMODAL}?events=2", body("qwen-image"), EVENTS)).data

    assert data[-1]["output"]["choices"] == [
        {
            "message": {"content": [{"text": "Hello from"}, {"image": IMAGE_URL}], "role": "assistant"},
            "finish_reason": "stop",
        }
    ]


async def test_app_completion() -> None:
    """An application answers flat, with a session, and keeps usage by model."""
    async with vendor_of_tests() as vendor:
        data = (await ask(vendor, f"{APP}?events=2", body(incremental_output=True), EVENTS)).data

    session = "session-000000000000000000000001"
    assert [event["output"] for event in data] == [
        {"session_id": session, "text": "Hello", "finish_reason": "null"},
        {"session_id": session, "text": " from", "finish_reason": "null"},
        {"session_id": session, "text": "", "finish_reason": "stop"},
    ]
    assert data[-1]["usage"] == {"models": [{"input_tokens": 2, "output_tokens": 2, "model_id": "qwen-plus"}]}


@pytest.mark.parametrize("path", [TEXT, MULTIMODAL, APP])
async def test_dashscope_whole(path: str) -> None:
    """Unless the request asks for events, the answer is one JSON object, whatever its body says."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{path}?events=2", {**body("qwen-think"), "stream": True})

    assert response.fields["content-type"] == "application/json"
    assert set(response.json) == {"output", "usage", "request_id"}
    assert b"Hello from" in response.body
    assert THOUGHT_TEXT.encode() in response.body
    assert b'"finish_reason":"stop"' in response.body


async def test_dashscope_status_json() -> None:
    """An error to a request without events is a flat JSON object."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{TEXT}?status=429", body())

    assert (response.status, response.fields["retry-after"]) == (429, "1")
    assert response.json == {
        "code": "Throttling.RateLimit",
        "message": "The mock was told to answer 429.",
        "request_id": "00000000-0000-0000-0000-000000000001",
    }


async def test_dashscope_status_event() -> None:
    """An error to a request for events is an error event under the same status."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{TEXT}?status=400", body(), EVENTS)

    assert response.status == 400
    assert response.fields["content-type"] == "text/event-stream;charset=UTF-8"
    assert response.body == (
        b"id:1\nevent:error\n:HTTP_STATUS/400\n"
        b'data:{"code":"InvalidParameter","message":"The mock was told to answer 400.",' + REQUEST_ID + b"}\n\n"
    )


async def test_dashscope_error_event() -> None:
    """An error inside the stream has the next id, its status in the comment, and ends it."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{TEXT}?fault=error_event&fault_after=2", body(), EVENTS)

    assert len(response.chunks) == 3
    assert response.chunks[-1] == (
        b"id:3\nevent:error\n:HTTP_STATUS/500\n"
        b'data:{"code":"InternalError","message":"The mock was told to fail here.",' + REQUEST_ID + b"}\n\n"
    )


async def test_dashscope_too_long() -> None:
    """A cumulative text beyond memory is refused; the same text in increments is not."""
    query = "events=20&size=1000000"
    async with vendor_of_tests() as vendor:
        cumulative = await ask(vendor, f"{TEXT}?{query}", body(), EVENTS)
        incremental = await ask(vendor, f"{TEXT}?{query}", body(incremental_output=True), EVENTS)

    assert cumulative.status == 400
    assert (incremental.status, len(incremental.chunks)) == (200, 21)
