"""What OpenTelemetry calls an operation and a vendor: `gen_ai.operation.name` and `gen_ai.provider.name`.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/ Where it has no word for a vendor, the name is ours.
"""

from __future__ import annotations

from typing import Final

# By the end of a path without its query; the first that fits.
_OPERATIONS: Final = (
    ("chat", (b"/chat/completions", b"/responses", b"/messages", b"/text-generation/generation")),
    ("generate_content", (b":generateContent", b":streamGenerateContent", b"/multimodal-generation/generation")),
    ("text_completion", (b"/completions", b"/complete")),
    ("embeddings", (b"/embeddings", b":embedContent", b":batchEmbedContents", b"/text-embedding")),
)
# By the end of a host's name: vendors that speak another one's dialect, and clouds that have several.
_HOSTS: Final = (
    (".openai.com", "openai"),
    (".openai.azure.com", "azure.ai.openai"),
    (".cognitiveservices.azure.com", "azure.ai.openai"),
    (".services.ai.azure.com", "azure.ai.inference"),
    (".anthropic.com", "anthropic"),
    (".aiplatform.googleapis.com", "gcp.vertex_ai"),
    ("-aiplatform.googleapis.com", "gcp.vertex_ai"),
    (".generativelanguage.googleapis.com", "gcp.gemini"),
    (".amazonaws.com", "aws.bedrock"),
    (".ml.cloud.ibm.com", "ibm.watsonx.ai"),
    (".aliyuncs.com", "dashscope"),
    (".deepseek.com", "deepseek"),
    (".mistral.ai", "mistral_ai"),
    (".groq.com", "groq"),
    (".x.ai", "x_ai"),
    (".perplexity.ai", "perplexity"),
    (".cohere.com", "cohere"),
    (".cohere.ai", "cohere"),
)


def operation_of(target: bytes) -> str | None:
    """Return what a request to a target does with a model; None where it is not known to do anything."""
    path = target.partition(b"?")[0]
    return next((operation for operation, ends in _OPERATIONS if path.endswith(ends)), None)


def provider_at(host: str) -> str | None:
    """Return whose server has that name; None where it is not known."""
    name = f".{host.lower()}"
    return next((provider for end, provider in _HOSTS if name.endswith(end)), None)
