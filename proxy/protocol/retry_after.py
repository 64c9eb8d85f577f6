"""How long a vendor asks to be left alone, by the fields of its 429. Pure.

`Retry-After` (RFC 9110 §10.2.3) wins; else the reset of each of the vendor's limits that has nothing left, the longest
of them. Vendors write a reset as a duration (`1s`, `6m0s`, `20ms`: OpenAI and those that copy it), as seconds, or as a
time (Anthropic, RFC 3339).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.model import FieldIndex

_SECONDS: Final = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)", re.ASCII)
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
# Of each limit two fields: what is left, and when it is whole again.
_REMAINING: Final = (
    re.compile(r"(x-ratelimit-)remaining(-[a-z-]{1,32})", re.ASCII),
    re.compile(r"(anthropic-ratelimit-[a-z-]{1,32}-)remaining()", re.ASCII),
)
_LONGEST_VALUE: Final = 64


def rest_of(index: FieldIndex, unix_s: float) -> float | None:
    """Return the seconds until the vendor is to be asked again; None where it does not say."""
    if (milliseconds := _seconds(index.get(b"retry-after-ms"))) is not None:
        return milliseconds / 1000
    given = _text(index.get(b"retry-after"))
    if given is not None:
        seconds = _seconds(index.get(b"retry-after"))
        return _until(given, unix_s) if seconds is None else seconds
    rests = [rest for name in index if (rest := _reset(index, name.decode("latin-1"), unix_s)) is not None]
    return max(rests, default=None)


def _reset(index: FieldIndex, name: str, unix_s: float) -> float | None:
    """Return the reset of a limit whose field of what is left this is, if nothing is."""
    for pattern in _REMAINING:
        found = pattern.fullmatch(name)
        if found is not None and _seconds(index.get(name.encode())) == 0:
            return _reset_of(_text(index.get(f"{found[1]}reset{found[2]}".encode())), unix_s)
    return None


def _reset_of(text: str | None, unix_s: float) -> float | None:
    if text is None:
        return None
    if _SECONDS.fullmatch(text):
        return float(text)
    if text and not _DURATION.sub("", text):
        return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))
    return _seconds_to(datetime.fromisoformat, text, unix_s)


def _until(text: str, unix_s: float) -> float | None:
    """The seconds until an HTTP-date."""
    return _seconds_to(parsedate_to_datetime, text, unix_s)


def _seconds_to(parse: Callable[[str], datetime], text: str, unix_s: float) -> float | None:
    """The seconds until a moment, 0 where it has passed; None where the text is none."""
    try:
        moment = parse(text)
        return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - unix_s)
    except (ValueError, OverflowError):
        return None


def _seconds(value: bytes | None) -> float | None:
    text = _text(value)
    return float(text) if text is not None and _SECONDS.fullmatch(text) else None


def _text(value: bytes | None) -> str | None:
    return None if value is None or len(value) > _LONGEST_VALUE else value.decode("latin-1").strip(" \t")
