"""What single clients can do beside one stream, and the habits that only they have."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anthropic
import dashscope
import httpx
import openai
import pytest
from google import genai
from httpx_sse import aconnect_sse

from proxy.mock.reply import DEFAULT_TEXT, THOUGHT_TEXT
from tests.clients.conftest import torn
from tests.clients.every_client import CLIENTS
from tests.peers import WAIT_S

if TYPE_CHECKING:
    from tests.clients.calls import Client
    from tests.clients.conftest import Bench, Hear

BODY = {"model": "mock-1", "stream": True, "messages": [{"role": "user", "content": "say something"}]}
MESSAGES: Any = BODY["messages"]


def named(*names: str) -> list[Client]:
    return [client for client in CLIENTS if client.name in names]


@pytest.mark.parametrize("client", named("openai", "node openai"), indirect=True, ids=str)
@pytest.mark.parametrize("address", ["/tongyi/v1", "/v1"])
async def test_openai_other_addresses(client: Client, bench: Bench, hear: Hear, address: str) -> None:
    """A compatible mode is an upstream like others, and the short routes find theirs by the model."""
    heard = await hear(replace(client, address=address))

    assert (heard.text, heard.failure) == (DEFAULT_TEXT, None)
    await bench.check_keys("openai")


@pytest.mark.parametrize("client", named("openai responses", "node openai responses"), indirect=True, ids=str)
async def test_openai_responses_short_route(client: Client, bench: Bench, hear: Hear) -> None:
    """Responses has its short route too."""
    heard = await hear(replace(client, address="/v1"))

    assert (heard.text, heard.failure) == (DEFAULT_TEXT, None)


@pytest.mark.parametrize("client", named("anthropic", "node anthropic"), indirect=True, ids=str)
async def test_anthropic_short_route(client: Client, bench: Bench, hear: Hear) -> None:
    """Messages has its short route at the proxy's own address."""
    heard = await hear(replace(client, address=""), model="claude-thinking")

    assert (heard.text, heard.failure) == (DEFAULT_TEXT, None)
    await bench.check_keys("anthropic")


async def test_openai_whole_and_models(bench: Bench) -> None:
    """What is no stream passes as well: an answer in one piece with the vendor's own id, the list of models."""
    async with openai.AsyncOpenAI(api_key=bench.token, base_url=bench.url("/openai/v1")) as client:
        completion = await client.chat.completions.create(model="mock-1", messages=MESSAGES)
        models = [model.id async for model in client.models.list()]

    assert completion.choices[0].message.content == DEFAULT_TEXT
    assert completion._request_id == "req_" + "1".zfill(32)
    assert "mock-1" in models


async def test_openai_responses_put_together(bench: Bench) -> None:
    """The client puts a response together from its events."""
    async with (
        openai.AsyncOpenAI(api_key=bench.token, base_url=bench.url("/openai/v1")) as client,
        client.responses.stream(model="mock-reasoner", input="say something") as stream,
    ):
        response = await stream.get_final_response()

    assert response.output_text == DEFAULT_TEXT
    assert response.output[0].type == "reasoning"
    assert response.output[0].summary[0].text == THOUGHT_TEXT


async def test_anthropic_key_field(bench: Bench) -> None:
    """A client that sends its key in `x-api-key`, as older ones do, is let in with our token there."""
    async with anthropic.AsyncAnthropic(
        auth_token=None,
        api_key="",
        base_url=bench.url("/anthropic"),
        default_headers={"Authorization": anthropic.Omit(), "x-api-key": bench.token},  # type: ignore[dict-item]  # how the client is told to leave a field out
    ) as client:
        message = await client.messages.create(model="mock-1", max_tokens=100, messages=MESSAGES)

    assert message.content[0].type == "text"
    assert message.content[0].text == DEFAULT_TEXT
    await bench.check_keys("anthropic")


async def test_anthropic_tokens_and_models(bench: Bench) -> None:
    """Counting tokens and listing models pass as well."""
    async with anthropic.AsyncAnthropic(api_key=bench.token, base_url=bench.url("/anthropic")) as client:
        tokens = (await client.messages.count_tokens(model="mock-1", messages=MESSAGES)).input_tokens
        models = [model.id async for model in client.models.list()]

    assert (tokens, models) == (2, ["mock-1", "mock-1-thinking"])


# google-genai subclasses aiohttp's ClientSession, which aiohttp discourages; it can go when google-genai stops.
@pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession from ClientSession is discouraged:DeprecationWarning"
)
async def test_gemini_tokens_and_models(bench: Bench) -> None:
    """Counting tokens and listing models pass as well, and the colon in the path stays one."""
    # The mock's model list under /v1 is OpenAI's.
    options = genai.types.HttpOptions(base_url=bench.url("/gemini"), api_version="v1beta")
    async with genai.Client(api_key=bench.token, http_options=options).aio as client:
        tokens = (await client.models.count_tokens(model="mock-1", contents="hi there")).total_tokens
        models = [model.name async for model in await client.models.list()]

    assert tokens == 2
    assert "models/mock-1" in models
    assert bench.vendor.requests[0].target.endswith("/models/mock-1:countTokens")


async def test_dashscope_repeated(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without increments every event repeats the whole text so far, and passes as it is."""
    monkeypatch.setattr(dashscope, "base_http_api_url", bench.url("/dashscope/api/v1"))
    # Any: dictionaries do as messages, and the answer is a union of one and many.
    call: Any = dashscope.Generation.call

    def use() -> list[Any]:
        return list(
            call(model="qwen-plus", messages=MESSAGES, result_format="message", stream=True, api_key=bench.token)
        )

    answers = await asyncio.to_thread(use)

    assert answers[-1].output.choices[0].message.content == DEFAULT_TEXT


async def test_dashscope_multimodal_and_application(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and applications pass as well."""
    monkeypatch.setattr(dashscope, "base_http_api_url", bench.url("/dashscope/api/v1"))

    def use() -> tuple[Any, Any]:
        pictures: Any = dashscope.MultiModalConversation.call(
            model="qwen-image",
            messages=[{"role": "user", "content": [{"text": "draw something"}]}],
            api_key=bench.token,
            stream=True,
        )
        application: Any = dashscope.Application.call(app_id="app-1", prompt="hi", api_key=bench.token, stream=True)
        return list(pictures)[-1], list(application)[-1]

    picture, application = await asyncio.to_thread(use)

    assert picture.output.choices[0].message.content[0] == {"text": DEFAULT_TEXT}
    assert application.output.text == DEFAULT_TEXT


@pytest.mark.parametrize(("after", "last"), [(2, "upstream_unreachable"), (100, "[DONE]")])
async def test_plain_ends(bench: Bench, after: int, last: str) -> None:
    """A torn stream ends with one event that says why, a whole one with the vendor's own end; none is invented."""
    data: list[str] = []
    is_torn = False
    headers = {"Authorization": f"Bearer {bench.token}", **torn(after)}
    try:
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            aconnect_sse(client, "POST", bench.url("/forward-sse"), json=BODY, headers=headers) as source,
        ):
            async for event in source.aiter_sse():
                data.append(event.data)  # noqa: PERF401  a comprehension would lose what came before the error
    except httpx.RemoteProtocolError:
        is_torn = True

    assert source.response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert last in data[-1]
    assert ("[DONE]" in data) == (last == "[DONE]") == (not is_torn)


@pytest.mark.parametrize("client", named("curl"), indirect=True, ids=str)
async def test_curl_body(client: Client, bench: Bench, hear: Hear) -> None:
    """The default Content-Type of curl is a form's; the JSON inside is read as such, and both arrive unchanged."""
    await hear(client, model="mock-1")

    received = bench.vendor.requests[-1]
    assert json.loads(received.body)["model"] == "mock-1"
    assert (b"Content-Type", b"application/x-www-form-urlencoded") in received.headers


@pytest.mark.parametrize("client", named("curl"), indirect=True, ids=str)
async def test_curl_without_token(client: Client, bench: Bench) -> None:
    """A refusal is JSON, with its code in a field as well."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "-q", "-sS", "-N", "-i", "--noproxy", "*", "-d", json.dumps(BODY), bench.url("/forward-sse")),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(WAIT_S):
        output, _ = await process.communicate()

    head, _, body = output.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"X-Forward-Sse-Code: missing_token" in head
    assert json.loads(body)["error"]["code"] == "missing_token"
