"""Asks an OpenAI-shaped stream for its usage: writes `stream_options.include_usage` into a request's body.

Pure. The member is spliced in, so that every other byte stays as the client sent it. Where it is not certain that the
client left the question open, the body is left alone:

- a path other than chat completions and completions; a body in a content coding, or one with a digest of its bytes;
- anything but a JSON object in UTF-8 without a byte order mark, whose `stream` is exactly `true`;
- `stream` or `stream_options` twice: readers disagree about which of them counts;
- `stream_options` that is neither null nor an object, or has an `include_usage` already, whatever its value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.errors import InvalidRequestError
from proxy.protocol.json_members import MemberScanner
from proxy.protocol.json_text import splice

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.errors import Field
    from proxy.protocol.json_members import JsonMembers
    from proxy.protocol.json_text import JsonText, Steps

# Also the end of `/chat/completions`.
_PATH_END: Final = b"/completions"
_BOM: Final = b"\xef\xbb\xbf"
# What says how the body's bytes are to be read, or checked (RFC 9530, and those before it).
_BINDS_BODY: Final = frozenset({b"content-encoding", b"content-digest", b"content-md5", b"digest", b"repr-digest"})
_BODY: Final = MemberScanner(("stream", "stream_options"))
_OPTIONS: Final = MemberScanner(("include_usage",))
# Vendors know two or three short options; larger ones are read a second time only to be refused.
_MAX_OPTIONS: Final = 4096
_ASK: Final = b'"include_usage":true'


def ask_usage(target: bytes, fields: Iterable[Field], body: JsonText) -> Steps[JsonText | None]:
    """Return the body with the request for usage in it; None where it is to be sent as it is.

    Yields after each piece of a large body, whose copy is in memory beside it meanwhile.
    """
    if (
        not target.partition(b"?")[0].endswith(_PATH_END)
        or body[: len(_BOM)] == _BOM
        or any(name.lower() in _BINDS_BODY for name, _ in fields)
    ):
        return None
    try:
        members = yield from _BODY.scan(body)
        if members.flag("stream") is not True or "stream_options" in members.repeated:
            return None
        added = yield from _addition(members)
    except InvalidRequestError:
        # The vendor's to judge.
        return None
    if added is None:
        return None
    start, end, text = added
    return (yield from splice(body, start, end, text))


def _addition(members: JsonMembers) -> Steps[tuple[int, int, bytes] | None]:
    """Where the body is changed, and what stands there then; None where the client has decided."""
    if "stream_options" not in members.spans:
        _, end = members.spans["stream"]
        return end, end, b',"stream_options":{' + _ASK + b"}"
    start, end = members.spans["stream_options"]
    if members.value("stream_options") is None:
        return start, end, b"{" + _ASK + b"}"
    if members.text[start : start + 1] != b"{" or end - start > _MAX_OPTIONS:
        return None
    options = members.text[start:end]
    if "include_usage" in (yield from _OPTIONS.scan(options)).spans:
        return None
    is_empty = not options[1:-1].strip(b" \t\r\n")
    return start + 1, start + 1, _ASK if is_empty else _ASK + b","
