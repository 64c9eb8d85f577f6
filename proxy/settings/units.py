"""Parses durations, sizes, rates and addresses of the file into seconds, bytes and values.

Pure. Each reader takes a value of any type, and raises `InvalidValue` if it is not valid.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from proxy.model import Rate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_T = TypeVar("_T")

# Far from overflow in any sum.
MAX_DURATION_S = 366 * 86_400.0
MAX_SIZE_BYTES = 1 << 30

DURATION_PATTERN = r"\d{1,9}(\.\d{1,6})?(ms|s|m|h|d)"
SIZE_PATTERN = r"\d{1,12}(B|KiB|MiB|GiB)"
RATE_PATTERN = r"\d{1,9}/" + DURATION_PATTERN

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
# Common mistakes, used for suggestions only.
_DURATION_SLIPS = {
    **dict.fromkeys(("", "sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("msec", "millis", "milliseconds"), "ms"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "m"),
    **dict.fromkeys(("hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("day", "days"), "d"),
}
_SIZE_SLIPS = {
    **dict.fromkeys(("", "byte", "bytes"), "B"),
    **dict.fromkeys(("k", "kb", "ki"), "KiB"),
    **dict.fromkeys(("m", "mb", "mi"), "MiB"),
    **dict.fromkeys(("g", "gb", "gi"), "GiB"),
}
_NUMBER_AND_WORD = re.compile(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([A-Za-z]*)\s*", re.ASCII)
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*\.?", re.ASCII)
_MAX_HOST_CHARACTERS = 253
_MAX_PORT = 65_535


class InvalidValue(ValueError):  # noqa: N818 - reads as what it says: `raise InvalidValue("must be ...")`
    """A value of the file is not valid.

    The message never contains the value, which may be a secret in the wrong place. `suggestion` is what may have been
    meant; with `echoes` it was made from the value, and is shown only if the file itself shows that value.
    """

    def __init__(self, message: str, *, suggestion: str | None = None, echoes: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion
        self.echoes = echoes


def valid_or_none(read: Callable[[Any], _T], value: object) -> _T | None:
    """Return what a reader makes of a value of the file; None if it is not valid, which its field reports."""
    try:
        return read(value)
    except InvalidValue:
        return None


class Address(NamedTuple):
    """A listen address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _split(
    value: object, pattern: str, words: str, slips: Mapping[str, str], units: Mapping[str, object]
) -> tuple[str, str]:
    """Split a quantity into its number and its unit; `words` is the message where it does not match the pattern."""
    if not isinstance(value, str) or re.fullmatch(pattern, value, re.ASCII) is None:
        raise InvalidValue(words, suggestion=_slip(value, slips, units), echoes=True)
    unit = value.lstrip("0123456789.")
    return value.removesuffix(unit), unit


def _slip(value: object, slips: Mapping[str, str], units: Iterable[str]) -> str | None:
    """Return the value with the unit that was probably meant, or None."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    match = _NUMBER_AND_WORD.fullmatch(str(value))
    if match is None:
        return None
    number, word = match.groups()
    unit = slips.get(word.lower()) or next((unit for unit in units if unit.lower() == word.lower()), None)
    return None if unit is None else number + unit


def number_text(value: object) -> str:
    """Return a number as it is written in the file; the empty text for anything else."""
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""


def read_duration(value: object) -> float:
    """Read a duration (`500ms`, `10s`, `5m`, `1h`, `1d`) as seconds.

    Raises:
        InvalidValue: Not a duration, or more than 366 days.
    """
    words = "is not a duration: a number and one of ms, s, m, h, d, such as 10s"
    number, unit = _split(value, DURATION_PATTERN, words, _DURATION_SLIPS, _SECONDS)
    seconds = float(number) * _SECONDS[unit]
    if seconds > MAX_DURATION_S:
        raise InvalidValue("is longer than 366d")
    return seconds


def read_positive_duration(value: object) -> float:
    """Read a duration greater than zero.

    Raises:
        InvalidValue: Not a duration, or zero.
    """
    seconds = read_duration(value)
    if seconds <= 0:
        raise InvalidValue("must be more than 0")
    return seconds


def read_clock(value: object) -> float | None:
    """Read a positive duration, or `off` as None.

    Raises:
        InvalidValue: Neither.
    """
    if value == "off":
        return None
    if value is False or value in ("no", "none", "never", "Off", "OFF"):
        raise InvalidValue("is not a duration such as 10s, or off", suggestion="off")
    seconds = read_duration(value)
    if seconds <= 0:
        raise InvalidValue("must be more than 0", suggestion="off")
    return seconds


def read_size(value: object) -> int:
    """Read a size (`512B`, `64KiB`, `32MiB`, `1GiB`) as bytes.

    Raises:
        InvalidValue: Not a size, zero, or above 1GiB.
    """
    words = "is not a size: a whole number and one of B, KiB, MiB, GiB, such as 32MiB"
    number, unit = _split(value, SIZE_PATTERN, words, _SIZE_SLIPS, _BYTES)
    size = int(number) * _BYTES[unit]
    if not 0 < size <= MAX_SIZE_BYTES:
        raise InvalidValue("must be more than 0 and at most 1GiB")
    return size


def duration_text(seconds: float | None) -> str:
    """The duration as it would stand in the file, in its largest whole unit; None is `off`."""
    if seconds is None:
        return "off"
    units = reversed(_SECONDS.items())
    unit, size = next(((unit, size) for unit, size in units if size >= 1 and seconds and seconds % size == 0), ("s", 1))
    return f"{seconds / size:g}{unit}"


def size_text(size: int) -> str:
    """The size as it would stand in the file, in its largest whole unit."""
    unit, factor = next((unit, factor) for unit, factor in reversed(_BYTES.items()) if size % factor == 0)
    return f"{size // factor}{unit}"


def read_rate(value: object, *, what: str = "request", example: str = "60/10s") -> Rate:
    """Read a rate: `60/10s` is 60 requests at once, refilled by 60 every 10 seconds.

    Args:
        value: As YAML read it.
        what: What it is a rate of, in the singular, for the message.
        example: A right value, for the message.

    Raises:
        InvalidValue: Not a rate, or one that admits nothing.
    """
    if not isinstance(value, str) or re.fullmatch(RATE_PATTERN, value, re.ASCII) is None:
        quota, slash, window = value.partition("/") if isinstance(value, str) else ("", "", "")
        unit = window.strip()
        per_one = quota.strip().isdecimal() and slash and unit in _SECONDS
        raise InvalidValue(
            f"is not a rate: a number of {what}s, a slash, a window, such as {example}",
            suggestion=f"{quota.strip()}/1{unit}" if per_one else None,
            echoes=True,
        )
    quota, _, window = value.partition("/")
    if int(quota) < 1:
        raise InvalidValue(f"must admit at least one {what}")
    return Rate(int(quota), read_positive_duration(window))


def is_host(text: str) -> bool:
    """Whether the text is an IP address (no brackets, no zone) or a host name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        # Some resolvers accept invalid addresses of digits and dots (`127.1`, `256.0.0.1`).
        is_numeric = re.fullmatch(r"[0-9.]+|0[xX].*", text) is not None
        return not is_numeric and len(text) <= _MAX_HOST_CHARACTERS and _HOST_NAME.fullmatch(text) is not None
    return "%" not in text


def read_address(value: object) -> Address:
    """Read `HOST:PORT`, an IPv6 address in brackets; with port 0 the system chooses a free port.

    Raises:
        InvalidValue: Not an address.
    """
    message = "is not HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080"
    if isinstance(value, int) and not isinstance(value, bool):
        raise InvalidValue(message, suggestion=f"0.0.0.0:{value}", echoes=True)
    if not isinstance(value, str):
        raise InvalidValue(message)
    host, colon, port = value.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host, is_bracketed = host[1:-1], True
    else:
        is_bracketed = False
    if not colon or not port.isascii() or not port.isdecimal() or int(port[:6]) > _MAX_PORT:
        raise InvalidValue(message)
    if not host:
        raise InvalidValue(message, suggestion=f"0.0.0.0:{port}", echoes=True)
    if is_bracketed != (":" in host) or not is_host(host):
        raise InvalidValue(message)
    return Address(host, int(port))
