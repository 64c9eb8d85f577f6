"""Chunks (RFC 9112 §7.1): where they begin and end in bodies of which a parser sees that they are well formed.

Pure. With it a read that is one whole chunk, as vendors send an event, is known for what it is without the parser.
Sizes are recognised as everybody writes them: hexadecimal in lower case, without extensions.
"""

from __future__ import annotations

import re
from typing import Final

# More chunks in one read are not looked at one by one: then the parser is the cheaper way.
_MAX_LOOKED_AT: Final = 8
_LINE: Final = re.compile(rb"([1-9a-f][0-9a-f]{0,6})\r\n")


def follow(data: bytes, position: int, missing: int) -> int | None:
    """How much of a chunk is missing, its end included, after `data`, of which `missing` were before `position`.

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


def one_chunk(data: bytes) -> bytes:
    """Frame data, of which there is some, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)
