"""Replaces the value of a body's `model` member; every other byte stays as it is. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from proxy.errors import InvalidRequestError
from proxy.protocol.json_members import MemberScanner

if TYPE_CHECKING:
    from proxy.protocol.json_text import JsonText, Steps

_NAME: Final = "model"
_SCANNER: Final = MemberScanner((_NAME,))
# Copying so much takes well under a millisecond.
_PIECE_BYTES: Final = 1024 * 1024


def replace_model(text: JsonText, model: str) -> Steps[JsonText]:
    """Return a copy of a JSON object with another model, in pieces; the member's name may be written with escapes.

    Raises:
        InvalidRequestError: It has no such member, or two: two readers would read two models.
    """
    members = yield from _SCANNER.scan(text)
    if _NAME not in members.spans or members.repeated:
        raise InvalidRequestError("The body must give the member model once.")
    start, end = members.spans[_NAME]
    value = orjson.dumps(model)
    if len(text) <= _PIECE_BYTES:
        return text[:start] + value + text[end:]
    out = bytearray()
    view = memoryview(text)
    for begin, stop in ((0, start), (end, len(text))):
        for at in range(begin, stop, _PIECE_BYTES):
            out += view[at : min(at + _PIECE_BYTES, stop)]
            yield
        if begin == 0:
            out += value
    return out
