"""A dialect's stream in, typed events out: bytes to bytes, as they arrive. Pure."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.dialects.typed.reader import UnreadableError
from proxy.protocol.event_stream import EventStreamDecoder
from proxy.protocol.typed_events import TypedEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxy.dialects.typed.reader import Reader
    from proxy.protocol.event_stream import Event
    from proxy.protocol.typed_events import Last, Usage

# A picture of 12 MB, in base64; the largest that image models draw are of about that size.
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024

_DONE: Final = b"[DONE]"
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_PROTOCOL_ERROR: Final = "upstream_protocol_error"
_NOT_READABLE: Final = "The upstream sent an event that cannot be read."


class Translator:
    """Translates one stream, split anywhere; the same bytes give the same events however they are split.

    Exactly one of `End`, `Error` and `Cancelled` is given, as the last; after it nothing. Keeps the event under way, of
    at most `max_event_bytes`, and no more of the stream. Never raises.

    Attributes:
        last: Which of the three it was, once it has been given.
        is_unreadable: Whether it was `Error` because the stream cannot be read, not because the vendor said so.
    """

    __slots__ = ("_decoder", "_encoder", "_reader", "_told", "is_unreadable", "last")

    def __init__(
        self,
        reader: Reader,
        names: Mapping[str, str | int],
        told: Callable[[], Usage | None],
        *,
        max_event_bytes: int = MAX_EVENT_BYTES,
    ) -> None:
        """`told` is asked once, at `End`, for what the vendor has said of usage."""
        self.last: Last | None = None
        self.is_unreadable = False
        self._reader = reader
        self._told = told
        self._encoder = TypedEncoder(names)
        self._decoder = EventStreamDecoder(max_event_bytes=max_event_bytes)

    @property
    def events(self) -> int:
        """How many typed events have been given."""
        return self._encoder.events

    def feed(self, data: bytes) -> bytes:
        """Take in the next bytes of the stream, and give the events that they complete.

        With `Error` given, the stream is of no more use; with `End`, what follows of it says nothing.
        """
        if self._is_over():
            return b""
        given: list[bytes] = []
        for event in self._decoder.feed(data):
            given += self._read(event)
            if self._is_over():
                return b"".join(given)
        if self._decoder.is_overflown:
            given.append(self._unreadable("The upstream sent an event that is too large."))
        return b"".join(given)

    def finish(self, code: str, message: str) -> bytes:
        """The stream has ended, in whatever way: `End` if the vendor had said that its answer was whole, else why not.

        A stream that just ends in the middle of an answer must not look like one that is complete.
        """
        if self._is_over():
            return b""
        return self._end() if self._reader.is_whole else self._error(code, message)

    def cancel(self) -> bytes:
        """The stream was stopped by somebody on this side."""
        if self._is_over():
            return b""
        self.last = "Cancelled"
        return self._encoder.cancelled()

    def _read(self, event: Event) -> list[bytes]:
        data = event.data.strip()
        if not data:
            return []
        reader = self._reader
        if data == _DONE:
            if not reader.ends_with_done:
                return []
            reader.is_whole = True
            return [self._end()]
        value = _parse(data)
        if value is None:
            return [self._unreadable(_NOT_READABLE)]
        try:
            pieces = reader.read(event.name, value)
        except UnreadableError:
            return [self._unreadable(_NOT_READABLE)]
        given = [self._encoder.piece(kind, text) for kind, text in pieces if text]
        if reader.failure is not None:
            given.append(self._error(*reader.failure))
        elif reader.is_over:
            given.append(self._end())
        return given

    def _is_over(self) -> bool:
        return self.last is not None

    def _end(self) -> bytes:
        self.last = "End"
        return self._encoder.end(self._told())

    def _unreadable(self, message: str) -> bytes:
        self.is_unreadable = True
        return self._error(_PROTOCOL_ERROR, message)

    def _error(self, code: str, message: str) -> bytes:
        self.last = "Error"
        return self._encoder.error(code, message)


def _parse(data: bytes) -> dict[str, Any] | None:
    """The JSON object in an event; None where there is none."""
    value: object
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        value = _parse_leniently(data)
    return value if isinstance(value, dict) else None


def _parse_leniently(data: bytes) -> object:
    """What orjson is too strict for: broken UTF-8 (WHATWG HTML §9.2.6 has it replaced), halves of surrogate pairs."""
    text = data.decode("utf-8", "replace")
    try:
        return json.loads(text) if _SURROGATE.search(data) else orjson.loads(text)
    except (ValueError, RecursionError):
        return None
