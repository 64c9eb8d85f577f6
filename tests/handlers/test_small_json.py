"""A small JSON object in a request's body."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from proxy.errors import RequestTimeoutError
from proxy.handlers.small_json import MAX_BODY_BYTES, read_object

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pytest_aiohttp.plugin import AiohttpClient


async def test_body_that_does_not_come(aiohttp_client: AiohttpClient) -> None:
    """Who sends half of a body holds a handler only for so long."""
    raised = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        try:
            await read_object(request, within_s=0.05)
        except RequestTimeoutError:
            raised.set()
        return web.Response()

    app = web.Application()
    app.router.add_post("/", handler)
    client = await aiohttp_client(app)

    async def half() -> AsyncIterator[bytes]:
        yield b'{"token"'
        await raised.wait()
        yield b': "late"}'

    async with client.post("/", data=half()) as response:
        assert response.status == 200
    assert raised.is_set()


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b"", {}),
        (b"[1]", {}),
        (b'"a"', {}),
        (b'{"a": ', {}),
        (b'{"a": 1}' + b" " * (MAX_BODY_BYTES - 8), {"a": 1}),
        (b'{"a": 1}' + b" " * (MAX_BODY_BYTES - 7), {}),
    ],
)
async def test_bodies(aiohttp_client: AiohttpClient, body: bytes, value: dict[str, object]) -> None:
    """What is no object, or is too long, is as good as an empty one."""
    seen: list[dict[str, object]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(await read_object(request))
        return web.Response()

    app = web.Application()
    app.router.add_post("/", handler)
    client = await aiohttp_client(app)
    async with client.post("/", data=body) as response:
        assert response.status == 200
    assert seen == [value]
