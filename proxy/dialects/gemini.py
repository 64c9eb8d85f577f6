"""Gemini's dialect: generateContent and its stream; errors as `google.rpc.Status`."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.dialects.base import Dialect, broken_stream_status
from proxy.dialects.output_bound import BoundMembers
from proxy.dialects.preamble import judge_gemini
from proxy.dialects.typed.gemini import GeminiReader
from proxy.dialects.usage import count_gemini, gemini_text_bytes
from proxy.protocol.sse_observer import encode_event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.dialects.preamble import Verdict
    from proxy.dialects.usage import Counts
    from proxy.errors import ProxyError

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

    def error_body(self, error: ProxyError) -> bytes:
        """`code` is the HTTP status here; the proxy's own code is the reason of an `ErrorInfo`."""
        return _error(error.status, error.code, error.message)

    def error_event(self, code: str, message: str, path: bytes) -> bytes | None:  # noqa: ARG002 - the same everywhere
        """Data alone: google-genai reads nothing but `data: `, and raises on an `error` member."""
        return encode_event(_error(broken_stream_status(code), code, message))

    def count(self, event: dict[str, Any], counts: Counts) -> None:
        """See `usage`."""
        count_gemini(event, counts)

    def text_bytes(self, event: dict[str, Any]) -> int:
        """See `usage`."""
        return gemini_text_bytes(event)

    def whole_text_bytes(self, answer: dict[str, Any]) -> int:
        """See `usage`."""
        return gemini_text_bytes(answer)

    def judge(self, name: bytes, value: dict[str, Any]) -> Verdict:  # noqa: ARG002 - events have no names, or repeat them
        """See `preamble`."""
        return judge_gemini(value)

    def reader(self, request_body: bytes | bytearray) -> GeminiReader:  # noqa: ARG002 - the same for every request
        """Needs nothing of the request."""
        return GeminiReader()

    def _is_meant(self, pattern: str, method: str, path: str) -> bool:
        """Below a model there are also the operations of everybody who shares the vendor's key."""
        return super()._is_meant(pattern, method, path) and not (pattern in self.model_paths and "/operations" in path)


def _error(status: int, code: str, message: str) -> bytes:
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": code, "domain": "forward-sse"}
    name = _STATUSES.get(status, "INVALID_ARGUMENT")
    return orjson.dumps({"error": {"code": status, "message": message, "status": name, "details": [info]}})
