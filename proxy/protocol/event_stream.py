"""Decoder of event streams (server-sent events, WHATWG HTML §9.2): bytes in, events out, split anywhere.

For streams that are translated. Streams that are relayed are only observed (`sse_observer`), which costs less.

Departures from WHATWG HTML §9.2.6:
1. An event's name and data are bytes; the caller decodes them.
2. `id` and `retry` are skipped: the proxy does not reconnect.
3. The size of an event is bounded: an upstream could otherwise fill the memory with one line.
"""

from __future__ import annotations

from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event that a client would dispatch; `name` is the value of its `event` field, empty without one."""

    name: bytes
    data: bytes


class EventStreamDecoder:
    """Decodes one event stream from its raw reads.

    Lines end with LF, CRLF or CR, in any mixture; a leading byte order mark is skipped; an event that the stream's end
    cuts off is dropped. Never raises. Memory: the unfinished event only, at most `max_event_bytes`, twice at worst.

    Attributes:
        is_overflown: An event was larger than `max_event_bytes`, comments and unknown fields included. Events before
            it were returned; none is returned any more. It does not depend on how the bytes were split.
    """

    __slots__ = ("_after_cr", "_block_bytes", "_data", "_is_opened", "_line", "_max_bytes", "_name", "is_overflown")

    def __init__(self, *, max_event_bytes: int) -> None:
        self.is_overflown = False
        self._max_bytes = max_event_bytes
        self._is_opened = False  # the byte order mark was read, or is absent
        self._after_cr = False
        self._line = bytearray()  # the unfinished line, or part of a byte order mark
        self._block_bytes = 0  # size of the event's finished lines
        self._name = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[Event]:
        """Decode the next bytes of the stream and return the events that they complete."""
        events: list[Event] = []
        if self.is_overflown or not data or not (self._is_opened or (data := self._without_mark(data))):
            return events
        *lines, rest = self._with_lf(data).split(b"\n")
        if lines:
            if self._line:
                self._line += lines[0]
                lines[0] = bytes(self._line)
                self._line.clear()
            for line in lines:
                if not line:
                    if self._data:
                        events.append(Event(self._name, b"\n".join(self._data)))
                    self._reset()
                elif not self._take(line):
                    return events
        self._line += rest
        if self._block_bytes + len(self._line) > self._max_bytes:
            self._overflow()
        return events

    def _without_mark(self, data: bytes) -> bytes:
        """Remove a byte order mark from the stream's start; empty until it is known whether there is one."""
        data = bytes(self._line) + data
        self._line.clear()
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._line += data
            return b""
        self._is_opened = True
        return data.removeprefix(_BOM)

    def _with_lf(self, data: bytes) -> bytes:
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]  # second half of a CRLF
        self._after_cr = data.endswith(b"\r")
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data

    def _take(self, line: bytes) -> bool:
        self._block_bytes += len(line) + 1
        if self._block_bytes > self._max_bytes:
            self._overflow()
            return False
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif line.startswith(b"event:"):
            self._name = line[6:].removeprefix(b" ")
        elif line == b"data":
            self._data.append(b"")
        elif line == b"event":
            self._name = b""
        return True

    def _reset(self) -> None:
        self._block_bytes = 0
        self._name = b""
        self._data = []

    def _overflow(self) -> None:
        self.is_overflown = True
        self._line.clear()
        self._reset()
