from __future__ import annotations

import pytest

from proxy.mock.anthropic import SIGNATURE
from proxy.mock.reply import THOUGHT_TEXT
from tests.mock.mock_wire import BEARER, PROMPT, ask, vendor_of_tests

MESSAGES = "/v1/messages"
KEY = {"x-api-key": "mock-key", "anthropic-version": "2023-06-01"}
STREAM = {**PROMPT, "stream": True, "max_tokens": 100}


@pytest.mark.parametrize("path", [MESSAGES, "/anthropic/v1/messages"])
async def test_messages_stream(path: str) -> None:
    """The stream is the documented sequence of named events, byte for byte, and no `[DONE]`."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{path}?events=2", STREAM, KEY)

    assert response.body == (
        b"event: message_start\n"
        b'data: {"type":"message_start","message":{"id":"msg_000000000000000000000001","type":"message",'
        b'"role":"assistant","content":[],"model":"mock-1","stop_reason":null,"stop_sequence":null,'
        b'"usage":{"input_tokens":2,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":1}}}'
        b"\n\n"
        b'event: ping\ndata: {"type":"ping"}\n\n'
        b"event: content_block_start\n"
        b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
        b"event: content_block_delta\n"
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}\n\n'
        b"event: content_block_delta\n"
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" from"}}\n\n'
        b"event: content_block_stop\n"
        b'data: {"type":"content_block_stop","index":0}\n\n'
        b"event: message_delta\n"
        b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},'
        b'"usage":{"output_tokens":2}}\n\n'
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )
    assert len(response.chunks) == 8
    assert response.fields["content-type"] == "text/event-stream; charset=utf-8"
    assert response.fields["request-id"] == "req_" + "1".zfill(24)


async def test_messages_stream_thinking() -> None:
    """With `thinking` a signed block of thoughts comes first, and its tokens are counted."""
    async with vendor_of_tests() as vendor:
        body = {**STREAM, "thinking": {"type": "enabled", "budget_tokens": 50}}
        data = (await ask(vendor, f"{MESSAGES}?events=1", body, KEY)).data

    deltas = [(event["index"], event["delta"]) for event in data if event["type"] == "content_block_delta"]
    assert [index for index, _ in deltas] == [0, 0, 0, 0, 1]
    assert "".join(delta["thinking"] for _, delta in deltas[:3]) == THOUGHT_TEXT
    assert deltas[3][1] == {"type": "signature_delta", "signature": SIGNATURE}
    blocks = [event["content_block"]["type"] for event in data if event["type"] == "content_block_start"]
    assert blocks == ["thinking", "text"]
    assert data[-2]["usage"] == {"output_tokens": 4}


async def test_messages_whole() -> None:
    """Without `stream` the answer is one message with all blocks and usage."""
    async with vendor_of_tests() as vendor:
        body = {**STREAM, "stream": False, "thinking": {"type": "adaptive"}}
        message = (await ask(vendor, f"{MESSAGES}?events=2", body, KEY)).json

    assert message["content"] == [
        {"type": "thinking", "thinking": THOUGHT_TEXT, "signature": SIGNATURE},
        {"type": "text", "text": "Hello from"},
    ]
    assert message["stop_reason"] == "end_turn"
    assert (message["usage"]["input_tokens"], message["usage"]["output_tokens"]) == (2, 5)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (529, "overloaded_error"),
    ],
)
async def test_anthropic_status(status: int, kind: str) -> None:
    """An error that is asked for has Anthropic's shape and type."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{MESSAGES}?status={status}", STREAM, KEY)

    assert response.status == status
    assert response.json == {
        "type": "error",
        "error": {"type": kind, "message": f"The mock was told to answer {status}."},
        "request_id": "req_" + "1".zfill(24),
    }


async def test_messages_error_event() -> None:
    """An error inside the stream is a named `error` event, and nothing after it."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{MESSAGES}?fault=error_event&fault_after=3", STREAM, KEY)

    assert len(response.chunks) == 4
    assert response.chunks[-1] == (
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error",'
        b'"message":"The mock was told to fail here."}}\n\n'
    )


async def test_anthropic_count_tokens() -> None:
    """Counting tokens counts what a message would be charged for its input."""
    async with vendor_of_tests() as vendor:
        body = {"system": "be brief", "messages": PROMPT["messages"]}
        assert (await ask(vendor, f"{MESSAGES}/count_tokens", body, KEY)).json == {"input_tokens": 4}


@pytest.mark.parametrize(("path", "headers"), [("/v1/models", {**KEY}), ("/anthropic/v1/models", BEARER)])
async def test_anthropic_models(path: str, headers: dict[str, str]) -> None:
    """A client that names Anthropic's version gets the model list in Anthropic's shape."""
    async with vendor_of_tests() as vendor:
        page = (await ask(vendor, path, headers=headers)).json

    assert set(page) == {"data", "has_more", "first_id", "last_id"}
    assert page["data"][0]["type"] == "model"
