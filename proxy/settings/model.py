"""The base class of the configuration's models: strict, frozen, reporting all faults instead of the first.

pydantic skips a model's own validators if a field is invalid. Here they check the values of the file
(`contradictions`), so they run as well as the fields' validators and one run of `check` shows every fault.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from proxy.settings.units import InvalidValue

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Location = tuple[str | int, ...]
Contradiction = tuple[Location, InvalidValue]

# The type of every error that a model raises; its context has `message`, `suggestion` and `echoes`.
FAULT = "fault"
UNKNOWN_KEY = "unknown key"


def default(text: str) -> Any:
    """Return a default as written in the file: validated like any other value, and shown so in the schema."""
    return text


def closest(word: object, options: Iterable[str]) -> str | None:
    """Return the option that was probably meant, or None."""
    if not isinstance(word, str):
        return None
    by_lower_case = {option.lower().replace("-", "_"): option for option in options}
    found = difflib.get_close_matches(word.lower().replace("-", "_")[:100], by_lower_case, n=1, cutoff=0.6)
    return by_lower_case[found[0]] if found else None


def mapping(value: object) -> Mapping[str, object]:
    """Return the value if it is a mapping, else an empty one: its field reports the fault."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: object) -> list[object]:
    """Return the value's items if it is a list, else none."""
    return list(value) if isinstance(value, list | tuple) else []


def repeated(data: Mapping[str, object], key: str, member: str, what: str) -> Iterator[Contradiction]:
    """Yield a fault for each entry of a list whose member has the value of an earlier entry's; a digest in any case."""
    seen: dict[str, int] = {}
    for index, entry in enumerate(sequence(data.get(key))):
        value = mapping(entry).get(member)
        if isinstance(value, str):
            first = seen.setdefault(value.lower() if member == "sha256" else value, index)
            if first != index:
                yield (key, index, member), InvalidValue(f"is the same {what} as {key}[{first}]")


def or_word(word: str, *, at: int = 1) -> Callable[[dict[str, Any]], None]:
    """Return what adds a word, as the alternative of that number, to the JSON Schema of an optional field."""
    return lambda schema: schema["anyOf"].insert(at, {"const": word})


def _wrong(error: ErrorDetails) -> InvalidValue:
    """Translate pydantic's error for the author of the file; never contains the value."""
    context = error.get("ctx", {})
    value = error.get("input")
    match error["type"]:
        case "fault":
            return InvalidValue(context["message"], suggestion=context["suggestion"] or None, echoes=context["echoes"])
        case "value_error" if isinstance(context.get("error"), InvalidValue):
            found: InvalidValue = context["error"]
            return found
        case "missing":
            return InvalidValue("is required")
        case "extra_forbidden":
            return InvalidValue(UNKNOWN_KEY)
        case "literal_error":
            options = [option.strip("'") for option in context["expected"].replace(" or ", ", ").split(", ")]
            return InvalidValue(f"must be one of {', '.join(options)}", suggestion=closest(value, options))
        case "tuple_type":
            return InvalidValue("must be a list")
        case "dict_type" | "model_type" | "mapping_type":
            return InvalidValue("must be a mapping of keys to values")
        case _:
            return InvalidValue("is not valid here")


def _details(location: Location, wrong: InvalidValue) -> InitErrorDetails:
    context = {"message": wrong.message, "suggestion": wrong.suggestion or "", "echoes": wrong.echoes}
    return InitErrorDetails(type=PydanticCustomError(FAULT, "{message}", context), loc=location, input=None)


class Model(BaseModel):
    """A mapping of the file: unknown keys are refused, keys are the fields' aliases, or their names without a unit."""

    model_config = ConfigDict(
        # A name's unit is not part of the key.
        alias_generator=lambda name: name.removesuffix("_s").removesuffix("_bytes"),
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,  # defaults are written as in the file (`5s`)
        arbitrary_types_allowed=True,
    )

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """Yield faults between keys, from the values of the file, which may be of any type."""
        del data
        yield from ()

    @classmethod
    def yaml_keys(cls) -> list[str]:
        """Return the names of the keys, as in the file."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @model_validator(mode="wrap")
    @classmethod
    def _collect_faults(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Report unknown keys, contradictions and the fields' faults together; the first for each key."""
        if isinstance(data, cls):
            return handler(data)
        if not isinstance(data, Mapping):
            raise InvalidValue("must be a mapping of keys to values")
        keys = cls.yaml_keys()
        faults: dict[Location, InvalidValue] = {}
        # An empty value does not mean "none": some keys have a word for that, others are left out.
        faults.update({(key,): InvalidValue("has no value") for key, value in data.items() if value is None})
        for location, wrong in cls.contradictions(data):
            faults.setdefault(location, wrong)
        meant = set()
        for key in data.keys() - set(keys):
            suggestion = closest(key, [known for known in keys if known not in data])
            meant.add(suggestion)
            faults.setdefault((key,), InvalidValue(UNKNOWN_KEY, suggestion=suggestion))
        try:
            valid = handler(data)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                faults.setdefault(details["loc"], _wrong(details))
        # A required key that is misspelt is reported once, at the misspelling.
        told = {where: what for where, what in faults.items() if where not in {(key,) for key in meant}}
        if told:
            raise ValidationError.from_exception_data(
                cls.__name__, [_details(where, what) for where, what in told.items()], hide_input=True
            )
        return valid
