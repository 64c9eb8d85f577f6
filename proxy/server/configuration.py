"""What `GET /admin/config` tells: the configuration in force without its secrets, and what the last reload came to.

With several workers a faulty file is refused by the arbiter, before any worker reads it. It leaves a note of that in
the directory that they share, for whichever worker is asked.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.settings.loading import ConfigurationError
from proxy.settings.shown import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from proxy.observability.logging import Redactor
    from proxy.settings import Settings

_NOTE: Final = "reload.json"
# Faults of a file that is no configuration at all.
_MAX_FAULTS: Final = 100


class ConfigurationStatus:
    """One worker's configuration, since when it is in force, and its last reload."""

    def __init__(self, redactor: Redactor, directory: Path | None = None) -> None:
        """`directory` is where the arbiter leaves its note; None where there is none."""
        self._redactor = redactor
        self._directory = directory
        self._loaded_s = time.time()
        self._last: dict[str, Any] | None = None
        # Of a worker that starts later: what was refused before is not about what it runs.
        self._seen_s = self._loaded_s

    def loaded(self, needs_restart: Sequence[str]) -> None:
        """A file was read again, and is in force but for the keys that need a restart."""
        self._loaded_s = time.time()
        self._last = _result(self._loaded_s, "ok", needs_restart=needs_restart)

    def refused(self, exc: ConfigurationError | OSError) -> None:
        """A file was refused; nothing has changed."""
        self._last = _result(time.time(), "failed", faults=faults_of(exc))

    def report(self, settings: Settings) -> dict[str, Any]:
        """As JSON values; the configured secrets are searched for once more."""
        last = self._last
        note = None if self._directory is None else _read_note(self._directory)
        if note is not None and note["at_s"] > max(self._seen_s, last["at_s"] if last else 0.0):
            last = note
        told = {
            "config": shown(settings),
            "loaded_at": _moment(self._loaded_s),
            "last_reload": None if last is None else _told(**last),
        }
        report: dict[str, Any] = orjson.loads(self._redactor.redact(orjson.dumps(told)))
        return report


def note_refused(directory: Path, exc: ConfigurationError | OSError, *, now: Callable[[], float] = time.time) -> None:
    """Leave a note for the workers that a file was refused; without one where the disk is full."""
    new = directory / f"{_NOTE}.new"
    with contextlib.suppress(OSError):
        # The directory is its owner's alone.
        new.write_bytes(orjson.dumps(_result(now(), "failed", faults=faults_of(exc))))
        new.replace(directory / _NOTE)


def faults_of(exc: ConfigurationError | OSError) -> list[str]:
    """Every fault of a file that was refused; none has a value of it."""
    return [str(fault) for fault in exc.faults] if isinstance(exc, ConfigurationError) else [str(exc)]


def _result(
    at_s: float, result: str, *, needs_restart: Sequence[str] = (), faults: Sequence[str] = ()
) -> dict[str, Any]:
    return {
        "at_s": at_s,
        "result": result,
        "needs_restart": list(needs_restart),
        "faults": list(faults[:_MAX_FAULTS]),
    }


def _read_note(directory: Path) -> dict[str, Any] | None:
    try:
        note = orjson.loads((directory / _NOTE).read_bytes())
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None


def _told(at_s: float, **result: Any) -> dict[str, Any]:
    return {"at": _moment(at_s), **result}


def _moment(at_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))
