"""DashScope's native dialect: flat errors, and events without a space after the colon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.dialects.base import Dialect, broken_stream_status
from proxy.dialects.output_bound import BoundMembers
from proxy.dialects.preamble import judge_dashscope
from proxy.dialects.stream_request import accepts_event_stream
from proxy.dialects.typed.dashscope import DashScopeReader, asks_for_increments
from proxy.dialects.usage import count_dashscope, dashscope_whole_text_bytes

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from proxy.dialects.preamble import Verdict
    from proxy.dialects.usage import Counts
    from proxy.errors import Field, ProxyError

_STREAM: Final[Field] = (b"X-DashScope-SSE", b"enable")


class DashScope(Dialect):
    """Text, multimodal and application generation. Its "compatible mode" is the openai dialect at another url."""

    name = "dashscope"
    provider = "dashscope"
    default_path = "/api/v1/services/aigc/text-generation/generation"
    models_path = "/api/v1/models"
    # With `/api/v1` and without, as the SDK's base URL ends in it. No `customization` of speech: its one path lists and
    # deletes everybody's voices. No files, no `uploads`, which hands out credentials of the vendor's.
    generation_paths = tuple(
        base + path
        for base in ("/api/v1", "")
        for path in (
            "/services/aigc/*",
            "/services/embeddings/*",
            "/services/rerank/*",
            "/nlp/nlu/understanding",
            "/services/audio/asr/recognition",
            "/services/audio/asr/transcription",
            "/services/audio/tts/SpeechSynthesizer",
            "/apps/*",
            "/tokenizer",
        )
    )
    model_paths = ("/api/v1/models", "/api/v1/models/*", "/models", "/models/*")
    # The result of one's own image, video or transcript. No list of tasks, and nobody cancels one.
    task_paths = ("/api/v1/tasks/*", "/tasks/*")
    bound_members = BoundMembers(("max_tokens",), ("n",), within=("parameters",))

    def extra_fields(self, path: bytes, names: Container[bytes]) -> tuple[Field, ...]:
        """The vendor's word for "as a stream", where `POST /forward-sse` goes to the default path without it.

        Below a url that ends in `/api/v1` the default path is the rest of it.

        The request's body has no such word, so a frontend that sends only a body could not ask for a stream at all.
        """
        if not self.default_path.endswith(path.decode("latin-1")) or _STREAM[0].lower() in names:
            return ()
        return (_STREAM,)

    def asks_in_fields(self, fields: Sequence[Field]) -> bool:
        """Either the vendor's own field asks, or `Accept`."""
        name, value = _STREAM
        index = {field.lower(): given.strip().lower() for field, given in fields}
        return index.get(name.lower()) == value or accepts_event_stream(fields)

    def smallest_request(self, model: str) -> tuple[str, bytes]:
        """One token of text generation."""
        messages = [{"role": "user", "content": "Hi"}]
        parameters = {"max_tokens": 1, "result_format": "message"}
        body = {"model": model, "input": {"messages": messages}, "parameters": parameters}
        return self.default_path, orjson.dumps(body)

    def error_body(self, error: ProxyError) -> bytes:
        """Flat; the request id is the vendor's, and there is none."""
        return _error(error.code, error.message)

    def error_event(self, code: str, message: str, path: bytes) -> bytes | None:  # noqa: ARG002 - the same everywhere
        r"""The vendor's own shape, to the byte: `event:error` with a space makes dashscope-python raise a TypeError.

        The status stands in a comment, as the vendor writes it, and in the `status` field that dashscope-python reads
        (without it, it reports 400, as if the client were to blame); other parsers ignore a field they do not know.
        """
        return _event(broken_stream_status(code), _error(code, message))

    def vendor_error_event(self, status: int, body: dict[str, Any]) -> bytes | None:
        """The vendor's words in the vendor's shape, with the status of its answer."""
        return _event(status, orjson.dumps(body)) if body.get("code") else None

    def count(self, event: dict[str, Any], counts: Counts) -> None:
        """See `usage`."""
        count_dashscope(event, counts)

    def whole_text_bytes(self, answer: dict[str, Any]) -> int:
        """See `usage`."""
        return dashscope_whole_text_bytes(answer)

    def judge(self, name: bytes, value: dict[str, Any]) -> Verdict:
        """See `preamble`."""
        return judge_dashscope(name, value)

    def reader(self, request_body: bytes | bytearray) -> DashScopeReader:
        """Only the request tells for certain whether its texts are repeated."""
        return DashScopeReader(asked=asks_for_increments(request_body))


def _event(status: int, data: bytes) -> bytes:
    return b"event:error\n:HTTP_STATUS/%d\nstatus:%d\ndata:%b\n\n" % (status, status, data)


def _error(code: str, message: str) -> bytes:
    return orjson.dumps({"code": code, "message": message, "request_id": ""})
