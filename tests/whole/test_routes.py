"""Where requests go and how they look there: the table of endpoints, seen from both sides of the proxy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import VENDOR_KEY, token
from tests.peers import Message, Peer, Upstream, only, request, secret_free

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
  narrow: {{upstreams: [openai]}}
  none_of_these: {{upstreams: [several]}}
  used_up: {{requests: [1/1d]}}
upstreams:
  openai: {{url: "{url}", dialect: openai, api_key: {key}, models: ["gpt-*", "o?"]}}
  tongyi: {{url: "{url}/compatible-mode/", dialect: openai, api_key: {key}, models: ["qwen*"]}}
  anthropic: {{url: "{url}", dialect: anthropic, api_key: {key}, models: ["claude-*"]}}
  dashscope: {{url: "{url}", dialect: dashscope, api_key: {key}}}
  chosen: {{url: "{url}", dialect: dashscope, api_key: {key}, path: /api/v1/apps/app-1/completion}}
  gemini: {{url: "{url}", dialect: gemini, api_key: {key}}}
  other: {{url: "{url}", dialect: raw, api_key: none, path: "/run", allow_paths: ["/run", "/files/*"]}}
  several: {{url: "{url}", dialect: openai, api_keys: [first-key-of-several, second-key-of-several]}}
  theirs: {{url: "{url}", dialect: openai, api_key: client}}
  theirs_anthropic: {{url: "{url}", dialect: anthropic, api_key: client}}
  dressed: {{url: "{url}", dialect: openai, api_key: {key}, headers: {{OpenAI-Organization: org-1, User-Agent: ours}}}}
default_upstream: tongyi
"""
CHAT = "/v1/chat/completions"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
# The code's place in each dialect's body.
PLACES: dict[str, Callable[[Any], Any]] = {
    "openai": lambda body: body["error"]["code"],
    "anthropic": lambda body: body["error"]["code"],
    "dashscope": lambda body: body["code"],
    "gemini": lambda body: body["error"]["details"][0]["reason"],
    "other": lambda body: body["error"]["code"],
}


@pytest.fixture
async def routes(start: Callable[..., Any]) -> Running:
    """A proxy with an upstream of every kind."""
    return await start(config=CONFIG)  # type: ignore[no-any-return]  # the factory's options are open


async def passes(proxy: Running, upstream: Upstream, data: bytes) -> tuple[Message, Message]:
    """What the upstream got and what the client got, for a request that goes through."""
    client = await proxy.client()
    client.write(data)
    vendor, received = await upstream.take()
    vendor.write(OK)
    answer = await client.read_message()
    assert answer.status == 200
    # The next request takes a connection of its own, which the test can wait for.
    await vendor.gone()
    return received, answer


async def refused(proxy: Running, upstream: Upstream, data: bytes) -> Message:
    """The refusal of a request that does not."""
    client = await proxy.client()
    client.write(data)
    answer = await client.read_message()
    assert answer.status >= 400
    assert upstream.is_untouched
    return answer


def code_of(answer: Message, dialect: str = "openai") -> str:
    """The code of a refusal: the same in its place in the body and in the field."""
    code = PLACES[dialect](answer.json)
    assert answer.get("x-forward-sse-code") == code
    assert answer.get("content-type") == "application/json"
    return str(code)


def target(message: Message) -> str:
    return message.start.split(" ")[1]


@pytest.mark.parametrize(
    ("path", "body", "fields", "expected"),
    [
        ("/forward-sse?upstream=openai", {}, (), CHAT),
        ("/forward-sse?upstream=anthropic", {"model": "gpt-4"}, (), "/v1/messages"),
        ("/forward-sse?a=b&&upstream=openai&c=%2F", {}, (), CHAT + "?a=b&&c=%2F"),
        ("/forward-sse?upstream=openai", {}, (("X-Upstream", "anthropic"),), CHAT),
        ("/forward-sse", {"model": "gpt-4"}, (("X-Upstream", "anthropic"),), "/v1/messages"),
        ("/forward-sse?x=1", {"model": "gpt-4o"}, (), CHAT + "?x=1"),
        ("/forward-sse", {"model": "o3"}, (), CHAT),
        ("/forward-sse", {"model": "claude-9"}, (), "/v1/messages"),
        ("/forward-sse", {"model": "qwen-plus"}, (), "/compatible-mode" + CHAT),
        ("/forward-sse", {"model": "never-heard-of"}, (), "/compatible-mode" + CHAT),
        ("/forward-sse", {}, (), "/compatible-mode" + CHAT),
        (
            "/forward-sse?upstream=dashscope",
            {},
            (),
            "/api/v1/services/aigc/text-generation/generation",
        ),
        ("/forward-sse?upstream=other", {}, (), "/run"),
        ("/v1/chat/completions", {"model": "gpt-4"}, (), CHAT),
        ("/v1/chat/completions?x=y", {"model": "qwen3"}, (), "/compatible-mode" + CHAT + "?x=y"),
        ("/v1/responses", {"model": "gpt-4"}, (), "/v1/responses"),
        ("/v1/messages", {"model": "claude-9"}, (), "/v1/messages"),
        ("/v1/messages?beta=true", {"model": "claude-9"}, (), "/v1/messages?beta=true"),
    ],
)
async def test_routes_choose_the_upstream(
    routes: Running,
    upstream: Upstream,
    path: str,
    body: dict[str, Any],
    fields: tuple[tuple[str, str], ...],
    expected: str,
) -> None:
    """A query member, a field, the model or the default names the upstream; what named it is not forwarded."""
    received, _ = await passes(routes, upstream, request(path, body, token=token(), fields=fields))

    assert received.start == f"POST {expected} HTTP/1.1"
    assert received.get("x-upstream") is None
    assert received.body == json.dumps(body).encode()


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/openai/v1/models", "/v1/models"),
        ("GET", "/openai/v1/models/gpt-4", "/v1/models/gpt-4"),
        ("GET", "/openai/v1/models/org%2Fname", "/v1/models/org%2Fname"),
        ("GET", "/anthropic/v1/models?limit=2", "/v1/models?limit=2"),
        ("GET", "/tongyi/v1/models", "/compatible-mode/v1/models"),
        ("GET", "/gemini/v1beta/models", "/v1beta/models"),
        ("HEAD", "/openai/v1/models", "/v1/models"),
        ("PATCH", "/openai/v1/models/mine", "/v1/models/mine"),
        ("POST", "/openai/v1/chat/completions?a=b&&c", CHAT + "?a=b&&c"),
        ("POST", "/openai/v1/chat/completions?", CHAT + "?"),
        ("POST", "/openai/v1/chat/completions?q=%2F%41+b:@!$'()*,;=?/", CHAT + "?q=%2F%41+b:@!$'()*,;=?/"),
        ("POST", "/openai/v1/%63hat/completions", "/v1/%63hat/completions"),
        ("POST", "/openai/v1/chat/completions?key=1", CHAT + "?key=1"),
        (
            "POST",
            "/gemini/v1beta/models/m-1:streamGenerateContent?alt=sse",
            "/v1beta/models/m-1:streamGenerateContent?alt=sse",
        ),
        ("POST", "/gemini/v1/models/m%3A1:countTokens", "/v1/models/m%3A1:countTokens"),
        ("POST", "/dashscope/api/v1/apps/app-1/completion", "/api/v1/apps/app-1/completion"),
        ("PUT", "/other/files/a,b=c", "/files/a,b=c"),
        ("PATCH", "/other/files/a~b", "/files/a~b"),
    ],
)
async def test_routes_pass_path_and_query(
    routes: Running, upstream: Upstream, method: str, path: str, expected: str
) -> None:
    """Below an upstream's name path and query go through byte for byte, with any method."""
    client = await routes.client()
    client.write(request(path, b"{}" if method in {"POST", "PUT", "PATCH"} else None, method=method, token=token()))
    vendor, received = await upstream.take()
    vendor.write(OK if method != "HEAD" else OK[:-2])
    answer = await client.read_message(has_body=method != "HEAD")

    assert answer.status == 200
    assert received.start == f"{method} {expected} HTTP/1.1"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files",
        "/v1",
        "/",
        "/v1/models/../files",
        "/v1/models/%2e%2e/files",
        "/v1/models/.%2E/files",
        "/v1/models/%252e%252e/files",
        "/v1/models/..%2ffiles",
        "/v1/models/x%2f..%2f..%2ffiles",
        "/v1/models/a%5Cb",
        "/v1/models/a%00",
        "/v1/models/a%0d%0aX:1",
        "/v1/models/a%3Fb",
        "/v1/models/a%23b",
        "/v1/models/..;/files",
        "/v1/models/a;b",
        "/v1/models/./a",
        "//v1/models",
        "/v1//models",
        "/V1/models",
        "/v1/models/%zz",
        "/v1/models%20",
        "/v1/chat/completions/",
    ],
)
async def test_routes_path_not_allowed(routes: Running, upstream: Upstream, path: str) -> None:
    """What is not on an upstream's list, or could be read as something that is not, is refused."""
    answer = await refused(routes, upstream, request(f"/openai{path}", method="GET", token=token()))

    assert (answer.status, code_of(answer)) == (403, "path_not_allowed")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/forward-sse", "POST"),
        ("GET", "/forward-sse?upstream=openai", "POST"),
        ("GET", "/forward-sse/tickets", "POST"),
        ("PUT", "/forward-sse?upstream=openai", "POST"),
        ("DELETE", "/forward-sse", "POST"),
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/responses", "POST"),
        ("GET", "/v1/messages", "POST"),
        ("TRACE", "/openai/v1/models", "GET, POST, PUT, PATCH, DELETE, HEAD"),
        ("OPTIONS", "/openai/v1/models", "GET, POST, PUT, PATCH, DELETE, HEAD"),
        ("PURGE", "/nobody/v1/models", "GET, POST, PUT, PATCH, DELETE, HEAD"),
    ],
)
async def test_routes_method_not_allowed(
    routes: Running, upstream: Upstream, method: str, path: str, allow: str
) -> None:
    """A path that has no such method says which it has."""
    answer = await refused(routes, upstream, request(path, method=method, token=token()))

    assert (answer.status, code_of(answer)) == (405, "method_not_allowed")
    assert answer.get("allow") == allow


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/forward-sse//", "/forward-sse/x", "/openai", "/v1", "/Forward-SSE"]
)
async def test_routes_not_found(routes: Running, upstream: Upstream, path: str) -> None:
    """Where nothing is served, that is said."""
    answer = await refused(routes, upstream, request(path, {}, token=token()))

    assert (answer.status, code_of(answer)) == (404, "not_found")


@pytest.mark.parametrize("path", ["/gemini-without-a-path", "/forward-sse?upstream=gemini"])
async def test_routes_no_default_path(routes: Running, upstream: Upstream, path: str) -> None:
    """Gemini has no path that every request could go to."""
    answer = await refused(routes, upstream, request(path, {}, token=token()))

    assert answer.status == 404


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/forward-sse?upstream=nobody", ()),
        ("/forward-sse?upstream=OpenAI", ()),
        ("/forward-sse?upstream=", ()),
        ("/forward-sse", (("X-Upstream", "nobody"),)),
        ("/nobody/v1/models", ()),
        ("/v1/files", ()),
        ("/metrics/", ()),
    ],
)
async def test_routes_unknown_upstream(
    routes: Running, upstream: Upstream, path: str, fields: tuple[tuple[str, str], ...]
) -> None:
    """A name that is nobody's is refused; it never falls back to the default."""
    answer = await refused(routes, upstream, request(path, {}, token=token(), fields=fields))

    assert (answer.status, code_of(answer)) == (404, "unknown_upstream")


async def test_routes_no_upstream_for_a_model(start: Callable[..., Any], upstream: Upstream) -> None:
    """Without a default, a model of nobody's is refused, and so is a body without one."""
    proxy = await start(config=CONFIG.replace("default_upstream: tongyi", ""))
    for path in ("/forward-sse", "/v1/chat/completions"):
        for body in ({"model": "never-heard-of"}, {}):
            answer = await refused(proxy, upstream, request(path, body, token=token()))
            assert (answer.status, code_of(answer)) == (404, "unknown_upstream")


@pytest.mark.parametrize("fields", [(), (("X-Upstream", "openai"),)])
async def test_routes_name_twice(routes: Running, upstream: Upstream, fields: tuple[tuple[str, str], ...]) -> None:
    """Two names in the query are refused, for nobody could say which one is meant."""
    path = "/forward-sse?upstream=openai&upstream=anthropic"
    answer = await refused(routes, upstream, request(path, {}, token=token(), fields=fields))

    assert (answer.status, code_of(answer)) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("method", "known", "unknown"),
    [
        ("POST", "/forward-sse?upstream=openai", "/forward-sse?upstream=nobody"),
        ("GET", "/openai/v1/models", "/nobody/v1/models"),
        ("GET", "/openai/v1/models", "/openai/v1/secret"),
    ],
)
@pytest.mark.parametrize("credential", [None, "wrong"])
async def test_routes_strangers_learn_no_names(
    routes: Running, upstream: Upstream, method: str, known: str, unknown: str, credential: str | None
) -> None:
    """Without a good token, known and unknown upstreams and paths answer alike."""
    answers = [
        await refused(routes, upstream, request(path, method=method, token=credential)) for path in (known, unknown)
    ]

    assert answers[0].status == 401
    assert answers[0].start == answers[1].start
    assert answers[0].body == answers[1].body
    assert [name for name, _ in answers[0].fields] == [name for name, _ in answers[1].fields]


@pytest.mark.parametrize("name", ["openai", "anthropic", "dashscope", "gemini", "other"])
async def test_routes_refuse_in_the_dialect(routes: Running, upstream: Upstream, name: str) -> None:
    """Every refusal is worded as the vendor would word it, with our code in its place."""
    allowed = {"dashscope": "/dashscope/api/v1/models", "other": "/other/run"}.get(name, f"/{name}/v1/models")
    cases = {
        (401, "missing_token"): request(allowed, method="GET"),
        (401, "invalid_token"): request(allowed, method="GET", token="wrong"),
        (400, "invalid_request"): request(allowed + "?access_token=a", method="GET", token=token()),
        (403, "path_not_allowed"): request(f"/{name}/not/allowed", method="GET", token=token()),
        (403, "upstream_not_allowed"): request(allowed, method="GET", token=token(plan="none_of_these")),
        (429, "rate_limit_exceeded"): request(allowed, method="GET", token=token("late", plan="used_up")),
    }
    await passes(routes, upstream, request(allowed, method="GET", token=token("late", plan="used_up")))
    upstream.peers.clear()
    for (status, code), data in cases.items():
        answer = await refused(routes, upstream, data)
        assert (answer.status, code_of(answer, name)) == (status, code)


@pytest.mark.parametrize("name", ["openai", "anthropic", "dashscope", "gemini", "other"])
async def test_routes_refuse_in_the_dialect_of_the_name(routes: Running, upstream: Upstream, name: str) -> None:
    """A name in the query or in a field says the dialect as well as a path does."""
    for data in (
        request(f"/forward-sse?upstream={name}", {}),
        request("/forward-sse", {}, fields=(("X-Upstream", name),)),
    ):
        answer = await refused(routes, upstream, data)
        assert (answer.status, code_of(answer, name)) == (401, "missing_token")


@pytest.mark.parametrize(
    ("path", "model"),
    [("/v1/messages", "gpt-4"), ("/v1/responses", "claude-9"), ("/v1/chat/completions", "claude-9")],
)
async def test_routes_short_path_is_not_the_models(routes: Running, upstream: Upstream, path: str, model: str) -> None:
    """A short path that the model's upstream does not have is refused, not sent there."""
    answer = await refused(routes, upstream, request(path, {"model": model}, token=token()))

    assert (answer.status, code_of(answer)) == (403, "path_not_allowed")


@pytest.mark.parametrize("name", ["openai", "anthropic", "dashscope", "gemini", "other"])
async def test_routes_fail_in_the_dialect(start: Callable[..., Any], upstream: Upstream, name: str) -> None:
    """So is an upstream that cannot be reached."""
    proxy = await start(config=CONFIG)
    upstream._server.close()
    await upstream._server.wait_closed()
    allowed = {"dashscope": "/dashscope/api/v1/models", "other": "/other/run"}.get(name, f"/{name}/v1/models")
    answer = await refused(proxy, upstream, request(allowed, method="GET", token=token()))

    assert (answer.status, code_of(answer, name)) == (502, "upstream_unreachable")


@pytest.mark.parametrize(
    "content_type",
    ["text/event-stream", "application/x-www-form-urlencoded", "text/plain; charset=utf-16", "multipart/form-data", ""],
)
async def test_routes_body_is_json_whatever_its_type(routes: Running, upstream: Upstream, content_type: str) -> None:
    """The model is read out of the body however it is labelled, and the label goes through."""
    body = b'{"model":"claude-9"}'
    fields = (("Content-Length", str(len(body))), *((("Content-Type", content_type),) if content_type else ()))
    received, _ = await passes(routes, upstream, request("/forward-sse", token=token(), fields=fields) + body)

    assert target(received) == "/v1/messages"
    assert received.get("content-type") == (content_type or None)
    assert received.body == body


@pytest.mark.parametrize(
    "body",
    [
        b' \r\n\t{ "model" :\n"gpt-4" , "x":1.10, "y":1E4, "a":"\\u00e9\xc3\xa9\\/" }\n\n',
        '{"model":"gpt-4","messages":[{"content":"ع é 😀 \u2028"}]}'.encode(),
        b'{"model":"gpt-4","n":123456789012345678901234567890,"n":1}',
    ],
)
async def test_routes_body_is_unchanged(routes: Running, upstream: Upstream, body: bytes) -> None:
    """Spaces, escapes, numbers and repeated members go through as they came."""
    received, _ = await passes(routes, upstream, request("/forward-sse", body, token=token()))

    assert received.body == body
    assert received.get("content-length") == str(len(body))


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b'"text"', b"null", b"{", b'{"model":"\xff"}', b"[" * 5000])
@pytest.mark.parametrize("path", ["/forward-sse", "/v1/messages"])
async def test_routes_body_is_unreadable(routes: Running, upstream: Upstream, path: str, body: bytes) -> None:
    """Where routing needs the body and cannot read it, that is said, and nothing of it repeated."""
    answer = await refused(routes, upstream, request(path, body, token=token()))

    assert (answer.status, code_of(answer)) == (400, "invalid_request")
    assert b"text" not in answer.body


async def test_routes_named_upstream_needs_no_json(routes: Running, upstream: Upstream) -> None:
    """Where the upstream is named, its body is nobody's business here."""
    for path in ("/forward-sse?upstream=openai", "/openai/v1/chat/completions"):
        received, _ = await passes(routes, upstream, request(path, b"\x00not json", token=token()))
        assert received.body == b"\x00not json"


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        ("/forward-sse?upstream=dashscope", (), ["enable"]),
        ("/forward-sse?upstream=dashscope", (("x-dashscope-sse", "disable"),), ["disable"]),
        ("/forward-sse?upstream=chosen", (), []),
        ("/dashscope/api/v1/services/aigc/text-generation/generation", (), []),
        ("/forward-sse?upstream=openai", (), []),
    ],
)
async def test_routes_dashscope_is_asked_for_a_stream(
    routes: Running, upstream: Upstream, path: str, fields: tuple[tuple[str, str], ...], expected: list[str]
) -> None:
    """DashScope's word for a stream is added on its default path only, and never to another word of the client's."""
    received, _ = await passes(routes, upstream, request(path, {}, token=token(), fields=fields))

    assert received.all("x-dashscope-sse") == expected


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/forward-sse?upstream=tongyi", {}),
        ("/forward-sse", {"model": "qwen-plus"}),
        ("/v1/chat/completions", {"model": "qwen-plus"}),
        ("/tongyi/v1/chat/completions", {}),
        ("/forward-sse", {}),
    ],
)
async def test_routes_upstream_not_in_the_plan(
    routes: Running, upstream: Upstream, path: str, body: dict[str, Any]
) -> None:
    """However an upstream is reached, the plan has to include it."""
    answer = await refused(routes, upstream, request(path, body, token=token(plan="narrow")))
    assert (answer.status, code_of(answer)) == (403, "upstream_not_allowed")

    received, _ = await passes(
        routes, upstream, request("/v1/responses", {"model": "gpt-4"}, token=token(plan="narrow"))
    )
    assert target(received) == "/v1/responses"


async def test_routes_fields_to_the_upstream(routes: Running, upstream: Upstream) -> None:
    """End-to-end fields go through in order; credentials, cookies, hops and what a browser tells do not."""
    good = token()
    kept = (
        ("User-Agent", "sdk/1"),
        ("Accept", "application/json"),
        ("X-Stainless-Lang", "python"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "a=b"),
        ("Idempotency-Key", "i-1"),
        ("X-Request-Id", "mine.1_2-3"),
        ("X-Same", "one"),
        ("X-Same", "two"),
        ("x-latin", "caf\xe9"),
    )
    dropped = (
        ("Connection", "keep-alive, X-Named, Via, Authorization"),
        ("X-Named", "hop"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Proxy-Authorization", "Basic x"),
        ("Proxy-Connection", "keep-alive"),
        ("x-api-key", good),
        ("X_Api_Key", good),
        ("api-key", good),
        ("X-Goog-Api-Key", good),
        ("X-Upstream-Authorization", "Bearer theirs"),
        ("X-Upstream-Anything", "x"),
        ("Cookie", "session=1"),
        ("Origin", "https://app.example.com"),
        ("Referer", "https://app.example.com/secret"),
        ("Sec-Fetch-Mode", "cors"),
        ("sec-ch-ua", "x"),
        ("Forwarded", "for=1.2.3.4"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("X_Forwarded_For", "1.2.3.4"),
        ("X-Forward-Sse-Id", "forged"),
        ("X-Real-IP", "1.2.3.4"),
        ("Accept-Encoding", "gzip, br"),
    )
    data = request("/openai/v1/chat/completions", {}, token=good, fields=(*kept, *dropped))
    received, answer = await passes(routes, upstream, data)

    names = {name.lower() for name, _ in dropped} - {"accept-encoding"}
    assert [field for field in received.fields if field[0].lower() in names] == []
    assert [field for field in received.fields if field in kept] == list(kept)
    assert received.get("accept-encoding") == "identity"
    assert received.get("via") == "1.1 forward-sse"
    assert received.get("authorization") == f"Bearer {VENDOR_KEY}"
    assert received.get("host") == f"127.0.0.1:{upstream.address[1]}"
    assert received.get("content-length") == "2"
    assert answer.get("x-forward-sse-id") == "mine.1_2-3"
    assert secret_free(repr(received.fields).encode(), good)


async def test_routes_via_is_appended(routes: Running, upstream: Upstream) -> None:
    """A request that came through other proxies says so; one that came through this one is refused."""
    data = request("/openai/v1/models", method="GET", token=token(), fields=(("Via", "1.1 edge"),))
    received, _ = await passes(routes, upstream, data)
    assert received.all("via") == ["1.1 edge", "1.1 forward-sse"]

    client = await routes.client()
    client.write(
        request("/openai/v1/models", method="GET", token=token(), fields=(("Via", "1.1 edge, 1.1 forward-sse"),))
    )
    answer = await client.read_message()
    assert (answer.status, code_of(answer)) == (400, "invalid_request")


async def test_routes_fields_to_the_client(routes: Running, upstream: Upstream) -> None:
    """The upstream's status, type and end-to-end fields come through; what is ours to say, we say."""
    client = await routes.client()
    client.write(request("/openai/v1/chat/completions", {}, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(
        b"HTTP/1.1 299 Odd\r\nContent-Type: Text/Event-Stream;charset=UTF-8\r\nX-Request-Id: theirs\r\n"
        b"X-Two: a\r\nX-Two: b\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=3\r\nServer: theirs\r\n"
        b"Alt-Svc: h3\r\nSet-Cookie: a=b\r\nCache-Control: max-age=60\r\nX-Accel-Buffering: yes\r\n"
        b"X-RateLimit-Limit-Tokens: 9\r\nRateLimit-Policy: x\r\nAccess-Control-Allow-Origin: *\r\n"
        b"X-Forward-Sse-Id: forged\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n"
    )
    answer = await client.read_message()

    assert answer.status == 299
    assert answer.get("content-type") == "Text/Event-Stream;charset=UTF-8"
    assert answer.get("x-request-id") == "theirs"
    assert answer.all("x-two") == ["a", "b"]
    assert answer.get("retry-after") == "3"
    for name in ("x-hop", "connection", "keep-alive", "server", "alt-svc", "set-cookie", "access-control-allow-origin"):
        assert answer.get(name) is None, name
    assert answer.get("cache-control") == "no-cache, no-transform"
    assert answer.get("x-accel-buffering") == "no"
    assert answer.get("x-upstream-ratelimit-limit-tokens") == "9"
    assert answer.get("x-upstream-ratelimit-policy") == "x"
    line = only(await routes.settled(), "exchange.settled")
    assert answer.get("x-forward-sse-id") == line["id"]


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 65, "caf\xe9", "a;b", '"'])
async def test_routes_odd_request_id_is_not_ours(routes: Running, upstream: Upstream, request_id: str) -> None:
    """An id that could break a log or a field is not taken over; the vendor still gets it."""
    fields = (("X-Request-Id", request_id),)
    received, answer = await passes(
        routes, upstream, request("/openai/v1/models", method="GET", token=token(), fields=fields)
    )

    identity = answer.get("x-forward-sse-id")
    assert identity is not None
    assert identity != request_id
    assert len(identity) == 24
    assert received.get("x-request-id") == request_id


async def test_routes_keys_take_turns(routes: Running, upstream: Upstream) -> None:
    """Several keys of one upstream are used one after the other."""
    seen = []
    for _ in range(4):
        received, _ = await passes(routes, upstream, request("/several/v1/models", method="GET", token=token()))
        seen.append(received.get("authorization"))

    assert seen == ["Bearer first-key-of-several", "Bearer second-key-of-several"] * 2


@pytest.mark.parametrize(
    ("path", "given", "field", "expected"),
    [
        ("/theirs/v1/models", "Bearer their-own", "authorization", "Bearer their-own"),
        ("/theirs_anthropic/v1/models", "Bearer their-own", "x-api-key", "their-own"),
        ("/theirs_anthropic/v1/models", "their-own", "x-api-key", "their-own"),
    ],
)
async def test_routes_key_of_the_client(
    routes: Running, upstream: Upstream, path: str, given: str, field: str, expected: str
) -> None:
    """Where the client brings the vendor's key, it goes where the vendor looks for it."""
    data = request(path, method="GET", token=token(), fields=(("X-Upstream-Authorization", given),))
    received, _ = await passes(routes, upstream, data)

    assert received.get(field) == expected
    assert received.get("x-upstream-authorization") is None
    assert sum("their-own" in value for _, value in received.fields) == 1


async def test_routes_key_of_the_client_is_missing(routes: Running, upstream: Upstream) -> None:
    """Without it the request is refused, and neither the caller's token nor anybody's key goes instead."""
    answer = await refused(routes, upstream, request("/theirs/v1/models", method="GET", token=token()))

    assert (answer.status, code_of(answer)) == (400, "invalid_request")


async def test_routes_no_key(routes: Running, upstream: Upstream) -> None:
    """An upstream that needs no key gets none, least of all the caller's token."""
    received, _ = await passes(routes, upstream, request("/other/run", {}, token=token()))

    for name in ("authorization", "x-api-key", "api-key", "x-goog-api-key"):
        assert received.get(name) is None


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/anthropic/v1/models", "x-api-key"),
        ("/gemini/v1/models", "x-goog-api-key"),
        ("/gemini/v1/models?key=", "x-goog-api-key"),
    ],
)
async def test_routes_key_stands_where_the_dialect_has_it(
    routes: Running, upstream: Upstream, path: str, field: str
) -> None:
    """The vendor's key stands in its dialect's field, and the caller's token in none."""
    received, _ = await passes(routes, upstream, request(path, method="GET", token=token()))

    assert received.get(field) == VENDOR_KEY
    assert received.get("authorization") is None
    assert "key=" not in received.start


async def test_routes_configured_headers_replace(routes: Running, upstream: Upstream) -> None:
    """What the operator adds stands alone, however the client spells it."""
    fields = (("openai_organization", "org-evil"), ("OPENAI-ORGANIZATION", "org-evil"), ("User-Agent", "theirs"))
    received, _ = await passes(
        routes, upstream, request("/dressed/v1/models", method="GET", token=token(), fields=fields)
    )

    assert received.get("openai-organization") == "org-1"
    assert received.get("user-agent") == "ours"
    assert "org-evil" not in repr(received.fields)


async def test_routes_redirects_pass(routes: Running, upstream: Upstream) -> None:
    """A redirect is the client's to follow or not: it comes through, and nothing else is asked."""
    client = await routes.client()
    client.write(request("/openai/v1/models", method="GET", token=token()))
    vendor, _ = await upstream.take()
    vendor.write(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n")

    answer = await client.read_message()

    assert (answer.status, answer.get("location")) == (307, "http://169.254.169.254/")
    assert only(await routes.settled(), "exchange.settled")["ending"] == "complete"
    assert len(upstream.peers) == 1


async def test_routes_absolute_form_is_read_as_its_path(routes: Running, upstream: Upstream) -> None:
    """A request line with a whole URL is routed by its path (RFC 9112 §3.2.2); the host in it means nothing."""
    received, _ = await passes(
        routes, upstream, request("http://evil.example/openai/v1/models", method="GET", token=token())
    )

    assert target(received) == "/v1/models"
    assert received.get("host") == f"127.0.0.1:{upstream.address[1]}"


async def test_routes_head_answers_have_no_body(routes: Running, upstream: Upstream) -> None:
    """A refused HEAD is answered without a body, and the connection stays in step."""
    client: Peer = await routes.client()
    client.write(request("/nobody/x", method="HEAD", token=token()) + request("/healthz", method="GET"))

    first = await client.read_message(has_body=False)
    second = await client.read_message()

    assert (first.status, second.status) == (404, 200)
    assert upstream.is_untouched
