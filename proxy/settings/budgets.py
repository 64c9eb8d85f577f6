"""`plans.*.budgets`: how many tokens, or dollars, a user may use in a calendar period."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from proxy.settings.model import Contradiction, Model
from proxy.settings.scalars import number_schema
from proxy.settings.units import InvalidValue, number_text
from proxy.usage.prices import NANO_PER_UNIT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# In nano-dollars, a number that Lua's doubles hold exactly.
MAX_USD = 1_000_000
MAX_TOKENS = 10**12
_DOLLARS = re.compile(r"\d{1,7}(\.\d{1,9})?", re.ASCII)


def read_usd(value: object) -> int:
    """Read an amount of dollars as nano-dollars, exactly as it is written.

    Raises:
        InvalidValue: Not a number above 0, or above a million.
    """
    text = number_text(value)
    if _DOLLARS.fullmatch(text) is None or not 0 < Decimal(text) <= MAX_USD:
        raise InvalidValue(f"must be dollars: a number above 0 and at most {MAX_USD}, such as 50 or 0.5")
    return int(Decimal(text) * NANO_PER_UNIT)


def read_tokens(value: object) -> int:
    """Read a number of tokens.

    Raises:
        InvalidValue: Not a whole number above 0, or above a million million.
    """
    text = number_text(value)
    if re.fullmatch(r"\d{1,13}", text, re.ASCII) is None or not 0 < int(text) <= MAX_TOKENS:
        raise InvalidValue(f"must be a whole number of tokens, at least 1 and at most {MAX_TOKENS}, such as 2000000")
    return int(text)


Dollars = Annotated[
    int,
    PlainValidator(read_usd),
    number_schema({"exclusiveMinimum": 0, "maximum": MAX_USD}, r"\d{1,7}(\.\d{1,9})?"),
]
TokenCount = Annotated[
    int, PlainValidator(read_tokens), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_TOKENS})
]


class BudgetSettings(Model):
    """A budget: of `usd` or of `tokens`, for each calendar period."""

    usd: Dollars | None = Field(None, description="Dollars; exchanges whose price is unknown are not counted.")
    tokens: TokenCount | None = Field(None, description="Tokens of input and output.")
    every: Literal["day", "week", "month"] = Field(
        description="The calendar period, in `usage.budget_timezone`; a week begins on Monday."
    )

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """Check that the budget has exactly one unit."""
        if "usd" in data and "tokens" in data:
            yield ("tokens",), InvalidValue("stands beside `usd`: make two budgets of it")
        elif "usd" not in data and "tokens" not in data:
            yield ("usd",), InvalidValue("is required, or `tokens`: a budget is of one of them")
