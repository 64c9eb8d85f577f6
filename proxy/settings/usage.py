"""`prices` and `usage`: what models cost, where usage is kept, what a request reserves."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PlainValidator

from proxy.settings.budgets import TokenCount  # noqa: TC001 - pydantic reads the annotation
from proxy.settings.ledger import Ledger, Timezone  # noqa: TC001 - pydantic reads the annotation
from proxy.settings.model import Contradiction, Model, default, mapping, sequence
from proxy.settings.scalars import PositiveDuration, Text, number_schema, pattern_schema
from proxy.settings.units import InvalidValue, number_text, read_positive_duration, valid_or_none

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_USD_PER_MILLION = 1000
# In a currency whose unit is worth little.
_MAX_PER_MILLION = 10_000_000
_MIN_PER_MILLION = Decimal("0.0001")
_MAX_RATE = 1000
_DECIMAL = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)
_EXPONENT = re.compile(r"\d{1,9}(\.\d{1,9})?[eE]-\d{1,3}", re.ASCII)
_PRICE_DECIMALS = 6
_PER_MILLION = "a price is per million tokens, not per token"
_CURRENCY = r"[A-Z]{3}"
_PERIOD_DAYS = {"day": 2, "week": 8, "month": 32}
_DAY_S = 86_400


def read_price(value: object) -> Decimal:
    """Read a price per million tokens, exactly as it is written.

    Raises:
        InvalidValue: Not a number of 0 or more, more than six decimals, or so small or large that it must be per token.
    """
    text = number_text(value)
    if _EXPONENT.fullmatch(text):
        raise InvalidValue(f"looks like a price per token: {_PER_MILLION}")
    if _DECIMAL.fullmatch(text) is None:
        raise InvalidValue(f"must be a number of 0 or more, such as 2.5: {_PER_MILLION}")
    price = Decimal(text)
    if 0 < price < _MIN_PER_MILLION:
        raise InvalidValue(f"looks like a price per token: {_PER_MILLION}")
    if price > _MAX_PER_MILLION:
        raise InvalidValue(f"must be at most {_MAX_PER_MILLION}: {_PER_MILLION}")
    if len(text.partition(".")[2].rstrip("0")) > _PRICE_DECIMALS:
        raise InvalidValue(f"must have at most {_PRICE_DECIMALS} decimals")
    return price


def read_rate(value: object) -> Decimal:
    """Read the dollars for one unit of a currency, exactly as they are written.

    Raises:
        InvalidValue: Not a number above 0, or above 1000.
    """
    text = number_text(value)
    if _DECIMAL.fullmatch(text) is None or not 0 < Decimal(text) <= _MAX_RATE:
        raise InvalidValue("must be the dollars for one unit: a number above 0 and at most 1000, such as 0.14")
    return Decimal(text)


def read_currency(value: object) -> str:
    """Read a currency's code.

    Raises:
        InvalidValue: Not three capital letters.
    """
    if isinstance(value, str) and re.fullmatch(_CURRENCY, value, re.ASCII):
        return value
    upper = value.upper() if isinstance(value, str) else ""
    suggestion = upper if re.fullmatch(_CURRENCY, upper, re.ASCII) else None
    raise InvalidValue("is not a currency: three capital letters (ISO 4217), such as USD", suggestion=suggestion)


PerMillion = Annotated[
    Decimal,
    PlainValidator(read_price),
    number_schema({"minimum": 0, "maximum": _MAX_PER_MILLION}, r"\d{1,9}(\.\d{1,6})?"),
]
DollarsPerUnit = Annotated[
    Decimal,
    PlainValidator(read_rate),
    number_schema({"exclusiveMinimum": 0, "maximum": _MAX_RATE}, r"\d{1,9}(\.\d{1,9})?"),
]
Currency = Annotated[str, PlainValidator(read_currency), pattern_schema(_CURRENCY)]


class PriceSettings(Model):
    """What a model costs, per million tokens."""

    input: PerMillion = Field(description="The price of a million tokens of input.")
    cached_input: PerMillion | None = Field(
        None, description="The price of input that the vendor read from its cache; `input` unless given."
    )
    cache_write: PerMillion | None = Field(
        None, description="The price of input that the vendor wrote to its cache; `input` unless given."
    )
    output: PerMillion = Field(description="The price of a million tokens of output.")
    currency: Currency = Field("USD", description="What the prices are in; another than USD needs `usage.rates`.")

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """Check that prices in dollars are plausible, and that they are not all zero."""
        parts = ("input", "cached_input", "cache_write", "output")
        read = {part: valid_or_none(read_price, data.get(part)) for part in parts}
        prices = {part: price for part, price in read.items() if price is not None}
        if data.get("currency", "USD") == "USD":
            for part, price in prices.items():
                if price > MAX_USD_PER_MILLION:
                    yield (part,), InvalidValue(f"is more than {MAX_USD_PER_MILLION} dollars: {_PER_MILLION}")
        if {"input", "output"} <= prices.keys() and not any(prices.values()):
            yield ("input",), InvalidValue("is 0, and so are the others: give a price, or leave the model out")


class UsageSettings(Model):
    """How usage is reckoned, kept and held to budgets."""

    ledger: Ledger = Field(
        default("off"), description="Where each exchange has a row: `off`, sqlite:///path or postgresql://…"
    )
    retention_s: PositiveDuration = Field(default("90d"), description="How long the ledger keeps a row.")
    spool: Text | None = Field(
        None, description="The directory where rows wait for PostgreSQL; $STATE_DIRECTORY, else `spool`, unless given."
    )
    sync: Literal["50ms", "each"] = Field(
        "50ms", description="When a row is on the disk: within 50 ms, together with others, or each at once."
    )
    reserve_output: TokenCount = Field(
        16_384, description="The most output tokens that a request reserves of its user's token limits."
    )
    budget_timezone: Timezone = Field(default("UTC"), description="Where a budget's days begin, such as Asia/Shanghai.")

    rates: dict[str, DollarsPerUnit] = Field(
        default_factory=dict,
        description="Dollars for one unit of each currency that `prices` are in.",
        json_schema_extra={"propertyNames": {"pattern": f"^{_CURRENCY}$"}},
    )

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """Check the currencies' names."""
        for currency in mapping(data.get("rates")):
            try:
                read_currency(currency)
            except InvalidValue as wrong:
                yield ("rates", currency), wrong
            if currency == "USD":
                yield ("rates", currency), InvalidValue("is what rates are in: leave it out")


def retention_faults(data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check that the ledger keeps its rows for as long as the longest budget's period, which begins from them."""
    usage = mapping(data.get("usage"))
    plans = mapping(data.get("plans")).values()
    budgets = [mapping(budget) for plan in plans for budget in sequence(mapping(plan).get("budgets"))]
    retention_s = valid_or_none(read_positive_duration, usage.get("retention", "90d"))
    longest = max((_PERIOD_DAYS.get(str(budget.get("every")), 0) for budget in budgets), default=0)
    if usage.get("ledger", "off") != "off" and retention_s is not None and retention_s < longest * _DAY_S:
        words = f"is shorter than a budget's period: at least {longest}d"
        yield ("usage", "retention"), InvalidValue(words, suggestion=f"{longest}d")


def price_faults(data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check the names of the models that have a price."""
    for model in mapping(data.get("prices")):
        if not model.strip() or not model.isprintable():
            yield ("prices", model), InvalidValue("is not a model's name")
