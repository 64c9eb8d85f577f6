"""Replaces the value of a body's `model` member; every other byte stays as it is. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from proxy.errors import InvalidRequestError
from proxy.protocol.json_members import MemberScanner
from proxy.protocol.json_text import splice

if TYPE_CHECKING:
    from proxy.protocol.json_text import JsonText, Steps

_NAME: Final = "model"
_SCANNER: Final = MemberScanner((_NAME,))


def replace_model(text: JsonText, model: str) -> Steps[JsonText]:
    """Return a copy of a JSON object with another model, in pieces; the member's name may be written with escapes.

    Raises:
        InvalidRequestError: It has no such member, or two: two readers would read two models.
    """
    members = yield from _SCANNER.scan(text)
    if _NAME not in members.spans or members.repeated:
        raise InvalidRequestError("The body must give the member model once.")
    start, end = members.spans[_NAME]
    return (yield from splice(text, start, end, orjson.dumps(model)))
