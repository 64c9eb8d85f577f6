"""Names of typed events: the top-level ones, and those of an upstream, which override them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PlainValidator, WithJsonSchema

from proxy.settings.model import Contradiction, Model, mapping
from proxy.settings.scalars import read_text
from proxy.settings.units import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# The name is in every event: a long one could make a translated read larger than the buffer's bound.
_MAX_NAME = 32


# The largest integer that is exact in every JSON parser (RFC 8259 §6).
_MAX_NUMBER = 2**53 - 1


def _read_name(value: object) -> str | int:
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > _MAX_NUMBER:
            raise InvalidValue("must be a whole number of at most 2^53 - 1")
        return value
    if isinstance(value, bool):
        raise InvalidValue("must be text or a whole number: put it in quotes")
    text = read_text(value)
    if len(text) > _MAX_NAME:
        raise InvalidValue(f"must be at most {_MAX_NAME} characters")
    return text


TypedName = Annotated[
    str | int,
    PlainValidator(_read_name),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1, "maxLength": _MAX_NAME}, {"type": "integer"}]}),
]


class TypedNames(Model):
    """The values of `t` in typed events: text, or whole numbers for TypeScript's enums."""

    Image: TypedName = Field("Image", description="A picture: a URL, or a data: URL.")
    Think: TypedName = Field("Think", description="A piece of what the model thinks.")
    Text: TypedName = Field("Text", description="A piece of the answer.")
    Cancelled: TypedName = Field("Cancelled", description="The last event of a stream that was stopped.")
    End: TypedName = Field("End", description="The last event of a whole answer.")
    Error: TypedName = Field("Error", description="The last event of any other.")


def name_faults(data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check that no two kinds have one name: a client could not distinguish an error from an end.

    `0` and `"0"` are one name, as they are for keys of a JavaScript object.
    """
    common = {**dict(TypedNames()), **mapping(data.get("typed_names"))}
    yield from _repeated(("typed_names",), mapping(data.get("typed_names")), common)
    for name, upstream in mapping(data.get("upstreams")).items():
        own = mapping(mapping(upstream).get("typed_names"))
        yield from _repeated(("upstreams", name, "typed_names"), own, {**common, **own})


def _repeated(
    where: tuple[str, ...], written: Mapping[str, object], names: Mapping[str, object]
) -> Iterator[Contradiction]:
    for kind, name in written.items():
        other = next((other for other in names if other != kind and str(names[other]) == str(name)), None)
        if other is not None and kind in TypedNames.model_fields:
            yield (*where, kind), InvalidValue(f"is the name of {other} too")
