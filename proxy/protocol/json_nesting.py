"""Bracket matching for JSON text, without a parser: which brackets a piece of text closes and which it leaves open.

Pure. Each call handles a whole piece in C, so that its time depends on the length and hardly on the nesting. A piece
begins and ends outside of strings; `json_members` finds such pieces.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from proxy.errors import InvalidRequestError

if TYPE_CHECKING:
    from proxy.protocol.json_text import JsonText

# RFC 8259 sets no bound (§9). Readers refuse at 128 (serde_json) to 10,000 (Go); this one only bounds our own memory.
MAX_DEPTH: Final = 100_000

STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_STRINGS: Final = re.compile(STRING, re.DOTALL)
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_RUNS: Final = re.compile(rb"[\[{]++|[\]}]++")
_CLOSER_OF: Final = bytes.maketrans(b"[{", b"]}")
# Each pass removes the innermost pairs; deeper nesting is rare and matched run by run.
_PASSES: Final = 8


def unmatched(piece: JsonText) -> tuple[bytearray, bytearray]:
    """Match the brackets of a piece by kind, and return those without a partner in it.

    Returns:
        The closing brackets without an opening one, in order, and those that the open ones need, outermost first.

    Raises:
        InvalidRequestError: A bracket is closed by the other kind.
    """
    if b'"' in piece:
        piece = _STRINGS.sub(b"", piece)
    left = piece.translate(None, _NO_BRACKETS)
    for _ in range(_PASSES):
        shorter = left.replace(b"[]", b"").replace(b"{}", b"")
        if len(shorter) == len(left):
            break
        left = shorter
    closers, due = bytearray(), bytearray()
    for run in _RUNS.findall(left):
        if run[0] in b"[{":
            due += closers_of(run)
            continue
        size = min(len(run), len(due))
        if size:
            close(due, run[:size])
        closers += run[size:]
    return closers, due


def closers_of(openers: JsonText) -> JsonText:
    """Return the closing brackets for a run of opening ones, outermost first."""
    return openers.translate(_CLOSER_OF)


def close(due: bytearray, closers: JsonText) -> None:
    """Remove closing brackets from the end of the expected ones.

    Raises:
        InvalidRequestError: One is of the other kind.
    """
    if due[-len(closers) :] != closers[::-1]:
        raise mismatch()
    del due[-len(closers) :]


def check_balanced(piece: JsonText) -> None:
    """Check that the brackets of a piece match.

    Raises:
        InvalidRequestError: They do not.
    """
    if b"[" in piece or b"{" in piece:
        closers, due = unmatched(piece)
        if closers or due:
            raise mismatch()


def mismatch() -> InvalidRequestError:
    """Return the error for a body whose brackets do not match."""
    return InvalidRequestError("The body is not valid JSON: its brackets do not match.")
