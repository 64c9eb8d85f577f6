"""An upstream's `api_keys`, how they are used (`keys`), and when the upstream is left out (`health`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from proxy.settings.model import Contradiction, Model, default
from proxy.settings.scalars import Count, PositiveDuration, count_up_to, pattern_schema
from proxy.settings.secret_values import VendorKey, read_vendor_key
from proxy.settings.units import InvalidValue, number_text, read_positive_duration, valid_or_none

if TYPE_CHECKING:
    from collections.abc import Iterator

# Beyond it turns are not reckoned with.
MAX_WEIGHT = 1000
_PERCENT = re.compile(r"(100|[1-9][0-9]?)%", re.ASCII)


def read_percent(value: object) -> float:
    """Read a share (`50%`) as a number between 0 and 1.

    Raises:
        InvalidValue: Not a whole percentage from 1% to 100%.
    """
    if isinstance(value, str) and _PERCENT.fullmatch(value):
        return int(value[:-1]) / 100
    text = number_text(value)
    suggestion = f"{text}%" if _PERCENT.fullmatch(f"{text}%") else None
    raise InvalidValue("must be a share from 1% to 100%, such as 50%", suggestion=suggestion)


Percent = Annotated[float, PlainValidator(read_percent), pattern_schema(_PERCENT.pattern)]
Weight = Annotated[int, PlainValidator(count_up_to(MAX_WEIGHT)), WithJsonSchema({"type": "integer", "minimum": 1})]


class WeightedKey(Model):
    """One of an upstream's keys, and its part of the requests."""

    key: VendorKey = Field(description="The vendor's key, or file:/path.")
    weight: Weight = Field(1, description="Its part of the requests, in proportion to the others'.")


def _read_key(value: object) -> object:
    if isinstance(value, Mapping | WeightedKey):
        return value
    return WeightedKey.model_construct(key=read_vendor_key(value), weight=1)


# The key alone, or with its weight.
ListedKey = Annotated[WeightedKey, BeforeValidator(_read_key)]


class KeyPoolSettings(Model):
    """How an upstream's keys are used."""

    strategy: Literal["least_busy", "round_robin"] = Field(
        "least_busy", description="The key with the fewest running streams for its weight, or one after the other."
    )
    cooldown_s: PositiveDuration = Field(
        default("30s"),
        description="The longest rest of a key after 429 where the vendor does not say how long; it grows from 1s.",
    )


class HealthSettings(Model):
    """When an upstream is left out of routes, and for how long."""

    failures: Count = Field(5, description="So many failures in a row.")
    share: Percent = Field(default("50%"), description="Or that share of the attempts within `window` …")
    of_at_least: Count = Field(20, description="… of at least so many.")
    window_s: PositiveDuration = Field(default("30s"), description="What `share` looks back on.")
    out_for_s: PositiveDuration = Field(
        default("10s"), description="How long it is left out; twice as long each time it fails again."
    )
    out_at_most_s: PositiveDuration = Field(default("5m"), description="The longest of these times.")

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """Check that the longest time is not shorter than the first."""
        first = valid_or_none(read_positive_duration, data.get("out_for", "10s"))
        longest = valid_or_none(read_positive_duration, data.get("out_at_most", "5m"))
        if first is not None and longest is not None and longest < first:
            yield ("out_at_most",), InvalidValue("is shorter than out_for")
