"""Event streams (server-sent events, WHATWG HTML §9.2): an observer of relayed streams, and an encoder of events.

The observer never changes, delays or refuses a byte; it counts events and knows whether the stream is between two of
them. What an event means is left to the dialects.
"""

from __future__ import annotations

import io
import re

PING = b": ping\n\n"

_LF, _CR = b"\n\r"  # as integers
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BOM_BEGINS = (b"", BYTE_ORDER_MARK[:1])
_LINE_END = re.compile(rb"\r\n|\r|\n")

# A line's first five bytes, which show whether its field is `data`, are all that is kept of it.
_HEAD_BYTES = 5
_DATA_HEADS = frozenset({b"data", b"data:"})

# Both slower paths build lists of lines, which a read of line ends alone must not make large.
_SLICE_BYTES = 16_384
# Above 30,000 bytes CPython's `count` uses an algorithm for rare matches; here every line has one.
_BLOCKS_BYTES = 28_672


class EventStreamObserver:
    r"""Counts the events of an event stream from its raw reads, split anywhere.

    Lines end with LF, CRLF or CR, in any mixture; a leading byte order mark is skipped. Never raises. Memory: a few
    bytes. A read of one whole event with LF costs a few C calls, one of many events (`_count_events`) a few and one
    for each; any other costs time linear in its lines. The fast paths give the same result as the slow one for any
    bytes.

    Attributes:
        events: Events that a client dispatches: blocks with at least one `data` field, ended by a blank line.
        at_boundary: Whether an event may be inserted here: at the start and after a blank line. Not after a CR, which
            may be the first half of a CRLF: its LF would then be read as one more line end.
    """

    __slots__ = ("_after_cr", "_has_data", "_head", "_is_block_open", "_is_opened", "at_boundary", "events")

    def __init__(self) -> None:
        self.events = 0
        self.at_boundary = True
        self._is_opened = False  # the byte order mark was read, or is absent
        self._head = b""  # the first bytes of the unfinished line
        self._is_block_open = False  # whether a line has ended since the last blank one
        self._has_data = False  # whether one of those was a `data` field
        self._after_cr = False

    @property
    def in_line(self) -> bool:
        """Whether the stream is within a line."""
        return bool(self._head)

    def feed(self, data: bytes) -> None:
        """Observe the next bytes of the stream."""
        if self.at_boundary:
            # Most reads are one block of a `data` line, or of one other line and a `data` line. If that other one is
            # blank, or begins with the byte order mark, the result is the same. For speed: a slice compares faster
            # than `startswith`, and an integer is searched with memchr.
            start = 0 if data[:5] == b"data:" else data.find(b"\n") + 1
            if (
                # The `data` line's end is the first half of the blank line that ends the read.
                data.find(b"\n", start) == len(data) - 2
                and data[-1] == _LF
                and (start == 0 or data[start : start + 5] == b"data:")
                and _CR not in data
            ):
                self.events += 1
                return
            # Most others are whole blocks: a short answer, or several events that came at once.
            if (
                (start == 0 or self.events)
                and data[-2:] == b"\n\n"
                and len(data) <= _BLOCKS_BYTES
                and _CR not in data
                and (events := _count_events(data))
            ):
                self.events += events
                return
        self._feed_lines(data)

    def _feed_lines(self, data: bytes) -> None:
        """Observe any read: the rest of a block, whole blocks, the start of another."""
        if not self._is_opened and (self.events or (not self._head and data[:1] not in _BOM_BEGINS)):
            self._is_opened = True
        if not self._is_opened or _CR in data:
            self._feed_slowly(data)
            return
        start = 0 if self.at_boundary else data.find(b"\n\n") + 2
        if start:
            self._feed_slowly(data[: start if start > 1 else len(data)])
        while start != 1:
            stop = data.rfind(b"\n\n", start, start + _BLOCKS_BYTES) + 2
            if stop <= start + 1:
                if start < len(data):
                    self._feed_slowly(data[start:])
                return
            blocks = data[start:stop]
            events = _count_events(blocks)
            if events:
                self.events += events
            else:
                self._feed_slowly(blocks)
            start = stop

    def _feed_slowly(self, data: bytes) -> None:
        for begin in range(0, len(data), _SLICE_BYTES):
            self._feed_slice(data[begin : begin + _SLICE_BYTES])

    def _feed_slice(self, data: bytes) -> None:
        if not self._is_opened:
            # This is the first line, and its head holds all bytes so far: fewer than a byte order mark has.
            data = self._head + data
            self._head = b""
            if len(data) < len(BYTE_ORDER_MARK) and BYTE_ORDER_MARK.startswith(data):
                self._head = data
                self.at_boundary = not data
                return
            self._is_opened = True
            if data.startswith(BYTE_ORDER_MARK):
                data = data[len(BYTE_ORDER_MARK) :]
                self.at_boundary = True
        if not data:
            return
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]  # second half of a CRLF
        ends_with_cr = data.endswith(b"\r")
        if _CR in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = self._head + lines[0]
            self._head = b""
            has_data, is_block_open = self._has_data, self._is_block_open
            for line in lines:
                if line:
                    is_block_open = True
                    has_data = has_data or line[:_HEAD_BYTES] in _DATA_HEADS
                else:
                    self.events += has_data
                    has_data = is_block_open = False
            self._has_data, self._is_block_open = has_data, is_block_open
        self._head = (self._head + rest[:_HEAD_BYTES])[:_HEAD_BYTES]
        self._after_cr = ends_with_cr
        self.at_boundary = not (self._head or self._is_block_open or ends_with_cr)


def _count_events(blocks: bytes) -> int:
    """Count the events of whole blocks whose lines end with LF; 0 if they need the slow path.

    A block that begins with `data:` has the ends of that line and of the blank one: without another LF, it is one
    event. No list of lines is made, which would cost more than counting.
    """
    events = blocks.count(b"\n\ndata:") + 1
    # The LFs are counted by removing them: CPython searches with memchr, but counts byte by byte.
    if blocks[:5] == b"data:" and len(blocks) - len(blocks.replace(b"\n", b"")) == 2 * events:
        return events
    return _count_longer_events(io.BytesIO(blocks).readlines())


def _count_longer_events(lines: list[bytes]) -> int:
    """Count the events of blocks with several lines each; 0 if they need the slow path.

    If a `data` line precedes each blank line, there are as many events as blank lines. The blocks must have as many
    lines as the first. All lines before blank ones begin with `data:` if the smallest and the greatest of them do.
    """
    size = lines.index(b"\n") + 1
    blanks = lines.count(b"\n")
    if size == 1 or lines[size - 1 :: size].count(b"\n") != blanks:
        return 0
    last = lines[size - 2 :: size]
    return blanks if min(last)[:5] == max(last)[:5] == b"data:" else 0


def encode_event(data: bytes, event: bytes | None = None) -> bytes:
    """Encode an event with LF line ends; each line of the data becomes a `data` field.

    Raises:
        ValueError: `event` has a line end, after which its rest would be read as fields: a defect of the caller.
    """
    if event is not None and _LINE_END.search(event):
        raise ValueError("an event's name is one line")
    name = b"" if event is None else b"event: " + event + b"\n"
    return name + b"".join(b"data: " + line + b"\n" for line in _LINE_END.split(data)) + b"\n"


def is_event_stream(content_type: bytes | None) -> bool:
    """Whether a `Content-Type` is `text/event-stream`; parameters and case are ignored."""
    if content_type == b"text/event-stream":
        return True
    if content_type is None:
        return False
    return content_type.partition(b";")[0].strip(b" \t\r\n").lower() == b"text/event-stream"
