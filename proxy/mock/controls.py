"""What a request asks of the mock beyond its vendor's API: pace, size, an error, a fault.

Pure: query members and header fields in, a `Controls` value out. Carrying them out is left to `sender`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

HEADER_PREFIX = "x-mock-"

# A day of silence outlasts every clock of a proxy under test.
MAX_WAIT_MS = 86_400_000
MAX_EVENTS = 10_000_000
MAX_SIZE_BYTES = 16 * 1024 * 1024

_WHOLE_NUMBER = re.compile(r"[0-9]{1,9}")


class RefusedError(Exception):
    """The mock will not do what it was asked; `message` goes to the client in its dialect."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Fault(StrEnum):
    """How an answer goes wrong."""

    RESET = "reset"
    STALL = "stall"
    TRUNCATE = "truncate"
    SPLIT = "split"
    GARBAGE = "garbage"
    SLOW_HEADERS = "slow_headers"
    ERROR_EVENT = "error_event"


class Newline(StrEnum):
    """How the lines of an event stream end: vendors mostly send LF, some gateways in front of Gemini CRLF."""

    LF = "lf"
    CRLF = "crlf"


@dataclass(frozen=True, slots=True)
class Controls:
    """The controls of one request; None where the mock's own choice stands.

    `events` counts pieces of text, `size` the bytes of each; `fault_after` counts the events on the wire, whatever
    is in them.
    """

    events: int | None = None
    size: int | None = None
    interval_ms: int = 0
    first_byte_ms: int = 0
    status: int | None = None
    fault: Fault | None = None
    fault_after: int = 0
    newline: Newline = Newline.LF


_RANGES = {
    "events": (0, MAX_EVENTS),
    "size": (1, MAX_SIZE_BYTES),
    "interval_ms": (0, MAX_WAIT_MS),
    "first_byte_ms": (0, MAX_WAIT_MS),
    "status": (400, 599),
    "fault_after": (0, 10 * MAX_EVENTS),
}
_CHOICES: dict[str, type[StrEnum]] = {"fault": Fault, "newline": Newline}
_NAMES = {*_RANGES, *_CHOICES}


def read_controls(query: Iterable[tuple[str, str]], fields: Iterable[tuple[str, str]], *, interval_ms: int) -> Controls:
    """Read the controls of a request from its query members and its `X-Mock-*` fields; a field wins over a member.

    Members of other names belong to the vendor's API and are left alone; a field `X-Mock-*` of an unknown name is a
    mistake. `interval_ms` is the pace where none is asked for.

    Raises:
        RefusedError: A control is unknown, given twice in one place, or out of its range (400, the client's fault).
    """
    asked = _gathered((name, value) for name, value in query if name in _NAMES)
    asked |= _gathered(
        (name[len(HEADER_PREFIX) :].replace("-", "_"), value)
        for name, value in ((name.lower(), value) for name, value in fields)
        if name.startswith(HEADER_PREFIX)
    )
    unknown = asked.keys() - _NAMES
    if unknown:
        raise RefusedError(400, f"mock control {min(unknown)!r} is unknown; there are {', '.join(sorted(_NAMES))}")
    given = {name: (_number if name in _RANGES else _choice)(name, value) for name, value in asked.items()}
    return Controls(**{"interval_ms": interval_ms, **given})


def _gathered(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The pairs as a mapping; a name given twice is refused, because either value might be the one meant."""
    gathered: dict[str, str] = {}
    for name, value in pairs:
        if name in gathered:
            raise RefusedError(400, f"mock control {name!r} is given twice")
        gathered[name] = value.strip()
    return gathered


def _number(name: str, value: str) -> Any:
    low, high = _RANGES[name]
    # A pattern, because int() also takes signs, underscores and other scripts' digits.
    if _WHOLE_NUMBER.fullmatch(value) is None or not low <= int(value) <= high:
        raise RefusedError(400, f"mock control {name!r} must be a whole number from {low} to {high}")
    return int(value)


def _choice(name: str, value: str) -> Any:
    try:
        return _CHOICES[name](value)
    except ValueError:
        raise RefusedError(400, f"mock control {name!r} must be one of {', '.join(_CHOICES[name])}") from None
