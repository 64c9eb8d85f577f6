"""Loads the configuration file into `Settings`: YAML, variables, secrets in files, overrides; all faults with lines.

The file is read once; a missing variable or secret is reported once. No fault contains a value that may be secret.
`proxy.settings` has the models.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from proxy.settings.loading import marked_yaml
from proxy.settings.loading.egress import read_variables
from proxy.settings.loading.environment import CONFIG_VARIABLE, Overrides, merge
from proxy.settings.loading.faults import (
    ConfigurationError,
    Fault,
    Location,
    SourceLocation,
    SourceLocations,
    fault_at,
    place_of,
)
from proxy.settings.loading.marked_yaml import Document, Missing
from proxy.settings.loading.otel import read_variables as otel_variables
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
    "json_schema",
    "load",
    "load_settings",
    "path_of",
    "source_of",
]

DEFAULT_PATH = Path("config/proxy.yaml")


def path_of(option: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the path of the file: the option's, else `$FORWARD_SSE_CONFIG`, else `config/proxy.yaml`."""
    return option or Path(environ.get(CONFIG_VARIABLE) or DEFAULT_PATH)


def load_settings(path: str | Path, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the configuration file, with its variables, secrets in files and `FORWARD_SSE_…` overrides.

    Blocks, reads files only, and needs no event loop. `environ` replaces `os.environ`.

    Raises:
        ConfigurationError: the file cannot be read or is not valid; its text has every fault, one on each line.
    """
    return load(Path(path), os.environ if environ is None else environ)


def load(path: Path, environ: Mapping[str, str], overrides: Mapping[str, object] | None = None) -> Settings:
    """Read the file, and override it by the environment, then by the given overrides (of the command line).

    Reads only the file and those that `file:` names; `environ` is the only environment.

    Raises:
        ConfigurationError: The configuration is not valid; it has every fault.
    """
    document = marked_yaml.read(path)
    substitution = Substitution(document.places)
    values, variables = _merged(document, substitution, environ, overrides)
    values = substitution.secrets(values)
    faults = [*document.faults, *substitution.faults, *variables.faults]
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        shown_places = {place.source for place in document.places.values() if place.line}
        faults += _faults(error, values, document.places, shown_places, substitution.touched)
        raise ConfigurationError(faults) from None  # pydantic's error contains its input
    if faults:
        raise ConfigurationError(faults)
    proxies, faults = read_variables(settings, environ)
    otel, of_otel = otel_variables(settings, environ, document.places)
    if faults or of_otel:
        raise ConfigurationError([*faults, *of_otel])
    settings.note(substitution.files, proxies, otel)
    return settings


def source_of(location: Location, path: Path, environ: Mapping[str, str]) -> SourceLocation:
    """Return where a key of a file that `load` has read was given, for a fault that shows only when it is used.

    Raises:
        ConfigurationError: The file was changed meanwhile, and cannot be read.
    """
    document = marked_yaml.read(path)
    _merged(document, Substitution(document.places), environ, None)
    return place_of(location, document.places)


def _merged(
    document: Document, substitution: Substitution, environ: Mapping[str, str], overrides: Mapping[str, object] | None
) -> tuple[dict[str, Any], Overrides]:
    """Return the file's values with variables and overrides in them; the document's places are those of the values."""
    values = substitution.variables(document.values, environ)
    variables = Overrides(environ, variables_in(document.values))
    merge(values, variables.values, document.places, variables.place)
    merge(values, overrides or {}, document.places, lambda location: SourceLocation(f"--{location[0]}"))
    return values, variables


def _faults(
    error: ValidationError, values: Mapping[str, Any], places: SourceLocations, files: set[str], touched: set[Location]
) -> list[Fault]:
    """Return the model's faults with their locations, without those caused by a value that is missing."""
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
    """Remove an index into a single value: a string in place of a list is not shown as `[0]`."""
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
    """Return the value one step below; below `MISSING` everything is `MISSING`."""
    if isinstance(values, dict):
        return values.get(str(step))
    if isinstance(values, list):
        return values[step] if isinstance(step, int) and step < len(values) else None
    return values if isinstance(values, Missing) else None
