"""Google's own client, async and blocking, through the proxy."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from google import genai
from google.genai import errors, types

from proxy.mock.reply import DEFAULT_PIECES, DEFAULT_TEXT, THOUGHT_TEXT
from tests.clients.conftest import ENDLESS, Bench, torn

if TYPE_CHECKING:
    from collections.abc import Mapping

# google-genai subclasses aiohttp's ClientSession, which aiohttp discourages; it can go when google-genai stops.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession from ClientSession is discouraged:DeprecationWarning"
)


def client_of(
    bench: Bench,
    base: str = "/gemini",
    *,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    version: str | None = None,
) -> genai.Client:
    options = types.HttpOptions(base_url=bench.url(base), headers=dict(headers or {}), api_version=version)
    return genai.Client(api_key=bench.token if key is None else key, http_options=options)


def check_text(chunks: list[types.GenerateContentResponse]) -> None:
    """The whole text, the thoughts, and what they cost."""
    parts = [part for chunk in chunks for part in chunk.candidates[0].content.parts]  # type: ignore[index,union-attr]  # the client's optional members, all sent
    assert "".join(part.text or "" for part in parts if part.thought) == THOUGHT_TEXT
    assert "".join(part.text or "" for part in parts if not part.thought) == DEFAULT_TEXT
    usage = chunks[-1].usage_metadata
    assert usage is not None
    assert (usage.candidates_token_count, usage.thoughts_token_count) == (len(DEFAULT_PIECES), 3)


async def test_client_gemini_stream(bench: Bench) -> None:
    """Only the base URL and the key are changed, and thoughts, text and usage arrive; the path's colon stays."""
    async with client_of(bench).aio as client:
        stream = await client.models.generate_content_stream(model="mock-thinking", contents="say something")
        check_text([chunk async for chunk in stream])

    assert await bench.ending() == "complete"
    assert bench.vendor.requests[-1].target.endswith("/models/mock-thinking:streamGenerateContent?alt=sse")
    await bench.check_keys("x-goog-api-key")


async def test_client_gemini_blocking(bench: Bench) -> None:
    """The blocking client streams, counts tokens and lists models."""

    def use() -> tuple[list[types.GenerateContentResponse], int | None, list[str | None]]:
        # The mock's model list under /v1 is OpenAI's.
        with client_of(bench, version="v1beta") as client:
            chunks = list(client.models.generate_content_stream(model="mock-thinking", contents="say something"))
            tokens = client.models.count_tokens(model="mock-1", contents="hi there").total_tokens
            return chunks, tokens, [model.name for model in client.models.list()]

    chunks, tokens, models = await asyncio.to_thread(use)

    check_text(chunks)
    assert tokens == 2
    assert "models/mock-1" in models


async def test_client_gemini_bad_token(bench: Bench) -> None:
    """A bad token is the client's own error for it, with our code, and nothing reaches the vendor."""
    async with client_of(bench, key="wrong").aio as client:
        with pytest.raises(errors.ClientError) as raised:
            _ = [chunk async for chunk in await client.models.generate_content_stream(model="mock-1", contents="hi")]

    assert (raised.value.code, raised.value.status) == (401, "UNAUTHENTICATED")
    assert raised.value.details["error"]["details"][0]["reason"] == "invalid_token"
    assert bench.vendor.stats.requests == 0


async def test_client_gemini_over_limit(bench: Bench) -> None:
    """Over the limit is the client's own error for it."""
    async with client_of(bench, key=bench.over_limit).aio as client:
        assert (await client.models.generate_content(model="mock-1", contents="hi")).text == DEFAULT_TEXT
        with pytest.raises(errors.ClientError) as raised:
            _ = [chunk async for chunk in await client.models.generate_content_stream(model="mock-1", contents="hi")]

    assert (raised.value.code, raised.value.status) == (429, "RESOURCE_EXHAUSTED")
    assert bench.vendor.stats.requests == 1


async def test_client_gemini_break_between_events(bench: Bench) -> None:
    """A vendor that leaves between two events is the client's own error, with our code."""
    async with client_of(bench, headers=torn(2)).aio as client:
        with pytest.raises(errors.ServerError) as raised:
            _ = [chunk async for chunk in await client.models.generate_content_stream(model="mock-1", contents="hi")]

    assert raised.value.details["error"]["details"][0]["reason"] == "upstream_unreachable"
    assert await bench.ending() == "upstream_closed"


async def test_client_gemini_blocking_break_between_events(bench: Bench) -> None:
    """The blocking client gets the same error."""

    def use() -> None:
        with client_of(bench, headers=torn(2)) as client:
            list(client.models.generate_content_stream(model="mock-1", contents="hi"))

    with pytest.raises(errors.ServerError):
        await asyncio.to_thread(use)


async def test_client_gemini_break_inside_an_event(bench: Bench) -> None:
    """A vendor that leaves inside an event is an error to the client, never an end."""
    async with client_of(bench, "/torn_gemini").aio as client:
        tearing = asyncio.create_task(bench.tear(b'data: {"candidates":[{"content":{"pa'))
        # This client passes its transport's error on as it is, and and which that is depends on what is installed.
        with pytest.raises(Exception, match=r"(?i)payload is not completed|incomplete chunked read"):
            _ = [chunk async for chunk in await client.models.generate_content_stream(model="mock-1", contents="hi")]
        await tearing

    assert await bench.ending() == "upstream_closed"


async def test_client_gemini_leaves(bench: Bench) -> None:
    """A client that stops reading cancels the vendor's work."""
    async with client_of(bench, headers=ENDLESS).aio as client:
        stream = await client.models.generate_content_stream(model="mock-1", contents="hi")
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]  # an async generator, declared as an iterator
    await bench.check_cancelled()


async def test_client_gemini_blocking_leaves(bench: Bench) -> None:
    """So does a blocking client."""

    def use() -> None:
        with client_of(bench, headers=ENDLESS) as client:
            stream = client.models.generate_content_stream(model="mock-1", contents="hi")
            next(iter(stream))
            stream.close()  # type: ignore[attr-defined]  # a generator, declared as an iterator

    await asyncio.to_thread(use)
    await bench.check_cancelled()
