"""DashScope's native dialect: flat errors, and events without a space after the colon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.dialects.base import Dialect, broken_stream_status
from proxy.dialects.output_bound import BoundMembers
from proxy.dialects.preamble import error_verdict, unknown_verdict
from proxy.dialects.stream_request import accepts_event_stream
from proxy.dialects.typed.dashscope import DashScopeReader, asks_for_increments
from proxy.dialects.typed.reader import mapping, sequence, text_of
from proxy.dialects.usage import choices_bytes, is_count, size_of

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from proxy.dialects.preamble import Verdict
    from proxy.dialects.usage import Counts
    from proxy.errors import Field

_STREAM: Final[Field] = (b"X-DashScope-SSE", b"enable")
# Members of `output` that are no part of the answer.
_ABOUT: Final = frozenset({"choices", "finish_reason", "reject_status", "session_id", "task_id"})
# https://help.aliyun.com/zh/model-studio/error-code
_REQUEST_CODES: Final = (
    "InvalidParameter",
    "InvalidURL",
    "BadRequest",
    "DataInspectionFailed",
    "ModelNotFound",
)


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

    def error_json(self, status: int, code: str, message: str) -> bytes:  # noqa: ARG002 - not in the body
        """Flat; the request id is the vendor's, and there is none."""
        return orjson.dumps({"code": code, "message": message, "request_id": ""})

    def error_event(self, code: str, message: str, path: bytes) -> bytes | None:  # noqa: ARG002 - the same everywhere
        r"""The vendor's own shape, to the byte: `event:error` with a space makes dashscope-python raise a TypeError.

        The status stands in a comment, as the vendor writes it, and in the `status` field that dashscope-python reads
        (without it, it reports 400, as if the client were to blame); other parsers ignore a field they do not know.
        """
        status = broken_stream_status(code)
        return _event(status, self.error_json(status, code, message))

    def vendor_error_event(self, status: int, body: dict[str, Any]) -> bytes | None:
        """The vendor's words in the vendor's shape, with the status of its answer."""
        return _event(status, orjson.dumps(body)) if body.get("code") else None

    def count(self, event: dict[str, Any], counts: Counts) -> None:
        """Running totals in every event; an application counts by model.

        https://help.aliyun.com/zh/model-studio/qwen-api-via-dashscope
        """
        usage = mapping(event.get("usage"))
        models = [mapping(model) for model in sequence(usage.get("models"))]
        if models:
            for name, member in (("input", "input_tokens"), ("output", "output_tokens")):
                told = [model[member] for model in models if is_count(model.get(member))]
                if told:
                    setattr(counts, name, sum(told))
            counts.keep_model(models[0].get("model_id"))
            return
        counts.keep("input", usage.get("input_tokens"))
        counts.keep("output", usage.get("output_tokens"))
        sent = mapping(usage.get("prompt_tokens_details")) or mapping(usage.get("input_tokens_details"))
        counts.keep("cached", sent.get("cached_tokens"), usage.get("cached_tokens"))
        counts.keep("reasoning", mapping(usage.get("output_tokens_details")).get("reasoning_tokens"))

    def whole_text_bytes(self, answer: dict[str, Any]) -> int:
        """What `output` says, in either form."""
        output = mapping(answer.get("output"))
        return size_of(output.get("text")) + choices_bytes(output.get("choices"))

    def judge(self, name: bytes, value: dict[str, Any]) -> Verdict:
        """The flat form, that of choices, and that of applications."""
        output = value.get("output")
        if name == b"error" or (value.get("code") and not isinstance(output, dict)):
            return error_verdict(text_of(value.get("code")).startswith(_REQUEST_CODES))
        if not isinstance(output, dict):
            return unknown_verdict(value)
        choices = [mapping(choice) for choice in sequence(output.get("choices"))]
        for said in (output, *choices):
            if text_of(said.get("finish_reason")) not in {"", "null"}:
                return "output"
        messages = (mapping(choice.get("message")) for choice in choices)
        if any(content for message in messages for member, content in message.items() if member != "role"):
            return "output"
        return "output" if any(output.get(member) for member in output if member not in _ABOUT) else "preamble"

    def reader(self, request_body: bytes | bytearray) -> DashScopeReader:
        """Only the request tells for certain whether its texts are repeated."""
        return DashScopeReader(asked=asks_for_increments(request_body))


def _event(status: int, data: bytes) -> bytes:
    return b"event:error\n:HTTP_STATUS/%d\nstatus:%d\ndata:%b\n\n" % (status, status, data)
