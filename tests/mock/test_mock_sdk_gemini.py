"""Google's own client, straight at the mock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from google import genai
from google.genai import errors, types

from proxy.mock.reply import DEFAULT_PIECES, DEFAULT_TEXT, THOUGHT_TEXT
from tests.mock.mock_wire import vendor_of_tests

if TYPE_CHECKING:
    from proxy.mock.server import MockVendor

# google-genai subclasses aiohttp's ClientSession, which aiohttp discourages; it can go when google-genai stops.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession from ClientSession is discouraged:DeprecationWarning"
)


def client_of(vendor: MockVendor, *, key: str = "mock-key", headers: dict[str, str] | None = None) -> genai.Client:
    return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=vendor.url, headers=headers or {}))


@pytest.mark.parametrize("newline", ["lf", "crlf"])
async def test_gemini_stream(newline: str) -> None:
    """The client reads thoughts, text and usage off a stream, whatever its line ends."""
    async with vendor_of_tests() as vendor, client_of(vendor, headers={"X-Mock-Newline": newline}).aio as client:
        stream = await client.models.generate_content_stream(model="mock-thinking", contents="say something")
        chunks = [chunk async for chunk in stream]

    parts = [part for chunk in chunks for part in chunk.candidates[0].content.parts]  # type: ignore[index,union-attr]  # the client's optional members, all sent
    assert "".join(part.text or "" for part in parts if part.thought) == THOUGHT_TEXT
    assert "".join(part.text or "" for part in parts if not part.thought) == DEFAULT_TEXT
    usage = chunks[-1].usage_metadata
    assert usage is not None
    assert (usage.prompt_token_count, usage.candidates_token_count) == (2, len(DEFAULT_PIECES))
    assert usage.thoughts_token_count == 3


async def test_gemini_whole() -> None:
    """The client reads an answer that is no stream, and counts tokens."""
    async with vendor_of_tests() as vendor, client_of(vendor).aio as client:
        assert (await client.models.generate_content(model="mock-1", contents="hi")).text == DEFAULT_TEXT
        assert (await client.models.count_tokens(model="mock-1", contents="hi there")).total_tokens == 2


@pytest.mark.parametrize(("key", "headers", "code"), [("wrong", {}, 401), ("mock-key", {"X-Mock-Status": "429"}, 429)])
async def test_gemini_refused(key: str, headers: dict[str, str], code: int) -> None:
    """A refusal is the client's own error with the status' name."""
    async with vendor_of_tests() as vendor, client_of(vendor, key=key, headers=headers).aio as client:
        with pytest.raises(errors.ClientError) as raised:
            _ = [chunk async for chunk in await client.models.generate_content_stream(model="mock-1", contents="hi")]
    assert (raised.value.code, raised.value.status) == (
        code,
        {401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED"}[code],
    )


async def test_gemini_error_event() -> None:
    """An error inside a stream is raised as what it would have been before it."""
    headers = {"X-Mock-Fault": "error_event", "X-Mock-Fault-After": "2"}
    async with vendor_of_tests() as vendor, client_of(vendor, headers=headers).aio as client:
        with pytest.raises(errors.ServerError, match="told to fail"):
            _ = [chunk async for chunk in await client.models.generate_content_stream(model="mock-1", contents="hi")]
