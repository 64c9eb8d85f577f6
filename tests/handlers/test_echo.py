"""`GET /forward-sse/echo`: events that carry the time at which they left."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.handlers.conftest import as_user

if TYPE_CHECKING:
    from tests.handlers.conftest import Client, Serve

PATH = "/forward-sse/echo"


def read(body: bytes) -> list[dict[str, int]]:
    """The events' data."""
    assert body.endswith(b"\n\n")
    return [json.loads(event.removeprefix(b"data: ")) for event in body[:-2].split(b"\n\n")]


async def test_echo_is_a_stream(client: Client) -> None:
    """It has the events that were asked for, in order, takes the time that they need, and has a stream's fields."""
    began_s = time.monotonic()
    async with client.get(f"{PATH}?events=3&interval_ms=20&silence_ms=30", headers=as_user()) as response:
        events = read(await response.read())
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-cache, no-transform"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert "X-Forward-Sse-Id" in response.headers
    assert [event["n"] for event in events] == [0, 1, 2]
    assert all(set(event) == {"n", "sent_ms"} for event in events)
    sent_ms = [event["sent_ms"] for event in events]
    assert sent_ms == sorted(sent_ms)
    assert time.monotonic() - began_s >= 0.07


async def test_echo_defaults(client: Client) -> None:
    """Without parameters it has ten events."""
    async with client.get(f"{PATH}?interval_ms=0", headers=as_user()) as response:
        assert len(read(await response.read())) == 10


async def test_echo_head(client: Client) -> None:
    """HEAD gets the fields of the stream, and no body."""
    async with client.head(PATH, headers=as_user()) as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        assert await response.read() == b""


@pytest.mark.parametrize(
    "query",
    [
        "events=0",
        "events=10001&interval_ms=0",
        "events=x",
        "events=-1",
        "events=",
        "events=1&events=2",
        "events=1&%65vents=2",
        "interval_ms=1.5",
        "events=3&interval_ms=150001",
        "events=2&interval_ms=1&silence_ms=300000",
        "silence_ms=9999999999",
    ],
)
async def test_echo_refused(client: Client, query: str) -> None:
    """What is no number, too many or too long is 400, and charged to nobody."""
    async with client.get(f"{PATH}?{query}", headers=as_user()) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("method", "headers", "status", "code"),
    [
        pytest.param("GET", {}, 401, "missing_token", id="no token"),
        pytest.param("POST", as_user(), 405, "method_not_allowed", id="method"),
        pytest.param("POST", {}, 405, "method_not_allowed", id="method, no token"),
    ],
)
async def test_echo_is_for_users(client: Client, method: str, headers: dict[str, str], status: int, code: str) -> None:
    """Only a user may ask, and only read; another method is refused before the body is read."""
    async with client.request(method, PATH, headers=headers, json={}) as response:
        assert (response.status, response.headers["X-Forward-Sse-Code"]) == (status, code)
        if status == 405:
            assert response.headers["Allow"] == "GET, HEAD"


async def test_echo_is_charged(serve: Serve) -> None:
    """Each is a request of the user's rate, and holds a lease while it runs."""
    plan: dict[str, Any] = {"requests": ["3/1h"], "concurrent_streams": 1}
    client = await serve(plans={"default": plan})
    async with client.get(f"{PATH}?events=2&interval_ms=60000", headers=as_user()) as response:
        assert response.headers["x-ratelimit-remaining-requests"] == "2"
        await response.content.readuntil(b"\n\n")
        async with client.get(PATH, headers=as_user()) as second:
            assert (second.status, second.headers["X-Forward-Sse-Code"]) == (429, "too_many_streams")
        id_ = response.headers["X-Forward-Sse-Id"]
        async with client.delete(f"/forward-sse/streams/{id_}", headers=as_user()) as stopped:
            assert stopped.status == 204
        assert b'"stopped"' in await response.content.readuntil(b"\n\n")
    for left in ("1", "0"):
        async with client.get(f"{PATH}?events=1", headers=as_user()) as response:
            assert response.headers["x-ratelimit-remaining-requests"] == left
    async with client.get(PATH, headers=as_user()) as response:
        assert (response.status, response.headers["X-Forward-Sse-Code"]) == (429, "rate_limit_exceeded")
