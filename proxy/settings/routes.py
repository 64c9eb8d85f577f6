"""`routes`: which upstreams a model may be asked of, in which order, and what moves a request on to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from proxy.settings.model import Contradiction, Model, closest, default, mapping, sequence
from proxy.settings.scalars import Clock, Flag, PositiveDuration, Text, count_up_to, not_empty
from proxy.settings.units import InvalidValue
from proxy.settings.upstream_keys import Weight  # noqa: TC001 - pydantic reads the annotation

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_ATTEMPTS = 16
CauseName = Literal["connect", "429", "5xx", "error_event"]
_CAUSES: tuple[CauseName, ...] = ("connect", "429", "5xx", "error_event")


def _read_cause(value: object) -> object:
    # YAML reads it as a number.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _cause_schema(schema: dict[str, Any]) -> None:
    schema["items"] = {"enum": [*_CAUSES, 429]}


Cause = Annotated[CauseName, BeforeValidator(_read_cause)]
Attempts = Annotated[int, PlainValidator(count_up_to(MAX_ATTEMPTS)), WithJsonSchema({"type": "integer", "minimum": 1})]


class RetrySettings(Model):
    """What moves a request on to the next upstream; never a 4xx of the request's own, never after the first output."""

    attempts: Attempts = Field(3, description="How many upstreams are asked at most.")
    within_s: PositiveDuration = Field(
        default("20s"), description="When the last of them may begin; none is cut that runs."
    )
    first_output_s: Clock = Field(
        default("off"), description="Until the first event with output; comments and pings do not restart it."
    )
    on: tuple[Cause, ...] = Field(
        _CAUSES, description="What moves on, of: connect, 429, 5xx, error_event.", json_schema_extra=_cause_schema
    )
    retry_paid: Flag = Field(
        default=False, description="Whether what the vendor may have run already is tried again, and paid twice."
    )


class RouteTargetSettings(Model):
    """One upstream of a route."""

    name: Text = Field(description="The upstream.")
    model: Text | None = Field(None, description="What replaces the body's `model` there.")
    weight: Weight = Field(1, description="Its part of the requests, with `strategy: weighted`.")


def _read_target(value: object) -> object:
    return value if isinstance(value, Mapping | RouteTargetSettings) else {"name": value}


Target = Annotated[RouteTargetSettings, BeforeValidator(_read_target)]


def _targets_schema(schema: dict[str, Any]) -> None:
    schema["items"] = {"anyOf": [{"type": "string", "minLength": 1}, schema["items"]]}


class RouteSettings(Model):
    """Where requests go that name no upstream, by the body's `model`; the first route that has the model counts."""

    models: Annotated[tuple[Text, ...], not_empty()] = Field(description="Globs of `model`.")
    upstreams: Annotated[tuple[Target, ...], not_empty()] = Field(
        description="The upstreams, of one dialect: names, or {name, model, weight}.", json_schema_extra=_targets_schema
    )
    strategy: Literal["ordered", "weighted"] = Field(
        "ordered", description="Asked in this order, or by chance, in proportion to their weights."
    )
    retry: RetrySettings | None = Field(
        None, description="What moves a request on; without it only a refused key does."
    )

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """Check that weights have an effect."""
        if data.get("strategy", "ordered") == "ordered":
            for index, target in enumerate(sequence(data.get("upstreams"))):
                if "weight" in mapping(target):
                    words = "has no effect without `strategy: weighted`"
                    yield ("upstreams", index, "weight"), InvalidValue(words)


def route_faults(data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check that routes name upstreams of one dialect, and that no client's key goes to two vendors."""
    upstreams = mapping(data.get("upstreams"))
    for number, route in enumerate(sequence(data.get("routes"))):
        names: list[tuple[int, str]] = []
        for index, target in enumerate(sequence(mapping(route).get("upstreams"))):
            name = mapping(target).get("name", target)
            where = ("routes", number, "upstreams", index)
            if isinstance(name, str) and name.strip() and name not in upstreams:
                yield where, InvalidValue("names an upstream that nobody defined", suggestion=closest(name, upstreams))
            elif isinstance(name, str) and name in upstreams:
                names.append((index, name))
        dialects = {name: mapping(upstreams[name]).get("dialect") for _, name in names}
        clients = {name for _, name in names if mapping(upstreams[name]).get("api_key") == "client"}
        for index, name in names:
            where = ("routes", number, "upstreams", index)
            if dialects[name] != dialects[names[0][1]]:
                yield where, InvalidValue("speaks another dialect than the route's first upstream")
            if name in clients and len(clients) > 1:
                yield where, InvalidValue("has `api_key: client`, as another one here: that key is for one vendor")
