"""What is wrong with the configuration, where, and what may have been meant."""

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
    """Where a value came from: a line of the file, or (line 0) a variable or an option."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong; its text never holds a value of the file or the environment that may be secret."""

    place: SourceLocation
    key: str
    message: str
    suggestion: str | None = None

    def __str__(self) -> str:
        hint = f" (did you mean {printable(self.suggestion)}?)" if self.suggestion else ""
        return ": ".join(part for part in (str(self.place), self.key, self.message + hint) if part)


class ConfigurationError(Exception):
    """The configuration cannot be used: every fault of it, the file's by line, then those of variables and options."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(
            sorted(
                set(faults), key=lambda fault: (not fault.place.line, fault.place.line, str(fault.place), str(fault))
            )
        )
        super().__init__("\n".join(map(str, self.faults)))


def printable(text: str) -> str:
    """The text for a terminal: no control characters, not endless."""
    shown = text if len(text) <= _MAX_SHOWN_CHARACTERS else text[: _MAX_SHOWN_CHARACTERS - 1] + "…"
    return shown if shown.isprintable() else json.dumps(shown)


def dotted(location: Location) -> str:
    """The key's path as people write it: `auth.jwt[0].secret`."""
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if _PLAIN_KEY.fullmatch(step) else json.dumps(printable(step))
            text += f".{name}" if text else name
    return text


def place_of(location: Location, places: Mapping[Location, SourceLocation]) -> SourceLocation:
    """Where the key stands, or the nearest key around it: a key that is missing stands nowhere itself."""
    for length in range(len(location), -1, -1):
        if (place := places.get(location[:length])) is not None:
            return place
    return SourceLocation("configuration")


def fault_at(
    location: Location, wrong: InvalidValue, places: Mapping[Location, SourceLocation], *, is_shown: bool
) -> Fault:
    """Word a fault; `is_shown` says that the file itself shows the value, so a suggestion may be made of it."""
    suggestion = wrong.suggestion if is_shown or not wrong.echoes else None
    return Fault(place_of(location, places), dotted(location), wrong.message, suggestion)
