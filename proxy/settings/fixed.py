"""The keys of the file that a process reads once, at its start."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from proxy.settings import Settings

# A reload that changes one of them reports it and leaves it.
FIXED_KEYS: Final = (
    *("listen", "admin_listen", "workers", "limits", "log", "telemetry"),
    *("usage.ledger", "usage.spool", "usage.sync", "usage.budget_timezone"),
)


def changed_fixed(settings: Settings, running: Settings) -> list[str]:
    """The `FIXED_KEYS` in which the settings differ from those that the process runs with."""
    return [key for key in FIXED_KEYS if attrgetter(key)(settings) != attrgetter(key)(running)]


def keep_fixed(settings: Settings, running: Settings) -> Settings:
    """The settings with the `FIXED_KEYS` of those that the process was started with."""
    fixed: dict[str, dict[str, Any]] = {"": {}, "usage": {}}
    for key in FIXED_KEYS:
        part, _, name = key.rpartition(".")
        fixed[part][name] = attrgetter(key)(running)
    return settings.model_copy(update=fixed[""] | {"usage": settings.usage.model_copy(update=fixed["usage"])})
