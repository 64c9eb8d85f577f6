"""Reads the tokens of one exchange on the side, from the bytes that pass; nothing of them is kept or changed.

An event is parsed only where it holds usage, and every so often to see how much text an event has: from that, where the
vendor does not say (a stream that did not end, a vendor that never does), the output is estimated.
"""

from __future__ import annotations

import re
from json import JSONDecodeError, JSONDecoder
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from urllib.parse import unquote

import orjson

from proxy.dialects.usage import Counts

if TYPE_CHECKING:
    from proxy.dialects import Dialect

# How the figures came about: the vendor said them, they are estimated, or no model was run.
Source = Literal["reported", "estimated", "none"]

# What may wait for the end of its event, and what of a whole JSON answer is looked at: usage stands at its end.
_MOST_HELD: Final = 65_536
# The first events that hold usage are parsed as they come: Anthropic's first has what no other has. Of those after them
# only the last is, because vendors that tell more often repeat everything each time.
_FIRST_TOLD: Final = 2
# The first events of a stream are parsed for their text, and after them each sixteenth.
_FIRST_EVENTS: Final = 16
_SAMPLED: Final = 15
_KEY: Final = re.compile(rb'"(usage|usageMetadata)"\s*:\s*(?!null)')
_MODEL_MEMBER: Final = b'"model"'
_MODEL: Final = re.compile(rb'"model"\s*:\s*"((?:[^"\\]|\\.){1,256})"')
# Gemini's paths, and Azure's.
_MODEL_IN_PATH: Final = re.compile(rb"/(?:models|deployments)/([^/:?]{1,256})[:/]")
_DATA: Final = re.compile(rb"(?:^|(?<=[\r\n]))data:([^\r\n]*)")
_JSON: Final = JSONDecoder()
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")


class Figures(NamedTuple):
    """What an exchange took, as far as it is known."""

    source: Source
    model: str | None = None
    input: int = 0
    output: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0


def model_in(target: bytes, body: bytes | bytearray) -> str | None:
    """The model that a request names in its path, or in the first member `model` of its body that is a string.

    For figures, not for decisions: where the member stands is not looked at.
    """
    found = _MODEL_IN_PATH.search(target)
    if found is not None:
        return unquote(found[1].decode("ascii", "replace"))
    at = body.find(_MODEL_MEMBER)
    while at >= 0:
        found = _MODEL.match(body, at)
        if found is not None:
            try:
                return str(orjson.loads(b'"%b"' % found[1]))
            except orjson.JSONDecodeError:
                return None
        at = body.find(_MODEL_MEMBER, at + 1)
    return None


class Meter:
    """The tokens of one exchange, from the moment at which the request may have reached the vendor.

    Each call takes constant memory, `feed` and `whole` at most 64 KiB. Never raises.

    Attributes:
        counts: What the vendor has said.
        text_bytes: About how many UTF-8 bytes of text the stream's events had.
    """

    __slots__ = (
        "_dialect",
        "_events",
        "_held",
        "_latest",
        "_sampled",
        "_sampled_bytes",
        "_seen_bytes",
        "_told",
        "body_bytes",
        "counts",
        "is_stream",
        "model",
        "status",
    )

    def __init__(self, dialect: Dialect, *, model: str | None, body_bytes: int) -> None:
        self._dialect = dialect
        self.model = model
        self.body_bytes = body_bytes
        self.counts = Counts()
        # None until there is a response.
        self.status: int | None = None
        # None where nothing of the body can be read.
        self.is_stream: bool | None = None
        # Without those that hold usage, which are all parsed.
        self._events = 0
        self._told = 0
        self._latest = b""
        self._sampled = 0
        self._seen_bytes = 0
        self._sampled_bytes = 0
        self._held = b""

    def begin(self, status: int, *, is_stream: bool | None) -> None:
        """A response has come; `is_stream` is None where its body is in a coding, or nothing to read."""
        self.status = status
        self.is_stream = is_stream

    def event(self, data: bytes) -> None:
        """Take one whole event, with or without the lines of its chunk. Paid for each event."""
        if b'"usage' in data and b'"usage":null' not in data and _KEY.search(data) is not None:
            self._told += 1
            if self._told <= _FIRST_TOLD:
                self._count(data)
            else:
                # Running totals: the next one makes this one needless.
                self._latest = data
            return
        self._events += 1
        if self._events <= _FIRST_EVENTS:
            event = _object_in(data)
            if event is not None:
                self._seen_bytes += self._dialect.text_bytes(event)
                if self.counts.model is None:
                    self._dialect.count(event, self.counts)
        elif not self._events & _SAMPLED:
            event = _object_in(data)
            self._sampled += 1
            if event is not None:
                self._sampled_bytes += self._dialect.text_bytes(event)

    def feed(self, data: bytes) -> None:
        """Take a piece of the body, wherever it begins and ends."""
        if self.is_stream is None:
            return
        held = self._held + data if self._held else data
        if not self.is_stream:
            self._held = held[-_MOST_HELD:]
            return
        # An event ends with an empty line; the longest that are not complete are not looked at.
        end = max(held.rfind(mark) + len(mark) if mark in held else 0 for mark in _EVENT_ENDS)
        for event in re.split(rb"\r\n\r\n|\n\n|\r\r", held[:end]):
            if event:
                self.event(event)
        self._held = held[end:][-_MOST_HELD:]

    def end(self) -> None:
        """Nothing more comes: look at what is held, which may be a whole answer's end, or a last event's."""
        if self.is_stream:
            if self._held:
                self.event(self._held)
            if self._latest:
                self._count(self._latest)
                self._latest = b""
        elif self._held:
            self._count_whole(self._held)
        self._held = b""

    @property
    def text_bytes(self) -> int:
        """What was seen, and for events that were not parsed as much as those between them had."""
        if not self._sampled:
            return self._seen_bytes
        return self._seen_bytes + round(self._sampled_bytes * (self._events - _FIRST_EVENTS) / self._sampled)

    def _count(self, data: bytes) -> None:
        event = _object_in(data)
        if event is not None:
            self._dialect.count(event, self.counts)
            self._seen_bytes += self._dialect.text_bytes(event)

    def _count_whole(self, tail: bytes) -> None:
        """Find the last member that has usage: the answer may be far longer than what is held of it."""
        for found in reversed(list(_KEY.finditer(tail))):
            try:
                value, _ = _JSON.raw_decode(tail[found.end() :].decode("utf-8", "replace"))
            except (JSONDecodeError, RecursionError):
                continue
            if isinstance(value, dict):
                self._dialect.count({found[1].decode(): value}, self.counts)
                return


def _object_in(event: bytes) -> dict[str, Any] | None:
    """The JSON object that an event's data is, if it is one."""
    # Nearly always one line of data, and then its end, and perhaps a chunk's: white space to JSON.
    found = _DATA.findall(event)
    if not found:
        return None
    try:
        value = orjson.loads(found[0] if len(found) == 1 else b"\n".join(found))
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
