"""The configuration file to `Settings`: YAML, variables, secrets in files, overrides; every fault, with its line.

The file is read once; what cannot be had (a variable, a secret) is told once and never guessed at. No text of a fault
holds a value that may be secret. `proxy.settings` says what the values mean.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from proxy.settings.loading import marked_yaml
from proxy.settings.loading.egress import ignored_proxies
from proxy.settings.loading.environment import CONFIG_VARIABLE, Overrides, merge
from proxy.settings.loading.faults import ConfigurationError, Fault, Location, SourceLocation, SourceLocations, fault_at
from proxy.settings.loading.marked_yaml import Missing
from proxy.settings.loading.schema import json_schema
from proxy.settings.loading.substitution import Substitution, variables_in
from proxy.settings.model import FAULT, UNKNOWN_KEY
from proxy.settings.server import Settings
from proxy.settings.units import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DEFAULT_PATH",
    "ConfigurationError",
    "Fault",
    "SourceLocation",
    "ignored_proxies",
    "json_schema",
    "load",
    "load_settings",
    "path_of",
]

DEFAULT_PATH = Path("config/proxy.yaml")


def path_of(option: Path | None, environ: Mapping[str, str]) -> Path:
    """Which file is meant: the option's, else `$FORWARD_SSE_CONFIG`, else `config/proxy.yaml`."""
    return option or Path(environ.get(CONFIG_VARIABLE) or DEFAULT_PATH)


def load_settings(path: str | Path, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the configuration file, with its variables, secrets in files and `FORWARD_SSE_…` overrides.

    Reads files and nothing else, so it can be called before an event loop runs. `environ` takes the place of
    `os.environ`.

    Raises:
        ConfigurationError: the file cannot be read, or something in it is wrong; its text has every fault, one a line.
    """
    return load(Path(path), os.environ if environ is None else environ)


def load(path: Path, environ: Mapping[str, str], overrides: Mapping[str, object] | None = None) -> Settings:
    """Read the file, lay the environment's overrides and then the given ones (of the command line) on it.

    Reads the file, and those that `file:` names, and nothing else: `environ` is the only environment.

    Raises:
        ConfigurationError: Something is wrong; it has every fault.
    """
    document = marked_yaml.read(path)
    mentioned = variables_in(document.values)
    substitution = Substitution(document.places)
    values = substitution.variables(document.values, environ)
    variables = Overrides(environ, mentioned)
    merge(values, variables.values, document.places, variables.place)
    merge(values, overrides or {}, document.places, lambda location: SourceLocation(f"--{location[0]}"))
    values = substitution.secrets(values)
    faults = [*document.faults, *substitution.faults, *variables.faults]
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        shown_places = {place.source for place in document.places.values() if place.line}
        faults += _faults(error, values, document.places, shown_places, substitution.touched)
        raise ConfigurationError(faults) from None  # pydantic's error holds what it was given
    if faults:
        raise ConfigurationError(faults)
    settings.note_files(substitution.files)
    return settings


def _faults(
    error: ValidationError, values: Mapping[str, Any], places: SourceLocations, files: set[str], touched: set[Location]
) -> list[Fault]:
    """The model's faults with their places, without those that only follow from a value that could not be had."""
    faults = []
    for details in error.errors(include_url=False, include_input=False):
        context = details["ctx"]
        assert details["type"] == FAULT
        wrong = InvalidValue(context["message"], suggestion=context["suggestion"] or None, echoes=context["echoes"])
        location = _existing(details["loc"], values)
        if wrong.message != UNKNOWN_KEY and _is_unknowable(location, values):
            continue
        place = places.get(location)
        is_shown = place is not None and place.source in files and location not in touched
        faults.append(fault_at(location, wrong, places, is_shown=is_shown))
    return faults


def _existing(location: Location, values: Any) -> Location:
    """The location without an index into a single value: one string where a list may stand is not written `[0]`."""
    for depth, step in enumerate(location):
        if isinstance(step, int) and not isinstance(values, list):
            return location[:depth]
        values = _child(values, step)
    return location


def _is_unknowable(location: Location, values: Any) -> bool:
    for step in location:
        values = _child(values, step)
    return isinstance(values, Missing)


def _child(values: Any, step: str | int) -> Any:
    """What stands one step below; below an unknowable value all is unknowable."""
    if isinstance(values, dict):
        return values.get(str(step))
    if isinstance(values, list):
        return values[step] if isinstance(step, int) and step < len(values) else None
    return values if isinstance(values, Missing) else None
