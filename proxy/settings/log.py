"""`log`: the lines on standard output."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from proxy.observability.logging import OWN_FIELDS
from proxy.settings.model import Contradiction, Model, mapping
from proxy.settings.scalars import LogLevel  # noqa: TC001 - pydantic reads the annotation
from proxy.settings.units import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)
# A line of several workers has at most 4,000 bytes.
MOST_FIELDS: Final = 16
MOST_BYTES: Final = 1024


def _read_value(value: object) -> str | int | bool:
    if isinstance(value, bool | int):
        return value
    if not isinstance(value, str):
        raise InvalidValue("must be a text, a whole number, true or false")
    if not value.isprintable():
        raise InvalidValue("must be one line of printable characters")
    return value


FieldValue = Annotated[
    str | int | bool,
    PlainValidator(_read_value),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "boolean"}]}),
]


def _read_access(value: object) -> Literal["on", "off"]:
    if value == "on":
        return "on"
    if value == "off":
        return "off"
    suggestion = {True: "on", "true": "on", "yes": "on", False: "off", "false": "off", "no": "off"}
    raise InvalidValue("must be on or off", suggestion=suggestion.get(value) if isinstance(value, bool | str) else None)


Access = Annotated[
    Literal["on", "off"], PlainValidator(_read_access), WithJsonSchema({"type": "string", "enum": ["on", "off"]})
]


class Log(Model):
    """The log on standard output."""

    format: Literal["json", "console"] = Field("json", description="json for machines, console for a terminal.")
    level: LogLevel = Field("info", description="The least severe lines that are written.")
    fields: dict[str, FieldValue] = Field(
        default_factory=dict,
        description="Fields that every line has, such as {region: eu-1}; no secrets.",
        json_schema_extra={"propertyNames": {"pattern": f"^{_NAME.pattern}$"}, "maxProperties": MOST_FIELDS},
    )
    access: Access = Field(
        "on", description="off: of exchanges only those with a `code` have a line: refused, or not served."
    )

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """Check the names of the fields, and that lines stay short."""
        fields = mapping(data.get("fields"))
        for name in fields:
            if _NAME.fullmatch(name) is None:
                yield ("fields", name), InvalidValue("is not a field's name: up to 64 of A-Z, a-z, 0-9, _ . -")
            elif name in OWN_FIELDS:
                yield ("fields", name), InvalidValue("is a field of the proxy's own; choose another name")
        size = sum(len(name.encode()) + len(str(value).encode("utf-8", "replace")) for name, value in fields.items())
        if len(fields) > MOST_FIELDS or size > MOST_BYTES:
            yield ("fields",), InvalidValue(f"must be at most {MOST_FIELDS} fields of {MOST_BYTES} bytes together")
