"""The envelope: a request described by the members of a JSON object.

Pure. A member that routing reads may occur once, in any spelling. Unknown members are ignored, and of a vendor's body
only `model` is checked.

docs/behaviour.md#routing has what each member may be. Besides: a member that is null counts as absent; header names
begin with a letter or a digit, header values are ASCII, no name occurs twice.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from proxy.errors import InvalidRequestError
from proxy.protocol.header_fields import fold
from proxy.protocol.json_members import JsonMembers, MemberScanner
from proxy.protocol.json_text import PIECE_BYTES, NotTextError, compact, decode_string, encode_string

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.errors import Field
    from proxy.protocol.json_text import JsonText, Steps

# Methods that an entry of `envelope.targets` may list, and its default.
METHODS: Final = ("get", "post", "put", "patch", "delete")
DEFAULT_METHODS: Final = frozenset({"GET", "POST"})

_ENVELOPE_MEMBERS: Final = ("targetUrl", "method", "body", "header", "passcode", "model")
_SCANNER: Final = MemberScanner((*_ENVELOPE_MEMBERS, "stream"))
_TARGET_URL: Final = b'"targetUrl"'
# JSON may escape letters (`\u0041`): only then is a member's name in the body without its own bytes.
_BACKSLASH: Final = ord("\\")  # an integer, so that one call finds it
_SPELLED_LETTER: Final = re.compile(rb"\\u00[4-7]")
# Up to this size orjson is faster than the scanner, and the parsed document is small.
_PARSED_BYTES: Final = 64 * 1024
# Bounds on members that are decoded whole. Models and URLs are validated elsewhere.
_MAX_MODEL_TEXT: Final = 4096
_MAX_TEXT: Final = 64 * 1024
_MAX_HEADER_TEXT: Final = 256 * 1024

# RFC 9110 §5.6.2. No header in use begins with anything but a letter or a digit; `__proto__` would harm
# a server that stores the fields in a JavaScript object.
_NAME: Final = re.compile(r"[0-9A-Za-z][!#$%&'*+.^_`|~0-9A-Za-z-]{0,255}", re.ASCII)
# RFC 9110 §5.5 without obs-text: servers decode bytes beyond ASCII differently.
_VALUE: Final = re.compile(r"[\t\x20-\x7e]{0,8192}")
# The bounds of a request's own header fields.
_MAX_FIELDS: Final = 100
_MAX_FIELDS_BYTES: Final = 65_536
# A cloud's metadata server returns the machine's credentials only to requests with these; nobody else needs them.
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
    """The request of an envelope: `body` is what will be sent, `fields` are its `header`, not yet filtered.

    `has_json_body`: `body` was a JSON value other than a string, so its `Content-Type` is known.
    """

    target_url: str
    method: str
    body: bytes | bytearray = field(repr=False)
    fields: tuple[Field, ...] = field(repr=False)
    passcode: str | None = field(default=None, repr=False)
    has_json_body: bool = False


class RoutingMembers(NamedTuple):
    """The members that routing needs: `envelope` is None for a vendor's body, which the others describe.

    `stream` is None if the body has no such member, no boolean, or two of them.
    """

    model: str | None = None
    stream: bool | None = None
    envelope: JsonMembers | None = None


def parse_plain(text: JsonText, *, envelopes: bool = False) -> dict[str, Any] | None:
    """Parse a small vendor's body at once; None where only `read_body` can tell what it is.

    It is a strict JSON object without `targetUrl`, and its `model`, if it has one, is one string in every reading.
    With `envelopes` one is looked for before the body is parsed, because where they are served, many bodies are some.
    """
    if len(text) > _PARSED_BYTES or (envelopes and _TARGET_URL in text):
        return None
    if text.count(b'"model"') > 1 or _spells_letters(text):
        return None
    try:
        members = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(members, dict) or "targetUrl" in members:
        return None
    model = members.get("model")
    return members if model is None or isinstance(model, str) else None


def read_body(text: JsonText) -> Steps[RoutingMembers]:
    """Read the routing members of a request's body, in pieces.

    A small body is parsed by orjson; one that is large, an envelope, or not strict JSON is scanned.

    Raises:
        InvalidRequestError: It is no JSON object, `model` is no name, or a member that routing reads is ambiguous.
    """
    plain = parse_plain(text)
    if plain is not None and text.count(b'"stream"') <= 1:
        stream = plain.get("stream")
        return RoutingMembers(plain.get("model"), stream if isinstance(stream, bool) else None)
    members = yield from _SCANNER.scan(text)
    if "targetUrl" in members.spans:
        _refuse_repeated(members)
        return RoutingMembers(envelope=members)
    if "model" in members.repeated:
        raise InvalidRequestError("The body gives the member model twice.")
    return RoutingMembers(_text(members, "model", _MAX_MODEL_TEXT), members.flag("stream"))


def find_envelope(text: JsonText) -> Steps[JsonMembers | None]:
    """Find the members of an envelope; None if the body is anything else, JSON or not.

    A body without `targetUrl` costs one search over its bytes.

    Raises:
        InvalidRequestError: The body is an object with `targetUrl` that is ambiguous.
    """
    is_possible = yield from _may_be_envelope(text)
    if not is_possible:
        return None
    try:
        members = yield from _SCANNER.scan(text)
    except InvalidRequestError:
        return None
    if "targetUrl" not in members.spans:
        return None
    _refuse_repeated(members)
    return members


def read_passcode(members: JsonMembers) -> str | None:
    """Return an envelope's `passcode`, None if it has none or it is no string.

    Raises:
        InvalidRequestError: It is malformed, or longer than any credential.
    """
    value = members.value("passcode") if members.size("passcode") <= _MAX_TEXT else b""
    return None if value is None or value[:1] != b'"' else _text(members, "passcode")


def parse_envelope(members: JsonMembers) -> Steps[Envelope]:
    """Parse and validate the members of an envelope.

    Raises:
        InvalidRequestError: A member has the wrong type, or `header` is not valid in a request. The message names
            the member.
    """
    target_url = _text(members, "targetUrl")
    if target_url is None:
        raise InvalidRequestError("targetUrl must be a string.")
    passcode = _text(members, "passcode")
    method = _method(_text(members, "method", message=_METHOD_MESSAGE))
    fields = _fields(_header(members))
    if method == "GET":
        return Envelope(target_url, method, b"", fields, passcode)
    body, has_json_body = yield from _body(members)
    return Envelope(target_url, method, body, fields, passcode, has_json_body)


def _spells_letters(text: JsonText) -> bool:
    # Each test is much cheaper than the next, and rarely true.
    return _BACKSLASH in text and text.find(b"\\u00") >= 0 and _SPELLED_LETTER.search(text) is not None


def _may_be_envelope(text: JsonText) -> Steps[bool]:
    """Whether the name `targetUrl` occurs anywhere in the text, escaped or not."""
    for start in range(0, len(text), PIECE_BYTES):
        # Pieces overlap by the longest pattern.
        stop = start + PIECE_BYTES + len(_TARGET_URL)
        if text.find(_TARGET_URL, start, stop) >= 0 or (
            text.find(b"\\u00", start, stop) >= 0 and _SPELLED_LETTER.search(text, start, stop) is not None
        ):
            return True
        if stop < len(text):
            yield
    return False


def _refuse_repeated(members: JsonMembers) -> None:
    for name in _ENVELOPE_MEMBERS:
        if name in members.repeated:
            raise InvalidRequestError(f"The body gives the member {name} twice.")


def _text(members: JsonMembers, name: str, max_bytes: int = _MAX_TEXT, *, message: str = "") -> str | None:
    """Return a member that must be a string; None if it is absent or null."""
    if members.size(name) > max_bytes:
        raise InvalidRequestError(f"{name} is too long.")
    value = members.value(name)
    if value is None:
        return None
    if value[:1] != b'"':
        raise InvalidRequestError(message or f"{name} must be a string.")
    try:
        return decode_string(value)
    except NotTextError:
        raise InvalidRequestError(f"{name} is not a valid JSON string.") from None


_METHOD_MESSAGE: Final = f"method must be {', '.join(METHODS[:-1])} or {METHODS[-1]}."


def _method(value: str | None) -> str:
    if value is None:
        return "POST"
    # Not `upper`: some letters beyond ASCII have ASCII capitals.
    if not value.isascii() or value.lower() not in METHODS:
        raise InvalidRequestError(_METHOD_MESSAGE)
    return value.upper()


def _body(members: JsonMembers) -> Steps[tuple[JsonText, bool]]:
    """Return the bytes to send for `body`, and whether they are known to be JSON."""
    start, end = members.spans.get("body", (0, 0))
    text = members.text
    if start == end or text[start : min(end, start + 5)] == b"null":
        return b"", False
    if text[start] != ord('"'):
        body = yield from compact(text, start, end)
        return body, True
    try:
        body = yield from encode_string(text, start + 1, end - 1)
    except NotTextError:
        raise InvalidRequestError("body holds half a surrogate pair, or an escape that JSON does not have.") from None
    return body, False


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as the list of its members; a type of its own, to distinguish it from an array."""


def _header(members: JsonMembers) -> _Pairs:
    """Parse `header`, an object or a string that holds one; numbers keep their JSON text."""
    if members.size("header") > _MAX_HEADER_TEXT:
        raise InvalidRequestError("header is too large.")
    text: JsonText | str | None = members.value("header")
    if text is not None and text[:1] == b'"':
        text = _text(members, "header", _MAX_HEADER_TEXT)
    if not text:
        return _Pairs()
    try:
        header = json.loads(text, object_pairs_hook=_Pairs, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        raise InvalidRequestError("header is not valid JSON.") from None
    if not isinstance(header, _Pairs):
        raise InvalidRequestError("header must be a JSON object, or one as a string.")
    return header


def _fields(header: Iterable[tuple[str, Any]]) -> tuple[Field, ...]:
    fields: list[Field] = []
    seen: set[bytes] = set()
    room = _MAX_FIELDS_BYTES
    for name, given in header:
        if _NAME.fullmatch(name) is None:
            raise InvalidRequestError("header holds a name that no field can have.")
        if given is None:
            continue
        value = {True: "true", False: "false"}[given] if isinstance(given, bool) else given
        if not isinstance(value, str):
            raise InvalidRequestError(f"The member {name} of header must be a string, a number or a boolean.")
        if _VALUE.fullmatch(value) is None:
            raise InvalidRequestError(f"The member {name} of header has a value that no field can have.")
        room -= len(name) + len(value)
        raw_name = name.encode()
        folded = fold(raw_name)
        if folded in seen or len(seen) == _MAX_FIELDS or room < 0:
            raise InvalidRequestError("header gives a field twice, or too many of them.")
        seen.add(folded)
        if folded not in _METADATA_SWITCHES:
            fields.append((raw_name, value.strip(" \t").encode()))
    return tuple(fields)
