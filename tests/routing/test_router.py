"""Where a request goes, and the exact bytes that go there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import (
    Field,
    InvalidRequestError,
    MethodNotAllowedError,
    MissingTokenError,
    NotFoundError,
    PathNotAllowedError,
    ProxyError,
    TargetNotAllowedError,
    UnknownUpstreamError,
    UpstreamNotAllowedError,
)
from proxy.model import (
    DIRECT,
    TYPED_NAMES,
    Origin,
    Plan,
    Principal,
    RequestHead,
    Route,
    Timeouts,
    TlsFiles,
    Upstream,
    Way,
)
from proxy.protocol.header_fields import CREDENTIALS, IDENTITY, VIA, fold
from proxy.protocol.paths import TargetPattern
from proxy.routing.envelopes import EnvelopeRules, EnvelopeTarget
from proxy.routing.router import Router
from tests.steps import finish

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_T = TypeVar("_T")

TOKEN = b"caller-token-canary"
ALICE = Principal("issuer", "alice", Plan("default"))
MAX_BODY = 1_000_000
CHAT = b'{"model":"gpt-5","stream":true}'


def upstream(name: str, **members: Any) -> Upstream:
    """An upstream with a key of its own at `https://{name}.example`."""
    given: dict[str, Any] = {
        "name": name,
        "origin": Origin("https", f"{name}.example", 443),
        "base_path": "",
        "dialect": "openai",
        "path": None,
        "key_source": "own",
        "keys": (f"key-of-{name}",),
    }
    return Upstream(**(given | members))


UPSTREAMS = [
    upstream(
        "openai",
        models=("gpt-*", "o[13]"),
        headers=((b"OpenAI-Organization", b"org-1"),),
        timeouts=Timeouts(first_byte_s=120.0),
        heartbeat_s=15.0,
        way=Way(TlsFiles("/ca.pem")),
    ),
    upstream("tongyi", base_path="/compatible-mode", models=("qwen*", "gpt-oss"), allow_paths=("/v1/*",)),
    upstream("dashscope", dialect="dashscope", base_path="/base"),
    upstream("claude", dialect="anthropic", models=("claude-*",)),
    upstream("gemini", dialect="gemini", heartbeat_s=15.0),
    upstream("agent", dialect="raw", path="/run", key_source="none", keys=()),
    upstream("byok", key_source="client", keys=()),
    upstream("byok-claude", dialect="anthropic", key_source="client", keys=(), models=("byok-*",)),
    upstream("turns", keys=("k1", "k2", "k3")),
    upstream("azure", keys=("unused",), headers=((b"authorization", b"Basic operator"),)),
]
ENVELOPES = EnvelopeRules(
    (
        EnvelopeTarget(TargetPattern.parse("https://dashscope.example/api/v1/*"), "dashscope"),
        EnvelopeTarget(TargetPattern.parse("https://gemini.example/*"), "gemini"),
        EnvelopeTarget(TargetPattern.parse("https://byok.example/*"), "byok"),
        EnvelopeTarget(TargetPattern.parse("https://*.agents.example/*"), None),
        EnvelopeTarget(TargetPattern.parse("https://agents.example/*"), None),
    ),
    Timeouts(idle_s=7.0),
)


def router(
    *,
    default: str | None = "tongyi",
    envelope: EnvelopeRules | None = ENVELOPES,
    upstreams: Sequence[Upstream] = UPSTREAMS,
) -> Router:
    """A router over the upstreams above."""
    return Router(
        upstreams={one.name: one for one in upstreams},
        default_upstream=default,
        envelope=envelope,
        max_body_bytes=MAX_BODY,
    )


def head(line: str, *fields: Field) -> RequestHead:
    """The head of a request line such as `POST /forward-sse?upstream=x`."""
    method, _, target = line.partition(" ")
    path, mark, query = target.encode("latin-1").partition(b"?")
    return RequestHead(method, path, query if mark else None, fields)


def route(
    line: str, *fields: Field, body: bytes = CHAT, through: Router | None = None, principal: Principal = ALICE
) -> Route:
    """What becomes of a request, at once or in steps."""
    through = router() if through is None else through
    requested = head(line, *fields)
    destination = through.by_head(requested)
    through.check_plan(destination, principal)
    at_once = outcome(lambda: through.at_once(destination, requested, body, principal))
    in_steps = outcome(lambda: finish(through.by_body(destination, requested, body, principal)))
    assert at_once is None or repr(at_once) == repr(in_steps)
    if isinstance(in_steps, ProxyError):
        raise in_steps
    assert at_once is None or at_once == in_steps
    return in_steps


def outcome(decide: Callable[[], _T]) -> _T | ProxyError:
    """What is decided, or the refusal."""
    try:
        return decide()
    except ProxyError as error:
        return error


@pytest.mark.parametrize(
    ("line", "fields", "body", "is_decided"),
    [
        ("POST /forward-sse", (), CHAT, True),
        ("POST /v1/chat/completions", (), CHAT, True),
        ("GET /openai/v1/models", ((b"Content-Encoding", b"gzip"),), b"", True),
        ("POST /forward-sse?upstream=openai", (), CHAT, False),
        ("POST /forward-sse", (), b'{"targetUrl":"https://agents.example/run"}', False),
        ("POST /forward-sse", (), b'{"model":"gpt-4o","model":"qwen-max"}', False),
        ("POST /forward-sse", (), b'{"model":"gpt-4o","\\u006dodel":"qwen-max"}', False),
        ("POST /forward-sse", (), b'{"model":"gpt-4o","x":"' + b"x" * 65_536 + b'"}', False),
        ("POST /forward-sse", ((b"Content-Encoding", b"gzip"),), CHAT, False),
    ],
)
def test_route_at_once(line: str, fields: tuple[Field, ...], body: bytes, *, is_decided: bool) -> None:
    """What needs no closer look at the body is decided at once, all else in steps."""
    requested = head(line, *fields)
    through = router()

    found = through.at_once(through.by_head(requested), requested, body, ALICE)

    assert (found is not None) is is_decided


def envelope(target_url: str = "https://agents.example/run", **members: Any) -> bytes:
    """The body of an envelope."""
    return json.dumps({"targetUrl": target_url, **members}).encode()


# --- which upstream -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "fields", "body", "name", "target"),
    [
        ("POST /forward-sse", (), CHAT, "openai", b"/v1/chat/completions"),
        ("POST /forward-sse?upstream=tongyi", (), CHAT, "tongyi", b"/compatible-mode/v1/chat/completions"),
        ("POST /forward-sse?%75pstream=%74ongyi", (), CHAT, "tongyi", b"/compatible-mode/v1/chat/completions"),
        ("POST /forward-sse", ((b"x-upstream", b"claude"),), b"not json", "claude", b"/v1/messages"),
        ("POST /forward-sse?upstream=claude", ((b"X-Upstream", b"openai"),), b"", "claude", b"/v1/messages"),
        ("POST /forward-sse?upstream=agent", (), b"[1]", "agent", b"/run"),
        ("POST /forward-sse?a=1&upstream=agent&b=%32", (), b"", "agent", b"/run?a=1&b=%32"),
        ("POST /forward-sse", (), b'{"model":"qwen-max"}', "tongyi", b"/compatible-mode/v1/chat/completions"),
        ("POST /forward-sse", (), b'{"model":"unheard-of"}', "tongyi", b"/compatible-mode/v1/chat/completions"),
        ("POST /forward-sse", (), b'{"prompt":"x"}', "tongyi", b"/compatible-mode/v1/chat/completions"),
        ("POST /v1/chat/completions", (), CHAT, "openai", b"/v1/chat/completions"),
        ("POST /v1/chat/completions?a=b", (), b'{"model":"gpt-oss"}', "openai", b"/v1/chat/completions?a=b"),
        ("POST /v1/responses", (), b'{"model":"o3"}', "openai", b"/v1/responses"),
        ("POST /v1/messages", (), b'{"model":"claude-5"}', "claude", b"/v1/messages"),
        ("POST /openai/v1/chat/completions", (), b"", "openai", b"/v1/chat/completions"),
        ("GET /openai/v1/models?limit=2", (), b"", "openai", b"/v1/models?limit=2"),
        (
            "PUT /tongyi/v1/anything/at%20all?x=%2F&y",
            (),
            b"",
            "tongyi",
            b"/compatible-mode/v1/anything/at%20all?x=%2F&y",
        ),
        ("GET /tongyi/v1/?", (), b"", "tongyi", b"/compatible-mode/v1/?"),
        (
            "POST /gemini/v1beta/models/gemini-3:streamGenerateContent?alt=sse",
            (),
            b"{}",
            "gemini",
            b"/v1beta/models/gemini-3:streamGenerateContent?alt=sse",
        ),
        ("POST /dashscope/api/v1/apps/a/completion", (), b"{}", "dashscope", b"/base/api/v1/apps/a/completion"),
    ],
)
def test_route(line: str, fields: tuple[Field, ...], body: bytes, name: str, target: bytes) -> None:
    """Each of the proxy's own paths leads where docs/behaviour.md says, and the path goes as it came."""
    found = route(line, *fields, body=body)

    assert (found.upstream, found.target) == (name, target)
    assert found.origin == Origin("https", f"{name}.example", 443)
    assert found.body is body
    assert found.method == line.partition(" ")[0]
    assert not found.is_pinned


def test_route_keeps_the_upstreams_settings() -> None:
    """Timeouts, heartbeat, dialect and trust are the upstream's; no heartbeat for a dialect that cannot bear one."""
    found = route("POST /v1/chat/completions")

    assert (found.dialect, found.timeouts.first_byte_s, found.heartbeat_s, found.way.tls.ca_file) == (
        "openai",
        120.0,
        15.0,
        "/ca.pem",
    )
    assert route("GET /gemini/v1beta/models").heartbeat_s is None


def test_route_asks_usage() -> None:
    """Usage is asked for of the upstream that wants it, in chat completions that stream."""
    asking = router(default="a", upstreams=[upstream("a", asks_usage=True), upstream("b")])
    sent = route("POST /v1/chat/completions", through=asking)
    assert (sent.asks_usage, len(sent.body)) == (True, len(CHAT) + len(',"stream_options":{"include_usage":true}'))
    for line, body, through in (
        ("POST /b/v1/chat/completions", CHAT, asking),
        ("POST /a/v1/responses", CHAT, asking),
        ("POST /a/v1/chat/completions", b'{"model":"gpt-5"}', asking),
    ):
        kept = route(line, body=body, through=through)
        assert (kept.asks_usage, kept.body) == (False, body)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("GET /forward-sse", MethodNotAllowedError),
        ("OPTIONS /forward-sse", MethodNotAllowedError),
        ("GET /v1/chat/completions", MethodNotAllowedError),
        ("DELETE /v1/messages", MethodNotAllowedError),
        ("TRACE /openai/v1/models", MethodNotAllowedError),
        ("CONNECT /openai/v1/models", MethodNotAllowedError),
        ("OPTIONS /openai/v1/models", MethodNotAllowedError),
        ("get /openai/v1/models", MethodNotAllowedError),
        ("PURGE /openai/v1/models", MethodNotAllowedError),
        ("GET /", NotFoundError),
        ("GET /openai", NotFoundError),
        ("POST /forward-sse/", NotFoundError),
        ("POST /forward-sse/tickets", NotFoundError),
        ("DELETE /forward-sse/streams/x", NotFoundError),
        ("GET //openai/v1/models", NotFoundError),
        ("GET /nobody/v1/models", UnknownUpstreamError),
        ("GET /OPENAI/v1/models", UnknownUpstreamError),
        ("GET /open%61i/v1/models", UnknownUpstreamError),
        ("GET /caf\xe9/v1/models", UnknownUpstreamError),
        ("GET /../openai/v1/models", UnknownUpstreamError),
        ("POST /v1/models", MethodNotAllowedError),
        ("GET /v1/models/gpt-5", UnknownUpstreamError),
        ("GET /v1/embeddings", MethodNotAllowedError),
        ("POST /forward-sse?upstream=nobody", UnknownUpstreamError),
        ("POST /forward-sse?upstream=", UnknownUpstreamError),
        ("POST /forward-sse?upstream=openai&upstream=tongyi", InvalidRequestError),
        ("POST /openai/", PathNotAllowedError),
        ("POST /openai/v1/files", PathNotAllowedError),
        ("GET /openai/v1/chat/completions", PathNotAllowedError),
        ("DELETE /openai/v1/models/m", PathNotAllowedError),
        ("POST /tongyi/v1/../../api/v1/files", PathNotAllowedError),
        ("POST /tongyi/v1/%2e%2e/x", PathNotAllowedError),
        ("POST /tongyi//v1/x", PathNotAllowedError),
        ("POST /agent/other", PathNotAllowedError),
        ("POST /forward-sse?upstream=agent&events=typed", InvalidRequestError),
        ("POST /forward-sse?upstream=agent&%65vents=t%79ped", InvalidRequestError),
        ("POST /agent/run?events=typed", InvalidRequestError),
        ("POST /openai/v1/chat/completions?a#b", InvalidRequestError),
        ("POST /openai/v1/chat/completions?\xe9", InvalidRequestError),
    ],
)
def test_by_head_refused(line: str, fault: type[ProxyError]) -> None:
    """What cannot be served is refused by its head alone, each with its own word (B16, B18, B20, B21)."""
    with pytest.raises(fault) as caught:
        router().by_head(head(line))

    assert type(caught.value) is fault


@pytest.mark.parametrize(
    ("line", "allow"),
    [
        ("GET /forward-sse", "POST"),
        ("GET /v1/messages", "POST"),
        ("GET /v1/completions", "POST"),
        ("POST /v1/models", "GET, HEAD"),
        ("TRACE /openai/v1/models", "GET, POST, PUT, PATCH, DELETE, HEAD"),
    ],
)
def test_by_head_allow(line: str, allow: str) -> None:
    """A 405 says what is allowed instead."""
    with pytest.raises(MethodNotAllowedError) as caught:
        router().by_head(head(line))

    assert caught.value.allow == allow


@pytest.mark.parametrize(
    ("line", "target", "is_typed"),
    [
        ("POST /forward-sse?upstream=openai&events=7", b"/v1/chat/completions?events=7", False),
        ("GET /openai/v1/models?events=all", b"/v1/models?events=all", False),
        ("GET /openai/v1/models?events=Typed&events", b"/v1/models?events=Typed&events", False),
        ("POST /forward-sse?events=typed", b"/v1/chat/completions", True),
        ("POST /forward-sse?events=typed&upstream=openai&a=%31", b"/v1/chat/completions?a=%31", True),
        ("POST /v1/chat/completions?%65vents=t%79ped", b"/v1/chat/completions", True),
        ("POST /v1/messages?events=5&events=typed", b"/v1/messages?events=5", True),
        ("POST /openai/v1/responses?events=typed&events=5&events=typed", b"/v1/responses?events=5", True),
    ],
)
def test_events_parameter(line: str, target: bytes, is_typed: bool) -> None:
    """`events=typed` is the proxy's and is not forwarded; with another value it is the vendor's own parameter."""
    routed = route(line, body=b'{"model":"claude-5"}' if "messages" in line else CHAT)

    assert routed.target == target
    assert (routed.typed_names == TYPED_NAMES) is is_typed
    assert (routed.typed_names is None) is not is_typed


def test_events_of_the_upstream() -> None:
    """An upstream whose events are typed types them unasked, under its own names, for envelopes too."""
    names = {**TYPED_NAMES, "Text": "text"}
    through = router(upstreams=[*UPSTREAMS, upstream("openai", is_typed=True, typed_names=names)])
    enveloped = router(upstreams=[*UPSTREAMS, upstream("dashscope", dialect="dashscope", is_typed=True)])

    assert route("POST /openai/v1/responses", through=through).typed_names == names
    assert route("POST /tongyi/v1/responses", through=through).typed_names is None
    body = envelope("https://dashscope.example/api/v1/apps/x?events=typed")
    assert route("POST /forward-sse", body=body).typed_names is None
    assert route("POST /forward-sse", body=body).target == b"/api/v1/apps/x?events=typed"
    assert route("POST /forward-sse?events=typed", body=body).typed_names == TYPED_NAMES
    assert route("POST /forward-sse", body=body, through=enveloped).typed_names == TYPED_NAMES


@pytest.mark.parametrize("body", [envelope(), b'{"model":"unheard-of"}'])
def test_events_of_no_dialect(body: bytes) -> None:
    """What streams of no known dialect say is not guessed, however they are reached."""
    with pytest.raises(InvalidRequestError, match="Typed events"):
        route("POST /forward-sse?events=typed", body=body, through=router(default="agent", upstreams=UPSTREAMS))


def test_by_head_loop() -> None:
    """What we have forwarded once is not forwarded again (B34)."""
    for line in ("POST /forward-sse", "POST /v1/messages", "GET /openai/v1/models"):
        with pytest.raises(InvalidRequestError, match="before"):
            router().by_head(head(line, (b"Via", b"1.1 p, 1.1 forward-sse")))


def test_by_head_two_x_upstream() -> None:
    """Two names are not one to pick from."""
    with pytest.raises(InvalidRequestError, match="More than one"):
        router().by_head(head("POST /forward-sse", (b"X-Upstream", b"openai"), (b"x-upstream", b"openai")))


@pytest.mark.parametrize(
    ("line", "fields", "name"),
    [
        ("POST /forward-sse", (), "openai"),
        ("POST /forward-sse?upstream=claude", (), "anthropic"),
        ("POST /forward-sse", ((b"X-Upstream", b"gemini"),), "gemini"),
        ("POST /forward-sse?upstream=nobody", (), "openai"),
        ("POST /v1/messages", (), "anthropic"),
        ("POST /v1/responses", (), "openai"),
        ("GET /v1/models", (), "openai"),
        ("POST /v1/embeddings", (), "openai"),
        ("TRACE /gemini/../x", (), "gemini"),
        ("GET /claude/v1/nothing?events=typed", (), "anthropic"),
        ("GET /", (), "openai"),
    ],
)
def test_dialect_name(line: str, fields: tuple[Field, ...], name: str) -> None:
    """A refusal is worded for the upstream that was asked for, whatever was wrong with the request."""
    assert router().dialect_name(head(line, *fields)) == name


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"", InvalidRequestError),
        (b"not json", InvalidRequestError),
        (b"[]", InvalidRequestError),
        (b'{"model":5}', InvalidRequestError),
        (b'{"model":"' + b"a" * 1000 + b'"}', InvalidRequestError),
        (b'{"model":"a","model":"b"}', InvalidRequestError),
        (b'{"model":"nobody-has-it"}', UnknownUpstreamError),
        (b'{"model":""}', UnknownUpstreamError),
        (b'{"model":"GPT-5"}', UnknownUpstreamError),
        (b'{"model":null}', UnknownUpstreamError),
        (b"{}", UnknownUpstreamError),
    ],
)
@pytest.mark.parametrize("line", ["POST /forward-sse", "POST /v1/chat/completions"])
def test_by_model_refused(line: str, body: bytes, fault: type[ProxyError]) -> None:
    """Where the model decides it must be readable, and somebody must have it; names have case."""
    with pytest.raises(fault):
        route(line, body=body, through=router(default=None))


def test_by_model_foreign_short_path() -> None:
    """A short path is held to the list of the upstream that has the model."""
    with pytest.raises(PathNotAllowedError):
        route("POST /v1/messages", body=CHAT)


def test_by_model_no_default_path() -> None:
    """POST /forward-sse to an upstream without a path of its own says what to do instead."""
    with pytest.raises(NotFoundError, match="below its name"):
        route("POST /forward-sse?upstream=gemini")


@pytest.mark.parametrize(
    ("dialect", "base_path", "target"),
    [
        ("openai", "", b"/v1/models"),
        ("openai", "/compatible-mode/v1", b"/compatible-mode/v1/models"),
        ("anthropic", "", b"/v1/models"),
        ("gemini", "", b"/v1beta/models"),
        ("gemini", "/v1", b"/v1/v1beta/models"),
        ("dashscope", "/api/v1", b"/api/v1/models"),
    ],
)
def test_models_of_the_default(dialect: str, base_path: str, target: bytes) -> None:
    """`GET /v1/models` is the default upstream's own list, and refused in its dialect."""
    through = router(upstreams=[upstream("one", dialect=dialect, base_path=base_path)], default="one")

    found = route("GET /v1/models?limit=2", body=b"", through=through)

    assert (found.upstream, found.target) == ("one", target + b"?limit=2")
    assert through.dialect_name(head("POST /v1/models")) == dialect


def test_models_of_nobody() -> None:
    """Without a default, or with one that lists none or may not, there is no list."""
    agent = upstream("agent", dialect="raw", path="/run")
    with pytest.raises(UnknownUpstreamError, match="no default upstream"):
        router(default=None).by_head(head("GET /v1/models"))
    with pytest.raises(NotFoundError, match="lists no models"):
        router(upstreams=[agent], default="agent").by_head(head("GET /v1/models"))
    narrow = router(upstreams=[upstream("narrow", allow_paths=("/v1/responses",))], default="narrow")
    with pytest.raises(PathNotAllowedError):
        narrow.by_head(head("GET /v1/models"))


@pytest.mark.parametrize(
    ("base_path", "dialect", "line", "target"),
    [
        ("/v1", "openai", "POST /v1/embeddings", b"/v1/embeddings"),
        ("/openai/v1", "openai", "POST /v1/completions?a", b"/openai/v1/completions?a"),
        ("/v1", "openai", "POST /forward-sse", b"/v1/chat/completions"),
        ("/v1", "anthropic", "POST /forward-sse", b"/v1/messages"),
        ("/v1", "openai", "POST /one/chat/completions", b"/v1/chat/completions"),
        ("/api/v1", "dashscope", "POST /forward-sse", b"/api/v1/services/aigc/text-generation/generation"),
    ],
)
def test_url_ends_in_a_version(base_path: str, dialect: str, line: str, target: bytes) -> None:
    """The proxy's own paths do not repeat the `/v1` in which an operator's url ends."""
    given = upstream("one", base_path=base_path, dialect=dialect)

    found = route(line, through=router(upstreams=[given], default="one"))

    assert found.target == target
    assert (dialect == "dashscope") == ((b"X-DashScope-SSE", b"enable") in found.fields)


SSE = "/v1beta/models/gemini-3:streamGenerateContent?alt=sse"
AZURE = "/openai/deployments/d/chat/completions?api-version=2024-10-21"


@pytest.mark.parametrize(
    ("dialect", "path", "query", "target"),
    [
        ("gemini", SSE, "", SSE),
        ("gemini", SSE, "?", SSE),
        ("gemini", SSE, "?alt=json", SSE),
        ("gemini", SSE, "?%61lt=json&upstream=one&x=%31&key=mine", SSE + "&x=%31"),
        ("openai", AZURE, "?api-version=1&api%2Dversion=2&events=typed&b", AZURE + "&b"),
        ("raw", "/run?a=1&a=2", "?a=3", "/run?a=1&a=2"),
    ],
)
def test_front_path_with_a_query(dialect: str, path: str, query: str, target: str) -> None:
    """The members of an upstream's `path` win over the caller's of the same decoded name; the others follow."""
    given = upstream("one", dialect=dialect, path=path, base_path="/base")
    through = router(upstreams=[given], default="one")
    if dialect == "raw":
        query = query.replace("events=typed", "")

    assert route(f"POST /forward-sse{query}", through=through).target == b"/base" + target.encode()


def test_front_path_with_a_query_is_for_the_front_only() -> None:
    """Below the upstream's name path and query stay as they came, and the path without its query is allowed."""
    through = router(upstreams=[upstream("one", path=AZURE)], default="one")
    bare = AZURE.partition("?")[0]

    assert route(f"POST /one{bare}?api-version=1", through=through).target == f"{bare}?api-version=1".encode()


def test_front_path_as_it_is_sent() -> None:
    """An operator may write a path with encodings: it is allowed, and sent as it was written."""
    path = "/v1/models/org%2Fname:generate"
    through = router(upstreams=[upstream("one", dialect="raw", path=path)], default="one")

    assert route("POST /forward-sse", through=through).target == path.encode()
    assert route(f"POST /one{path}", through=through).target == path.encode()


def test_allow_paths_of_nothing() -> None:
    """An empty list allows nothing, and is not the same as none."""
    closed = router(upstreams=[upstream("one", allow_paths=())], default="one")

    for line in ("POST /forward-sse", "POST /one/v1/chat/completions", "GET /v1/models"):
        with pytest.raises(PathNotAllowedError):
            route(line, through=closed)


@pytest.mark.parametrize("length", [10, 200, 300, 5000])
def test_allow_paths_of_any_length(length: int) -> None:
    """A path is held to the list whatever its length, and each time."""
    name = "m" * length
    for _ in range(2):
        assert route(f"GET /openai/v1/models/{name}", body=b"").target == f"/v1/models/{name}".encode()
        with pytest.raises(PathNotAllowedError):
            route(f"GET /openai/v1/files/{name}", body=b"")


def test_allow_paths_empty_raw() -> None:
    """A raw upstream serves its configured path and nothing else."""
    assert route("GET /agent/run?x", body=b"").target == b"/run?x"


def test_allow_paths_hold_at_every_door() -> None:
    """The operator's list binds the default path too."""
    narrow = router(upstreams=[upstream("narrow", allow_paths=("/v1/responses",), models=("m",))], default=None)

    for line in ("POST /forward-sse?upstream=narrow", "POST /v1/chat/completions", "POST /forward-sse"):
        with pytest.raises(PathNotAllowedError):
            route(line, body=b'{"model":"m"}', through=narrow)
    assert route("POST /v1/responses", body=b'{"model":"m"}', through=narrow).target == b"/v1/responses"


# --- plans --------------------------------------------------------------------------------------------------------


def test_check_plan() -> None:
    """A plan's list of upstreams holds, by the head where it can, by the body where it must."""
    bob = Principal("issuer", "bob", Plan("small", upstreams=frozenset({"tongyi", "dashscope"})))
    routes = router()

    with pytest.raises(UpstreamNotAllowedError):
        routes.check_plan(routes.by_head(head("GET /openai/v1/models")), bob)
    requested = head("POST /forward-sse")
    destination = routes.by_head(requested)
    routes.check_plan(destination, bob)
    with pytest.raises(UpstreamNotAllowedError):
        finish(routes.by_body(destination, requested, CHAT, bob))
    with pytest.raises(UpstreamNotAllowedError):
        finish(routes.by_body(destination, requested, envelope(), bob))
    with pytest.raises(UpstreamNotAllowedError):
        finish(routes.by_body(destination, requested, envelope("https://gemini.example/x"), bob))
    assert (
        finish(routes.by_body(destination, requested, envelope("https://dashscope.example/api/v1/x"), bob)).upstream
        == "dashscope"
    )
    carol = Principal("issuer", "carol", Plan("agents", upstreams=frozenset({"envelope"})))
    assert finish(routes.by_body(destination, requested, envelope(), carol)).upstream == "envelope"


# --- fields and credentials ---------------------------------------------------------------------------------------


def test_fields_own_key() -> None:
    """The caller's credential goes, the vendor's key and the operator's headers come; the rest passes."""
    found = route(
        "POST /v1/chat/completions",
        (b"Authorization", b"Bearer " + TOKEN),
        (b"x-api-key", TOKEN),
        (b"Connection", b"authorization, openai-organization"),
        (b"openai-organization", b"theirs"),
        (b"Content-Type", b"text/event-stream"),
        (b"traceparent", b"00-a"),
    )

    assert found.fields == (
        (b"Content-Type", b"text/event-stream"),
        (b"traceparent", b"00-a"),
        IDENTITY,
        VIA,
        (b"Authorization", b"Bearer key-of-openai"),
        (b"OpenAI-Organization", b"org-1"),
    )


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("POST /claude/v1/messages", (b"x-api-key", b"key-of-claude")),
        ("GET /gemini/v1beta/models", (b"x-goog-api-key", b"key-of-gemini")),
        ("POST /dashscope/api/v1/apps/a/completion", (b"Authorization", b"Bearer key-of-dashscope")),
    ],
)
def test_fields_key_by_dialect(line: str, field: Field) -> None:
    """The vendor's key stands where the vendor looks for it, alone."""
    credentials = [one for one in route(line, (b"Authorization", b"Bearer t")).fields if fold(one[0]) in CREDENTIALS]

    assert credentials == [field]


def test_fields_no_key() -> None:
    """An upstream without a key gets no credential at all."""
    assert route("POST /agent/run", (b"Authorization", b"Bearer t"), (b"X-Upstream-Authorization", b"x")).fields == (
        IDENTITY,
        VIA,
    )


def test_fields_first_key() -> None:
    """Of several keys the first stands in the fields, until the attempts choose one."""
    routes = router()

    used = [dict(route("GET /turns/v1/models", through=routes).fields)[b"Authorization"] for _ in range(2)]

    assert used == [b"Bearer k1", b"Bearer k1"]


def test_fields_operators_credential() -> None:
    """Where the operator's headers name the credential's field, theirs is the only one."""
    fields = route("POST /azure/v1/chat/completions").fields

    assert [one for one in fields if fold(one[0]) == b"authorization"] == [(b"authorization", b"Basic operator")]


@pytest.mark.parametrize(
    ("line", "value", "field"),
    [
        ("POST /byok/v1/chat/completions", b"Bearer mine", (b"Authorization", b"Bearer mine")),
        ("POST /byok/v1/chat/completions", b"Token mine", (b"Authorization", b"Token mine")),
        ("POST /byok-claude/v1/messages", b"Bearer mine", (b"x-api-key", b"mine")),
        ("POST /byok-claude/v1/messages", b"mine", (b"x-api-key", b"mine")),
    ],
)
def test_fields_clients_key(line: str, value: bytes, field: Field) -> None:
    """With `client` the vendor's key comes from X-Upstream-Authorization, and only from there."""
    found = route(line, (b"Authorization", b"Bearer " + TOKEN), (b"X-Upstream-Authorization", value))

    assert found.fields == (IDENTITY, VIA, field)


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ((b"X-Upstream-Authorization", b""),),
        ((b"X-Upstream-Authorization", b"a"), (b"x-upstream-authorization", b"b")),
        ((b"Authorization", b"Bearer " + TOKEN), (b"X-Upstream-Authorization", b"Bearer " + TOKEN)),
    ],
)
def test_fields_clients_key_missing(fields: tuple[Field, ...]) -> None:
    """Without one key of the vendor's the refusal names the field; the caller's own token is none."""
    with pytest.raises(InvalidRequestError, match="X-Upstream-Authorization"):
        route("POST /byok/v1/chat/completions", *fields)


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("POST /openai/v1/chat/completions?access_token=T&a=1", b"/v1/chat/completions?a=1"),
        ("POST /openai/v1/chat/completions?key=T", b"/v1/chat/completions?key=T"),
        ("GET /gemini/v1beta/models?key=T&a=%20", b"/v1beta/models?a=%20"),
        ("GET /gemini/v1beta/models?%6bey=T", b"/v1beta/models"),
        ("POST /forward-sse?access_token=T&upstream=openai&b", b"/v1/chat/completions?b"),
    ],
)
def test_target_query_credentials(line: str, target: bytes) -> None:
    """A credential in the query is taken out of it; every other byte stays."""
    assert route(line).target == target


def test_extra_fields_dashscope() -> None:
    """POST /forward-sse asks DashScope for a stream on its default path, once, and no other door does."""
    asked = (b"X-DashScope-SSE", b"enable")
    line = "POST /forward-sse?upstream=dashscope"

    assert asked in route(line).fields
    assert route(line).target == b"/base/api/v1/services/aigc/text-generation/generation"
    theirs = route(line, (b"x-dashscope-sse", b"disable")).fields
    assert [one for one in theirs if fold(one[0]) == b"x-dashscope-sse"] == [(b"x-dashscope-sse", b"disable")]
    direct = "POST /dashscope/api/v1/services/aigc/text-generation/generation"
    assert asked not in route(direct).fields


PATHS = st.text(st.sampled_from("ab./%2eEfF;:\\ ?#\xe9-_~"), max_size=24)


@given(PATHS)
def test_target_is_the_matched_path(tail: str) -> None:
    """Whatever the path, it is refused or sent byte for byte below the upstream's base."""
    path = f"/v1/{tail}".encode("latin-1")
    requested = RequestHead("POST", b"/tongyi" + path, None, ())
    routes = router()
    try:
        found = finish(routes.by_body(routes.by_head(requested), requested, b"", ALICE))
    except PathNotAllowedError:
        return

    assert found.target == b"/compatible-mode" + path
    assert b".." not in found.target.split(b"/")


CARRIED = st.tuples(
    st.sampled_from([b"Authorization", b"x_api_key", b"API-KEY", b"X-Goog-Api-Key", b"Proxy_Authorization", b"Cookie"]),
    st.sampled_from([TOKEN, b"Bearer " + TOKEN]),
)
LINES = st.sampled_from(
    [
        "POST /forward-sse",
        "POST /forward-sse?upstream=gemini&key=" + TOKEN.decode(),
        "POST /forward-sse?access_token=" + TOKEN.decode(),
        "POST /v1/chat/completions?access_token=" + TOKEN.decode(),
        "GET /gemini/v1beta/models?%6Bey=" + quote(TOKEN.decode()),
        "POST /claude/v1/messages",
        "POST /byok/v1/chat/completions",
    ]
)
BODIES = st.sampled_from(
    [
        CHAT,
        envelope(passcode=TOKEN.decode()),
        envelope(header={"Authorization": "Bearer " + TOKEN.decode()}, passcode=TOKEN.decode()),
        envelope(header={"X-Odd": TOKEN.decode()}, passcode=TOKEN.decode()),
        envelope("https://dashscope.example/api/v1/x", header={"x-api-key": TOKEN.decode()}),
    ]
)


@given(LINES, st.lists(CARRIED, max_size=4), BODIES)
def test_route_never_the_callers_token(line: str, fields: list[Field], body: bytes) -> None:
    """The caller's token is nowhere in the target or the fields of what is sent."""
    try:
        found = route(line, *fields, body=body)
    except ProxyError:
        return

    assert TOKEN not in found.target
    assert not [one for one in found.fields if TOKEN in one[0] + one[1]]


# --- envelopes ----------------------------------------------------------------------------------------------------


def test_envelope_own_header() -> None:
    """A target without an upstream gets the envelope's header, its credential too, and nothing of the request's."""
    header = {
        "authorization": "Bearer vendor",
        "Content-Type": "application/json",
        "Connection": "authorization, accept",
        "Host": "evil",
        "Cookie": "a=b",
        "X-Forwarded-For": "1.2.3.4",
        "Content_Length": "5",
        "accept-encoding": "gzip",
        "Accept": "application/json",
        "Metadata-Flavor": "Google",
        "Proxy-Authorization": "Basic x",
    }
    body = envelope("https://a.agents.example/run?x=%2F#frag", header=header, body='{"a":1}')

    found = route("POST /forward-sse", (b"Authorization", b"Bearer " + TOKEN), (b"X-Theirs", b"1"), body=body)

    assert found == Route(
        upstream="envelope",
        dialect="raw",
        origin=Origin("https", "a.agents.example", 443),
        host=b"a.agents.example",
        timeouts=Timeouts(idle_s=7.0),
        heartbeat_s=None,
        way=DIRECT,
        has_operators_key=False,
        method="POST",
        target=b"/run?x=%2F",
        fields=(
            (b"Content-Type", b"application/json"),
            IDENTITY,
            VIA,
            (b"Accept", b"text/event-stream"),
            (b"authorization", b"Bearer vendor"),
        ),
        body=b'{"a":1}',
        is_pinned=True,
    )


def test_envelope_with_upstream() -> None:
    """A target with an upstream gets that upstream's key, and the envelope's own credential is dropped (C9, D27)."""
    header = {"Authorization": "Bearer theirs", "x-api-key": "theirs", "X-Stays": "1"}
    body = envelope("https://dashscope.example/api/v1/apps/a/completion", header=header, method="post")

    found = route("POST /forward-sse", body=body)

    assert (found.upstream, found.dialect, found.is_pinned) == ("dashscope", "dashscope", True)
    assert found.target == b"/api/v1/apps/a/completion"
    assert found.fields == (
        (b"X-Stays", b"1"),
        IDENTITY,
        VIA,
        (b"Accept", b"text/event-stream"),
        (b"Authorization", b"Bearer key-of-dashscope"),
    )


def test_envelope_with_upstream_query_key() -> None:
    """A key in the target's query does not go beside the upstream's own."""
    assert route("POST /forward-sse", body=envelope("https://gemini.example/x?key=theirs&a=b")).target == b"/x?a=b"


def test_envelope_with_upstream_of_clients_key() -> None:
    """Where the upstream's key is the client's, it comes from the request's field, not from the envelope."""
    body = envelope("https://byok.example/x", header={"authorization": "Bearer theirs"})

    assert (b"Authorization", b"Bearer mine") in route(
        "POST /forward-sse", (b"X-Upstream-Authorization", b"Bearer mine"), body=body
    ).fields
    with pytest.raises(InvalidRequestError, match="X-Upstream-Authorization"):
        route("POST /forward-sse", body=body)


def test_envelope_get() -> None:
    """An envelope may ask with GET."""
    found = route("POST /forward-sse", body=envelope(method="get"))

    assert (found.method, found.body) == ("GET", b"")


def test_envelope_object_body() -> None:
    """A body that we serialise is labelled as the JSON it is, unless the envelope does it."""
    labelled = route("POST /forward-sse", body=envelope(body={"a": 1}))
    named = route("POST /forward-sse", body=envelope(body={"a": 1}, header={"content-type": "application/x"}))

    assert labelled.body == b'{"a":1}'
    assert (b"Content-Type", b"application/json") in labelled.fields
    assert [value for name, value in named.fields if fold(name) == b"content-type"] == [b"application/x"]


def test_envelope_beside_a_named_upstream() -> None:
    """An object with a targetUrl is an envelope also where the request names an upstream, and only at that door."""
    assert route("POST /forward-sse?upstream=openai", body=envelope()).upstream == "envelope"
    assert route(
        "POST /forward-sse", (b"X-Upstream", b"openai"), body=b'{"\\u0074argetUrl":"https://agents.example/"}'
    ).is_pinned
    assert route("POST /openai/v1/chat/completions", body=envelope()).upstream == "openai"
    assert route("POST /v1/chat/completions", body=envelope()).upstream == "tongyi"


@pytest.mark.parametrize(
    "target_url",
    [
        "https://elsewhere.example/",
        "http://agents.example/",
        "https://agents.example:8443/",
        "https://agents.example.evil.com/",
        "https://dashscope.example/v2/x",
        "https://dashscope.example/api/v1/../v2/x",
        "https://127.0.0.1/",
        "http://169.254.169.254/latest/meta-data",
        "https://user@agents.example/",
        "file:///etc/passwd",
    ],
)
def test_envelope_target_refused(target_url: str) -> None:
    """A target that no entry names is refused, whatever it is."""
    with pytest.raises(TargetNotAllowedError):
        route("POST /forward-sse", body=envelope(target_url))


def test_envelope_not_configured() -> None:
    """While `envelope` is not configured every envelope is refused, a malformed one too."""
    for body in (envelope(), b'{"targetUrl":5}'):
        with pytest.raises(TargetNotAllowedError):
            route("POST /forward-sse", body=body, through=router(envelope=None))


@pytest.mark.parametrize(
    "body",
    [
        envelope(header={"X": "a\r\nb"}),
        envelope(method="PUT"),
        envelope("https://agents.example/\r\n"),
        envelope(header={"Via": "1.1 forward-sse"}),
        b'{"targetUrl":5}',
        b'{"targetUrl":"https://agents.example/","targetUrl":"https://agents.example/"}',
    ],
)
def test_envelope_malformed(body: bytes) -> None:
    """A malformed envelope is a malformed request."""
    for line in ("POST /forward-sse", "POST /forward-sse?upstream=openai"):
        with pytest.raises(InvalidRequestError):
            route(line, body=body)


def test_envelope_repeats_the_callers_token() -> None:
    """The caller's own token is not carried to a target, not even by the caller."""
    for fields, passcode in (((b"Authorization", b"Bearer " + TOKEN),), None), ((), TOKEN.decode()):
        with pytest.raises(InvalidRequestError, match="credential"):
            route(
                "POST /forward-sse",
                *fields,
                body=envelope(header={"X-A": f"Bearer {TOKEN.decode()}"}, passcode=passcode),
            )


def passcode_of(body: bytes) -> str:
    """The credential in the body of a request without another."""
    routes = router()
    return routes.passcode(finish(routes.read_envelope(head("POST /forward-sse"), body)))


def test_passcode() -> None:
    """The passcode is an envelope's only; where there is none the caller has no credential."""
    assert passcode_of(envelope(passcode="key")) == "key"
    for body in (b"", b"x", b'{"passcode":"key"}', envelope(), envelope(passcode=""), envelope(passcode=5)):
        with pytest.raises(MissingTokenError):
            passcode_of(body)


@given(st.binary(max_size=50), st.sampled_from(["POST", "GET", "X"]), st.binary(max_size=20), st.binary(max_size=30))
def test_router_total(path: bytes, method: str, query: bytes, body: bytes) -> None:
    """Any request is routed or refused."""
    routes = router()
    for prefix in (b"/", b"/forward-sse", b"/tongyi/v1/", b"/v1/messages"):
        requested = RequestHead(method, prefix + path, query, ((b"X-Upstream", query),))
        assert routes.dialect_name(requested)
        try:
            finish(routes.by_body(routes.by_head(requested), requested, body, ALICE))
        except ProxyError:
            continue
