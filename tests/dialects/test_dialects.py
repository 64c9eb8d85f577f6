"""The vendors' own clients read what we write into their dialects."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anthropic
import dashscope.common.utils as dashscope_utils
import httpx_sse
import openai
import pytest
from anthropic._streaming import SSEDecoder as AnthropicDecoder
from openai._streaming import SSEDecoder as OpenAIDecoder

from proxy.dialects import DIALECTS
from proxy.errors import (
    BodyTooLargeError,
    DrainingError,
    HeaderTooLargeError,
    InvalidRequestError,
    InvalidTokenError,
    MethodNotAllowedError,
    MissingTokenError,
    NotFoundError,
    PathNotAllowedError,
    ProxyError,
    RateLimitExceededError,
    RequestTimeoutError,
    UpgradeNotSupportedError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
    refusal,
)
from proxy.protocol.header_fields import SERVER_CREDENTIALS
from proxy.protocol.paths import canonical_path
from proxy.settings.upstreams import RESERVED_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.errors import Field

REFUSALS: list[ProxyError] = [
    InvalidRequestError(),
    MissingTokenError(),
    PathNotAllowedError(),
    NotFoundError(),
    MethodNotAllowedError("POST"),
    RequestTimeoutError(),
    BodyTooLargeError(),
    HeaderTooLargeError.of_field(b"authorization", 16384),
    UpgradeNotSupportedError(),
    RateLimitExceededError(),
    UpstreamUnreachableError(),
    DrainingError(),
    UpstreamTimeoutError("connect"),
    ProxyError(),
]
CODE_AT: dict[str, Callable[[Any], object]] = {
    "openai": lambda body: body["error"]["code"],
    "raw": lambda body: body["error"]["code"],
    "anthropic": lambda body: body["error"]["code"],
    "dashscope": lambda body: body["code"],
    "gemini": lambda body: body["error"]["details"][0]["reason"],
}


def event(name: str, code: str = "upstream_unreachable", path: bytes = b"/v1/chat/completions") -> bytes:
    """The event of a dialect for a stream that broke off."""
    worded = DIALECTS[name].error_event(code, "It broke off.", path)
    assert worded is not None
    return worded


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.code)
@pytest.mark.parametrize("name", CODE_AT)
def test_error_body_every_refusal(name: str, error: ProxyError) -> None:
    """The proxy's code stands unaltered where the dialect leaves room for it."""
    answer = refusal(error, DIALECTS[name])

    assert CODE_AT[name](json.loads(answer.body)) == error.code
    assert error.message in answer.body.decode()


def test_error_body_openai_members() -> None:
    """OpenAI's body has exactly four members."""
    body = json.loads(DIALECTS["openai"].error_body(InvalidTokenError()))

    assert body == {
        "error": {
            "message": "The access token is invalid.",
            "type": "authentication_error",
            "code": "invalid_token",
            "param": None,
        }
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequestError(), "invalid_request_error"),
        (MissingTokenError(), "authentication_error"),
        (PathNotAllowedError(), "permission_error"),
        (NotFoundError(), "not_found_error"),
        (BodyTooLargeError(), "request_too_large"),
        (RateLimitExceededError(), "rate_limit_error"),
        (UpstreamUnreachableError(), "api_error"),
        (DrainingError(), "overloaded_error"),
        (UpstreamTimeoutError("connect"), "timeout_error"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_error_body_anthropic_kind(error: ProxyError, kind: str) -> None:
    """Anthropic's `type` is its own word for the status."""
    body = json.loads(DIALECTS["anthropic"].error_body(error))

    assert body["type"] == "error"
    assert body["error"]["type"] == kind


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequestError(), "INVALID_ARGUMENT"),
        (MissingTokenError(), "UNAUTHENTICATED"),
        (PathNotAllowedError(), "PERMISSION_DENIED"),
        (NotFoundError(), "NOT_FOUND"),
        (RateLimitExceededError(), "RESOURCE_EXHAUSTED"),
        (DrainingError(), "UNAVAILABLE"),
        (UpstreamTimeoutError("connect"), "DEADLINE_EXCEEDED"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_error_body_gemini_status(error: ProxyError, status: str) -> None:
    """Gemini's `code` is the HTTP status, its `status` google.rpc's word."""
    body = json.loads(DIALECTS["gemini"].error_body(error))

    assert (body["error"]["code"], body["error"]["status"]) == (error.status, status)


def test_error_body_dashscope_flat() -> None:
    """DashScope's body is flat and has a request id, if an empty one."""
    body = json.loads(DIALECTS["dashscope"].error_body(DrainingError()))

    assert body == {"code": "draining", "message": DrainingError.message, "request_id": ""}


@pytest.mark.parametrize("name", ["openai", "dashscope", "anthropic", "gemini"])
@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/responses", b"/v1/responses?a=b"])
def test_error_event_framing(name: str, path: bytes) -> None:
    """An error event is one block with LF alone; it has no id, no retry time, and never says that all is done."""
    worded = DIALECTS[name].error_event("upstream_timeout", 'a "b"\nc', path)

    assert worded is not None
    assert worded.endswith(b"\n\n")
    assert worded.count(b"\n\n") == 1
    assert b"\r" not in worded
    assert b"[DONE]" not in worded
    lines = worded.split(b"\n")
    assert not [line for line in lines if line.startswith((b"id", b"retry"))]
    assert len([line for line in lines if line.startswith(b"data:")]) == 1


def test_error_event_raw() -> None:
    """Raw has no event: only the abort tells."""
    assert DIALECTS["raw"].error_event("upstream_timeout", "…", b"/x") is None


def test_error_event_openai_chat() -> None:
    """openai-python raises the message of our event while it reads a stream."""
    with openai.OpenAI(api_key="k", base_url="http://localhost") as client:
        stream = openai_stream(client, event("openai"))
        with pytest.raises(openai.APIError, match=r"It broke off\.") as caught:
            list(stream)

    assert caught.value.code == "upstream_unreachable"


def openai_stream(client: openai.OpenAI, data: bytes) -> Iterator[object]:
    """openai-python's own reader over a body that is already there."""
    response: Any = SimpleNamespace(
        iter_bytes=lambda: iter([data]), close=lambda: None, request=SimpleNamespace(url="http://localhost")
    )
    return iter(openai.Stream[Any](cast_to=object, response=response, client=client))


def test_error_event_openai_responses() -> None:
    """Below /responses the event is the flat one that the Responses API has."""
    events = list(OpenAIDecoder().iter_bytes(iter([event("openai", path=b"/base/v1/responses?x=/y")])))

    assert [sent.event for sent in events] == ["error"]
    data = events[0].json()
    assert data == {
        "type": "error",
        "code": "upstream_unreachable",
        "message": "It broke off.",
        "param": None,
        "sequence_number": 0,
    }
    assert openai.types.responses.ResponseErrorEvent.model_validate(data).code == "upstream_unreachable"


def test_error_event_anthropic() -> None:
    """anthropic-python raises our event: it has the name without which it would be skipped."""
    events = list(AnthropicDecoder().iter_bytes(iter([event("anthropic", "timeout_idle")])))

    assert [sent.event for sent in events] == ["error"]
    assert events[0].json()["error"]["type"] == "timeout_error"
    with anthropic.Anthropic(api_key="k") as client:
        response: Any = SimpleNamespace(
            iter_bytes=lambda: iter([event("anthropic")]),
            close=lambda: None,
            status_code=200,
            headers={},
            request=SimpleNamespace(url="http://localhost"),
        )
        with pytest.raises(anthropic.APIStatusError, match=r"It broke off\."):
            list(anthropic.Stream[Any](cast_to=object, response=response, client=client))


@pytest.mark.parametrize(
    ("code", "status"),
    [("upstream_unreachable", 502), ("upstream_timeout", 504), ("timeout_idle", 504), ("drained", 503)],
)
def test_error_event_dashscope(code: str, status: int) -> None:
    """dashscope-python knows our event for an error, and reports whose fault it was."""
    response: Any = SimpleNamespace(iter_lines=lambda: iter(event("dashscope", code).split(b"\n")))

    [(is_error, status_code, sent)] = list(dashscope_utils._handle_stream(response))

    assert is_error
    assert int(status_code) == status
    assert json.loads(sent.data) == {"code": code, "message": "It broke off.", "request_id": ""}
    assert event("dashscope", code).startswith(b"event:error\n:HTTP_STATUS/%d\n" % status)
    assert b": " not in event("dashscope").replace(b"It broke off.", b"")


def test_error_event_gemini() -> None:
    """Gemini's event is one `data: ` line with an `error` member, which google-genai looks for."""
    worded = event("gemini", "timeout_idle")

    assert worded.startswith(b'data: {"error":{"code":504,')
    assert json.loads(worded.removeprefix(b"data: "))["error"]["status"] == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("name", ["openai", "dashscope", "anthropic", "gemini"])
def test_error_event_standard_reader(name: str) -> None:
    """A reader that goes by the WHATWG rules gets exactly one event, with our JSON for data."""
    decoder = httpx_sse._decoders.SSEDecoder()
    lines = event(name).decode().split("\n")[:-1]

    events = [sent for line in lines if (sent := decoder.decode(line)) is not None]

    assert len(events) == 1
    assert isinstance(events[0].json(), dict)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("openai", (b"Authorization", b"Bearer k-1")),
        ("dashscope", (b"Authorization", b"Bearer k-1")),
        ("raw", (b"Authorization", b"Bearer k-1")),
        ("anthropic", (b"x-api-key", b"k-1")),
        ("gemini", (b"x-goog-api-key", b"k-1")),
    ],
)
def test_credential_field(name: str, field: Field) -> None:
    """Each vendor's key goes where that vendor looks for it."""
    assert DIALECTS[name].credential_field("k-1") == field


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("openai", b"Bearer k", (b"Authorization", b"Bearer k")),
        ("raw", b"Token k", (b"Authorization", b"Token k")),
        ("anthropic", b"Bearer k", (b"x-api-key", b"k")),
        ("anthropic", b"k", (b"x-api-key", b"k")),
        ("gemini", b"bearer  k", (b"x-goog-api-key", b"k")),
    ],
)
def test_client_credential_field(name: str, value: bytes, field: Field) -> None:
    """The client's own vendor key goes verbatim into Authorization, and without its scheme into a key field."""
    assert DIALECTS[name].client_credential_field(value) == field


def test_extra_fields_dashscope() -> None:
    """DashScope is asked for a stream on its default path, and only where nobody asked already."""
    dialect = DIALECTS["dashscope"]
    path = b"/api/v1/services/aigc/text-generation/generation"

    assert dialect.extra_fields(path, set()) == ((b"X-DashScope-SSE", b"enable"),)
    assert dialect.extra_fields(path, {b"x-dashscope-sse"}) == ()
    assert dialect.extra_fields(b"/api/v1/apps/a/completion", set()) == ()
    assert DIALECTS["openai"].extra_fields(path, set()) == ()


# What is open by default: the caller's own, and nothing of it is kept.
OPEN: dict[str, list[str]] = {
    "openai": [
        "POST /v1/chat/completions",
        "POST /chat/completions",
        "POST /v1/completions",
        "POST /v1/responses",
        "POST /v1/responses/input_tokens",
        "POST /v1/responses/compact",
        "POST /v1/embeddings",
        "POST /embeddings",
        "POST /v1/moderations",
        "POST /v1/images/generations",
        "POST /v1/images/edits",
        "POST /v1/images/variations",
        "POST /v1/audio/speech",
        "POST /v1/audio/transcriptions",
        "POST /v1/audio/translations",
        "POST /v1/rerank",
        "GET /v1/models",
        "GET /v1/models/gpt-5",
        "GET /v1/models/org/name",
        "GET /v1/models/org%2Fname",
        "HEAD /models",
        "POST /openai/v1/chat/completions",
        "GET /openai/v1/models",
        "GET /openai/models",
        "POST /openai/responses",
        "POST /openai/deployments/gpt-5/chat/completions",
        "POST /openai/deployments/d/embeddings",
        "POST /openai/deployments/d/audio/transcriptions",
    ],
    "anthropic": [
        "POST /v1/messages",
        "POST /v1/messages/count_tokens",
        "POST /v1/complete",
        "GET /v1/models",
        "GET /v1/models/claude-9",
    ],
    "dashscope": [
        "POST /api/v1/services/aigc/text-generation/generation",
        "POST /api/v1/services/aigc/multimodal-generation/generation",
        "POST /api/v1/services/aigc/text2image/image-synthesis",
        "POST /api/v1/services/aigc/video-generation/video-synthesis",
        "POST /api/v1/services/embeddings/text-embedding/text-embedding",
        "POST /api/v1/services/embeddings/multimodal-embedding/multimodal-embedding",
        "POST /api/v1/services/rerank/text-rerank/text-rerank",
        "POST /api/v1/services/audio/asr/transcription",
        "POST /api/v1/services/audio/tts/SpeechSynthesizer",
        "POST /services/embeddings/text-embedding/text-embedding",
        "POST /api/v1/apps/a1/completion",
        "POST /api/v1/tokenizer",
        "POST /api/v1/nlp/nlu/understanding",
        "GET /api/v1/tasks/0385dc79-5ff8-4d82-bcb6-7f2b1c2d3e4f",
        "GET /tasks/0385dc79",
        "GET /api/v1/models",
    ],
    "gemini": [
        "POST /v1beta/models/m:streamGenerateContent",
        "POST /v1/models/m:generateContent",
        "POST /v1alpha/models/m:generateContent",
        "POST /models/m:countTokens",
        "POST /v1beta/models/m:embedContent",
        "POST /v1beta/models/m:batchEmbedContents",
        "POST /v1beta/models/m%3AembedContent",
        "POST /v1beta/models/imagen-4:predict",
        "GET /v1beta/models",
        "GET /v1beta/models/m",
    ],
}
# What lists, reads, changes or deletes what others on the same vendor's key have made, and what is somewhere else.
CLOSED: dict[str, list[str]] = {
    "openai": [
        "GET /v1/chat/completions",
        "GET /v1/chat/completions/chatcmpl-1",
        "GET /v1/embeddings",
        "GET /v1/responses/resp_1",
        "GET /v1/responses%2Fresp_1",
        "DELETE /v1/responses/resp_1",
        "POST /v1/responses/resp_1/cancel",
        "GET /v1/responses/resp_1/input_items",
        "GET /v1/responses/input_tokens",
        "DELETE /v1/models/ft:mine",
        "DELETE /v1/models/org%2Fft:mine",
        "POST /v1/files",
        "GET /v1/files",
        "POST /v1/batches",
        "POST /v1/fine_tuning/jobs",
        "POST /v1/assistants",
        "POST /v1/threads",
        "GET /v1/vector_stores",
        "POST /v1/realtime/client_secrets",
        "GET /v1/audio/voices",
        "POST /v1/audio/voices",
        "GET /v1/organization/users",
        "POST /v1/chat/completions/../files",
        "POST /v1/embeddings/%2e%2e%2ffiles",
        "POST /v1/embeddings/x",
        "GET /openai/files",
        "GET /openai/deployments/d",
        "PUT /openai/deployments/d",
        "POST /openai/v1/files",
        "GET /openai/v1/responses/resp_1",
    ],
    "anthropic": [
        "GET /v1/messages",
        "POST /v1/messages/batches",
        "GET /v1/messages/batches",
        "GET /v1/messages/batches/b/results",
        "POST /v1/files",
        "GET /v1/files",
        "POST /v1/chat/completions",
        "GET /v1/organizations/api_keys",
    ],
    "dashscope": [
        "GET /api/v1/tasks",
        "GET /api/v1/tasks/",
        "GET /api/v1/tasks%2F",
        "GET /api/v1/tasks/a/b",
        "GET /api/v1/tasks/a%2Fb",
        "GET /api/v1/tasks/a/",
        "GET /api/v1/tasks/..",
        "POST /api/v1/tasks/a",
        "POST /api/v1/tasks/a/cancel",
        "DELETE /api/v1/tasks/a",
        "POST /api/v1/services/audio/asr/customization",
        "POST /api/v1/services/audio/tts/customization",
        "POST /api/v1/files",
        "GET /api/v1/uploads",
        "GET /api/v1/services/aigc/text2image/image-synthesis",
        "POST /api/v1/deployments",
        "POST /api/v1/fine-tunes",
    ],
    "gemini": [
        "GET /v1beta/models/m/operations",
        "GET /v1beta/models/m/operations/o",
        "GET /v1beta/models/m%2Foperations",
        "POST /v1beta/models/m:predictLongRunning",
        "POST /v1beta/models/m:batchGenerateContent",
        "POST /v1beta/models/m:asyncBatchEmbedContent",
        "POST /v1beta/models/m:generateAnswer",
        "POST /v1beta/models/m/operations/o:cancel",
        "POST /v1beta/files",
        "GET /v1beta/files",
        "GET /v1beta/cachedContents",
        "POST /v1beta/cachedContents",
        "GET /v1beta/tunedModels",
        "POST /v1beta/tunedModels/t:generateContent",
        "DELETE /v1beta/models/m",
    ],
    "raw": [
        "POST /",
    ],
}


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in OPEN.items() for line in lines])
def test_default_allow_paths(name: str, line: str) -> None:
    """By default a vendor's key generates, embeds, hears, draws, moderates, counts, and lists models."""
    method, _, path = line.partition(" ")

    assert DIALECTS[name].allows(method, path.encode(), DIALECTS[name].default_allow_paths)


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in CLOSED.items() for line in lines])
def test_default_allow_paths_closed(name: str, line: str) -> None:
    """What the vendor keeps for all who share its key is out of reach by default, and open to the operator's `all`."""
    method, _, path = line.partition(" ")
    dialect = DIALECTS[name]

    assert not dialect.allows(method, path.encode(), dialect.default_allow_paths)
    assert dialect.allows(method, path.encode(), ["/*"]) is (canonical_path(path.encode()) is not None)


def test_allows_operators_pattern() -> None:
    """A pattern of the operator's own stands for every method, beside the default ones too."""
    dialect = DIALECTS["openai"]

    assert dialect.allows("DELETE", b"/v1/models/ft:mine", ["/v1/*"])
    assert dialect.allows("GET", b"/v1/files", [*dialect.default_allow_paths, "/v1/files"])
    assert not dialect.allows("GET", b"/v1/chat/completions", ["/v1/chat/completions"])


def test_root_paths_of_one_dialect() -> None:
    """A path at the proxy's root is for one dialect, which allows it by default, and hides no upstream."""
    paths = [(path, dialect) for dialect in DIALECTS.values() for path in dialect.root_paths]
    assert len({path for path, _ in paths}) == len(paths) > 0
    for path, dialect in paths:
        assert dialect.allows("POST", path, dialect.default_allow_paths)
        assert path.split(b"/")[1].decode() in RESERVED_NAMES


def test_credential_names_are_kept_from_upstreams() -> None:
    """A field in which a vendor's SDK sends its key may hold the proxy's token, so it is read, and never forwarded."""
    for dialect in DIALECTS.values():
        assert dialect.credential_name.lower() in SERVER_CREDENTIALS


def test_dialects_properties() -> None:
    """Each dialect is known by its name; only gemini takes `?key=`, and only gemini bears no heartbeat."""
    assert list(DIALECTS) == ["openai", "dashscope", "anthropic", "gemini", "raw"]
    assert all(dialect.name == name for name, dialect in DIALECTS.items())
    assert [name for name, dialect in DIALECTS.items() if dialect.query_credential] == ["gemini"]
    assert [name for name, dialect in DIALECTS.items() if not dialect.heartbeat_allowed] == ["gemini"]
    assert {name: dialect.default_path for name, dialect in DIALECTS.items()} == {
        "openai": "/v1/chat/completions",
        "dashscope": "/api/v1/services/aigc/text-generation/generation",
        "anthropic": "/v1/messages",
        "gemini": None,
        "raw": None,
    }
