"""The words between the mock's rooms: what was received, what is asked, what is answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from proxy.mock.controls import Controls
from proxy.mock.reply import Reply, make_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

JSON_TYPE = "application/json"
# What the error inside a stream says.
FAILURE = "The mock was told to fail here."
Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came: the target unquoted by nobody, the fields in order with their spelling, the body whole."""

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as the dialects see it: names in lower case, the first of a repeated field or member wins."""

    number: int
    created: int
    path: str
    headers: dict[str, str] = field(repr=False)
    raw_query: str = field(default="", repr=False)
    query: dict[str, str] = field(default_factory=dict, repr=False)
    body: dict[str, Any] = field(default_factory=dict, repr=False)
    controls: Controls = field(default_factory=Controls)

    def reply(self, *, model: object, prompt: object, thinks: bool = False) -> Reply:
        """What the mock says to this; a missing or odd model gets the mock's own name."""
        return make_reply(
            number=self.number,
            created=self.created,
            model=model if isinstance(model, str) and model else "mock-1",
            prompt=prompt,
            thinks=thinks,
            controls=self.controls,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer ready to be sent; `pieces` are its events, made while they are sent, or one JSON body.

    `error_event` words the dialect's own error for a stream in which that many events went before; None where the
    answer is no stream. `timing_field` is sent with the milliseconds that passed until the head left.
    """

    status: int
    content_type: str
    pieces: Iterable[bytes]
    fields: Fields = ()
    error_event: Callable[[int], bytes] | None = None
    timing_field: str | None = None

    @property
    def is_stream(self) -> bool:
        """True where the length is not known beforehand."""
        return self.error_event is not None


class Vendor(Protocol):
    """What all endpoints of a dialect share."""

    def has_key(self, ask: Ask, key: str) -> bool:
        """True when the request carries the key where this dialect looks for it."""
        ...

    def error(self, ask: Ask, status: int, message: str) -> Answer:
        """An error answer in the dialect."""
        ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One thing a vendor serves."""

    vendor: Vendor
    answer: Callable[[Ask], Answer]
    method: str = "POST"


def bearer(ask: Ask) -> str | None:
    """The bearer token of a request; the scheme's name in any case (RFC 9110 §11.1)."""
    scheme, _, token = ask.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def is_key(candidate: str | None, key: str) -> bool:
    """True when the candidate is the key."""
    return candidate is not None and compare_digest(candidate.encode(), key.encode())


def member(value: object, name: str) -> Any:
    """A member of a JSON object; None where the value is no object or has no such member."""
    return value.get(name) if isinstance(value, dict) else None


def data_event(value: object) -> bytes:
    """One event of a data line only, spaced as OpenAI and Gemini space it."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def named_event(name: str, value: object) -> bytes:
    """One event with its name, spaced as OpenAI's Responses and Anthropic space it."""
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(value) + b"\n\n"
