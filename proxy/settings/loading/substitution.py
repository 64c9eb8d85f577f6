"""Substitution of `${NAME}`, `${NAME:-default}` and `file:/path`, after parsing: a value is never read as YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from proxy.settings.loading.faults import Fault, Location, SourceLocations, fault_at, place_of
from proxy.settings.loading.marked_yaml import MISSING
from proxy.settings.model import closest
from proxy.settings.units import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_VARIABLE = re.compile(
    r"\$(?P<escaped>\$\{)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}]*))?\}|(?P<bad>\$\{)"
)
_FILE_PREFIX = "file:"
_MAX_SECRET_BYTES = 65_536
# Locations where a value may be `file:/path`; `*` is any key or index.
SECRET_LOCATIONS: tuple[tuple[str, ...], ...] = (
    ("auth", "jwt", "*", "secret"),
    ("auth", "jwt", "*", "public_key"),
    ("upstreams", "*", "api_key"),
    ("upstreams", "*", "api_keys", "*"),
    ("upstreams", "*", "api_keys", "*", "key"),
    ("upstreams", "*", "headers", "*"),
    ("upstreams", "*", "egress_proxy"),
    ("auth", "jwt", "*", "egress_proxy"),
    ("telemetry", "user_key"),
    ("egress_proxy",),
)
# A header's value is a secret if it is not in the YAML file itself.
_HEADER_LOCATION = ("upstreams", "*", "headers", "*")
# Locations of secrets: variables are trimmed there, as files are.
_TRIMMED_LOCATIONS = (*SECRET_LOCATIONS, ("limits", "store"), ("auth", "api_keys", "*", "sha256"))
_BYTE_ORDER_MARK = "\ufeff"


def variables_in(value: Any) -> set[str]:
    """Return the names of all variables used in these values."""
    if isinstance(value, dict):
        return set().union(*map(variables_in, value.values()))
    if isinstance(value, list):
        return set().union(*map(variables_in, value))
    found = _VARIABLE.finditer(value) if isinstance(value, str) else ()
    return {match["name"] for match in found if match["name"]}


def trim(text: str) -> str:
    """Remove what editors and shells add: a byte order mark at the start, one line end at the end."""
    text = text.removeprefix(_BYTE_ORDER_MARK)
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text.removesuffix("\r")


def expand(text: str, environ: Mapping[str, str], *, trimmed: bool = False) -> str:
    """Substitute variables: `${NAME}` must be set and not empty, `${NAME:-default}` need not, `$${` is a plain `${`.

    A variable's value is not expanded again; `trimmed` trims it, for secrets.

    Raises:
        InvalidValue: Variables are missing (all are named), or a `${` is malformed.
    """
    missing: list[str] = []

    def put_in(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "${"
        if match["bad"]:
            raise InvalidValue(
                "has a `${` that is not ${NAME} or ${NAME:-default}; write $${ for the characters themselves"
            )
        value = environ.get(match["name"], "")
        if trimmed:
            value = trim(value)
        if not value and match["default"] is None:
            missing.append(match["name"])
        return value or match["default"] or ""

    expanded = _VARIABLE.sub(put_in, text)
    if missing:
        names = ", ".join(dict.fromkeys(missing))
        states = {"empty" if name in environ else "not set" for name in missing}
        near = closest(missing[0], (name for name, value in environ.items() if value and name != missing[0]))
        raise InvalidValue(f"the environment variable {names} is {' or '.join(sorted(states))}", suggestion=near)
    return expanded


def read_secret_file(value: str) -> str:
    """Read the file of `file:/path`, without a byte order mark and one line end. Blocks.

    Raises:
        InvalidValue: The path is relative, or the file cannot be read, is empty, too large, or not text.
    """
    path = Path(value.removeprefix(_FILE_PREFIX))
    if not path.is_absolute():
        raise InvalidValue("file: needs an absolute path, such as file:/run/secrets/key")
    try:
        if not path.is_file():  # a pipe or a device could block
            raise InvalidValue("file: names no file that can be read")
        with path.open("rb") as file:
            content = file.read(_MAX_SECRET_BYTES + 1)
        text = content.decode()
    except OSError as exc:
        raise InvalidValue(f"file: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise InvalidValue("file: is not UTF-8 text") from exc
    if len(content) > _MAX_SECRET_BYTES:
        raise InvalidValue("file: is larger than 64 KiB")
    text = trim(text)
    if not text.strip():
        raise InvalidValue("file: is empty")
    return text


class Substitution:
    """Substitutes text in values; keeps the changed locations (`touched`), the files, and the faults."""

    def __init__(self, places: SourceLocations) -> None:
        self.places = places
        self.touched: set[Location] = set()
        self.files: dict[Location, str] = {}
        self.faults: list[Fault] = []

    def variables(self, values: Any, environ: Mapping[str, str]) -> Any:
        """Return the values with variables substituted."""

        def put_in(text: str, location: Location) -> str:
            if "${" not in text:
                return text
            return expand(text, environ, trimmed=_is_any(location, _TRIMMED_LOCATIONS))

        return self._walk(values, (), put_in)

    def secrets(self, values: Any) -> Any:
        """Return the values with secrets read from files and trimmed; `variables` has to be called first."""

        def read(text: str, location: Location) -> str | SecretStr:
            is_override = not place_of(location, self.places).line
            is_variable = location in self.touched and not is_override
            # Trimmed already: a second line end of a variable is a fault.
            if not is_variable and _is_any(location, _TRIMMED_LOCATIONS):
                text = trim(text)
            is_file = text.startswith(_FILE_PREFIX) and _is_any(location, SECRET_LOCATIONS)
            if is_file:
                self.files[location] = text
                text = read_secret_file(text)
            is_header = _fits(location, _HEADER_LOCATION)
            return SecretStr(text) if is_header and (is_file or is_variable or is_override) else text

        return self._walk(values, (), read)

    def _walk(self, value: Any, location: Location, replace: Callable[[str, Location], str | SecretStr]) -> Any:
        if isinstance(value, dict):
            return {key: self._walk(item, (*location, key), replace) for key, item in value.items()}
        if isinstance(value, list):
            return [self._walk(item, (*location, index), replace) for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        try:
            replaced = replace(value, location)
        except InvalidValue as wrong:
            self.faults.append(fault_at(location, wrong, self.places, is_shown=False))
            return MISSING
        if replaced != value:
            self.touched.add(location)
        return replaced


def _is_any(location: Location, patterns: tuple[tuple[str, ...], ...]) -> bool:
    return any(_fits(location, pattern) for pattern in patterns)


def _fits(location: Location, pattern: tuple[str, ...]) -> bool:
    return len(location) == len(pattern) and all(
        want in {"*", got} for got, want in zip(location, pattern, strict=True)
    )
