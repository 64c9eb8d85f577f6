"""The vendor's 401 and 403: the operator's own key is the operator's affair, the client's own is the client's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CONFIG, VENDOR_KEY, token
from tests.peers import Message, Upstream, only, read_events, request
from tests.whole.scenes import BODY, check_secrets, check_settled

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running

STATUSES = pytest.mark.parametrize("status", [401, 403])
WORDS = "Incorrect API key provided: vendor-k***7c1f."
CODE = "upstream_credentials_exhausted"
OWN_KEY = "api_key: {key}"


def refusing(status: int) -> bytes:
    body = json.dumps({"error": {"message": WORDS, "code": "invalid_api_key"}}).encode()
    fields = f"WWW-Authenticate: Bearer realm=vendor\r\nX-Request-Id: req-1\r\nContent-Length: {len(body)}"
    return f"HTTP/1.1 {status} No\r\n{fields}\r\n\r\n".encode() + body


async def ask(proxy: Running, upstream: Upstream, status: int, asked: bytes) -> Message:
    """What the client is told where the vendor answers with that status."""
    client = await proxy.client()
    client.write(asked)
    vendor, _ = await upstream.take()
    vendor.write(refusing(status))
    return await client.read_message()


async def check_hidden(proxy: Running, answer: Message, status: int, upstream: str = "main") -> None:
    """502 in our own words, one warning for the operator, and the line."""
    assert (answer.status, answer.get("x-forward-sse-code")) == (502, CODE)
    assert answer.json["error"]["code"] == CODE
    assert answer.get("www-authenticate") is None
    assert answer.get("x-request-id") is None
    assert b"vendor-k" not in answer.body
    line = await check_settled(proxy, "upstream_error", status=502, code=CODE, reason="credentials_refused")
    warning = only(proxy.lines(), "upstream.credentials_refused")
    assert (warning["level"], warning["upstream"], warning["status"]) == ("warning", upstream, status)
    assert warning["id"] == line["id"]
    check_secrets(proxy, answer.body)
    assert b"Incorrect" not in proxy.log_bytes()


async def check_passed(proxy: Running, answer: Message, status: int) -> None:
    assert (answer.status, answer.json["error"]["message"]) == (status, WORDS)
    assert answer.get("www-authenticate") == "Bearer realm=vendor"
    await check_settled(proxy, "upstream_error", status=status, code=None, reason=None)
    assert not [line for line in proxy.lines() if line["event"] == "upstream.credentials_refused"]


@STATUSES
@pytest.mark.parametrize(
    "key",
    [
        pytest.param("api_key: {key}", id="api_key"),
        pytest.param("api_keys: [{key}, {key}]", id="api_keys"),
        pytest.param('api_key: none\n    headers: {{api-key: "{key}"}}', id="key among the headers"),
        pytest.param(
            'api_key: none\n    headers: {{Ocp-Apim-Subscription-Key: "${{KEY:-{key}}}"}}',
            id="secret in a header of any name",
        ),
    ],
)
@pytest.mark.parametrize(
    "path", ["/forward-sse", "/v1/chat/completions", "/main/v1/chat/completions"], ids=["front", "short", "named"]
)
async def test_credentials_of_the_operator(
    start: Callable[..., Any], upstream: Upstream, status: int, key: str, path: str
) -> None:
    """A refused key of the operator's is 502 without the vendor's words, whatever way led to it."""
    proxy = await start(config=CONFIG.replace(OWN_KEY, key))
    answer = await ask(proxy, upstream, status, request(path, body=BODY, token=token()))

    await check_hidden(proxy, answer, status)


@STATUSES
@pytest.mark.parametrize(
    ("key", "fields"),
    [
        pytest.param("api_key: client", (("X-Upstream-Authorization", "Bearer mine"),), id="client"),
        pytest.param("api_key: none", (), id="none"),
        pytest.param("api_key: none\n    headers: {{X-Team: web}}", (), id="none, with a header that is no secret"),
        pytest.param(
            'api_key: client\n    headers: {{X-Gateway: "${{KEY:-{key}}}"}}',
            (("X-Upstream-Authorization", "Bearer mine"),),
            id="client, with a secret of the operator's beside it",
        ),
    ],
)
async def test_credentials_of_the_client(
    start: Callable[..., Any], upstream: Upstream, status: int, key: str, fields: tuple[tuple[str, str], ...]
) -> None:
    """A refused key of the client's own, or a refusal that no key could prevent, passes as it came."""
    proxy = await start(config=CONFIG.replace(OWN_KEY, key))
    answer = await ask(proxy, upstream, status, request(body=BODY, token=token(), fields=fields))

    await check_passed(proxy, answer, status)


@STATUSES
@pytest.mark.parametrize("is_ours", [True, False], ids=["upstream's key", "envelope's own header"])
async def test_credentials_of_an_envelope(
    start: Callable[..., Any], upstream: Upstream, status: int, *, is_ours: bool
) -> None:
    """An envelope that is sent with an upstream's key hides a refusal of it; one with its own header does not."""
    entry = "upstream: main" if is_ours else ""
    targets = f'targets: [{{{{url: "{{url}}/*", {entry}}}}}], allow_private: ["127.0.0.0/8"]'
    proxy = await start(config=CONFIG + f"envelope: {{{{{targets}}}}}\n")
    body = {"targetUrl": f"{upstream.url}/v1/chat/completions", "header": {"authorization": "Bearer x"}, "body": "{}"}
    answer = await ask(proxy, upstream, status, request(body=body, token=token()))

    if is_ours:
        await check_hidden(proxy, answer, status)
    else:
        await check_passed(proxy, answer, status)


@STATUSES
@pytest.mark.parametrize("is_typed", [False, True], ids=["raw", "typed"])
async def test_credentials_behind_a_ticket(proxy: Running, upstream: Upstream, status: int, *, is_typed: bool) -> None:
    """An `EventSource` is told in the stream, with the code."""
    client = await proxy.client()
    client.write(request("/forward-sse/tickets", BODY, token=token()))
    url = "/" + (await client.read_message()).json["url"].lstrip("/") + "&events=typed" * is_typed
    answer = await ask(proxy, upstream, status, request(url, method="GET"))

    *_, (name, data), (last, end) = read_events(answer.body)
    assert (answer.status, name, last) == (200, "message", "end")
    assert CODE in data
    assert (json.loads(end)["status"], json.loads(end)["code"]) == (502, CODE)
    assert b"vendor-k" not in answer.body
    await proxy.settled(2)
    assert only(proxy.lines(), "upstream.credentials_refused")["status"] == status


@STATUSES
async def test_credentials_with_typed_events(proxy: Running, upstream: Upstream, status: int) -> None:
    """Before a typed stream begins it is an answer like any other of ours."""
    asked = request("/forward-sse?events=typed", body=BODY, token=token())

    await check_hidden(proxy, await ask(proxy, upstream, status, asked), status)


async def test_credentials_refused_are_charged(start: Callable[..., Any], upstream: Upstream) -> None:
    """The request has reached the vendor: it counts."""
    proxy = await start("plans: {default: {requests: [1/1m]}}\n")
    first = await ask(proxy, upstream, 401, request(body=BODY, token=token()))
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))

    assert (first.status, (await client.read_message()).status) == (502, 429)


async def test_credentials_refused_close_an_answer_that_goes_on(proxy: Running, upstream: Upstream) -> None:
    """Nobody waits for the rest of what is not passed on."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(b"HTTP/1.1 401 No\r\nContent-Length: 100\r\n\r\nbegun")

    assert (await client.read_message()).get("x-forward-sse-code") == CODE
    await vendor.closed()


async def test_credentials_refused_with_a_whole_answer_keep_the_connection(proxy: Running, upstream: Upstream) -> None:
    """An answer that came whole leaves its connection to the next exchange."""
    client = await proxy.client()
    for _ in range(2):
        client.write(request(body=BODY, token=token()))
        vendor = upstream.peers[0] if upstream.peers else await upstream.accept()
        await vendor.read_message()
        vendor.write(refusing(401))
        assert (await client.read_message()).status == 502

    assert len(upstream.peers) == 1
    assert VENDOR_KEY.encode() in upstream.peers[0].seen
