"""A vendor that behaves, and the application before it: both served by pytest-aiohttp."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from proxy.app import make_app
from tests.conftest import token
from tests.peers import WAIT_S, event
from tests.settings_builder import settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from aiohttp.test_utils import TestClient
    from pytest_aiohttp.plugin import AiohttpClient, AiohttpServer

    from proxy.observability.logging import Redactor

    Client = TestClient[web.Request, web.Application]
    Serve = Callable[..., Awaitable[Client]]

TEXTS = ("Hello", " world")
STREAM = b"".join(map(event, TEXTS)) + b"data: [DONE]\n\n"
CHAT = {"model": "gpt-x", "stream": True, "messages": []}


@dataclass
class Asked:
    """A request as the vendor got it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Vendor:
    """Streams two events to whoever asks; `holding` makes it wait after the first until `go_on` is set."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    status: int = 200
    holding: bool = False
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    has_lost_client: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append(Asked(request.method, request.raw_path, headers, await request.read()))
        if self.status != 200:
            return web.json_response({"error": {"message": "no", "type": "t", "code": "c"}}, status=self.status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Request-Id": "vendor-1"})
        await response.prepare(request)
        try:
            await response.write(event(TEXTS[0]))
            if self.holding:
                async with asyncio.timeout(WAIT_S):
                    await self.go_on.wait()
            await response.write(STREAM.removeprefix(event(TEXTS[0])))
        except asyncio.CancelledError:
            self.has_lost_client.set()
            raise
        return response

    @property
    def only(self) -> Asked:
        (asked,) = self.asked
        return asked


@pytest.fixture
async def vendor(aiohttp_server: AiohttpServer) -> AsyncIterator[Vendor]:
    """A vendor of OpenAI's dialect."""
    one = Vendor()
    app = web.Application(handler_args={"handler_cancellation": True})
    app.router.add_route("*", "/{path:.*}", one.answer)
    server = await aiohttp_server(app)
    one.url = str(server.make_url("")).rstrip("/")
    yield one
    one.go_on.set()


@pytest.fixture
def serve(vendor: Vendor, aiohttp_client: AiohttpClient, log_file: tuple[Path, Redactor]) -> Serve:
    """A client of the application with these settings."""

    async def begin(**changes: Any) -> Client:
        return await aiohttp_client(make_app(settings(vendor.url, **changes)))

    return begin


@pytest.fixture
async def client(serve: Serve) -> Client:
    """A client of the application with the tests' own settings."""
    return await serve()


def as_user(user: str = "alice", **more: str) -> dict[str, str]:
    """The fields of a request of this user's."""
    return {"Authorization": f"Bearer {token(user)}", **more}
