"""Gemini's dialect: generateContent and its stream; errors as `google.rpc.Status`."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.dialects.base import Dialect
from proxy.dialects.output_bound import BoundMembers
from proxy.dialects.preamble import error_verdict, is_request_status, unknown_verdict
from proxy.dialects.typed.gemini import GeminiReader
from proxy.dialects.typed.reader import mapping, sequence
from proxy.dialects.usage import size_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.dialects.preamble import Verdict
    from proxy.dialects.usage import Counts

# google.rpc.Code's names by HTTP status (google/rpc/code.proto); other 4xx are INVALID_ARGUMENT.
_STATUSES: Final[Mapping[int, str]] = MappingProxyType(
    {
        401: "UNAUTHENTICATED",
        403: "PERMISSION_DENIED",
        404: "NOT_FOUND",
        405: "UNIMPLEMENTED",
        408: "DEADLINE_EXCEEDED",
        429: "RESOURCE_EXHAUSTED",
        500: "INTERNAL",
        502: "UNAVAILABLE",
        503: "UNAVAILABLE",
        504: "DEADLINE_EXCEEDED",
    }
)


# The last one for a url that ends in a version.
_VERSIONS: Final = ("/v1", "/v1beta", "/v1alpha", "")


class Gemini(Dialect):
    """The model stands in the path, before a raw colon; the Python SDK calls `/v1`, the others `/v1beta`."""

    name = "gemini"
    provider = "gcp.gemini"
    models_path = "/v1beta/models"
    # `predict` makes images (Imagen). No batches, no `predictLongRunning`: their results are stored for everybody who
    # shares the vendor's key. No `generateAnswer`: it searches the corpora that anybody stored.
    generation_paths = tuple(
        f"{version}/models/*:{verb}"
        for version in _VERSIONS
        for verb in (
            "generateContent",
            "streamGenerateContent",
            "countTokens",
            "computeTokens",
            "embedContent",
            "batchEmbedContents",
            "predict",
        )
    )
    counting_ends = (b":countTokens", b":computeTokens")
    model_paths = tuple(f"{version}/models{below}" for version in _VERSIONS for below in ("", "/*"))
    credential_name = b"x-goog-api-key"
    credential_prefix = b""
    query_credential = True
    # google-genai's Python client dies on any comment. So no response may begin early, and nothing here tells which
    # requests ask for a stream.
    heartbeat_allowed = False
    # JSON of protocol buffers has two spellings of each name, both of which the vendor reads.
    bound_members = BoundMembers(
        ("maxOutputTokens", "max_output_tokens"),
        ("candidateCount", "candidate_count"),
        within=("generationConfig", "generation_config"),
    )

    def smallest_request(self, model: str) -> tuple[str, bytes]:
        """One token of generated content."""
        contents = [{"role": "user", "parts": [{"text": "Hi"}]}]
        body = {"contents": contents, "generationConfig": {"maxOutputTokens": 1}}
        return f"/v1beta/models/{model}:generateContent", orjson.dumps(body)

    def error_json(self, status: int, code: str, message: str) -> bytes:
        """`code` is the HTTP status here; the proxy's own code is the reason of an `ErrorInfo`.

        As an event it is data alone: google-genai reads nothing but `data: `, and raises on an `error` member.
        """
        info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": code, "domain": "forward-sse"}
        name = _STATUSES.get(status, "INVALID_ARGUMENT")
        return orjson.dumps({"error": {"code": status, "message": message, "status": name, "details": [info]}})

    def count(self, event: dict[str, Any], counts: Counts) -> None:
        """Running totals in every chunk; thoughts are billed as output, and are not among the candidates.

        https://ai.google.dev/api/generate-content#UsageMetadata
        """
        counts.keep_model(event.get("modelVersion"))
        usage = mapping(event.get("usageMetadata"))
        counts.keep_sum("input", usage, ("promptTokenCount", "toolUsePromptTokenCount"))
        counts.keep_sum("output", usage, ("candidatesTokenCount", "thoughtsTokenCount"))
        counts.keep("cached", usage.get("cachedContentTokenCount"))
        counts.keep("reasoning", usage.get("thoughtsTokenCount"))

    def text_bytes(self, event: dict[str, Any]) -> int:
        """The text of a chunk's candidates."""
        return sum(
            size_of(mapping(part).get("text"))
            for candidate in sequence(event.get("candidates"))
            for part in sequence(mapping(mapping(candidate).get("content")).get("parts"))
        )

    def whole_text_bytes(self, answer: dict[str, Any]) -> int:
        """A whole answer is one chunk."""
        return self.text_bytes(answer)

    def judge(self, name: bytes, value: dict[str, Any]) -> Verdict:  # noqa: ARG002 - events have no names, or repeat them
        """Chunks of candidates; a blocked prompt is an answer, and the request's own fault."""
        if error := value.get("error"):
            return error_verdict(is_request_status(mapping(error).get("code")))
        if mapping(value.get("promptFeedback")).get("blockReason"):
            return "output"
        if "candidates" not in value:
            return unknown_verdict(value)
        for candidate in map(mapping, sequence(value["candidates"])):
            parts = map(mapping, sequence(mapping(candidate.get("content")).get("parts")))
            if candidate.get("finishReason") or any(
                content for part in parts for member, content in part.items() if member != "thought"
            ):
                return "output"
        return "preamble"

    def reader(self, request_body: bytes | bytearray) -> GeminiReader:  # noqa: ARG002 - the same for every request
        """Needs nothing of the request."""
        return GeminiReader()

    def _is_meant(self, pattern: str, method: str, path: str) -> bool:
        """Below a model there are also the operations of everybody who shares the vendor's key."""
        return super()._is_meant(pattern, method, path) and not (pattern in self.model_paths and "/operations" in path)
