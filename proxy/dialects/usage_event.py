"""Takes out of an OpenAI-shaped stream the event that comes of `include_usage`, for clients that did not ask for it.

Pure. That event has no choices and a `usage` object; every other one stays: a chunk with choices that tells usage too,
`"usage": null`, Azure's first chunk without choices, an error. Nothing but that event's bytes is missing of the stream,
wherever reads split it.
"""

from __future__ import annotations

import re
from typing import Final

import orjson

# A larger event is none of usage: those have less than 1 KiB. So much is held at most.
MAX_EVENT_BYTES: Final = 65_536
_NAME: Final = b'"usage"'
# What vendors write into all the other chunks, once they are asked.
_NO_USAGE: Final = b'"usage":null'
# In the text of an answer a quotation mark has a backslash before it, so these are members.
_USAGE: Final = re.compile(rb'"usage"[ \t]*+:[ \t]*+(?!null)')
_CHOICE: Final = re.compile(rb'"choices"[ \t]*+:[ \t]*+\[[ \t]*+[^\] \t\r\n]')
_DATA: Final = re.compile(rb"(?:^|(?<=[\r\n]))data:([^\r\n]*)")
# The end of a line and a blank line behind it. A CR at the very end may be half of a CRLF, so it ends nothing yet.
_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?=[^\n]))")
_USUAL_ENDS: Final = (b"\n\n", b"\r\n\r\n")
_CR: Final = ord("\r")
# Blank lines and comments before an event: no part of it, and some vendors' sign of life.
_LEAD: Final = re.compile(rb"(?:(?::[^\r\n]*+)?[\r\n])*+")
_LINE_END: Final = re.compile(rb"[\r\n]")
_COLON: Final = ord(":")
# How many bytes before a read may belong to the end of an event in it: all of CRLF CRLF but one.
_BEFORE: Final = 3


def may_be_usage_event(event: bytes) -> bool:
    """Check quickly whether `is_usage_event` is worth its time: false for nearly every event of a stream."""
    return _NO_USAGE not in event and _NAME in event


def is_usage_event(event: bytes) -> bool:
    """Check whether one event, given with its lines, only tells usage."""
    if len(event) > MAX_EVENT_BYTES or not may_be_usage_event(event):
        return False
    if _USAGE.search(event) is None or _CHOICE.search(event) is not None:
        return False
    try:
        value = orjson.loads(b"\n".join(_DATA.findall(event)))
    except orjson.JSONDecodeError:
        return False
    return (
        isinstance(value, dict)
        and value.get("choices") == []
        and isinstance(value.get("usage"), dict)
        and not value.get("error")
    )


class UsageEventRemover:
    """Passes the reads of one stream on without its usage event.

    The beginning of an event waits for its end while it may be that event, at most `MAX_EVENT_BYTES`; everything else
    passes at once. Never raises. Time is linear in the bytes, however they are split.
    """

    __slots__ = ("_held", "_is_passing", "_last", "_look_at")

    def __init__(self) -> None:
        # The beginning of an event that may be it; empty between two events.
        self._held = bytearray()
        # How long that has to be before it is looked at again.
        self._look_at = 0
        # Whether the event under way is another one, whose beginning has passed; and the last bytes of that.
        self._is_passing = False
        self._last = b""

    @property
    def is_between(self) -> bool:
        """Whether all that came has been passed or removed, and ended with an event."""
        return not (self._held or self._is_passing)

    def feed(self, data: bytes) -> bytes:
        """Take one read, and return what passes now."""
        if self._is_passing:
            text = self._last + data
            found = _END.search(text)
            if found is None:
                self._last = text[-_BEFORE:]
                return data
            self._is_passing = False
            rest = found.end() - len(self._last)
            return data[:rest] + self._events(data[rest:])
        if not self._held:
            return self._events(data)
        seen = len(self._held)
        self._held += data
        if self._held[0] == _COLON and _LINE_END.search(data) is not None:
            # A comment's end: the event has not begun yet.
            text = bytes(self._held)
            self._held.clear()
            return self._events(text)
        found = _END.search(self._held, max(0, seen - _BEFORE))
        if found is None:
            return self._wait()
        event, after = bytes(self._held[: found.end()]), bytes(self._held[found.end() :])
        self._held.clear()
        return (b"" if is_usage_event(event) else event) + self._events(after)

    def end(self) -> bytes:
        """The stream has ended: return what was held, unless it is the event without its blank line."""
        held = bytes(self._held)
        self._held.clear()
        return b"" if is_usage_event(held) else held

    def _events(self, text: bytes) -> bytes:
        """Take what begins between two events."""
        end = len(text) if text.endswith(_USUAL_ENDS) else _last_end(text)
        whole = text if end == len(text) else text[:end]
        if _NAME in whole and _USAGE.search(whole) is not None:
            whole = _without_usage(text, end)
        if end == len(text):
            return whole
        begin = _begin(text, end)
        before = whole + text[end:begin]
        if begin == len(text):
            return before
        self._held += text[begin:]
        self._look_at = 0
        return before + self._wait()

    def _wait(self) -> bytes:
        """Hold on to an unfinished event; return all of it once it is known to be another one, or too long."""
        size = len(self._held)
        if size <= MAX_EVENT_BYTES:
            if size < self._look_at:
                return b""
            self._look_at = 2 * size
            if _CHOICE.search(self._held) is None:
                return b""
        passed = bytes(self._held)
        self._held.clear()
        self._is_passing = True
        self._last = passed[-_BEFORE:]
        return passed


def _begin(text: bytes, at: int) -> int:
    """Where the next event begins, behind what may stand before it."""
    found = _LEAD.match(text, at)
    assert found is not None
    return found.end()


def _last_end(text: bytes) -> int:
    """Where the last whole event ends; 0 where none does."""
    if _CR not in text:
        return text.rfind(b"\n\n") + 2 if b"\n\n" in text else 0
    end = 0
    for found in _END.finditer(text):
        end = found.end()
    return end


def _without_usage(text: bytes, end: int) -> bytes:
    """The whole events, which end at `end`. What is behind them is looked at, too: it tells whether a CR ends one."""
    kept = []
    start = 0
    for found in _END.finditer(text):
        event = text[start : found.end()]
        start = found.end()
        if may_be_usage_event(event):
            begin = _begin(event, 0)
            if is_usage_event(event[begin:]):
                event = event[:begin]
        kept.append(event)
    return b"".join(kept) + text[start:end]
