"""Python's clients, each used as its own documentation shows; only the base URL and the key differ.

Each function streams one answer into `heard` and raises what its client raises; `failures.failure_of` reads that.
"""

from __future__ import annotations

from contextlib import closing
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import anthropic
import dashscope
import httpx
import openai
from dashscope.api_entities.aio_session import close_shared_aio_session
from google import genai
from google.genai import types
from httpx_sse import aconnect_sse
from langchain_openai import ChatOpenAI

from tests.clients.failures import AnswerError

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from openai.types.chat import ChatCompletionChunk

    from tests.clients.calls import Call, Heard


def _messages(call: Call) -> Any:
    return [{"role": "user", "content": call.prompt}]


def _arguments(call: Call) -> dict[str, Any]:
    """What the clients of OpenAI and Anthropic are made with."""
    arguments: dict[str, Any] = {"base_url": call.base, "api_key": call.key, "default_headers": call.headers}
    return arguments if call.has_own_retries else arguments | {"max_retries": 0}


def _hear_chat(chunk: ChatCompletionChunk, heard: Heard) -> None:
    for choice in chunk.choices:
        heard.add(choice.delta.content)
    if chunk.usage:
        heard.usage = chunk.usage.prompt_tokens, chunk.usage.completion_tokens


async def openai_chat(call: Call, heard: Heard, kept: AsyncExitStack) -> None:
    client = await kept.enter_async_context(openai.AsyncOpenAI(**_arguments(call)))
    async with await client.chat.completions.create(
        model=call.model, messages=_messages(call), stream=True, stream_options={"include_usage": True}
    ) as stream:
        async for chunk in stream:
            _hear_chat(chunk, heard)
            if heard.is_enough:
                return


def openai_blocking(call: Call, heard: Heard, kept: AsyncExitStack) -> None:
    client = kept.enter_context(openai.OpenAI(**_arguments(call)))
    with client.chat.completions.create(
        model=call.model, messages=_messages(call), stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            _hear_chat(chunk, heard)
            if heard.is_enough:
                return


async def openai_responses(call: Call, heard: Heard, kept: AsyncExitStack) -> None:
    client = await kept.enter_async_context(openai.AsyncOpenAI(**_arguments(call)))
    async with client.responses.stream(model=call.model, input=call.prompt) as stream:
        async for event in stream:
            match event.type:
                case "response.output_text.delta":
                    heard.add(event.delta)
                case "response.reasoning_summary_text.delta":
                    heard.thought += event.delta
                case "response.completed" if event.response.usage:
                    heard.usage = event.response.usage.input_tokens, event.response.usage.output_tokens
                case "error":
                    raise AnswerError(None, event.code, event.message)
            if heard.is_enough:
                return


async def langchain_openai(call: Call, heard: Heard, kept: AsyncExitStack) -> None:
    # Its own transports live as long as the program, and so beyond a test's loop.
    transport = await kept.enter_async_context(openai.DefaultAsyncHttpxClient())
    retries = {} if call.has_own_retries else {"max_retries": 0}
    # Any: the options are pydantic fields with aliases, of which the type checker knows only one spelling.
    make: Any = ChatOpenAI
    model = make(
        model=call.model,
        base_url=call.base,
        api_key=call.key,
        stream_usage=True,
        default_headers=call.headers,
        http_async_client=transport,
        **retries,
    )
    stream = model.astream(call.prompt)
    async for message in stream:
        heard.add(message.text)
        if message.usage_metadata:
            heard.usage = message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"]
        if heard.is_enough:
            await stream.aclose()
            return


async def anthropic_messages(call: Call, heard: Heard, kept: AsyncExitStack) -> None:
    client = await kept.enter_async_context(anthropic.AsyncAnthropic(**_arguments(call)))
    async with client.messages.stream(model=call.model, max_tokens=100, messages=_messages(call)) as stream:
        async for event in stream:
            if event.type == "text":
                heard.add(event.text)
            elif event.type == "thinking":
                heard.thought += event.thinking
            if heard.is_enough:
                return
        usage = (await stream.get_final_message()).usage
        heard.usage = usage.input_tokens, usage.output_tokens


def anthropic_blocking(call: Call, heard: Heard, kept: AsyncExitStack) -> None:
    client = kept.enter_context(anthropic.Anthropic(**_arguments(call)))
    with client.messages.stream(model=call.model, max_tokens=100, messages=_messages(call)) as stream:
        for event in stream:
            if event.type == "text":
                heard.add(event.text)
            elif event.type == "thinking":
                heard.thought += event.thinking
            if heard.is_enough:
                return
        usage = stream.get_final_message().usage
        heard.usage = usage.input_tokens, usage.output_tokens


def _genai_client(call: Call) -> genai.Client:
    options = types.HttpOptions(base_url=call.base, headers=call.headers, api_version=call.version)
    return genai.Client(api_key=call.key, http_options=options)


def _hear_gemini(chunk: types.GenerateContentResponse, heard: Heard) -> None:
    for candidate in chunk.candidates or []:
        for part in (candidate.content and candidate.content.parts) or []:
            if part.thought:
                heard.thought += part.text or ""
            else:
                heard.add(part.text)
    if usage := chunk.usage_metadata:
        heard.usage = (
            usage.prompt_token_count or 0,
            (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0),
        )


async def google_genai(call: Call, heard: Heard, kept: AsyncExitStack) -> None:
    # Closing this client's stream may leave its connection open until the garbage collector comes by; closing the
    # client does not.
    async with _genai_client(call).aio as client:
        stream = await client.models.generate_content_stream(model=call.model, contents=call.prompt)
        async for chunk in stream:
            _hear_gemini(chunk, heard)
            if heard.is_enough:
                return


def google_genai_blocking(call: Call, heard: Heard, kept: AsyncExitStack) -> None:
    with _genai_client(call) as client:
        for chunk in client.models.generate_content_stream(model=call.model, contents=call.prompt):
            _hear_gemini(chunk, heard)
            if heard.is_enough:
                return


def _dashscope_arguments(call: Call) -> dict[str, Any]:
    return {
        "model": call.model,
        "messages": _messages(call),
        "result_format": "message",
        "incremental_output": True,
        "stream": True,
        "api_key": call.key,
        "base_address": call.base,
        "headers": call.headers,
    }


def _hear_dashscope(answer: Any, heard: Heard) -> None:
    if answer.status_code != HTTPStatus.OK:
        raise AnswerError(answer.status_code, answer.code, answer.message)
    message = answer.output.choices[0].message
    heard.add(message.content)
    heard.thought += message.get("reasoning_content", "")
    heard.usage = answer.usage.input_tokens, answer.usage.output_tokens


def dashscope_blocking(call: Call, heard: Heard, kept: AsyncExitStack) -> None:
    with closing(cast("Any", dashscope.Generation.call(**_dashscope_arguments(call)))) as answers:
        for answer in answers:
            _hear_dashscope(answer, heard)
            if heard.is_enough:
                return


async def dashscope_async(call: Call, heard: Heard, kept: AsyncExitStack) -> None:
    kept.push_async_callback(close_shared_aio_session)
    # Any: dictionaries do as messages, and the answer is a union of one and many.
    generate: Any = dashscope.AioGeneration.call
    answers = await generate(**_dashscope_arguments(call))
    async for answer in answers:
        _hear_dashscope(answer, heard)
        if heard.is_enough:
            await answers.aclose()
            return


async def httpx_sse(call: Call, heard: Heard, kept: AsyncExitStack) -> None:
    client = await kept.enter_async_context(httpx.AsyncClient(trust_env=False))
    body = {
        "model": call.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": _messages(call),
    }
    headers = {"Authorization": f"Bearer {call.key}", **call.headers}
    async with aconnect_sse(client, "POST", call.base, json=body, headers=headers) as source:
        if source.response.is_error:
            await source.response.aread()
            source.response.raise_for_status()
        async for event in source.aiter_sse():
            if event.data == "[DONE]":
                continue
            data = event.json()
            if "error" in data:
                raise AnswerError(None, data["error"]["code"], data["error"]["message"])
            hear_chat_event(data, heard)
            if heard.is_enough:
                return


def hear_chat_event(data: Any, heard: Heard) -> None:
    """One event of OpenAI's chat, for clients that know no vendor."""
    for choice in data["choices"]:
        heard.add(choice["delta"].get("content"))
        heard.thought += choice["delta"].get("reasoning_content") or ""
    if usage := data.get("usage"):
        heard.usage = usage["prompt_tokens"], usage["completion_tokens"]
