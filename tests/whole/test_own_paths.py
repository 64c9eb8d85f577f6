"""What real clients ask for by path: an own path with a slash at its end, a list of models, a model with a slash."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import VENDOR_KEY, token
from tests.peers import LAST, STREAM_HEAD, Message, Peer, Upstream, chunk, event, request
from tests.whole.scenes import OK, check_settled

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running

CONFIG = """
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
auth:
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}"}}
plans:
  default: {{}}
  narrow: {{upstreams: [open]}}
playground: true
upstreams:
  main: {{url: "{url}/compatible-mode/v1", dialect: openai, api_key: {key}, models: ["gpt-*"]}}
  plain: {{url: "{url}", dialect: openai, api_key: {key}, models: ["text-*"]}}
  claude: {{url: "{url}", dialect: anthropic, api_key: {key}, models: ["claude-*"]}}
  dashscope: {{url: "{url}", dialect: dashscope, api_key: {key}}}
  gemini: {{url: "{url}", dialect: gemini, api_key: {key}, path: "/v1beta/models/g-1:streamGenerateContent?alt=sse"}}
  azure: {{url: "{url}", dialect: openai, api_key: {key},
    path: "/openai/deployments/d/chat/completions?api-version=2024-10-21"}}
  open: {{url: "{url}", dialect: openai, api_key: {key}, allow_paths: all}}
default_upstream: main
"""


@pytest.fixture
async def served(start: Callable[..., Any]) -> Running:
    """A proxy with upstreams whose urls and paths are written as operators write them."""
    return await start(config=CONFIG)  # type: ignore[no-any-return]  # the factory's options are open


async def passes(proxy: Running, upstream: Upstream, data: bytes) -> Message:
    """What the vendor got of a request that goes through."""
    client = await proxy.client()
    client.write(data)
    vendor, received = await upstream.take()
    vendor.write(OK)
    assert (await client.read_message()).status == 200
    await vendor.gone()
    return received


async def refused(proxy: Running, upstream: Upstream, data: bytes) -> Message:
    client = await proxy.client()
    client.write(data)
    answer = await client.read_message()
    assert answer.status >= 400
    assert upstream.is_untouched
    return answer


# --- one slash at the end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/forward-sse/", {"model": "gpt-4"}, "/compatible-mode/v1/chat/completions"),
        ("/forward-sse/?upstream=plain&a=b", {}, "/v1/chat/completions?a=b"),
        ("/v1/chat/completions/", {"model": "text-1"}, "/v1/chat/completions"),
        ("/v1/responses/", {"model": "text-1"}, "/v1/responses"),
        ("/v1/messages/", {"model": "claude-9"}, "/v1/messages"),
        ("/v1/completions/", {"model": "text-1"}, "/v1/completions"),
        ("/v1/embeddings/", {"model": "text-1"}, "/v1/embeddings"),
        ("/v1/models/", None, "/compatible-mode/v1/models"),
    ],
)
async def test_slash_behind_a_door(
    served: Running, upstream: Upstream, path: str, body: dict[str, Any] | None, expected: str
) -> None:
    """One slash at the end of an own path changes nothing; the vendor never sees it."""
    method = "GET" if body is None else "POST"
    received = await passes(served, upstream, request(path, body, method=method, token=token()))

    assert received.start == f"{method} {expected} HTTP/1.1"


async def test_slash_behind_tickets_and_streams(served: Running, upstream: Upstream) -> None:
    """A ticket is made and used, and a stream stopped, at paths with a slash at their end."""
    client = await served.client()
    client.write(request("/forward-sse/tickets/", {"model": "gpt-4"}, token=token()))
    made = await client.read_message()
    assert made.status == 201
    client.write(request(f"/forward-sse/?ticket={made.json['ticket']}", method="GET"))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    answer = await client.read_head()
    assert answer.status == 200
    stopper = await served.client()
    stopper.write(request(f"/forward-sse/streams/{answer.get('x-forward-sse-id')}/", method="DELETE", token=token()))

    assert (await stopper.read_message()).status == 204
    await vendor.closed()


@pytest.mark.parametrize("path", ["/healthz/", "/readyz/", "/playground/"])
async def test_slash_behind_pages(served: Running, path: str) -> None:
    """Health and the playground's page are there with the slash, on the public listener."""
    client = await served.client()
    client.write(request(path, method="GET"))

    assert (await client.read_message()).status == 200


async def test_slash_behind_usage(served: Running) -> None:
    """And what a user has used: an exchange with its line, in which the path has one spelling."""
    client = await served.client()
    client.write(request("/forward-sse/usage/?since=1d", method="GET", token=token()))

    assert (await client.read_message()).json["user"] == "alice"
    await check_settled(served, "complete", path="/forward-sse/usage", upstream=None, status=200)


async def test_slash_behind_the_playgrounds_list(served: Running) -> None:
    """So is what a user's upstreams are."""
    client = await served.client()
    client.write(request("/playground/upstreams/", method="GET", token=token()))

    assert (await client.read_message()).json["user"] == "alice"


async def test_slash_behind_the_echo(served: Running, upstream: Upstream) -> None:
    """So is the echo."""
    client = await served.client()
    client.write(request("/forward-sse/echo/?events=2&interval_ms=0", method="GET", token=token()))

    assert (await client.read_message()).body.count(b"sent_ms") == 2
    assert upstream.is_untouched


@pytest.mark.parametrize("path", ["/metrics/", "/admin/streams/", "/admin/usage/", "/healthz/", "/readyz/"])
async def test_slash_behind_the_operators_paths(served: Running, path: str) -> None:
    """The operator's listener takes the slash, too."""
    admin = await served.admin()
    admin.write(request(path, method="GET"))

    assert (await admin.read_message()).status == 200


async def test_slash_behind_an_operators_stop(served: Running, upstream: Upstream) -> None:
    """A stream is stopped at its path with a slash."""
    client = await served.client()
    client.write(request(body={"model": "gpt-4"}, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    answer = await client.read_head()
    admin: Peer = await served.admin()
    admin.write(request(f"/admin/streams/{answer.get('x-forward-sse-id')}/", method="DELETE"))

    assert (await admin.read_message()).status == 204
    await vendor.closed()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/forward-sse//", 404),
        ("POST", "/forward-sse/tickets//", 404),
        ("GET", "/forward-sse/usage//", 404),
        ("GET", "/forward-sse/echo//", 404),
        ("POST", "/v1/chat/completions//", 404),
        ("GET", "/v1/models//", 404),
        ("GET", "/healthz//", 404),
        ("GET", "/readyz//", 404),
        ("GET", "/playground//", 404),
        ("POST", "/forward-sse%2F", 404),
        ("DELETE", "/forward-sse/streams/", 404),
        ("GET", "/v1/", 404),
    ],
)
async def test_two_slashes_are_another_path(
    served: Running, upstream: Upstream, method: str, path: str, status: int
) -> None:
    """Two slashes at the end are not one, and an encoded one is none."""
    answer = await refused(served, upstream, request(path, {}, method=method, token=token()))

    assert answer.status == status


@pytest.mark.parametrize("path", ["/open/v1/files/", "/open/v1/chat/completions/"])
async def test_slash_of_a_vendors_path(served: Running, upstream: Upstream, path: str) -> None:
    """Below an upstream's name the path is the vendor's, slash and all."""
    received = await passes(served, upstream, request(path, {}, token=token()))

    assert received.start == f"POST {path.removeprefix('/open')} HTTP/1.1"


# --- a chat frontend whose base URL is `…/v1` ---------------------------------------------------------------------


async def test_models_then_a_chat(served: Running, upstream: Upstream) -> None:
    """A chat frontend's first two requests: the default upstream's list, and an answer by model."""
    listed = await passes(served, upstream, request("/v1/models", method="GET", token=token()))
    asked = await passes(served, upstream, request("/v1/chat/completions", {"model": "text-1"}, token=token()))

    assert listed.start == "GET /compatible-mode/v1/models HTTP/1.1"
    assert listed.get("authorization") == f"Bearer {VENDOR_KEY}"
    assert asked.start == "POST /v1/chat/completions HTTP/1.1"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("GET", "/v1/embeddings", "POST"),
        ("GET", "/v1/completions", "POST"),
        ("HEAD", "/v1/chat/completions", "POST"),
    ],
)
async def test_models_and_short_routes_methods(
    served: Running, upstream: Upstream, method: str, path: str, allow: str
) -> None:
    """The list is read, the others are posted to; each says which."""
    client = await served.client()
    client.write(request(path, method=method, token=token()))
    answer = await client.read_message(has_body=method != "HEAD")

    assert (answer.status, answer.get("x-forward-sse-code")) == (405, "method_not_allowed")
    assert answer.get("allow") == allow
    assert upstream.is_untouched


async def test_models_head_and_query(served: Running, upstream: Upstream) -> None:
    """HEAD and a query go through."""
    client = await served.client()
    client.write(request("/v1/models?limit=2&after=%2F", method="HEAD", token=token()))
    vendor, received = await upstream.take()
    vendor.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")

    assert (await client.read_message(has_body=False)).status == 200
    assert received.start == "HEAD /compatible-mode/v1/models?limit=2&after=%2F HTTP/1.1"


@pytest.mark.parametrize(
    ("credential", "status", "code"),
    [
        (None, 401, "missing_token"),
        ("wrong", 401, "invalid_token"),
        (token(plan="narrow"), 403, "upstream_not_allowed"),
    ],
    ids=["none", "wrong", "plan"],
)
async def test_models_are_for_users(
    served: Running, upstream: Upstream, credential: str | None, status: int, code: str
) -> None:
    """The list is no more public than anything else."""
    answer = await refused(served, upstream, request("/v1/models", method="GET", token=credential))

    assert (answer.status, answer.get("x-forward-sse-code")) == (status, code)


async def test_models_without_a_default(start: Callable[..., Any], upstream: Upstream) -> None:
    """Without a default upstream nobody's list is meant; a stranger is not told that."""
    proxy = await start(config=CONFIG.replace("default_upstream: main", ""))

    answer = await refused(proxy, upstream, request("/v1/models", method="GET", token=token()))
    assert (answer.status, answer.get("x-forward-sse-code")) == (404, "unknown_upstream")
    stranger = await refused(proxy, upstream, request("/v1/models", method="GET"))
    assert stranger.status == 401


# --- what vendors offer beside chats ------------------------------------------------------------------------------

FORM = (("Content-Type", "multipart/form-data; boundary=x"),)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/plain/v1/embeddings", "/v1/embeddings"),
        ("/main/embeddings", "/compatible-mode/v1/embeddings"),
        ("/plain/v1/images/generations", "/v1/images/generations"),
        ("/plain/v1/images/edits", "/v1/images/edits"),
        ("/plain/v1/audio/speech", "/v1/audio/speech"),
        ("/plain/v1/audio/transcriptions", "/v1/audio/transcriptions"),
        ("/plain/v1/moderations", "/v1/moderations"),
        ("/plain/v1/completions", "/v1/completions"),
        ("/plain/v1/responses/input_tokens", "/v1/responses/input_tokens"),
        ("/claude/v1/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/gemini/v1beta/models/g:countTokens", "/v1beta/models/g:countTokens"),
        ("/gemini/v1beta/models/g:embedContent", "/v1beta/models/g:embedContent"),
        ("/gemini/v1beta/models/g:batchEmbedContents", "/v1beta/models/g:batchEmbedContents"),
        (
            "/dashscope/api/v1/services/aigc/multimodal-generation/generation",
            "/api/v1/services/aigc/multimodal-generation/generation",
        ),
        (
            "/dashscope/api/v1/services/embeddings/text-embedding/text-embedding",
            "/api/v1/services/embeddings/text-embedding/text-embedding",
        ),
        (
            "/dashscope/api/v1/services/aigc/text2image/image-synthesis",
            "/api/v1/services/aigc/text2image/image-synthesis",
        ),
    ],
)
@pytest.mark.parametrize("body", [b'{"input":"x"}', b'--x\r\n\r\n\x00\xff\xfe"\r\n--x--\r\n'], ids=["json", "form"])
async def test_open_by_default(served: Running, upstream: Upstream, path: str, expected: str, body: bytes) -> None:
    """What is the caller's own goes through without `allow_paths`, JSON or a form with binary parts, byte for byte."""
    fields = (*FORM, ("Content-Length", str(len(body))))
    received = await passes(served, upstream, request(path, token=token(), fields=fields) + body)

    assert received.start == f"POST {expected} HTTP/1.1"
    assert received.get("content-type") == FORM[0][1]
    assert received.body == body


async def test_binary_answer_passes(served: Running, upstream: Upstream) -> None:
    """Speech is bytes, not events: they arrive as they were sent."""
    sound = bytes(range(256)) * 10
    client = await served.client()
    client.write(request("/plain/v1/audio/speech", {"model": "tts"}, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nTransfer-Encoding: chunked\r\n\r\n")
    vendor.write(chunk(sound[:1000]) + chunk(sound[1000:]) + LAST)

    answer = await client.read_message()

    assert (answer.get("content-type"), answer.body) == ("audio/mpeg", sound)


async def test_task_is_polled(served: Running, upstream: Upstream) -> None:
    """A picture of DashScope's is asked for by its task, whose id only its owner knows; tasks are not listed."""
    asynchronous = (("X-DashScope-Async", "enable"),)
    path = "/api/v1/services/aigc/text2image/image-synthesis"
    begun = await passes(served, upstream, request(f"/dashscope{path}", {}, token=token(), fields=asynchronous))
    polled = await passes(
        served, upstream, request("/dashscope/api/v1/tasks/0385dc79-5ff8", method="GET", token=token())
    )

    assert begun.get("x-dashscope-async") == "enable"
    assert polled.start == "GET /api/v1/tasks/0385dc79-5ff8 HTTP/1.1"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/plain/v1/files"),
        ("GET", "/plain/v1/batches"),
        ("GET", "/plain/v1/responses/resp_1"),
        ("GET", "/plain/v1/responses%2Fresp_1"),
        ("DELETE", "/plain/v1/responses%2Fresp_1"),
        ("GET", "/plain/v1/chat/completions"),
        ("DELETE", "/plain/v1/models/ft%2Fmine"),
        ("POST", "/plain/v1/realtime/client_secrets"),
        ("POST", "/claude/v1/messages/batches"),
        ("GET", "/gemini/v1beta/models/g/operations"),
        ("GET", "/dashscope/api/v1/tasks/"),
        ("GET", "/dashscope/api/v1/tasks"),
        ("POST", "/dashscope/api/v1/services/audio/tts/customization"),
    ],
)
async def test_closed_by_default(served: Running, upstream: Upstream, method: str, path: str) -> None:
    """What lists, reads or deletes what others made on the same key stays closed."""
    answer = await refused(served, upstream, request(path, method=method, token=token()))

    assert (answer.status, answer.get("x-forward-sse-code")) == (403, "path_not_allowed")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/files"), ("DELETE", "/v1/responses/resp_1"), ("POST", "/anything/at%20all")]
)
async def test_allow_paths_all(served: Running, upstream: Upstream, method: str, path: str) -> None:
    """`allow_paths: all` opens whatever the vendor has, with any method."""
    received = await passes(served, upstream, request(f"/open{path}", method=method, token=token()))

    assert received.start == f"{method} {path} HTTP/1.1"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../admin",
        "/v1/%2e%2e/admin",
        "/v1/x%2F..%2Fadmin",
        "/v1/x%2f%2e%2e%2fadmin",
        "/v1/x%5C..%5Cadmin",
        "/v1/x%252Fy",
        "/v1/x%252e%252e",
        "/v1/x%00",
        "/v1/x%2F%2Fy",
        "/v1//x",
        "/v1/x;y",
    ],
)
async def test_allow_paths_all_has_one_reading(served: Running, upstream: Upstream, path: str) -> None:
    """Not even `all` lets a path pass that servers read in two ways."""
    answer = await refused(served, upstream, request(f"/open{path}", {}, token=token()))

    assert (answer.status, answer.get("x-forward-sse-code")) == (403, "path_not_allowed")


# --- a slash in a model's name ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models/org%2Fname", "/v1/models/org%2fname%3Atag", "/v1/models/org/name"])
async def test_model_with_a_slash(served: Running, upstream: Upstream, path: str) -> None:
    """SDKs encode the slash of a model's name: it is allowed as a slash, and sent as it came."""
    received = await passes(served, upstream, request(f"/plain{path}", method="GET", token=token()))

    assert received.start == f"GET {path} HTTP/1.1"


# --- a path with a query ------------------------------------------------------------------------------------------

STREAM = "/v1beta/models/g-1:streamGenerateContent?alt=sse"
DEPLOYMENT = "/openai/deployments/d/chat/completions?api-version=2024-10-21"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/forward-sse?upstream=gemini", STREAM),
        ("/forward-sse?upstream=gemini&alt=json", STREAM),
        ("/forward-sse?%61lt=json&upstream=gemini&x=%2F&%61%6c%74", f"{STREAM}&x=%2F"),
        ("/forward-sse?upstream=azure&api-version=1999&user=a", f"{DEPLOYMENT}&user=a"),
        ("/azure/openai/deployments/d/chat/completions?api-version=1999", DEPLOYMENT.replace("2024-10-21", "1999")),
    ],
)
async def test_path_with_a_query(served: Running, upstream: Upstream, path: str, expected: str) -> None:
    """The operator's members go first and win; below the upstream's name the caller says everything."""
    received = await passes(served, upstream, request(path, {}, token=token()))

    assert received.start == f"POST {expected} HTTP/1.1"


async def test_path_with_a_query_by_ticket(served: Running, upstream: Upstream) -> None:
    """A ticket's request is held to the same."""
    client = await served.client()
    client.write(request("/forward-sse/tickets?upstream=gemini&alt=json", {}, token=token()))
    ticket = json.loads((await client.read_message()).body)["ticket"]
    client.write(request(f"/forward-sse?ticket={ticket}", method="GET"))
    vendor, received = await upstream.take()
    vendor.write(OK)
    await client.read_message()

    assert received.start == f"POST {STREAM} HTTP/1.1"
    assert [line["ending"] for line in await served.settled(2)] == ["complete", "complete"]


async def test_own_path_in_the_log(served: Running, upstream: Upstream) -> None:
    """The log has one spelling of an own path."""
    await passes(served, upstream, request("/v1/chat/completions/", {"model": "gpt-4"}, token=token()))

    await check_settled(served, "complete", path="/v1/chat/completions", upstream="main")
