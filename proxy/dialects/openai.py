"""OpenAI's dialect: chat completions and responses; what "compatible modes" speak."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.dialects.base import Dialect, broken_stream_status
from proxy.dialects.output_bound import BoundMembers
from proxy.dialects.preamble import judge_openai
from proxy.dialects.typed.openai import OpenAIReader
from proxy.dialects.usage import OPENAI_PLAIN_TEXT, count_openai, openai_text_bytes, openai_whole_text_bytes
from proxy.dialects.usage_request import ask_usage
from proxy.protocol.sse_observer import encode_event

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxy.dialects.preamble import Verdict
    from proxy.dialects.usage import Counts
    from proxy.errors import Field, ProxyError
    from proxy.protocol.json_text import JsonText, Steps

# `error.type`; the statuses that are not here are the client's (`invalid_request_error`) or ours (`server_error`).
_TYPES: Final[Mapping[int, str]] = MappingProxyType(
    {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
)
_SERVER_ERROR: Final = 500


class OpenAI(Dialect):
    """`{"error": {…}}`, before a stream and in it; the Responses API has an error event of its own."""

    name = "openai"
    provider = "openai"
    default_path = "/v1/chat/completions"
    root_paths = (b"/v1/chat/completions", b"/v1/responses", b"/v1/completions", b"/v1/embeddings")
    models_path = "/v1/models"
    # With `/v1` and without: the operator's url may end in it, as the SDKs' base URLs do. The others are Azure's. No
    # `/v1/responses/*`, files, batches, assistants or voices: what is stored there belongs to everybody who shares the
    # vendor's key. No `/v1/realtime/*`: it hands out credentials of the vendor's.
    generation_paths = tuple(
        version + path
        for version in ("/v1", "", "/openai/v1", "/openai", "/openai/deployments/*")
        for path in (
            "/chat/completions",
            "/completions",
            "/responses",
            "/responses/compact",
            "/responses/input_tokens",
            "/embeddings",
            "/rerank",
            "/moderations",
            "/images/generations",
            "/images/edits",
            "/images/variations",
            "/audio/speech",
            "/audio/transcriptions",
            "/audio/translations",
        )
    )
    counting_ends = (b"/responses/input_tokens",)
    model_paths = tuple(
        version + path for version in ("/v1", "", "/openai/v1", "/openai") for path in ("/models", "/models/*")
    )
    # The SDK sends `Accept: application/json` with streams too, so no field counts.
    has_stream_member = True
    usage_on_request = True
    # The second is what the first became, the third the Responses API's.
    bound_members = BoundMembers(("max_tokens", "max_completion_tokens", "max_output_tokens"), ("n",))
    plain_text = OPENAI_PLAIN_TEXT

    def smallest_request(self, model: str) -> tuple[str, bytes]:
        """One token of a chat completion."""
        messages = [{"role": "user", "content": "Hi"}]
        return self.default_path, orjson.dumps({"model": model, "max_tokens": 1, "messages": messages})

    def error_body(self, error: ProxyError) -> bytes:
        """`type` is a kind of error, `code` the proxy's own code for it."""
        return error_json(error.status, error.code, error.message)

    def error_event(self, code: str, message: str, path: bytes) -> bytes | None:
        """Data with an `error` member: the SDKs raise on it, whatever the event's name.

        The Responses API's `error` event is flat, and its readers want a `sequence_number`. It is 0, because nobody
        here has counted the events that passed.
        """
        if path.partition(b"?")[0].endswith(b"/responses"):
            flat = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": 0}
            return encode_event(orjson.dumps(flat), b"error")
        return encode_event(error_json(broken_stream_status(code), code, message))

    def vendor_error_event(self, status: int, body: dict[str, Any]) -> bytes | None:  # noqa: ARG002 - not in the body
        """Data with the vendor's `error` member, in both APIs: the SDKs raise on it."""
        return encode_event(orjson.dumps(body)) if body.get("error") else None

    def ask_usage(self, target: bytes, fields: Sequence[Field], body: JsonText) -> Steps[JsonText | None]:
        """See `usage_request`."""
        return ask_usage(target, fields, body)

    def count(self, event: dict[str, Any], counts: Counts) -> None:
        """See `usage`."""
        count_openai(event, counts)

    def text_bytes(self, event: dict[str, Any]) -> int:
        """See `usage`."""
        return openai_text_bytes(event)

    def whole_text_bytes(self, answer: dict[str, Any]) -> int:
        """See `usage`."""
        return openai_whole_text_bytes(answer)

    def judge(self, name: bytes, value: dict[str, Any]) -> Verdict:  # noqa: ARG002 - events have no names, or repeat them
        """See `preamble`."""
        return judge_openai(value)

    def reader(self, request_body: bytes | bytearray) -> OpenAIReader:  # noqa: ARG002 - the same for every request
        """Needs nothing of the request."""
        return OpenAIReader()


def error_json(status: int, code: str, message: str) -> bytes:
    """An error as OpenAI's API words it."""
    kind = _TYPES.get(status, "server_error" if status >= _SERVER_ERROR else "invalid_request_error")
    return orjson.dumps({"error": {"message": message, "type": kind, "code": code, "param": None}})
