"""The base of every model of the file: strict, frozen, telling all of its faults instead of the first.

pydantic stops at a model's own checks as soon as one of its fields is wrong. Here a model's checks look at what stood
in the file (`contradictions`), so they run beside the fields' checks and one run of `check` shows everything.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from proxy.settings.units import InvalidValue

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Location = tuple[str | int, ...]
Contradiction = tuple[Location, InvalidValue]

# The type of every error that leaves a model; its context has `message`, `suggestion` and `echoes`.
FAULT = "fault"
UNKNOWN_KEY = "unknown key"
_NOT_IN_THIS_RELEASE = "is not part of this release"


def default(text: str) -> Any:
    """A default as it would stand in the file: read like any other value, and shown so in the schema."""
    return text


def closest(word: object, options: Iterable[str]) -> str | None:
    """The option that was probably meant, or None."""
    if not isinstance(word, str):
        return None
    by_lower_case = {option.lower().replace("-", "_"): option for option in options}
    found = difflib.get_close_matches(word.lower().replace("-", "_")[:100], by_lower_case, n=1, cutoff=0.6)
    return by_lower_case[found[0]] if found else None


def not_in_this_release(what: str | None = None) -> InvalidValue:
    """What is said of a key or value that the contract has but this release does not."""
    return InvalidValue(f"{what} {_NOT_IN_THIS_RELEASE}" if what else _NOT_IN_THIS_RELEASE)


def mapping(value: object) -> Mapping[str, object]:
    """The value where it is a mapping, else an empty one: its own fault is told elsewhere."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: object) -> list[object]:
    """The value's items where it is a list, else none."""
    return list(value) if isinstance(value, list | tuple) else []


def _wrong(error: ErrorDetails) -> InvalidValue:
    """What pydantic found, in words for who wrote the file; never with the value."""
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
    """A mapping of the file: unknown keys are refused, names in the file are the fields' aliases."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,  # defaults are written as in the file, `5s`, and so the schema shows them
        arbitrary_types_allowed=True,
    )

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """What is wrong between the keys, seen in what stood in the file; values may still be of any type."""
        del data
        yield from ()

    @classmethod
    def yaml_keys(cls) -> list[str]:
        """The names of the keys, as in the file."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @model_validator(mode="wrap")
    @classmethod
    def _tell_all(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Gather unknown keys, contradictions and the fields' faults; one fault a place, the first of these."""
        if isinstance(data, cls):
            return handler(data)
        if not isinstance(data, Mapping):
            raise InvalidValue("must be a mapping of keys to values")
        keys = cls.yaml_keys()
        faults: dict[Location, InvalidValue] = {}
        # A key without a value is no way to say "none": some keys have a word for that, the others are left out.
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
        # A required key that is only misspelt is told once, at the misspelling.
        told = {where: what for where, what in faults.items() if where not in {(key,) for key in meant}}
        if told:
            raise ValidationError.from_exception_data(
                cls.__name__, [_details(where, what) for where, what in told.items()], hide_input=True
            )
        return valid
