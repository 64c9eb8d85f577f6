"""Encoder of typed events: `data: {"t":"Text","r":"…"}`, one format for the streams of every dialect.

docs/behaviour.md#typed-events describes it. What a vendor's event means is left to the dialects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["Image", "Think", "Text", "Cancelled", "End", "Error"]
Last = Literal["Cancelled", "End", "Error"]

# JSON (RFC 8259) leaves these as they are, and so does orjson; but many line readers take them for line ends
# (Python's `str.splitlines`, and with it httpx and requests).
_LINE_ENDS: Final = ((b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"), (b"\xc2\x85", rb"\u0085"))
_HIGH: Final = ("\ud800", "\udbff")


class Usage(NamedTuple):
    """Token counts as the vendor reported them, and a decimal of dollars; None for what is not known."""

    input: int | None
    output: int | None
    total: int | None
    cost_usd: str | None = None


class TypedEncoder:
    r"""Encodes typed events: one `data: ` line each, LF line ends, no `event:`, no comment.

    The text is UTF-8, whatever escapes the vendor's JSON has. A vendor that splits its text by UTF-16 units may leave
    half of a surrogate pair at the end of an event: that half is kept until the next text of its kind, to send the
    character whole. A half without its other one becomes U+FFFD. Memory: at most one half for each kind.

    Attributes:
        events: How many events were encoded.
    """

    __slots__ = ("_halves", "_heads", "events")

    def __init__(self, names: Mapping[str, str | int]) -> None:
        self.events = 0
        self._heads = {kind: b'data: {"t":' + _json(name) + b',"r":' for kind, name in names.items()}
        self._halves: dict[Kind, str] = {}

    def piece(self, kind: Kind, text: str) -> bytes:
        """Encode a piece of the answer; empty if all of it is kept for the next piece."""
        if self._halves and kind in self._halves:
            text = self._halves.pop(kind) + text
        try:
            return self._event(kind, text)
        except orjson.JSONEncodeError:
            pass
        if _HIGH[0] <= text[-1] <= _HIGH[1]:
            self._halves[kind] = text[-1]
            text = text[:-1]
        return self._event(kind, mend(text)) if text else b""

    def end(self, usage: Usage | None) -> bytes:
        """Encode `End`: the answer is complete."""
        told: dict[str, int | str] = {}
        if usage is not None:
            told = {name: value for name, value in usage._asdict().items() if value is not None}
        return self._last("End", "", {"usage": told} if told else {})

    def error(self, code: str, message: str) -> bytes:
        """Encode `Error`: the answer is incomplete, and why."""
        return self._last("Error", mend(message), {"code": mend(code)})

    def cancelled(self) -> bytes:
        """Encode `Cancelled`: the answer was stopped."""
        return self._last("Cancelled", "", {})

    def _last(self, kind: Kind, text: str, more: dict[str, Any]) -> bytes:
        rest = b"".join(self._event(of, "\ufffd") for of in self._halves)
        self._halves.clear()
        members = b"".join(b',"' + name.encode() + b'":' + _json(value) for name, value in more.items())
        return rest + self._event(kind, text, members)

    def _event(self, kind: Kind, text: str, members: bytes = b"") -> bytes:
        event = self._heads[kind] + _json(text) + members + b"}\n\n"
        self.events += 1
        return event


def mend(text: str) -> str:
    """Join surrogate pairs in a text, and replace halves by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _json(value: object) -> bytes:
    written = orjson.dumps(value)
    if not written.isascii():
        for line_end, escape in _LINE_ENDS:
            written = written.replace(line_end, escape)
    return written
