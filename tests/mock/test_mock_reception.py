from __future__ import annotations

import json
from typing import Any

import pytest

from tests.mock.mock_wire import BEARER, CHAT, PROMPT, ask, connected, parse, request, vendor_of_tests

GENERATION = "/api/v1/services/aigc/text-generation/generation"
GEMINI = "/v1beta/models/mock-1:generateContent"
X_API_KEY = {"x-api-key": "mock-key"}
X_GOOG = {"x-goog-api-key": "mock-key"}


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (CHAT, BEARER),
        (CHAT, {"authorization": "bearer mock-key"}),
        ("/v1/responses", BEARER),
        ("/compatible-mode/v1/chat/completions", BEARER),
        (GENERATION, BEARER),
        ("/api/v1/apps/a/completion", BEARER),
        ("/v1/messages", X_API_KEY),
        ("/v1/messages", BEARER),
        (GEMINI, X_GOOG),
        (GEMINI.replace(":", "%3A"), X_GOOG),
        (f"{GEMINI}?key=mock-key", {}),
    ],
)
async def test_key_right(path: str, headers: dict[str, str]) -> None:
    """The key is found where the dialect's clients put it."""
    async with vendor_of_tests() as vendor:
        assert (await ask(vendor, path, PROMPT, headers)).status == 200


OPENAI_401 = {
    "error": {
        "message": "Incorrect API key provided: the mock vendor wants its own key.",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }
}


@pytest.mark.parametrize(
    ("path", "headers", "member", "expected"),
    [
        (CHAT, {}, "error", OPENAI_401["error"]),
        (CHAT, {"Authorization": "Bearer wrong"}, "error", OPENAI_401["error"]),
        (CHAT, {"Authorization": "Basic mock-key"}, "error", OPENAI_401["error"]),
        (CHAT, X_API_KEY, "error", OPENAI_401["error"]),
        (f"{CHAT}?key=mock-key", {}, "error", OPENAI_401["error"]),
        (f"{CHAT}?status=500", {}, "error", OPENAI_401["error"]),
        (f"{CHAT}?events=bad", {}, "error", OPENAI_401["error"]),
        ("/v1/responses", {}, "error", OPENAI_401["error"]),
        (GENERATION, {}, "code", "InvalidApiKey"),
        (GENERATION, {"X-DashScope-SSE": "enable"}, "code", "InvalidApiKey"),
        ("/v1/messages", {}, "type", "error"),
        ("/v1/messages", X_GOOG, "type", "error"),
        (GEMINI, {}, "error", {"code": 401, "message": OPENAI_401["error"]["message"], "status": "UNAUTHENTICATED"}),
        (f"{GEMINI}?key=wrong", BEARER, "error", None),
    ],
)
async def test_key_wrong(path: str, headers: dict[str, str], member: str, expected: Any) -> None:
    """Without the key in its place a request gets 401 in its dialect, as JSON, and nothing else is told."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, path, b"not even JSON", headers)

    assert response.status == 401
    assert response.fields["content-type"].startswith("application/json")
    assert expected is None or response.json[member] == expected


async def test_key_other() -> None:
    """A vendor made with another key wants that one."""
    async with vendor_of_tests(key="sk-é") as vendor:
        assert (await ask(vendor, CHAT, PROMPT)).status == 401
        assert (await ask(vendor, GEMINI + "?key=sk-%C3%A9", PROMPT, {})).status == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"null"])
async def test_body_bad(body: bytes) -> None:
    """A body that is no JSON object is refused in the dialect."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, CHAT, body)
        assert (response.status, response.json["error"]["type"]) == (400, "invalid_request_error")


async def test_body_bad_control() -> None:
    """A bad control is refused in the dialect with a message that says what would be right."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{GEMINI}?interval_ms=soon", {}, X_GOOG)

    assert response.status == 400
    assert response.json["error"]["status"] == "INVALID_ARGUMENT"
    assert "'interval_ms' must be a whole number from 0 to" in response.json["error"]["message"]


async def test_body_of_asked_error() -> None:
    """An error that is asked for needs no good body."""
    async with vendor_of_tests() as vendor:
        assert (await ask(vendor, f"{CHAT}?status=503", b"")).status == 503


async def test_error_event_without_stream() -> None:
    """An error inside a stream cannot be had from a request for none, and the mock says so."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{CHAT}?fault=error_event", PROMPT)
    assert (response.status, "needs a request for a stream" in response.json["error"]["message"]) == (400, True)


async def test_path_unknown() -> None:
    """An unknown path is 404 in OpenAI's shape, with or without a key."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, "/v2/chat?events=x", PROMPT, {})
    assert (response.status, response.json["error"]["code"]) == (404, "unknown_url")


@pytest.mark.parametrize(("method", "path", "allow"), [("GET", CHAT, "POST"), ("POST", "/v1/models", "GET")])
async def test_method_wrong(method: str, path: str, allow: str) -> None:
    """A known path asked in the wrong way is 405 and says the right way."""
    async with vendor_of_tests() as vendor, connected(vendor) as client:
        await client.send(request(path, {}, method=method))
        response = parse(await client.read_all())
    assert (response.status, response.fields["allow"]) == (405, allow)


async def test_query_endless() -> None:
    """A query of very many members is refused, not parsed."""
    async with vendor_of_tests() as vendor:
        assert (await ask(vendor, CHAT + "?" + "a&" * 1001, PROMPT)).status == 400


async def test_body_chunked() -> None:
    """A body in chunks is understood and kept whole."""
    body = json.dumps(PROMPT).encode()
    async with vendor_of_tests() as vendor, connected(vendor) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: m\r\nAuthorization: Bearer mock-key\r\nConnection: close\r\n"
        await client.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        await client.send(b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (body[:5], len(body) - 5, body[5:]))
        assert parse(await client.read_all()).status == 200
        assert vendor.requests[0].body == body


async def test_body_badly_framed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that never comes to its end is refused when its time is up, and the connection ends."""
    monkeypatch.setattr("proxy.mock.reception.BODY_TIMEOUT_S", 0.05)
    async with vendor_of_tests() as vendor, connected(vendor) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: m\r\nAuthorization: Bearer mock-key\r\n"
        await client.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        await vendor.wait_for(lambda stats: stats.active == 1)
        await client.send(b"zz\r\n")
        response = parse(await client.read_all())
        assert (response.status, response.fields["connection"]) == (408, "close")


async def test_body_expected() -> None:
    """A client that asks before it sends its body is told to go on."""
    async with vendor_of_tests() as vendor, connected(vendor) as client:
        whole = request(CHAT, PROMPT, {**BEARER, "Expect": "100-continue"})
        head, _, body = whole.partition(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        await client.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
        await client.send(body)
        await client.read_until(b"HTTP/1.1 200 OK")


async def test_body_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body beyond the bound is 413 in the dialect, without being read to its end."""
    monkeypatch.setattr("proxy.mock.server.MAX_BODY_BYTES", 1000)
    async with vendor_of_tests() as vendor, connected(vendor) as client:
        await client.send(request(CHAT, b" " * 2000))
        assert parse(await client.read_all()).status == 413
    assert not vendor.requests


async def test_request_kept() -> None:
    """What was received is kept as it came: the target unquoted by nobody, the fields in order and spelling."""
    async with vendor_of_tests() as vendor:
        await ask(vendor, "/a%2Fb:c?x=%20&x=2", b"\x00\xff", {"X-One": "1", "x-ONE": "2"})

    (received,) = vendor.requests
    assert received.method == "POST"
    assert received.target == "/a%2Fb:c?x=%20&x=2"
    assert received.headers == (
        (b"Host", b"mock"),
        (b"Content-Length", b"2"),
        (b"X-One", b"1"),
        (b"x-ONE", b"2"),
        (b"Connection", b"close"),
    )
    assert received.body == b"\x00\xff"
    assert "X-One" not in repr(received)


def test_client_of_tests() -> None:
    """The client that these tests use does not take a torn answer for a whole one."""
    with pytest.raises(AssertionError):
        parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
