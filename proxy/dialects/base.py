"""The base class of dialects: a vendor's default path, credential header, error body and error event.

Everything here is a value or a pure function of values. Which upstream speaks which dialect is the configuration's
business; what becomes of a stream is the relay's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final

import orjson

from proxy.dialects.stream_request import has_true_stream_member
from proxy.protocol.paths import canonical_path, matches
from proxy.protocol.sse_observer import encode_event

if TYPE_CHECKING:
    import re
    from collections.abc import Container, Mapping, Sequence

    from proxy.dialects.output_bound import BoundMembers
    from proxy.dialects.preamble import Verdict
    from proxy.dialects.typed.reader import Reader
    from proxy.dialects.usage import Counts
    from proxy.errors import Field, ProxyError
    from proxy.protocol.json_text import JsonText, Steps

# The status that an answer would have had, had the stream not begun before the failure was known. What is not named
# here is an upstream that broke off.
_BROKEN_STREAM_STATUS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "upstream_timeout": 504,
        "timeout_idle": 504,
        "timeout_total": 504,
        "draining": 503,
        "drained": 503,
        "insufficient_quota": 429,
    }
)
# `error.type` of OpenAI's errors; the statuses that are not here are the client's (`invalid_request_error`) or ours.
_TYPES: Final[Mapping[int, str]] = MappingProxyType(
    {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
)
_SERVER_ERROR: Final = 500


class Dialect(ABC):
    """One vendor's API. Stateless: `DIALECTS` has one instance of each.

    `default_path` is where `POST /forward-sse` goes, below the upstream's url; None where it has to be configured.
    """

    name: ClassVar[str]
    default_path: ClassVar[str | None] = None
    # The proxy's own paths that are for this dialect: its SDKs call them where the proxy is their base URL, and the
    # body's `model` tells the upstream. Below `/v1`, which no upstream can be called.
    root_paths: ClassVar[tuple[bytes, ...]] = ()
    # Where the vendor lists its models, below the upstream's url; None where it does not.
    models_path: ClassVar[str | None] = None
    # Globs of what is the caller's own and keeps nothing: what generates, embeds, transcribes, moderates or counts;
    # what lists models; what a caller asks after by an id that nobody can guess. What would list, read or delete what
    # *other* users of the vendor's key have stored there (GET of a generation path, DELETE of any) is left out on
    # purpose; see `allows`.
    generation_paths: ClassVar[tuple[str, ...]] = ()
    model_paths: ClassVar[tuple[str, ...]] = ()
    task_paths: ClassVar[tuple[str, ...]] = ()
    # Ends of paths where a text's tokens are counted, which takes none and is free.
    counting_ends: ClassVar[tuple[bytes, ...]] = ()
    # The field that carries the vendor's credential, and what stands before it there.
    credential_name: ClassVar[bytes] = b"Authorization"
    credential_prefix: ClassVar[bytes] = b"Bearer "
    # Whether `?key=` carries a credential.
    query_credential: ClassVar[bool] = False
    # Whether clients bear comments in a stream.
    heartbeat_allowed: ClassVar[bool] = True
    # Whether the body's member `stream` asks for an event stream.
    has_stream_member: ClassVar[bool] = False
    # Whether a stream tells its usage only where the request asks for it.
    usage_on_request: ClassVar[bool] = False
    # Whether it is known what streams say, so that they can be typed.
    is_readable: ClassVar[bool] = True
    # Whose servers speak it, unless their name says otherwise (`gen_ai.provider.name`); None where it may be anybody's.
    provider: ClassVar[str | None] = None
    # Where a request's body says how much output it asks for at most; None where it is not known to.
    bound_members: ClassVar[BoundMembers | None] = None
    # Matches most events of text, whose size is then known without parsing them: the text, in which nothing is escaped,
    # is the group. None where events are always parsed.
    plain_text: ClassVar[re.Pattern[bytes] | None] = None
    # What the vendor wants in every request besides its credential, for one that no client has made.
    required_fields: ClassVar[tuple[Field, ...]] = ()

    @property
    def default_allow_paths(self) -> tuple[str, ...]:
        """Return the paths below the upstream's url that are allowed where the operator lists none.

        Where there is none, the configuration must give the upstream a `path`.
        """
        return self.generation_paths + self.model_paths + self.task_paths

    def credential_field(self, key: str) -> Field:
        """Return the header field that carries the vendor's key."""
        return self.credential_name, self.credential_prefix + key.encode()

    def client_credential_field(self, value: bytes) -> Field:
        """Return the header field that carries the credential of `X-Upstream-Authorization`.

        Verbatim where the vendor takes it from `Authorization`: the scheme is the client's to choose. Elsewhere the
        scheme goes, because those fields have none.
        """
        if not self.credential_prefix and value[:7].lower() == b"bearer ":
            value = value[7:].strip(b" \t")
        return self.credential_name, value

    def allows(self, method: str, path: bytes, patterns: Sequence[str]) -> bool:
        """Check whether one of the `patterns` allows this path with this method.

        A pattern that is one of the dialect's own leaves out what lists or deletes others' data; any other stands for
        every method, `/v1/*` for example. So who narrows the defaults does not widen what may be done with them.
        """
        canonical = canonical_path(path)
        if canonical is None:
            return False
        return any(matches(canonical, pattern) and self._is_meant(pattern, method, canonical) for pattern in patterns)

    def extra_fields(self, path: bytes, names: Container[bytes]) -> tuple[Field, ...]:  # noqa: ARG002 - most need none
        """Return the fields that `POST /forward-sse` adds to a request for `path` with the fields `names`."""
        return ()

    def asks_for_stream(self, method: str, fields: Sequence[Field], body: JsonText) -> Steps[bool]:
        """Check whether a request asks for an event stream, so that heartbeats may be written before the response.

        Where it is not certain, the answer is no. Yields after each piece of a large body.
        """
        if method == "HEAD":  # its answer has no body (RFC 9110 §9.3.2)
            return False
        if self.has_stream_member:
            return (yield from has_true_stream_member(fields, body))
        return self.asks_in_fields(fields)

    def runs_model(self, target: bytes) -> bool:
        """Check whether a request for a target is for a model's work, and not for a count of tokens."""
        return not target.partition(b"?")[0].endswith(self.counting_ends)

    def ask_usage(
        self,
        target: bytes,  # noqa: ARG002 - see the dialects
        fields: Sequence[Field],  # noqa: ARG002
        body: JsonText,  # noqa: ARG002
    ) -> Steps[JsonText | None]:
        """Return a request's body with a request for usage in it; None where it is to be sent as it is.

        Yields after each piece of a large body.
        """
        yield from ()
        return None

    def asks_in_fields(self, fields: Sequence[Field]) -> bool:  # noqa: ARG002 - see the dialects
        """Check whether a header field asks for an event stream, where no member of the body does."""
        return False

    def output_bound(self, fields: Sequence[Field], body: JsonText) -> Steps[int | None]:
        """Return how many tokens of output a request asks for at most; None where it does not say."""
        return None if self.bound_members is None else (yield from self.bound_members.read(fields, body))

    def smallest_request(self, model: str) -> tuple[str, bytes] | None:  # noqa: ARG002 - see the dialects
        """Write the path and body of the cheapest request that has a model generate; None where none is known."""
        return None

    def error_json(self, status: int, code: str, message: str) -> bytes:
        """Write an error of the proxy's own as JSON: as OpenAI does, which most clients can read, unless overridden.

        `type` is a kind of error, `code` the proxy's own code for it.
        """
        kind = _TYPES.get(status, "server_error" if status >= _SERVER_ERROR else "invalid_request_error")
        return orjson.dumps({"error": {"message": message, "type": kind, "code": code, "param": None}})

    def error_body(self, error: ProxyError) -> bytes:
        """Write the JSON body of the proxy's own error response."""
        return self.error_json(error.status, error.code, error.message)

    def error_event(self, code: str, message: str, path: bytes) -> bytes | None:  # noqa: ARG002 - see the dialects
        """Write the event that ends a broken stream with its reason, or None where the dialect has no such event.

        Written at an event boundary only, with LF alone, with no id and no retry time: a client's parser must not take
        anything from it but the error. `path` is that of the request, with or without its query.
        """
        return encode_event(self.error_json(broken_stream_status(code), code, message))

    def vendor_error_event(self, status: int, body: dict[str, Any]) -> bytes | None:  # noqa: ARG002 - see the dialects
        """Write a vendor's error response of that status as an event.

        For an answer that has begun before the vendor's. None where the body is not what the dialect's clients know.
        """
        return None

    def count(self, event: dict[str, Any], counts: Counts) -> None:  # noqa: B027 - most vendors say, `raw` is unknown
        """Take what an event, or a whole answer, says of tokens and of the model. Never raises."""

    def text_bytes(self, event: dict[str, Any]) -> int:  # noqa: ARG002 - see the dialects
        """Return how many UTF-8 bytes of answer an event adds; 0 where the vendor tells running totals anyway."""
        return 0

    def whole_text_bytes(self, answer: dict[str, Any]) -> int:  # noqa: ARG002 - see the dialects
        """Return the same of a whole JSON answer."""
        return 0

    def judge(self, name: bytes, value: dict[str, Any]) -> Verdict:  # noqa: ARG002 - see the dialects
        """Return what an event at a stream's beginning is; see `preamble`. Where nothing is known, it is output."""
        return "output"

    @abstractmethod
    def reader(self, request_body: bytes | bytearray) -> Reader | None:
        """Create the reader of the response's stream; None where the dialect is not `is_readable`."""

    def _is_meant(self, pattern: str, method: str, path: str) -> bool:
        if pattern in self.task_paths:
            # Without an id it would be a list, and beyond the id there may be anything.
            return method in {"GET", "HEAD"} and path.count("/") == pattern.count("/") and not path.endswith("/")
        is_generation, is_model_list = pattern in self.generation_paths, pattern in self.model_paths
        if not (is_generation or is_model_list):
            return True
        if method in {"GET", "HEAD"}:
            return is_model_list
        # A colon is a verb (`models/x:predict`): those that are meant stand among the generation paths.
        return method != "DELETE" and (is_generation or ":" not in path)


def broken_stream_status(code: str) -> int:
    """Return the status that an error event repeats after a failure behind the first byte."""
    return _BROKEN_STREAM_STATUS.get(code, 502)
