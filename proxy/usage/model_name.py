"""Finds the model that a request names: its price decides how much of a budget in dollars the request takes.

Pure. So it is found where the vendor finds it, and nowhere else: in the path, never in the query; among the members of
the body itself, never within one; of several the last, as JavaScript, Python and Go read them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import orjson

from proxy.errors import InvalidRequestError
from proxy.protocol.json_members import MemberScanner

if TYPE_CHECKING:
    from proxy.protocol.json_text import JsonText, Steps

_MAX_NAME: Final = 256
# `\u0041` for each character, and the quotation marks.
_MAX_QUOTED: Final = 6 * _MAX_NAME + 2
_MEMBERS: Final = MemberScanner(("model",))
# One of them is in every body that names a model.
_NAME: Final = b'"model"'
_ESCAPED: Final = b"\\u"
# Parsed at once are bodies so large, with so many values.
_MOST_AT_ONCE: Final = 256 * 1024
_MOST_VALUES: Final = 8 * 1024
# Gemini's paths, and Azure's.
_IN_PATH: Final = re.compile(rb"/(?:models|deployments)/([^/:?]{1,256})[:/]")


def may_name_model(path: bytes) -> bool:
    """Check whether a path, without its query, has a place for a model's name."""
    return _IN_PATH.search(path) is not None


def model_read(body_model: str | None) -> str | None:
    """Return what `model_in` would, where the body's member `model` is known and the path cannot name a model.

    None where only `model_in` can tell.
    """
    if not body_model or len(body_model) > _MAX_NAME or not body_model.isascii():
        # Beyond ASCII it may hold half a character.
        return None
    return body_model


def model_in(target: bytes, body: JsonText) -> Steps[str | None]:
    """Return the model that a request names in its path or in its body; None where it names none.

    A body in a content coding, or one that is no JSON object, names none: the answer may. Yields after each piece of a
    large body.
    """
    found = _IN_PATH.search(target.partition(b"?")[0])
    if found is not None:
        return unquote(found[1].decode("ascii", "replace"))
    if _NAME not in body and _ESCAPED not in body:
        return None
    if _is_quickly_parsed(body):
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            # Vendors read more than it does: half surrogates, numbers of any size.
            pass
        else:
            model = value.get("model") if isinstance(value, dict) else None
            return model if isinstance(model, str) and 0 < len(model) <= _MAX_NAME else None
    try:
        members = yield from _MEMBERS.scan(body)
    except InvalidRequestError:
        # The vendor's to judge.
        return None
    quoted = members.last("model")
    return None if quoted is None or quoted[:1] != b'"' else _name(quoted)


def _is_quickly_parsed(body: JsonText) -> bool:
    """Whether it has few enough values to be parsed at once: in a millisecond at most."""
    size = len(body)
    if size > _MOST_AT_ONCE:
        return False
    # Each value is behind one of these, or the name of a member.
    return size <= _MOST_VALUES or body.count(b",") + body.count(b"[") + body.count(b"{") <= _MOST_VALUES


def _name(quoted: JsonText) -> str | None:
    if len(quoted) > _MAX_QUOTED:
        return None
    try:
        name = str(orjson.loads(quoted))
    except orjson.JSONDecodeError:
        return None
    return name if 0 < len(name) <= _MAX_NAME else None
