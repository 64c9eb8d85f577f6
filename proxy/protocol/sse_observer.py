"""Event streams (WHATWG HTML §9.2): an observer of those that pass, and an encoder of our own few events.

The observer never changes, delays or refuses a byte; it only knows how many events have passed and whether the stream
stands between two of them. What an event says is left to the dialects.
"""

from __future__ import annotations

import io
import re

PING = b": ping\n\n"

_LF, _CR = b"\n\r"  # as integers
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BOM_BEGINS = (b"", BYTE_ORDER_MARK[:1])
_LINE_END = re.compile(rb"\r\n|\r|\n")

# All that must be remembered of a line: its first five bytes tell whether its field is `data`.
_HEAD_BYTES = 5
_DATA_HEADS = frozenset({b"data", b"data:"})

# Both slower ways make lists of lines; a read of nothing but line ends must not make them large.
_SLICE_BYTES = 16_384
# Above 30,000 CPython counts in a way that is made for needles in haystacks, of which here there is one in every line.
_BLOCKS_BYTES = 28_672


class EventStreamObserver:
    r"""Follows an event stream through its raw reads, split anywhere.

    Lines end with LF, CRLF or CR, in any mixture; a leading byte order mark is skipped. Never raises. Keeps a few
    bytes whatever passes. A read that is one whole event with LF costs a handful of C calls, of many events
    (`_count_events`) a few for all of them and one for each; any other costs time in proportion to its lines. No case
    is guessed: the fast ways are taken only where they give for any bytes what the slow one would.

    Attributes:
        events: How many events a client has been given: blocks with at least one `data` field, ended by a blank line.
        at_boundary: Whether something may be put in here without touching an event: at the very start and after a
            blank line. Not after a CR, for it may be the first half of a CRLF: an LF that then came would be read as
            one more line end.
    """

    __slots__ = ("_after_cr", "_has_data", "_head", "_is_block_open", "_is_opened", "at_boundary", "events")

    def __init__(self) -> None:
        self.events = 0
        self.at_boundary = True
        self._is_opened = False  # True once the byte order mark is behind us
        self._head = b""  # the first bytes of the line that is under way
        self._is_block_open = False  # whether a line has ended since the last blank one
        self._has_data = False  # whether one of those was a `data` field
        self._after_cr = False

    @property
    def in_line(self) -> bool:
        """Whether a line is under way, that is, begun and not ended."""
        return bool(self._head)

    def feed(self, data: bytes) -> None:
        """Take in the next bytes of the stream."""
        if self.at_boundary:
            # What most reads are: one block of a `data` line, or of one other line and a `data` line. Should that other
            # one be blank, or begin with the byte order mark, it changes nothing here. Written for speed: a slice
            # compares faster than `startswith`, and an integer is looked for with memchr.
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
        self._feed_lines(data)

    def _feed_lines(self, data: bytes) -> None:
        """Take any read: the end of the block that is under way, whole blocks, and the beginning of another."""
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
            # The line under way is the first one, whose head holds all that has come: less than a byte order mark.
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
            data = data[1:]  # the second half of a CRLF: that line has ended already
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
    """How many events whole blocks are whose lines end with LF; 0 where they are not as vendors send them.

    Of blocks that begin with `data:` each has that line's end and the blank line at least: with no other LF, each is
    one event. They are counted without making a list, whose lines cost more than the counting.
    """
    events = blocks.count(b"\n\ndata:") + 1
    # The LFs are what goes with them: CPython looks for those with memchr, and counts byte by byte.
    if blocks[:5] == b"data:" and len(blocks) - len(blocks.replace(b"\n", b"")) == 2 * events:
        return events
    return _count_longer_events(io.BytesIO(blocks).readlines())


def _count_longer_events(lines: list[bytes]) -> int:
    """The same for blocks of several lines.

    When before each blank line stands a `data` line, there are as many events as blank lines. Those stand as far apart
    as in the first block, which is found out by comparing in C, whatever the number of lines: all of the lines before
    blank ones begin with `data:` when the least and the greatest of them do.
    """
    size = lines.index(b"\n") + 1
    blanks = lines.count(b"\n")
    if size == 1 or lines[size - 1 :: size].count(b"\n") != blanks:
        return 0
    last = lines[size - 2 :: size]
    return blanks if min(last)[:5] == max(last)[:5] == b"data:" else 0


def encode_event(data: bytes, event: bytes | None = None) -> bytes:
    """Word an event with LF line ends; data of several lines becomes as many `data` fields, as a client joins them.

    Raises:
        ValueError: `event` has a line end in it, which would make fields of its rest. Our own mistake.
    """
    if event is not None and _LINE_END.search(event):
        raise ValueError("an event's name is one line")
    name = b"" if event is None else b"event: " + event + b"\n"
    return name + b"".join(b"data: " + line + b"\n" for line in _LINE_END.split(data)) + b"\n"


def is_event_stream(content_type: bytes | None) -> bool:
    """Whether a `Content-Type` has the essence `text/event-stream`; parameters and case do not matter."""
    if content_type == b"text/event-stream":
        return True
    if content_type is None:
        return False
    return content_type.partition(b";")[0].strip(b" \t\r\n").lower() == b"text/event-stream"
