"""The envelope: a request described by JSON, as frontends send it that cannot set the vendor's fields themselves.

Pure. Strict where a second reader might read something else: duplicate members, odd numbers and deep nesting are
refused; unknown members are ignored, as the contract says.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from proxy.errors import InvalidRequestError

if TYPE_CHECKING:
    from proxy.errors import Field

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
# RFC 9110 §5.5: visible characters, space and tab; obs-text only as Latin-1.
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_MAX_VALUE = 8192
_MAX_FIELDS = 100
# Each of these belongs to the connection, not to the message; the proxy writes its own.
_FRAMING = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect", "upgrade", "trailer", "te"})


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an envelope asks for; `body` is what will be sent, `fields` what the envelope's `header` said."""

    target_url: str
    method: str
    body: bytes = field(repr=False)
    fields: tuple[Field, ...] = field(repr=False)
    passcode: str | None = field(default=None, repr=False)


def read_json_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    orjson does the reading; it bounds the nesting, refuses NaN and bad UTF-8, and lets the last of two equal members
    win, as every vendor's parser does. Costs one pass over the body.

    Raises:
        InvalidRequestError: not JSON, or not an object.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        # `from None`: the cause quotes the body.
        raise InvalidRequestError("The body is not valid JSON.") from None
    if not isinstance(value, dict):
        raise InvalidRequestError("The body is not a JSON object.")
    return value


def parse_envelope(body: bytes, members: dict[str, Any]) -> Envelope:
    """Read an envelope's members; `body` is where they came from, to look for duplicates among them.

    Raises:
        InvalidRequestError: a member of the wrong kind, or one that is given twice.
    """
    _refuse_duplicates(body)
    target_url = members.get("targetUrl")
    if not isinstance(target_url, str):
        raise InvalidRequestError("targetUrl must be a string.")
    passcode = members.get("passcode")
    if passcode is not None and not isinstance(passcode, str):
        raise InvalidRequestError("passcode must be a string.")
    method = _method(members.get("method", "post"))
    content = _body(members.get("body"))
    if method == "GET" and content:
        raise InvalidRequestError("An envelope whose method is get has no body.")
    return Envelope(target_url, method, content, _fields(members.get("header")), passcode)


def _refuse_duplicates(body: bytes) -> None:
    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            raise InvalidRequestError("The envelope gives a member twice.")
        return dict(pairs)

    try:
        json.loads(body, object_pairs_hook=members)
    except (ValueError, RecursionError):
        raise InvalidRequestError("The body is not valid JSON.") from None


def _method(value: object) -> str:
    if not isinstance(value, str) or value.lower() not in {"get", "post"}:
        raise InvalidRequestError("method must be get or post.")
    return value.upper()


def _body(value: object) -> bytes:
    if value is None:
        return b""
    if isinstance(value, dict):
        return orjson.dumps(value)
    if not isinstance(value, str):
        raise InvalidRequestError("body must be a string or an object.")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("body holds half a surrogate pair.") from None


def _fields(value: object) -> tuple[Field, ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        value = read_json_object(value.encode("utf-8", "surrogatepass"))
    if not isinstance(value, dict) or len(value) > _MAX_FIELDS:
        raise InvalidRequestError("header must be a JSON object of a reasonable size, or one as a string.")
    fields: list[Field] = []
    for name, content in value.items():
        if _NAME.fullmatch(name) is None:
            raise InvalidRequestError("header holds a name that no field can have.")
        if not isinstance(content, str) or len(content) > _MAX_VALUE or _VALUE.fullmatch(content) is None:
            raise InvalidRequestError("header holds a value that no field can have.")
        if name.lower().replace("_", "-") not in _FRAMING:
            fields.append((name.encode(), content.strip(" \t").encode("latin-1")))
    return tuple(fields)
