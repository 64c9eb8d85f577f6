"""DashScope's own client, blocking and async, through the proxy."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import dashscope
import pytest
from dashscope.api_entities.aio_session import close_shared_aio_session

from proxy.mock.reply import DEFAULT_PIECES, DEFAULT_TEXT, THOUGHT_TEXT
from tests.clients.conftest import ENDLESS, Bench, torn

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGES = [{"role": "user", "content": "say something"}]
KEY = "Bearer vendor-key-canary-7c1f"


def call(bench: Bench, base: str = "/dashscope", **arguments: Any) -> Iterator[Any]:
    """One streaming call, as a program makes it: the address and the key are the module's own settings."""
    arguments = {"model": "qwen-plus", "messages": MESSAGES, "result_format": "message"} | arguments
    dashscope.base_http_api_url = bench.url(base + "/api/v1")
    key = arguments.pop("api_key", bench.token)
    # One answer or many by the arguments, for which the client declares a union; here it is always many.
    return cast("Iterator[Any]", dashscope.Generation.call(api_key=key, stream=True, **arguments))


@pytest.fixture(autouse=True)
def own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the module's address back after the test."""
    monkeypatch.setattr(dashscope, "base_http_api_url", dashscope.base_http_api_url)


async def answers_of(bench: Bench, base: str = "/dashscope", **arguments: Any) -> list[Any]:
    return await asyncio.to_thread(lambda: list(call(bench, base, **arguments)))


@pytest.mark.parametrize("is_incremental", [True, False])
async def test_client_dashscope_stream(bench: Bench, *, is_incremental: bool) -> None:
    """Only the base URL and the key are changed, and thoughts, text and usage arrive, in increments or repeated."""
    answers = await answers_of(bench, incremental_output=is_incremental, enable_thinking=True)

    messages = [answer.output.choices[0].message for answer in answers]
    whole = "".join if is_incremental else (lambda parts: parts[-1])
    assert whole([message.content for message in messages]) == DEFAULT_TEXT
    assert whole([message.get("reasoning_content", "") for message in messages]) == THOUGHT_TEXT
    assert answers[-1].usage.output_tokens == len(DEFAULT_PIECES) + 3
    assert await bench.ending() == "complete"
    await bench.check_keys("authorization", KEY)


async def test_client_dashscope_async(bench: Bench) -> None:
    """The async client reads the same."""
    dashscope.base_http_api_url = bench.url("/dashscope/api/v1")
    # Any: dictionaries do as messages, and the answer is a union of one and many.
    call_it: Any = dashscope.AioGeneration.call
    stream = await call_it(
        model="qwen-plus", messages=MESSAGES, result_format="message", api_key=bench.token, stream=True
    )
    answers = [answer async for answer in stream]
    await close_shared_aio_session()

    assert answers[-1].output.choices[0].message.content == DEFAULT_TEXT
    await bench.check_keys("authorization", KEY)


async def test_client_dashscope_multimodal_and_application(bench: Bench) -> None:
    """Pictures and applications pass as well."""
    dashscope.base_http_api_url = bench.url("/dashscope/api/v1")

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


async def test_client_dashscope_bad_token(bench: Bench) -> None:
    """A bad token is an answer with 401 and our code, and nothing reaches the vendor."""
    (answer,) = await answers_of(bench, api_key="wrong")

    assert (answer.status_code, answer.code) == (HTTPStatus.UNAUTHORIZED, "invalid_token")
    assert bench.vendor.stats.requests == 0


async def test_client_dashscope_over_limit(bench: Bench) -> None:
    """Over the limit is an answer with 429 and our code."""
    first = await answers_of(bench, api_key=bench.over_limit)
    (answer,) = await answers_of(bench, api_key=bench.over_limit)

    assert first[-1].output.choices[0].message.content == DEFAULT_TEXT
    assert (answer.status_code, answer.code) == (HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_exceeded")


async def test_client_dashscope_break_between_events(bench: Bench) -> None:
    """A vendor that leaves between two events is an error answer with our code: this client's own error."""
    answers = await answers_of(bench, headers=torn(2))

    assert [answer.status_code for answer in answers[:2]] == [HTTPStatus.OK, HTTPStatus.OK]
    assert len(answers) == 3
    assert answers[-1].status_code != HTTPStatus.OK
    assert answers[-1].code == "upstream_unreachable"
    assert await bench.ending() == "upstream_closed"


async def test_client_dashscope_break_inside_an_event(bench: Bench) -> None:
    """A vendor that leaves inside an event is an error to the client, never an end."""
    tearing = asyncio.create_task(bench.tear(b'id:1\nevent:result\n:HTTP_STATUS/200\ndata:{"outp'))
    with pytest.raises(Exception, match=r"(?i)response ended prematurely|incompleteread"):
        await answers_of(bench, "/torn_dashscope")
    await tearing

    assert await bench.ending() == "upstream_closed"


async def test_client_dashscope_leaves(bench: Bench) -> None:
    """A client that stops reading cancels the vendor's work."""

    def use() -> None:
        answers = call(bench, headers=ENDLESS, incremental_output=True)
        next(answers)
        answers.close()  # type: ignore[attr-defined]  # a generator, declared as an iterator

    await asyncio.to_thread(use)
    await bench.check_cancelled()
