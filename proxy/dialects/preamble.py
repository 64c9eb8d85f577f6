"""What a stream's first events are: the vendor's preamble, output, or an error. Pure; by each dialect's `judge`.

HTTP 200 is not success: vendors send `response.created`, a role, pings and empty lists of choices, and then an error.
*Output* is whatever a user would see or pay for, and the end of an answer. What is not known is output where it holds
one of the members that hold answers, so that no answer is held back for long; else it is preamble.

An error that says that the request itself is at fault is output, too: every vendor would say the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from proxy.dialects.typed.reader import ANSWERS

if TYPE_CHECKING:
    from proxy.dialects.base import Dialect
    from proxy.protocol.event_stream import Event

Verdict = Literal["nothing", "preamble", "output", "error"]

_DONE: Final = b"[DONE]"
_CLIENT_ERRORS: Final = range(400, 500)
# The key's, or the vendor's own affair, although they are 4xx.
_NOT_THE_REQUESTS: Final = frozenset({401, 402, 403, 408, 409, 425, 429})


def judge(dialect: Dialect, event: Event) -> Verdict:
    """Return what an event is. `nothing`: a ping, or an event without data."""
    data = event.data.strip()
    if not data or data == _DONE:
        return "nothing"
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return "output"
    return dialect.judge(event.name, value) if isinstance(value, dict) else "output"


def is_request_status(code: object) -> bool:
    """Whether a code is an HTTP status by which the request itself is at fault."""
    if isinstance(code, str) and code.isascii() and code.isdecimal() and len(code) == len("400"):
        code = int(code)
    return isinstance(code, int) and code in _CLIENT_ERRORS and code not in _NOT_THE_REQUESTS


def error_verdict(is_requests_own: object) -> Verdict:
    """Return what an error is: output where the request itself is at fault."""
    return "output" if is_requests_own else "error"


def unknown_verdict(value: dict[str, Any]) -> Verdict:
    """Return what an event of an unknown shape is: output where it holds a member of an answer."""
    return "output" if any(value.get(name) for name in ANSWERS) else "preamble"
