"""Every client of the suite, with the names of its errors and the retries that it documents."""

from __future__ import annotations

from functools import partial

from tests.clients import programs, python_clients
from tests.clients.calls import Client, blocking

_NO_THOUGHT = frozenset({"thought"})
_NO_RETRY_AFTER = frozenset({"retry_after"})

_openai = partial(
    Client,
    dialect="openai",
    address="/{upstream}/v1",
    refused="AuthenticationError",
    limited="RateLimitError",
    broken="APIError",
    torn="APIConnectionError",
    retries=2,
)
_anthropic = partial(
    Client,
    dialect="anthropic",
    api="messages",
    address="/{upstream}",
    refused="AuthenticationError",
    limited="RateLimitError",
    broken="APIStatusError",
    torn="RemoteProtocolError",
    retries=2,
)
_google = partial(
    Client,
    dialect="gemini",
    api="generate",
    address="/{upstream}",
    refused="ClientError",
    limited="ClientError",
    broken="ServerError",
)
_dashscope = partial(
    Client,
    dialect="dashscope",
    api="generation",
    address="/{upstream}/api/v1",
    refused="AnswerError",
    limited="AnswerError",
    broken="AnswerError",
    hides=_NO_RETRY_AFTER,
)
_plain = partial(Client, dialect="openai", api="chat", address="/forward-sse?upstream={upstream}")
_ai = partial(
    Client,
    refused="AI_APICallError",
    limited="AI_APICallError",
    broken="error part",
    torn="AI_APICallError",
    retries=2,
)

CLIENTS = (
    _openai("openai", api="chat", hides=_NO_THOUGHT, speak=python_clients.openai_chat),
    _openai("openai blocking", api="chat", hides=_NO_THOUGHT, speak=blocking(python_clients.openai_blocking)),
    _openai("openai responses", api="responses", broken="AnswerError", speak=python_clients.openai_responses),
    _openai(
        "langchain-openai",
        api="chat",
        refused="OpenAIAuthenticationError",
        limited="OpenAIRateLimitError",
        torn="OpenAIConnectionError",
        hides=_NO_THOUGHT,
        speak=python_clients.langchain_openai,
    ),
    _anthropic("anthropic", speak=python_clients.anthropic_messages),
    _anthropic("anthropic blocking", speak=blocking(python_clients.anthropic_blocking)),
    _google("google-genai", torn="ClientPayloadError", speak=python_clients.google_genai),
    _google("google-genai blocking", torn="RemoteProtocolError", speak=blocking(python_clients.google_genai_blocking)),
    _dashscope("dashscope", torn="ChunkedEncodingError", speak=blocking(python_clients.dashscope_blocking)),
    _dashscope("dashscope async", torn="ClientPayloadError", speak=python_clients.dashscope_async),
    _plain(
        "httpx-sse",
        refused="HTTPStatusError",
        limited="HTTPStatusError",
        broken="AnswerError",
        torn="RemoteProtocolError",
        speak=python_clients.httpx_sse,
    ),
    # 22: an answer of 400 or above; 18: a partial file.
    _plain("curl", refused="exit 22", limited="exit 22", broken="exit 18", torn="exit 18", speak=programs.curl),
    # Node's fetch has one error for a body that broke off: a TypeError that says "terminated".
    _openai("node openai", api="chat", torn="TypeError", hides=_NO_THOUGHT),
    _openai("node openai responses", api="responses", broken="error event", torn="TypeError"),
    _anthropic("node anthropic", broken="APIError", torn="TypeError"),
    _google(
        "node google-genai",
        refused="ApiError",
        limited="ApiError",
        broken="ApiError",
        torn="TypeError",
        hides=_NO_RETRY_AFTER,
    ),
    _ai("node ai openai-compatible", dialect="openai", api="chat", address="/{upstream}/v1"),
    _ai("node ai anthropic", dialect="anthropic", api="messages", address="/{upstream}/v1"),
    _ai("node ai google", dialect="gemini", api="generate", address="/{upstream}/v1beta", broken="AI_APICallError"),
)
