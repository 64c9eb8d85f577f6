"""Reads the tokens of one exchange on the side, from the bytes that pass; nothing of them is kept or changed.

An event is parsed only where it holds usage, and every so often to see how much text an event has: from that, where the
vendor does not say (a stream that did not end, a vendor that never does), the output is estimated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from json import JSONDecodeError, JSONDecoder
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from proxy.dialects.usage import Counts

if TYPE_CHECKING:
    from proxy.dialects import Dialect
    from proxy.dialects.told import Told

# How the figures came about: the vendor said them, they are estimated, or no model was run.
Source = Literal["reported", "estimated", "none"]

# What may wait for the end of its event, and what of a whole JSON answer is looked at: usage stands at its end.
_MOST_HELD: Final = 65_536
# The first events that hold usage are parsed as they come: Anthropic's first has what no other has. Of those after them
# only the last is, because vendors that tell more often repeat everything each time.
_FIRST_TOLD: Final = 2
# How much of a stream passes between two events that are parsed for their text: as much as has passed, at most so much.
_NOT_SAMPLED: Final = 16_384
# In all events that hold usage, and hardly in any other.
_NEEDLE: Final = b'"usage'
_NO_USAGE: Final = b'"usage":null'
# Of a long read so much of its beginning and of its end is looked at: usage stands in a stream's first event, in its
# last ones, or in all of them.
_LOOKED_AT: Final = 4096
_KEY: Final = re.compile(rb'"(usage|usageMetadata)"\s*:\s*(?!null)')
_FIELD: Final = b"data:"
_DATA: Final = re.compile(rb"(?:^|(?<=[\r\n]))data:([^\r\n]*)")
_JSON: Final = JSONDecoder()
_MOST_VALUES: Final = 8
_EVENT_END: Final = b"\n\n"
_RARE_EVENT_ENDS: Final = (b"\r\n\r\n", b"\r\r")


@dataclass(slots=True)
class Figures:
    """What an exchange took, as far as it is known.

    Nobody changes one. It is neither frozen nor a tuple, because one is made for every request and read a dozen times.
    """

    source: Source
    model: str | None = None
    input: int = 0
    output: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0


class Meter:
    """The tokens of one exchange, whose request goes to a vendor.

    Paid for each read, not for each event of it. Keeps at most 64 KiB, and nine events. Never raises.

    Attributes:
        counts: What the vendor has said.
        is_sent: Whether the request may have reached the vendor.
        status: The response's; None until there is one.
        is_stream: Whether an event stream is read, or a JSON answer; None where nothing can be read.
        figures: What it came to, once somebody has asked: what comes later changes nothing.
        runs_model: Whether the request is for a model's work; any other takes none, unless the vendor says so.
        peer: Whose server it is, where a client chose it: what that one tells says nothing of others' models.
        told: Takes what the events that are parsed say of the answer as such; None where nobody asks.
        passed: Whole events, with or without the lines of their chunks, not looked at yet: whoever appends them calls
            `read_passed` for every eight, which are mostly read at the price of one.
    """

    __slots__ = (
        "_dialect",
        "_held",
        "_latest",
        "_raw_bytes",
        "_sample_at",
        "_sampled_bytes",
        "_sampled_text",
        "_told",
        "_told_text",
        "body_bytes",
        "counts",
        "figures",
        "is_sent",
        "is_stream",
        "model",
        "passed",
        "peer",
        "runs_model",
        "status",
        "told",
    )

    def __init__(self, dialect: Dialect, model: str | None, body_bytes: int, peer: str = "") -> None:
        self._dialect = dialect
        self.model = model
        self.body_bytes = body_bytes
        self.runs_model = True
        self.peer = peer
        self.counts = Counts()
        self.is_sent = False
        self.status: int | None = None
        self.is_stream: bool | None = None
        self.figures: Figures | None = None
        self.told: Told | None = None
        self.passed: list[bytes] = []
        self._raw_bytes = 0
        self._sample_at = 0
        self._sampled_bytes = 0
        self._sampled_text = 0
        self._told = 0
        self._told_text = 0
        self._latest = b""
        self._held = b""

    def begin(self, status: int, *, is_stream: bool | None) -> None:
        """A response has come."""
        self.status = status
        self.is_stream = is_stream

    def read_passed(self) -> None:
        """Take the events that have passed since the last time."""
        passed = self.passed
        data = b"".join(passed)
        # `in` would first try whether the needle is a number, and fail at some cost.
        if data.find(_NEEDLE) >= 0 and data.count(_NEEDLE) != data.count(_NO_USAGE):
            for event in passed:
                self._event(event)
        elif self._raw_bytes + len(data) < self._sample_at:
            self._raw_bytes += len(data)
        else:
            for event in passed:
                self._raw_bytes += len(event)
                if self._raw_bytes >= self._sample_at:
                    self._sample(event, len(event))
        passed.clear()

    def feed(self, data: bytes) -> None:
        """Take a piece of the body, wherever it begins and ends; a large one is not copied."""
        if self.is_stream is None:
            return
        if self.passed:
            self.read_passed()
        if not self.is_stream:
            self._held = (self._held + data[-_MOST_HELD:])[-_MOST_HELD:]
            return
        if self._held:
            # The rest of the event that the piece before had begun.
            first = _first_end(data)
            if first:
                self._events(self._held + data[:first])
                data = data[first:]
            else:
                data = self._held + data
        if data.endswith(_EVENT_END):
            # Nearly always.
            self._held = b""
            self._events(data)
            return
        end = _last_end(data)
        self._held = data[end:][-_MOST_HELD:]
        if end:
            self._events(data if end == len(data) else data[:end])

    def end(self) -> None:
        """Nothing more comes: look at what is held, which may be a whole answer's end, or a last event's."""
        if self.passed:
            self.read_passed()
        if self.is_stream:
            if self._held and _NEEDLE in self._held:
                self._look(self._held)
            self.catch_up()
        elif self._held:
            self._count_whole(self._held)
            if self.counts.output is None and len(self._held) < _MOST_HELD:
                self._told_text += _whole_text_bytes(self._dialect, self._held)
            if self.told is not None and len(self._held) < _MOST_HELD:
                self.told.read_whole(self._held)
        self._held = b""

    def catch_up(self) -> None:
        """Take what a running stream's last event with usage says, which otherwise waits for the end."""
        if self.passed:
            self.read_passed()
        if self._latest:
            self._count(self._latest)
            self._latest = b""

    def counts_so_far(self) -> Counts:
        """What the vendor has told, a running stream's last event with usage included; that still waits."""
        if self.passed:
            self.read_passed()
        event = _object_in(self._latest) if self._latest else None
        if event is None:
            return self.counts
        counts = self.counts.copy()
        self._dialect.count(event, counts)
        return counts

    @property
    def text_bytes(self) -> int:
        """About how many UTF-8 bytes of text the stream had, if all of it had as much as what was looked at."""
        if not self._sampled_bytes or self._raw_bytes <= 0:
            return self._told_text
        return self._told_text + round(self._raw_bytes * self._sampled_text / self._sampled_bytes)

    def _event(self, data: bytes) -> None:
        """Take one whole event."""
        self._raw_bytes = raw_bytes = self._raw_bytes + len(data)
        if data.find(_NEEDLE) >= 0 and data.find(_NO_USAGE) < 0:
            if self._told >= _FIRST_TOLD:
                # Running totals: the next one makes this one needless.
                self._latest = data
            else:
                self._look(data)
        elif raw_bytes >= self._sample_at:
            self._sample(data, len(data))

    def _events(self, data: bytes) -> None:
        """Take several whole events, at the price of one."""
        size = len(data)
        self._raw_bytes += size
        if data.rfind(_NEEDLE, -_LOOKED_AT) >= 0 or (size > _LOOKED_AT and data.rfind(_NEEDLE, 0, _LOOKED_AT) >= 0):
            self._look(data)
        if self._raw_bytes >= self._sample_at:
            end = data.find(_EVENT_END)
            first = data[: end + len(_EVENT_END) if end >= 0 else _first_end(data)]
            self._sample(first, len(first))

    def _look(self, data: bytes) -> None:
        """Take the usage in the first events that hold any; of those after them only the last counts, at the end."""
        if self.told is not None and self._told < _FIRST_TOLD:
            self.told.look(data)
        at = 0
        while self._told < _FIRST_TOLD:
            found = _KEY.search(data, at)
            if found is None:
                return
            self._told += 1
            event, at = _event_at(data, found.start())
            self._count(event)
        for found in _KEY.finditer(data, at):
            at = found.start()
            self._latest = data
        if self._latest is data:
            self._latest, _ = _event_at(data, at)

    def _count(self, data: bytes) -> None:
        event = _object_in(data)
        if event is not None:
            self._dialect.count(event, self.counts)
            if self.told is not None:
                self.told.read(event)
            # Known, and no example of the others.
            self._raw_bytes -= len(data)
            self._told_text += self._dialect.text_bytes(event)
        else:
            # An event so long that only its end was held.
            self._count_whole(data)

    def _sample(self, data: bytes, size: int) -> None:
        """See how much text an event has, which takes so many bytes on the wire."""
        self._sample_at = self._raw_bytes + min(self._raw_bytes, _NOT_SAMPLED)
        self._sampled_bytes += size
        plain_text = self._dialect.plain_text
        # Parsing is four times as dear: for other shapes, and where the event says more that is wanted.
        if (
            plain_text is not None
            and (self.model or self.counts.model) is not None
            and (self.told is None or self.told.is_known(data))
        ):
            found = plain_text.search(data)
            if found is not None:
                self._sampled_text += len(found[1])
                return
        event = _object_in(data)
        if event is not None:
            self._sampled_text += self._dialect.text_bytes(event)
            if self.told is not None:
                self.told.read(event)
            if self.model is None and self.counts.model is None:
                # Of a request that names none; else the request's own name counts.
                said = Counts()
                self._dialect.count(event, said)
                self.counts.model = said.model

    def _count_whole(self, tail: bytes) -> None:
        """Find the last member that has usage: the answer may be far longer than what is held of it."""
        for found in list(_KEY.finditer(tail))[: -_MOST_VALUES - 1 : -1]:
            try:
                value, _ = _JSON.raw_decode(tail[found.end() :].decode("utf-8", "replace"))
            except (JSONDecodeError, RecursionError):
                continue
            if isinstance(value, dict):
                self._dialect.count({found[1].decode(): value}, self.counts)
                return


def _whole_text_bytes(dialect: Dialect, body: bytes) -> int:
    """How much text a whole JSON answer has; 0 where it is none, or is cut off."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return 0
    return dialect.whole_text_bytes(answer) if isinstance(answer, dict) else 0


def _first_end(data: bytes, at: int = 0) -> int:
    """Where the event at a position ends, or one that is not far behind it; 0 where none does."""
    end = data.find(_EVENT_END, at)
    if end >= 0:
        return end + len(_EVENT_END)
    for mark in _RARE_EVENT_ENDS:
        end = data.find(mark, at)
        if end >= 0:
            return end + len(mark)
    return 0


def _last_end(data: bytes, before: int | None = None) -> int:
    """Where the last whole event ends; 0 where none does."""
    for mark in (_EVENT_END, *_RARE_EVENT_ENDS):
        at = data.rfind(mark, 0, before)
        if at >= 0:
            return at + len(mark)
    return 0


def _event_at(data: bytes, at: int) -> tuple[bytes, int]:
    """The event in which a position is, and where it ends."""
    end = _first_end(data, at) or len(data)
    return data[_last_end(data, at) : end], end


def _object_in(event: bytes) -> dict[str, Any] | None:
    """The JSON object that an event's data is, if it is one."""
    # Nearly always one line of data, and then its end, and perhaps a chunk's: white space to JSON.
    at = event.find(_FIELD)
    if at == 0 or event[at - 1 : at] == b"\n":
        try:
            value = orjson.loads(event[at + len(_FIELD) :])
        except orjson.JSONDecodeError:
            # Several lines, or another field behind it.
            pass
        else:
            return value if isinstance(value, dict) else None
    found = _DATA.findall(event)
    if not found:
        return None
    try:
        value = orjson.loads(b"\n".join(found))
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
