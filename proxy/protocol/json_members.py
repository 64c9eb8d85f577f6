"""Finds the members of a JSON object that routing reads, without parsing the rest of the document.

Pure. The scanner finds names and the positions of values in the outermost object, and skips everything else: no objects
are built, so memory does not depend on the body. It is a generator that scans about `PIECE_BYTES` between two yields,
whatever the bytes (decision 15).

Checked, because another parser could otherwise find other members: UTF-8, one object and nothing after it, the grammar
of the outermost object, the kinds of all brackets, and only characters of JSON outside of strings (no comments, no
single quotes). Left to the vendor: the grammar further inside, numbers of any size, `NaN`, escapes and control
characters within values, a byte order mark.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from proxy.errors import InvalidRequestError
from proxy.protocol.json_nesting import MAX_DEPTH, STRING, check_balanced, close, closers_of, unmatched
from proxy.protocol.json_text import PIECE_BYTES, NotTextError, check_utf8, decode_string, encode_string

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from proxy.protocol.json_text import JsonText, Steps

_BOM: Final = b"\xef\xbb\xbf"
_QUOTE: Final = ord('"')
_CLOSER_OF: Final = {ord("["): ord("]"), ord("{"): ord("}")}
_WORDS: Final = frozenset({b"true", b"false", b"null", b"NaN", b"Infinity", b"-Infinity"})
_LONGEST_WORD: Final = 9
# Cost of a member besides its size, in bytes: matched by one pattern, or token by token.
_MEMBER_COST: Final = 64
_SLOW_COST: Final = 1024
# Smallest window in which the end of a container is searched.
_SMALL_WINDOW: Final = 128
# `\u0041`: six bytes for a character. A longer name is none of the wanted ones.
_ESCAPE_BYTES: Final = 6

_SPACE: Final = rb"[ \t\r\n]*+"
_LITERAL: Final = rb"(?:-?[0-9][0-9A-Za-z+.-]*+|true|false|null|NaN|-?Infinity)"
_FLAT: Final = rb"[ \t\r\n0-9A-Za-z+.,:-]++|" + STRING
# Nesting up to which one call finds a container's end; it matches the depth of brackets, not their kind.
_LEVELS: Final = 24


def _container() -> bytes:
    inner = rb"(?:" + _FLAT + rb")*+"
    for _ in range(_LEVELS):
        inner = rb"(?:" + _FLAT + rb"|[\[{]" + inner + rb"[\]}])*+"
    return rb"[\[{]" + inner + rb"[\]}]"


_VALUE: Final = rb"(?:" + STRING + rb"|" + _LITERAL + rb"|" + _container() + rb")"
_MEMBER: Final = re.compile(
    _SPACE + rb"(" + STRING + rb")" + _SPACE + rb":" + _SPACE + rb"(" + _VALUE + rb")" + _SPACE + rb"([,}])",
    re.DOTALL,
)
_SPACES: Final = re.compile(_SPACE)
_INSIDE: Final = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_LITERALS: Final = re.compile(rb"[0-9A-Za-z+.-]*+")
# Whole tokens: ends before a string that does not end in the window, and before a character that JSON has not.
_TOKENS: Final = re.compile(rb"(?:[ \t\r\n0-9A-Za-z+.,:\[\]{}-]++|" + STRING + rb")*+", re.DOTALL)
_BRACKETS: Final = re.compile(STRING + rb"|[\[{]++|[\]}]++", re.DOTALL)


@dataclass(frozen=True, slots=True)
class JsonMembers:
    """Positions of the wanted members' values in a text.

    Attributes:
        spans: The first of each name.
        repeated: The last of each name that occurs twice or more.
    """

    text: JsonText = field(repr=False)
    spans: dict[str, tuple[int, int]]
    repeated: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def value(self, name: str) -> JsonText | None:
        """Return a copy of a member's JSON text; None if it is absent or null."""
        span = self.spans.get(name)
        if span is None:
            return None
        value = self.text[span[0] : span[1]]
        return None if value == b"null" else value

    def last(self, name: str) -> JsonText | None:
        """Return a copy of the JSON text of a name's last value, which is what most parsers read; None if absent."""
        span = self.repeated.get(name) or self.spans.get(name)
        return None if span is None else self.text[span[0] : span[1]]

    def size(self, name: str) -> int:
        """Return the length of a member's JSON text in bytes; 0 if it is absent."""
        start, end = self.spans.get(name, (0, 0))
        return end - start

    def flag(self, name: str) -> bool | None:
        """Return a boolean member; None if it is anything else or occurs twice."""
        if name in self.repeated:
            return None
        start, end = self.spans.get(name, (0, 0))
        return {b"true": True, b"false": False}.get(bytes(self.text[start : min(end, start + _LONGEST_WORD)]))


class MemberScanner:
    """Scanner for members of the given names. Compiled once for each set of names; keeps no text."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {b'"' + name.encode() + b'"': name for name in names}
        self._longest_name = _ESCAPE_BYTES * max(map(len, self._names))
        known = rb"|".join(re.escape(name[1:-1]) for name in self._names)
        # A run of other members, in one call: most of a body.
        self._others = re.compile(
            rb"(?:"
            + _SPACE
            + rb'"(?!(?:'
            + known
            + rb')")[^"\\]*+"'
            + _SPACE
            + rb":"
            + _SPACE
            + _VALUE
            + _SPACE
            + rb",)*+",
            re.DOTALL,
        )

    def scan(self, text: JsonText) -> Steps[JsonMembers]:
        """Find the members in the outermost object of a text, in pieces.

        Raises:
            InvalidRequestError: The text is no JSON object, as far as the module checks that.
        """
        yield from check_utf8(text)
        at = _Cursor(text, len(_BOM) if text.startswith(_BOM) else 0)
        yield from at.skip(_SPACES)
        if not at.takes(b"{"):
            raise InvalidRequestError("The body is not a JSON object.")
        yield from at.skip(_SPACES)
        spans: dict[str, tuple[int, int]] = {}
        repeated: dict[str, tuple[int, int]] = {}
        is_closed = at.takes(b"}")
        while not is_closed:
            start, stop = at.position, at.stop
            others = self._others.match(text, start, stop)
            assert others is not None
            if others.end() > start:
                check_balanced(others[0])
                at.position = others.end()
            member = _MEMBER.match(text, at.position, stop)
            if member is not None:
                name, value, mark = member.group(1, 2, 3)
                check_balanced(value)
                span = member.span(2)
                at.position = member.end()
                is_closed = mark == b"}"
                at.spent += _MEMBER_COST
            else:
                name, span = yield from self._member(at)
                is_closed = at.takes(b"}")
                if not is_closed and not at.takes(b","):
                    at.refuse()
                at.spent += _SLOW_COST
            found = self._names.get(bytes(name)) if b"\\" not in name else self._unescaped(name)
            if found is not None and spans.setdefault(found, span) is not span:
                repeated[found] = span
            at.spent += at.position - start
            if at.spent >= PIECE_BYTES:
                at.spent = 0
                yield
        yield from at.skip(_SPACES)
        if at.position < len(text):
            at.refuse()
        return JsonMembers(text, spans, repeated)

    def _member(self, at: _Cursor) -> Steps[tuple[JsonText, tuple[int, int]]]:
        """Skip one member, token by token; return its name (empty if too long to be wanted) and its value's span."""
        yield from at.skip(_SPACES)
        start = at.position
        yield from at.skip_string()
        end = at.position
        name: JsonText = b""
        if end - start <= self._longest_name:
            name = at.text[start:end]
        else:
            # A lenient parser could decode an invalid escape, and find a wanted name.
            try:
                yield from encode_string(at.text, start + 1, end - 1)
            except NotTextError:
                _refuse_name()
        yield from at.skip(_SPACES)
        if not at.takes(b":"):
            at.refuse()
        yield from at.skip(_SPACES)
        start = at.position
        yield from at.skip_value()
        end = at.position
        yield from at.skip(_SPACES)
        return name, (start, end)

    def _unescaped(self, name: JsonText) -> str | None:
        try:
            decoded = decode_string(name)
        except NotTextError:
            _refuse_name()
        return decoded if decoded in self._names.values() else None


class _Cursor:
    """A position in a text that moves over one token after the other."""

    __slots__ = ("position", "spent", "text")

    def __init__(self, text: JsonText, position: int) -> None:
        self.text = text
        self.position = position
        self.spent = 0

    @property
    def stop(self) -> int:
        """The end of the piece that one call may scan."""
        return min(self.position + PIECE_BYTES, len(self.text))

    def refuse(self) -> NoReturn:
        """Refuse the text.

        Raises:
            InvalidRequestError: Always.
        """
        raise InvalidRequestError("The body is not valid JSON.")

    def takes(self, mark: bytes) -> bool:
        """Skip this character if it is next, and return whether it was."""
        if self.text[self.position : self.position + 1] != mark:
            return False
        self.position += 1
        return True

    def skip(self, run: re.Pattern[bytes]) -> Steps[None]:
        """Skip the longest match of a pattern, in pieces."""
        while True:
            stop = self.stop
            match = run.match(self.text, self.position, stop)
            assert match is not None
            self.position = match.end()
            if self.position < stop or stop == len(self.text):
                return
            yield

    def skip_string(self) -> Steps[None]:
        """Skip a string, in pieces."""
        if not self.takes(b'"'):
            self.refuse()
        while True:
            yield from self.skip(_INSIDE)
            if self.takes(b'"'):
                return
            # Here is a backslash at the end of a piece, or the text ends.
            if self.position + 1 >= len(self.text):
                self.refuse()

    def skip_value(self) -> Steps[None]:
        """Skip a value of any type, in pieces."""
        first = self.text[self.position : self.position + 1]
        if first == b'"':
            yield from self.skip_string()
        elif first and first in b"[{":
            yield from self.skip_container()
        else:
            start = self.position
            yield from self.skip(_LITERALS)
            word = bytes(self.text[start : min(self.position, start + _LONGEST_WORD + 1)])
            if not word.removeprefix(b"-")[:1].isdigit() and word not in _WORDS:
                self.refuse()

    def skip_container(self) -> Steps[None]:
        """Skip an array or an object of any size, in pieces.

        Whole windows are matched in C. A window in which the container ends is halved until it is small enough to be
        scanned run by run.
        """
        due = bytearray([_CLOSER_OF[self.text[self.position]]])
        self.position += 1
        window = _SMALL_WINDOW
        while True:
            stop = min(self.position + window, len(self.text))
            match = _TOKENS.match(self.text, self.position, stop)
            assert match is not None
            self.spent += stop - self.position + _SMALL_WINDOW
            if match.end() == self.position:
                # A string longer than the window, the end, or a character that JSON has not.
                yield from self.skip_string()
            else:
                closers, opened = unmatched(match[0])
                if len(closers) < len(due):
                    if closers:
                        close(due, closers)
                    due += opened
                    if len(due) > MAX_DEPTH:
                        raise InvalidRequestError("The body is nested too deeply.")
                    self.position = match.end()
                    window = min(2 * window, PIECE_BYTES)
                elif match.end() - self.position <= _SMALL_WINDOW:
                    return self._skip_runs(due, match.end())
                else:
                    window = (match.end() - self.position) // 2
            if self.spent >= PIECE_BYTES:
                self.spent = 0
                yield

    def _skip_runs(self, due: bytearray, stop: int) -> None:
        """Skip to after the bracket that closes the container; it is before `stop`."""
        for run in _BRACKETS.finditer(self.text, self.position, stop):
            brackets = run[0]
            if brackets[0] in _CLOSER_OF:
                due += closers_of(brackets)
            elif brackets[0] != _QUOTE:
                closers = brackets[: len(due)]
                close(due, closers)
                if not due:
                    self.position = run.start() + len(closers)
                    return


def _refuse_name() -> NoReturn:
    raise InvalidRequestError("The body has a member whose name is not valid JSON.")
