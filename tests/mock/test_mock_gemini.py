from __future__ import annotations

import pytest

from proxy.mock.reply import IMAGE_BASE64, THOUGHT_TEXT
from tests.mock.mock_wire import ask, vendor_of_tests

KEY = {"x-goog-api-key": "mock-key"}
BODY = {"contents": [{"role": "user", "parts": [{"text": "say something"}]}]}
TAIL = b'"modelVersion":"mock-1","responseId":"000000000000000000000001"}'
FIRST = (
    b'{"candidates":[{"content":{"role":"model","parts":[{"text":"Hello"}]},"index":0}],'
    b'"usageMetadata":{"promptTokenCount":2,"candidatesTokenCount":1,"totalTokenCount":3},' + TAIL
)
SECOND = (
    b'{"candidates":[{"content":{"role":"model","parts":[{"text":" from"}]},"index":0,"finishReason":"STOP"}],'
    b'"usageMetadata":{"promptTokenCount":2,"candidatesTokenCount":2,"totalTokenCount":4},' + TAIL
)


def path(method: str, model: str = "mock-1", version: str = "v1beta") -> str:
    return f"/{version}/models/{model}:{method}"


@pytest.mark.parametrize("version", ["v1beta", "v1"])
async def test_gemini_stream(version: str) -> None:
    """With `alt=sse` each chunk is an event with usage, the last has the finish reason, and no `[DONE]` follows."""
    async with vendor_of_tests() as vendor:
        target = path("streamGenerateContent", version=version)
        response = await ask(vendor, f"{target}?alt=sse&events=2", BODY, KEY)

    assert response.chunks == [b"data: " + FIRST + b"\n\n", b"data: " + SECOND + b"\n\n"]
    assert response.fields["content-type"] == "text/event-stream"


async def test_gemini_stream_crlf() -> None:
    """With `newline=crlf` the same events come with the line ends that gateways in front of Gemini make."""
    async with vendor_of_tests() as vendor:
        target = path("streamGenerateContent")
        response = await ask(vendor, f"{target}?alt=sse&events=2&newline=crlf", BODY, KEY)

    assert response.chunks == [b"data: " + FIRST + b"\r\n\r\n", b"data: " + SECOND + b"\r\n\r\n"]


async def test_gemini_list() -> None:
    """Without `alt=sse` the same chunks come as a JSON list, one piece each."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, path("streamGenerateContent") + "?events=2", BODY, KEY)

    assert response.chunks == [b"[" + FIRST, b",\n" + SECOND + b"]"]
    assert response.fields["content-type"] == "application/json; charset=UTF-8"
    assert len(response.json) == 2


async def test_gemini_list_single() -> None:
    """A list of one chunk is a list too, and an answer without text still finishes."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, path("streamGenerateContent") + "?events=0", BODY, KEY)

    (chunk,) = response.json
    assert chunk["candidates"][0]["finishReason"] == "STOP"


async def test_gemini_thoughts_and_image() -> None:
    """Thoughts are parts marked so and counted apart; a picture is inline data and comes last."""
    async with vendor_of_tests() as vendor:
        body = {**BODY, "generationConfig": {"thinkingConfig": {"includeThoughts": True}}}
        target = path("streamGenerateContent", "mock-image")
        data = (await ask(vendor, f"{target}?alt=sse&events=1", body, KEY)).data

    parts = [chunk["candidates"][0]["content"]["parts"][0] for chunk in data]
    assert "".join(part["text"] for part in parts if part.get("thought")) == THOUGHT_TEXT
    assert parts[-2:] == [{"text": "Hello"}, {"inlineData": {"mimeType": "image/png", "data": IMAGE_BASE64}}]
    assert [chunk["candidates"][0].get("finishReason") for chunk in data] == [None] * 4 + ["STOP"]
    assert data[-1]["usageMetadata"] == {
        "promptTokenCount": 2,
        "candidatesTokenCount": 1,
        "thoughtsTokenCount": 3,
        "totalTokenCount": 6,
    }


async def test_gemini_whole() -> None:
    """`generateContent` answers one object with all the parts."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, path("generateContent", "image-thinking") + "?events=2", BODY, KEY)

    candidate = response.json["candidates"][0]
    assert candidate["content"]["parts"] == [
        {"text": THOUGHT_TEXT, "thought": True},
        {"text": "Hello from"},
        {"inlineData": {"mimeType": "image/png", "data": IMAGE_BASE64}},
    ]
    assert candidate["finishReason"] == "STOP"


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "INVALID_ARGUMENT"),
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
        (404, "NOT_FOUND"),
        (429, "RESOURCE_EXHAUSTED"),
        (500, "INTERNAL"),
        (502, "INTERNAL"),
        (503, "UNAVAILABLE"),
    ],
)
async def test_gemini_status(status: int, name: str) -> None:
    """An error that is asked for has Google's shape; in a list where a list was asked for."""
    error = {"error": {"code": status, "message": f"The mock was told to answer {status}.", "status": name}}
    async with vendor_of_tests() as vendor:
        for target, expected in (
            (path("generateContent") + "?", error),
            (path("streamGenerateContent") + "?alt=sse&", error),
            (path("streamGenerateContent") + "?", [error]),
        ):
            response = await ask(vendor, f"{target}status={status}", BODY, KEY)
            assert (response.status, response.json) == (status, expected)


async def test_gemini_error_event() -> None:
    """An error inside the stream is a data line with `error`; inside a list it is the last element."""
    error = {"error": {"code": 503, "message": "The mock was told to fail here.", "status": "UNAVAILABLE"}}
    async with vendor_of_tests() as vendor:
        target = path("streamGenerateContent")
        events = await ask(vendor, f"{target}?alt=sse&fault=error_event&fault_after=1", BODY, KEY)
        first = await ask(vendor, f"{target}?fault=error_event", BODY, KEY)
        second = await ask(vendor, f"{target}?fault=error_event&fault_after=1", BODY, KEY)

    assert len(events.data) == 2
    assert events.data[-1] == error
    assert first.json == [error]
    assert second.json[1:] == [error]


async def test_gemini_count_tokens() -> None:
    """Counting tokens counts what a prompt would be charged."""
    async with vendor_of_tests() as vendor:
        assert (await ask(vendor, path("countTokens"), BODY, KEY)).json == {"totalTokens": 2}


async def test_gemini_models() -> None:
    """The model list has Google's shape."""
    async with vendor_of_tests() as vendor:
        listed = (await ask(vendor, "/v1beta/models", headers=KEY)).json

    assert listed["models"][0]["name"] == "models/mock-1"
    assert "streamGenerateContent" in listed["models"][0]["supportedGenerationMethods"]
