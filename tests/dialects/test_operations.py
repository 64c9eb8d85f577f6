"""What OpenTelemetry calls operations and vendors."""

from __future__ import annotations

import pytest
from opentelemetry.semconv._incubating.attributes.gen_ai_attributes import (
    GenAiOperationNameValues,
    GenAiProviderNameValues,
)

from proxy.dialects import DIALECTS, operations
from proxy.dialects.operations import operation_of, provider_at


@pytest.mark.parametrize(
    ("target", "operation"),
    [
        (b"/v1/chat/completions", "chat"),
        (b"/openai/deployments/x/chat/completions?api-version=1", "chat"),
        (b"/v1/responses", "chat"),
        (b"/v1/messages", "chat"),
        (b"/api/v1/services/aigc/text-generation/generation", "chat"),
        (b"/api/v1/services/aigc/multimodal-generation/generation", "generate_content"),
        (b"/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse", "generate_content"),
        (b"/v1/completions", "text_completion"),
        (b"/v1/embeddings", "embeddings"),
        (b"/v1/models", None),
        (b"/v1/messages/count_tokens", None),
        (b"/?x=/chat/completions", None),
    ],
)
def test_operation_of(target: bytes, operation: str | None) -> None:
    """The path tells what is done, the query does not."""
    assert operation_of(target) == operation


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("api.openai.com", "openai"),
        ("x.openai.azure.com", "azure.ai.openai"),
        ("API.DeepSeek.com", "deepseek"),
        ("dashscope-intl.aliyuncs.com", "dashscope"),
        ("generativelanguage.googleapis.com", "gcp.gemini"),
        ("europe-west1-aiplatform.googleapis.com", "gcp.vertex_ai"),
        ("x.ai", "x_ai"),
        ("notx.ai", None),
        ("10.0.0.1", None),
        ("api.openai.com.evil.example", None),
    ],
)
def test_provider_at(host: str, provider: str | None) -> None:
    """A host's name tells whose it is."""
    assert provider_at(host) == provider


def test_words_are_the_conventions() -> None:
    """A word that is not the conventions' is the one that they lack."""
    known = {value.value for value in GenAiProviderNameValues}
    ours = {provider for _, provider in operations._HOSTS} | {
        dialect.provider for dialect in DIALECTS.values() if dialect.provider is not None
    }
    assert ours - known == {"dashscope"}
    assert {operation for operation, _ in operations._OPERATIONS} <= {value.value for value in GenAiOperationNameValues}
