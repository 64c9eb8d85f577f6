"""JSON bodies, as far as routing must read them, and the envelope: a request described by JSON.

Pure. Strict where a second reader might read something else: the members that decide anything may stand there once,
nesting is bounded, NaN and half surrogates are refused. What decides nothing is not judged: unknown members are
ignored, and what a vendor body says besides `model` is the vendor's to read.

Decided here, where the contract leaves room: a member that is null counts as absent; a body with the method `get` is
refused; header names must begin with a letter or a digit, header values are ASCII, no name is given twice.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.errors import InvalidRequestError
from proxy.protocol.fields import fold

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxy.errors import Field

_ENVELOPE_MEMBERS: Final = ("targetUrl", "method", "body", "header", "passcode", "model")
_QUOTED: Final = tuple(b'"%b"' % name.encode() for name in _ENVELOPE_MEMBERS)
# Letters can be spelled `\u0041`: only then can a member's name stand in the body without its own bytes.
_SPELLED_LETTER: Final = re.compile(rb"\\u00[4-7]")

# RFC 9110 §5.6.2. A first character that is neither letter nor digit is no header's name in use, but a trap
# (`__proto__`) for whoever puts the fields into an object.
_NAME: Final = re.compile(r"[0-9A-Za-z][!#$%&'*+.^_`|~0-9A-Za-z-]{0,255}", re.ASCII)
# RFC 9110 §5.5 without obs-text: beyond ASCII nobody agrees on the bytes.
_VALUE: Final = re.compile(r"[\t\x20-\x7e]{0,8192}")
# As many fields, and as much of them, as a request itself may have.
_MAX_FIELDS: Final = 100
_MAX_FIELDS_BYTES: Final = 65_536
# What makes a GET at a cloud's metadata address give away the machine's credentials; of no use to anybody else.
_METADATA_SWITCHES: Final = frozenset(
    {
        b"metadata",
        b"metadata-flavor",
        b"x-aws-ec2-metadata-token",
        b"x-aws-ec2-metadata-token-ttl-seconds",
        b"x-google-metadata-request",
    }
)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an envelope asks for: `body` is what will be sent, `fields` what its `header` said, not yet cleaned.

    `has_json_body` is true where the body was given as an object, so that we know what it is.
    """

    target_url: str
    method: str
    body: bytes = field(repr=False)
    fields: tuple[Field, ...] = field(repr=False)
    passcode: str | None = field(default=None, repr=False)
    has_json_body: bool = False


def read_json_object(body: bytes) -> dict[str, Any]:
    """Read a body as a JSON object, in which the members that routing reads stand at most once.

    One pass in C over the body and a few searches; a second, slower pass over those rare bodies in which such a name
    occurs more than once, at whatever depth, or in which letters are spelled by their numbers.

    Raises:
        InvalidRequestError: not UTF-8, not JSON, not an object, nested too deeply, or ambiguous.
    """
    members = _load(body)
    if "targetUrl" in members:
        if _spells_letters(body) or any(body.count(name) > 1 for name in _QUOTED):
            _refuse_repeated(_member_names(body), _ENVELOPE_MEMBERS)
    elif body.count(b'"model"') > 1 or _spells_letters(body):
        _refuse_repeated(_member_names(body), ("model",))
    return members


def find_envelope(body: bytes) -> dict[str, Any] | None:
    """The body as an object where it is an envelope, None where it is anything else, JSON or not.

    Costs one search over a body that is none.

    Raises:
        InvalidRequestError: an object with `targetUrl` that is ambiguous.
    """
    if b'"targetUrl"' not in body and not _spells_letters(body):
        return None
    try:
        members = _load(body)
    except InvalidRequestError:
        return None
    return read_json_object(body) if "targetUrl" in members else None


def parse_envelope(members: dict[str, Any]) -> Envelope:
    """Read the members of an envelope, as `read_json_object` gave them.

    Raises:
        InvalidRequestError: a member of the wrong kind, or a header that no request can have.
    """
    target_url = members.get("targetUrl")
    if not isinstance(target_url, str):
        raise InvalidRequestError("targetUrl must be a string.")
    passcode = members.get("passcode")
    if passcode is not None and not isinstance(passcode, str):
        raise InvalidRequestError("passcode must be a string.")
    method = _method(members.get("method"))
    content = members.get("body")
    body = _body(content)
    if method == "GET" and body:
        raise InvalidRequestError("An envelope with the method get has no body.")
    return Envelope(target_url, method, body, _fields(members.get("header")), passcode, isinstance(content, dict))


def _spells_letters(body: bytes) -> bool:
    # The first test is much cheaper, and seldom true.
    return body.find(b"\\u00") >= 0 and _SPELLED_LETTER.search(body) is not None


def _load(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        # `from None`: the cause holds the whole body, and would take it into a traceback.
        raise InvalidRequestError("The body is not valid JSON.") from None
    if not isinstance(value, dict):
        raise InvalidRequestError("The body is not a JSON object.")
    return value


def _member_names(text: bytes | str) -> list[str]:
    """The names of an object's own members, repeated ones as often as they stand there."""
    return [name for name, _ in _pairs(text)]


def _pairs(text: bytes | str) -> Sequence[tuple[str, Any]]:
    try:
        # Numbers are of no interest here, and Python's own integers cost more than linear time to read. Every object
        # becomes the list of its members: the outermost is what is returned.
        value = json.loads(text, object_pairs_hook=_Members, parse_int=float)
    except (ValueError, RecursionError):
        raise InvalidRequestError("The body is not valid JSON.") from None
    if not isinstance(value, _Members):
        raise InvalidRequestError("header must be a JSON object, or one as a string.")
    return value


class _Members(list[tuple[str, Any]]):
    """An object as the list of its members; a class of its own, to be told from an array."""


def _refuse_repeated(names: Iterable[str], once: Iterable[str]) -> None:
    counted = list(names)
    for name in once:
        if counted.count(name) > 1:
            raise InvalidRequestError("The body gives a member twice.")


def _method(value: object) -> str:
    if value is None:
        return "POST"
    if not isinstance(value, str) or value.lower() not in {"get", "post"}:
        raise InvalidRequestError("method must be get or post.")
    return value.upper()


def _body(value: object) -> bytes:
    if value is None:
        return b""
    if isinstance(value, dict):
        try:
            return orjson.dumps(value)
        except orjson.JSONEncodeError:
            raise InvalidRequestError("body cannot be written as JSON.") from None
    if not isinstance(value, str):
        raise InvalidRequestError("body must be a string or an object.")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("body holds half a surrogate pair.") from None


def _fields(header: object) -> tuple[Field, ...]:
    pairs: Iterable[tuple[str, Any]]
    if header is None or header == "":
        return ()
    if isinstance(header, str):
        if len(header) > 2 * _MAX_FIELDS_BYTES:
            raise InvalidRequestError("header is too large.")
        pairs = _pairs(header)
    elif isinstance(header, dict):
        pairs = header.items()
    else:
        raise InvalidRequestError("header must be a JSON object, or one as a string.")
    fields: list[Field] = []
    seen: set[bytes] = set()
    room = _MAX_FIELDS_BYTES
    for name, value in pairs:
        if _NAME.fullmatch(name) is None:
            raise InvalidRequestError("header holds a name that no field can have.")
        if not isinstance(value, str) or _VALUE.fullmatch(value) is None:
            raise InvalidRequestError("header holds a value that no field can have.")
        room -= len(name) + len(value)
        raw_name = name.encode()
        folded = fold(raw_name)
        if folded in seen or len(seen) == _MAX_FIELDS or room < 0:
            raise InvalidRequestError("header gives a field twice, or too many of them.")
        seen.add(folded)
        if folded not in _METADATA_SWITCHES:
            fields.append((raw_name, value.strip(" \t").encode()))
    return tuple(fields)
