"""Overrides: `FORWARD_SSE_<KEY>` variables, nested with `__`, by pydantic-settings; the command line's options.

A variable's name matches a key of the file without regard to case, `_` also for `-`. Lists and mappings are JSON.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from pydantic import create_model
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from proxy.settings.loading.faults import Fault, Location, SourceLocation, SourceLocations
from proxy.settings.model import UNKNOWN_KEY, closest
from proxy.settings.server import Settings
from proxy.settings.typed import TypedNames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

PREFIX = "FORWARD_SSE_"
CONFIG_VARIABLE = "FORWARD_SSE_CONFIG"
_DELIMITER = "__"
# Kubernetes sets these in every pod if a Service's name begins with `forward-sse`: they are no overrides.
_SERVICE_LINK = re.compile(
    r"FORWARD_SSE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)", re.ASCII
)
_SERVICE_LINK_PORT = re.compile(r"FORWARD_SSE_(\w+_)?PORT", re.ASCII)
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,15})", re.ASCII)
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")


class _Variables(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter=_DELIMITER, extra="ignore")


class _Source(EnvSettingsSource):
    """Settings source that decodes JSON only for lists and mappings: a key or name of digits stays text."""

    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:  # noqa: ARG002 - the library's
        """Decode a JSON list or mapping; numbers with a fraction stay text, as in YAML: prices are exact.

        Raises:
            ValueError: Not a JSON list or mapping; pydantic-settings then keeps the text.
        """
        try:
            decoded = json.loads(value, parse_float=str)
        except RecursionError as exc:
            raise ValueError("nested too deep") from exc
        if not isinstance(decoded, dict | list):
            raise ValueError("neither a list nor a mapping")  # noqa: TRY004 - ValueError is what the library expects
        return decoded


def _overridable() -> type[_Variables]:
    """Return a settings class in which every top-level key is text, a list, or a mapping of such, six deep."""
    value: Any = str | list[Any]
    for _ in range(6):
        value = dict[str, value] | list[Any] | str
    fields: dict[str, Any] = dict.fromkeys(Settings.yaml_keys(), (value | None, None))
    return create_model("Overridable", __base__=_Variables, **fields)


_OVERRIDABLE = _overridable()


def _is_service_link(name: str, value: str) -> bool:
    is_port = _SERVICE_LINK_PORT.fullmatch(name) and _SERVICE_LINK_VALUE.match(value)
    return bool(is_port) or (_SERVICE_LINK.fullmatch(name) is not None and _DELIMITER not in name)


class Overrides:
    """Overrides from the environment, and the variable of each."""

    def __init__(self, environ: Mapping[str, str], mentioned: Iterable[str]) -> None:
        """Read the variables; one that the file uses as `${…}` is no override."""
        skipped = {CONFIG_VARIABLE, *mentioned}
        self.faults: list[Fault] = []
        self._variables: dict[Location, str] = {}
        taken: dict[str, str] = {}
        for name, value in sorted(environ.items()):
            if not name.startswith(PREFIX) or name in skipped or _is_service_link(name, value):
                continue
            path = tuple(name.removeprefix(PREFIX).lower().split(_DELIMITER))
            outer = next((self._variables[path[:n]] for n in range(1, len(path)) if path[:n] in self._variables), None)
            if path[0] not in Settings.yaml_keys():
                known = [*(PREFIX + key.upper() for key in Settings.yaml_keys()), CONFIG_VARIABLE]
                suggestion = closest(name.partition(_DELIMITER)[0] if _DELIMITER in name else name, known)
                self._fault(name, "", f"{UNKNOWN_KEY} {path[0]}", suggestion)
            elif "" in path:
                self._fault(name, "", "names no key: two underscores stand between the names of keys", None)
            elif not value:
                self._fault(name, ".".join(path), "is set but empty: give a value, or unset it", None)
            elif outer is not None:
                self._fault(name, ".".join(path), f"sets what {outer} sets already", None)
            else:
                self._variables[path] = name
                taken[name.lower()] = value
        source = _Source(_OVERRIDABLE)
        source.env_vars = taken  # instead of this process's environment
        self.values: dict[str, Any] = source()
        self._spell_kinds(self.values, ())

    def _fault(self, name: str, key: str, message: str, suggestion: str | None) -> None:
        self.faults.append(Fault(SourceLocation(name), key, message, suggestion))

    def _spell_kinds(self, values: dict[str, Any], location: Location) -> None:
        """Correct the case of typed events' kinds, and convert a name of digits to a number, as in the file.

        In JSON the type is explicit; in a variable with the name alone it is not.
        """
        for key, value in values.items():
            where = (*location, key)
            if not isinstance(value, dict):
                continue
            if key == "typed_names" and len(location) in {0, 2}:
                by_lower_case = {kind.lower(): kind for kind in TypedNames.yaml_keys()}
                values[key] = {
                    by_lower_case.get(kind, kind): int(name)
                    if (*where, kind) in self._variables and isinstance(name, str) and _NUMBER.fullmatch(name)
                    else name
                    for kind, name in value.items()
                }
            else:
                self._spell_kinds(value, where)

    def place(self, location: Location) -> SourceLocation:
        """Return the variable that sets this location of `values`."""
        location = tuple(step.lower() if isinstance(step, str) else step for step in location)
        found = (self._variables.get(location[:length]) for length in range(len(location), 0, -1))
        return SourceLocation(next((name for name in found if name is not None), PREFIX))


def merge(
    values: dict[str, Any],
    over: Mapping[str, Any],
    places: SourceLocations,
    place: Callable[[Location], SourceLocation],
    *,
    location: Location = (),
    over_location: Location = (),
) -> None:
    """Override the values by `over`: mappings are merged, lists and single values replaced. Updates `places`.

    The locations are where both stand, in keys of the file and of `over`; `place` tells the source of the latter.
    """
    for over_key, value in over.items():
        key = _key_meant(over_key, values)
        where, over_where = (*location, key), (*over_location, over_key)
        if isinstance(value, dict):
            if not isinstance(values.get(key), dict):
                _forget(places, where)
                values[key] = {}
                places[where] = place(over_where)
            merge(values[key], value, places, place, location=where, over_location=over_where)
            continue
        _forget(places, where)
        places[where] = place(over_where)
        values[key] = value


def _key_meant(key: str, values: Mapping[str, Any]) -> str:
    if key in values:
        return key
    alike = [known for known in values if known.lower().replace("-", "_") == key]
    return alike[0] if len(alike) == 1 else key


def _forget(places: SourceLocations, location: Location) -> None:
    """Remove the source lines of a replaced value."""
    for known in [known for known in places if known[: len(location)] == location]:
        del places[known]
