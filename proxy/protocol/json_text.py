"""Decodes and compacts strings and values of JSON text in pieces, without building a document.

Pure. Work on text of unbounded length is a generator, which handles at most `PIECE_BYTES` between two yields and
returns its result (`turns` runs it in the event loop). The text must have been checked to be UTF-8.
"""

from __future__ import annotations

import codecs
import json
import re
from io import BytesIO
from typing import TYPE_CHECKING, Final, TypeVar

import orjson

from proxy.errors import InvalidRequestError
from proxy.protocol.json_nesting import STRING

if TYPE_CHECKING:
    from collections.abc import Generator

JsonText = bytes | bytearray
_T = TypeVar("_T")
if TYPE_CHECKING:
    # A computation in pieces: the event loop runs other tasks at each yield; the result is the return value.
    Steps = Generator[None, None, _T]

# One piece of the slowest text takes about 3 ms, of ordinary text about 0.1 ms (decision 15).
PIECE_BYTES: Final = 32 * 1024
# A copy of so much takes about 0.1 ms.
_COPIED_AT_ONCE: Final = 8 * PIECE_BYTES
_LONGEST_ESCAPE: Final = 12
# Whole characters (an escaped surrogate pair is one); a character cut by the end of a piece is left to the next.
_CHARACTERS: Final = re.compile(
    rb"(?:[^\\]++|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\[^u])*+",
    re.DOTALL,
)
# Strings, other tokens, and white space only between two words.
_TOKENS: Final = re.compile(
    STRING + rb'|[^\s"]++|(?<=[^\s\[\]{},:"])[ \t\r\n]++(?=[^\s\[\]{},:"])',
    re.DOTALL,
)
_INSIGNIFICANT: Final = re.compile(rb"[ \t\r\n]|\\u")


class NotTextError(ValueError):
    """A string has an escape that JSON does not have, or half a surrogate pair."""


def splice(text: JsonText, start: int, end: int, value: bytes) -> Steps[JsonText]:
    """Return a copy of a text with `value` instead of what stands from `start` to `end`, in pieces."""
    if len(text) <= _COPIED_AT_ONCE:
        return text[:start] + value + text[end:]
    # Gives its content without copying it.
    out = BytesIO()
    view = memoryview(text)
    for part in (view[:start], memoryview(value), view[end:]):
        for at in range(0, len(part), _COPIED_AT_ONCE):
            out.write(part[at : at + _COPIED_AT_ONCE])
            yield
    return out.getvalue()


def check_utf8(text: JsonText) -> Steps[None]:
    """Check that the text is UTF-8, in pieces.

    In anything else (overlong forms, UTF-16) two parsers may see different quotation marks.

    Raises:
        InvalidRequestError: It is not UTF-8.
    """
    try:
        if len(text) <= PIECE_BYTES:
            if not text.isascii():
                text.decode()
            return
        decoder = codecs.getincrementaldecoder("utf-8")()
        for start in range(0, len(text), PIECE_BYTES):
            decoder.decode(text[start : start + PIECE_BYTES])
            yield
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise InvalidRequestError("The body is not UTF-8.") from None


def decode_string(quoted: JsonText) -> str:
    """Decode one short string, given with its quotation marks; half surrogate pairs are kept.

    Raises:
        NotTextError: It has an escape that JSON does not have.
    """
    try:
        return str(orjson.loads(quoted))
    except orjson.JSONDecodeError:
        pass
    try:
        # Accepts half surrogate pairs and unescaped control characters.
        return str(json.loads(quoted, strict=False))
    except ValueError:
        raise NotTextError from None


def encode_string(text: JsonText, start: int, end: int) -> Steps[JsonText]:
    """Decode a string of any length to UTF-8, in pieces; `start` and `end` are inside its quotation marks.

    Memory: the result and one piece.

    Raises:
        NotTextError: It has an escape that JSON does not have, or half a surrogate pair.
    """
    out = bytearray()
    while start < end:
        stop = min(start + PIECE_BYTES, end)
        if text.find(b"\\", start, stop) < 0:
            out += text[start:stop]
        else:
            stop = _whole(text, start, stop, end)
            try:
                out += decode_string(b'"' + text[start:stop] + b'"').encode()
            except UnicodeEncodeError:
                raise NotTextError from None
        start = stop
        if start < end:
            yield
    return bytes(out) if len(out) <= PIECE_BYTES else out


def _whole(text: JsonText, start: int, stop: int, end: int) -> int:
    """Return the last position up to `stop` that cuts no character."""
    if stop == end:
        return stop
    while text[stop] & 0xC0 == 0x80:  # noqa: PLR2004 - RFC 3629 §3: a byte that continues a character
        stop -= 1
    match = _CHARACTERS.match(text, start, stop)
    assert match is not None
    # A character has at most 12 bytes here, so a longer rest is none.
    if stop - match.end() >= _LONGEST_ESCAPE:
        raise NotTextError
    return match.end()


def compact(text: JsonText, start: int, end: int) -> Steps[JsonText]:
    """Compact a value: remove insignificant white space and unescape characters, in pieces.

    Numbers, the order of members, and strings that are not valid UTF-8 stay as they are. The value must have been
    scanned, so that its strings end within it.
    """
    out = bytearray()
    while start < end:
        stop = min(start + PIECE_BYTES, end)
        tokens, start = _tokens(text, start, stop)
        out += tokens
        if start < stop:
            # A string that continues after the piece.
            close = yield from _end_of_string(text, start)
            yield from _rewrite(text, start, close, out)
            start = close
        if start < end:
            yield
    return bytes(out) if len(out) <= PIECE_BYTES else out


def _tokens(text: JsonText, start: int, stop: int) -> tuple[bytes, int]:
    """Return a piece compacted, and where its last token ends: before `stop` if a string does not end in it."""
    whole = _WHOLE.match(text, start, stop)
    assert whole is not None
    piece = whole[0]
    if _INSIGNIFICANT.search(piece) is None:
        return piece, whole.end()
    tokens = _TOKENS.findall(piece)
    if b"\\u" in piece:
        tokens = [_unescaped(token) if b"\\u" in token else token for token in tokens]
    return b"".join(tokens), whole.end()


_WHOLE: Final = re.compile(rb'(?:[^"]++|' + STRING + rb")*+", re.DOTALL)
_INSIDE: Final = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


def _unescaped(token: bytes) -> bytes:
    try:
        return orjson.dumps(orjson.loads(token))
    except orjson.JSONDecodeError:
        return token


def _end_of_string(text: JsonText, start: int) -> Steps[int]:
    """Return the position after the string that begins at `start`."""
    position = start + 1
    while True:
        match = _INSIDE.match(text, position, position + PIECE_BYTES)
        assert match is not None
        position = match.end()
        if text[position] == ord('"'):
            return position + 1
        yield


def _rewrite(text: JsonText, start: int, end: int, out: bytearray) -> Steps[None]:
    """Append a long string to `out`, its characters unescaped up to the first half of a surrogate pair, in pieces."""
    out += b'"'
    start, end = start + 1, end - 1
    is_text = True
    while start < end:
        stop = min(start + PIECE_BYTES, end)
        if is_text:
            try:
                stop = _whole(text, start, stop, end)
            except NotTextError:
                is_text = False
        out += _unescaped(b'"' + text[start:stop] + b'"')[1:-1] if is_text else text[start:stop]
        start = stop
        yield
    out += b'"'
