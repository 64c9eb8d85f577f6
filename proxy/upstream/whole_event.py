"""Recognises a read that is one whole event in one whole chunk (RFC 9112 §7.1), as vendors send events.

Pure. Such a read can be written to a client as it came, without a parser: all of the chunk is there, and it
is one block of lines of which the last is data. Sizes are recognised as everybody writes them: hexadecimal in lower
case, without extensions.
"""

from __future__ import annotations

import re
from typing import Final

# As integers: so they are looked for in one call, and quickly.
_LF, _CR = b"\n\r"
# How a line of data begins, and how a chunk ends of which it is the last line.
_DATA: Final = b"data:"
_END: Final = b"\n\n\r\n"
# More chunks in one read are not looked at one by one: then the parser is the cheaper way.
_MAX_LOOKED_AT: Final = 8
_LINE: Final = re.compile(rb"([1-9a-f][0-9a-f]{0,6})\r\n")


def _shapes() -> tuple[tuple[bytes, int, int], ...]:
    # As long as no chunk is: its line cannot be less than nothing.
    shapes = [(_DATA, -len(_DATA) - 1, 0)] * (len(b"fff\r\n") + 0xFFF + len(b"\r\n") + 1)
    for payload in range(0x10, 0x1000):
        lead = b"%x\r\n" % payload
        shapes[len(lead) + payload + len(b"\r\n")] = (lead + _DATA, payload - len(_DATA) - len(b"\n\n"), payload)
    return tuple(shapes)


# For every length of a read what it is if it is one whole chunk with one line of data: how that begins, how long the
# line is from there on, and how long the payload.
_SHAPES: Final = _shapes()
_TOO_LONG: Final = len(_SHAPES)


def whole_event(data: bytes) -> int:
    """Return the payload's size where `data` is one chunk that holds one event with LF line ends, else 0.

    A chunk whose line says how long it is, and that ends with a blank line, is one event if what stands between is one
    block of lines, of which the last is data. A handful of C calls, whatever the data.
    """
    size = len(data)
    if size >= _TOO_LONG:
        return 0
    lead, length, payload = _SHAPES[size]
    line = data.removeprefix(lead).removesuffix(_END)
    # With both gone, that is what is left.
    if len(line) == length:
        return payload if _LF not in line and _CR not in line else 0
    return payload if _is_named_event(data, lead, length) else 0


def _is_named_event(data: bytes, lead: bytes, length: int) -> bool:
    """Whether a chunk is a line that is not blank and one of data, as those vendors send that name their events."""
    block = data.removeprefix(lead.removesuffix(_DATA)).removesuffix(_END)
    if len(block) != len(_DATA) + length:
        return False
    line_end = block.find(b"\n")
    return (
        line_end > 0
        and block[line_end + 1 : line_end + 6] == _DATA
        and block.find(b"\n", line_end + 1) < 0
        and _CR not in block
    )


def missing_of_chunk(data: bytes, position: int, missing: int) -> int | None:
    """Return how many bytes of the current chunk, its end included, are missing after `data`.

    0 is between two chunks. None where it cannot be told: a last or unusual chunk, a line that is cut in two, or more
    chunks than are worth the time.
    """
    end = len(data)
    for _ in range(_MAX_LOOKED_AT):
        position += missing
        if position >= end:
            return position - end
        line = _LINE.match(data, position)
        if line is None:
            return None
        position = line.end()
        missing = int(line[1], 16) + 2
    return 0 if position + missing == end else None
