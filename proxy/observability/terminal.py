"""Escapes the characters that a terminal obeys or hides, since names, ids, paths and models are chosen by others."""

from __future__ import annotations

import re
from typing import Final

# In UTF-8, beyond ASCII, whose control characters JSON escapes itself: C1 (U+0080 to U+009F, CSI among them), what
# turns the direction of writing (U+061C, U+200E, U+200F, U+202A to U+202E, U+2066 to U+2069), and line ends (U+2028,
# U+2029). A byte that begins a character is never within another, so none is found where it is not.
_OBEYED: Final = re.compile(
    rb"\xc2[\x80-\x9f]|\xd8\x9c|\xe2\x80[\x8e\x8f\xa8-\xae]|\xe2\x81[\xa6-\xa9]",
)


def for_terminal(text: str) -> str:
    """Escape them in a line for reading, as Python writes them.

    Line ends are kept: the renderer writes a value that has any as a literal of Python.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char == "\n" or char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def escape_json(line: bytes) -> bytes:
    r"""Escape them in a line of JSON, as `\u` and four digits: whoever parses it reads the same text."""
    return _OBEYED.sub(lambda found: b"\\u%04x" % ord(found[0].decode()), line)
