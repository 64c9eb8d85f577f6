"""What is no request to the operator's listener: refused as on the clients', in JSON, without the server's versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.whole.test_operators_whole import BOTH, OPS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running
    from tests.peers import Message

TARGET = "The request target is malformed."
EXPECTED = "The only expectation understood here is 100-continue."
HOST = b"Host: localhost\r\n"
LISTENERS = ["admin", "client"]


async def answer_of(proxy: Running, listener: str, data: bytes) -> Message:
    peer = await getattr(proxy, listener)()
    peer.write(data)
    answer: Message = await peer.read_message()
    if answer.get("connection") == "close" or answer.start.startswith("HTTP/1.0"):
        await peer.closed()
    return answer


def check(answer: Message, message: str, status_line: str = "HTTP/1.1 400 Bad Request") -> None:
    assert (answer.start, answer.get("content-type")) == (status_line, "application/json")
    assert (answer.json["error"]["code"], answer.get("x-forward-sse-code")) == ("invalid_request", "invalid_request")
    assert answer.json["error"]["message"] == message
    assert answer.get("server") is None
    assert answer.get("cache-control") == "no-store"
    assert answer.get("date") is not None


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize(
    "begin", [b"CONNECT localhost:443", b"CONNECT /metrics", b"OPTIONS *"], ids=lambda begin: begin.decode()
)
async def test_target_that_is_no_path(proxy: Running, listener: str, begin: bytes) -> None:
    """A target that no route can have is not a 400 in JSON, or the connection goes on."""
    answer = await answer_of(proxy, listener, begin + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    check(answer, TARGET)
    assert answer.get("connection") == "close"


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize(
    "head",
    [
        b"GET /metrics HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + HOST + b"Content-Length: 1, 2\r\n\r\n",
        b"GET /metrics HTTP/1.2\r\n" + HOST + b"\r\n",
        b"what is this\r\n\r\n",
    ],
)
async def test_head_that_cannot_be_parsed(proxy: Running, listener: str, head: bytes) -> None:
    """The answer to a head that cannot be parsed names aiohttp's release, or is not JSON."""
    answer = await answer_of(proxy, listener, head)
    check(answer, "The request is malformed.", "HTTP/1.0 400 Bad Request")
    assert answer.get("connection") == "close"


async def test_answers_before_a_head_that_cannot_be_parsed(proxy: Running) -> None:
    """A malformed head behind a good request, in another read, costs that one's answer."""
    admin = await proxy.admin()
    admin.write(b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (await admin.read_message()).json == {"status": "ok"}
    admin.write(b"nonsense\r\n\r\n")
    check(await admin.read_message(), "The request is malformed.", "HTTP/1.0 400 Bad Request")
    await admin.closed()


@pytest.mark.parametrize("listener", LISTENERS)
async def test_another_version(proxy: Running, listener: str) -> None:
    """A request of another version of HTTP is served, in that version."""
    check(
        await answer_of(proxy, listener, b"GET /metrics HTTP/2.0\r\n" + HOST + b"\r\n"),
        "Only HTTP/1.0 and HTTP/1.1 are spoken here.",
    )


@pytest.mark.parametrize("path", [b"/metrics", b"/console", b"/admin/streams", b"/console/session", b"/none"])
@pytest.mark.parametrize("expectation", [b"tea", b"100-continue, tea"])
async def test_unknown_expectation(proxy: Running, path: bytes, expectation: bytes) -> None:
    """What a client expects besides 100-continue is answered by aiohttp, in plain text, or not refused."""
    data = b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"Expect: " + expectation + b"\r\n\r\n"
    check(await answer_of(proxy, "admin", data), EXPECTED)


async def test_continue_where_a_body_is_read(start: Callable[..., Any]) -> None:
    """Who waits for 100 Continue is not told it, or before it is known who asks."""
    proxy = await start(BOTH)
    body = b'{"state": "off"}'
    head = b"PUT /admin/upstreams/main HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nX-Forward-Sse-Console: 1\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    stranger = await proxy.admin()
    stranger.write(head + b"\r\n")
    assert (await stranger.read_message()).start == "HTTP/1.1 401 Unauthorized"

    operator = await proxy.admin()
    operator.write(head + b"Authorization: Bearer " + OPS.encode() + b"\r\n\r\n")
    assert await operator.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    operator.write(body)
    assert (await operator.read_message()).start == "HTTP/1.1 200 OK"
