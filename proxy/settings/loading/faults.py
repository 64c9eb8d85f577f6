"""Faults of the configuration: location, message, suggestion."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from proxy.settings import InvalidValue

Location = tuple[str | int, ...]
SourceLocations = dict[Location, "SourceLocation"]

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """The source of a value: a line of the file, or (line 0) a variable or an option."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of the configuration; its text never contains a value that may be secret."""

    place: SourceLocation
    key: str
    message: str
    suggestion: str | None = None

    def __str__(self) -> str:
        hint = f" (did you mean {printable(self.suggestion)}?)" if self.suggestion else ""
        return ": ".join(part for part in (str(self.place), self.key, self.message + hint) if part)


class ConfigurationError(Exception):
    """The configuration is not valid: all faults, those of the file by line, then of variables and options."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(
            sorted(
                set(faults), key=lambda fault: (not fault.place.line, fault.place.line, str(fault.place), str(fault))
            )
        )
        super().__init__("\n".join(map(str, self.faults)))


def printable(text: str) -> str:
    """Escape control characters and truncate a text, for a terminal."""
    shown = text if len(text) <= _MAX_SHOWN_CHARACTERS else text[: _MAX_SHOWN_CHARACTERS - 1] + "…"
    return shown if shown.isprintable() else json.dumps(shown)


def dotted(location: Location) -> str:
    """Format a key's location: `auth.jwt[0].secret`."""
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if _PLAIN_KEY.fullmatch(step) else json.dumps(printable(step))
            text += f".{name}" if text else name
    return text


def place_of(location: Location, places: Mapping[Location, SourceLocation]) -> SourceLocation:
    """Return the source of a key; of a missing key that of the nearest one around it."""
    for length in range(len(location), -1, -1):
        if (place := places.get(location[:length])) is not None:
            return place
    return SourceLocation("configuration")


def fault_at(
    location: Location, wrong: InvalidValue, places: Mapping[Location, SourceLocation], *, is_shown: bool
) -> Fault:
    """Make a fault; with `is_shown` the file itself shows the value, so a suggestion may contain it."""
    suggestion = wrong.suggestion if is_shown or not wrong.echoes else None
    return Fault(place_of(location, places), dotted(location), wrong.message, suggestion)
