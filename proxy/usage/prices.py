"""Prices of models: what a number of tokens costs, in whole nano-dollars.

All arithmetic is of integers and exact until the one rounding at the end (half up). Prices are pico-units of a currency
per token, because vendors' prices have more decimals than nano-units do: 0.0375 dollars per million tokens are 37.5
nano-dollars per token.

The built-in table is read once per process, at the first look-up that needs it: in about 3 ms, and it takes 60 KiB.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TABLE: Final = Path(__file__).with_name("prices.json")
USD: Final = "USD"
# The label of every model that neither a price nor the configuration names.
OTHER_MODELS: Final = "other"
# A price per million tokens times this is pico-units per token.
PICO_PER_TOKEN: Final = 1_000_000
_PICO_PER_NANO = 1000
NANO_PER_UNIT = 1_000_000_000
# Names come from clients: neither many nor long ones may fill the memory.
_MAX_REMEMBERED = 1024
_MAX_NAME = 256
# `-2024-08-06`, `-20241022`, Google's `-09-2025` and `-001`, `-0613`, `-latest`; Vertex AI's `@20241022`.
_VERSION = re.compile(r"(?:-(?:\d{4}-\d{2}-\d{2}|\d{8}|\d{2}-\d{4}|\d{3,4}|latest)|@[^/]*)\Z", re.ASCII)


class Tokens(NamedTuple):
    """The tokens of an exchange. Parts are counted in their whole, too."""

    input: int = 0  # all of it: cache reads and cache writes included
    output: int = 0
    cached: int = 0  # cache reads, inside `input`
    cache_write: int = 0  # inside `input`
    reasoning: int = 0  # inside `output`


class Counted(Protocol):
    """What has a price: `Tokens`, or an exchange's `Figures`."""

    @property
    def input(self) -> int:
        """See `Tokens`."""
        ...

    @property
    def output(self) -> int:
        """See `Tokens`."""
        ...

    @property
    def cached(self) -> int:
        """See `Tokens`."""
        ...

    @property
    def cache_write(self) -> int:
        """See `Tokens`."""
        ...

    @property
    def reasoning(self) -> int:
        """See `Tokens`."""
        ...


class Cost(NamedTuple):
    """An amount of money in nano-units of a currency."""

    nano: int
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """The price of a model, in pico-units of `currency` per token.

    `thinking_output`, if given, is the price of the whole output of an answer with reasoning tokens. `tiers` are prices
    for long inputs, by rising `above_tokens`: the price of the last tier whose bound the input exceeds is that of the
    whole request.
    """

    input: int
    output: int
    cached_input: int | None = None
    cache_write: int | None = None
    thinking_output: int | None = None
    currency: str = USD
    tiers: tuple[tuple[int, Price], ...] = ()

    def pico(self, tokens: Counted) -> int:
        """Return the exact cost in pico-units."""
        price = self
        for above_tokens, tier in self.tiers:
            if tokens.input > above_tokens:
                price = tier
        cached = price.input if price.cached_input is None else price.cached_input
        cache_write = price.input if price.cache_write is None else price.cache_write
        output = price.output if price.thinking_output is None or not tokens.reasoning else price.thinking_output
        uncached = tokens.input - tokens.cached - tokens.cache_write
        return (
            # A vendor that counts its cache reads apart from the input does not make the rest negative.
            (uncached * price.input if uncached > 0 else 0)
            + tokens.cached * cached
            + tokens.cache_write * cache_write
            + tokens.output * output
        )

    def cost(self, tokens: Counted) -> Cost:
        """Return the cost in the price's own currency."""
        return Cost(_half_up(self.pico(tokens), _PICO_PER_NANO), self.currency)


class Prices:
    """The prices of all models: the operator's own over the built-in table.

    A model is looked up by its name, then without the version at its end (`-2024-08-06`, `-latest`, `@…`), then without
    what stands before its last slash (`google/gemini-2.5-pro`), then without both; in all these forms among the
    operator's own prices first, so that a price for `gpt-4o` is also the price of its dated versions.

    Args:
        own: The operator's prices, by model.
        rates: Dollars for one unit of each currency other than USD.
        listed: Names of models that the configuration has elsewhere.
    """

    def __init__(
        self, own: Mapping[str, Price], rates: Mapping[str, Decimal], listed: frozenset[str] = frozenset()
    ) -> None:
        self._own = dict(own)
        self._rates = {currency: rate.as_integer_ratio() for currency, rate in rates.items()} | {USD: (1, 1)}
        self._listed = listed
        self._found: dict[str, PricedModel] = {}

    @property
    def version(self) -> str:
        """The version of the built-in table."""
        return _built_in().version

    def cost(self, model: str | None, tokens: Counted) -> int | None:
        """Return the cost in nano-dollars; None if the model's price or its currency's rate is unknown."""
        return self.of(model).cost(tokens)

    def is_known(self, model: str | None) -> bool:
        """Whether the model has a cost in dollars."""
        return self.of(model).rate is not None

    def label(self, model: str | None) -> str:
        """Return the model's name for a metric; see `PricedModel`."""
        return self.of(model).label

    def of(self, model: str | None) -> PricedModel:
        """Return what is known of a model, for those who ask more than once; it is looked up once and remembered."""
        if model is None or len(model) > _MAX_NAME:
            return _NOT_FOUND
        priced = self._found.get(model)
        if priced is not None:
            return priced
        if len(self._found) >= _MAX_REMEMBERED:
            self._found.clear()
        names = tuple(_names(model))
        label, price = _first(names, self._own)
        if price is None:
            label, price = _first(names, _built_in().models)
        priced = PricedModel(
            model if model in self._listed else label, price, None if price is None else self._rates.get(price.currency)
        )
        self._found[model] = priced
        return priced


class PricedModel:
    """What is known of a model.

    Attributes:
        label: Its name for a metric: the operator's, else that of its price, else `other`. Clients choose what they ask
            for, and vendors what they answer; labels are as many as the file and the built-in table have names.
        price: None where it is unknown.
        rate: Dollars for one unit of the price's currency, as a fraction; None where the price or the rate is unknown.
    """

    __slots__ = ("label", "price", "rate")

    def __init__(self, label: str, price: Price | None, rate: tuple[int, int] | None) -> None:
        self.label = label
        self.price = price
        self.rate = rate

    def cost(self, tokens: Counted) -> int | None:
        """Return the cost in nano-dollars; None if the model's price or its currency's rate is unknown."""
        if self.price is None or self.rate is None:
            return None
        numerator, denominator = self.rate
        return _half_up(self.price.pico(tokens) * numerator, _PICO_PER_NANO * denominator)


_NOT_FOUND: Final = PricedModel(OTHER_MODELS, None, None)


class Table(NamedTuple):
    """The built-in table."""

    version: str
    source: tuple[str, ...]
    models: Mapping[str, Price]


def usd_text(nano: int) -> str:
    """Write nano-dollars as a decimal number of dollars: `0.000123`, never with an exponent."""
    if nano < 0:
        return f"-{usd_text(-nano)}"
    whole, rest = divmod(nano, NANO_PER_UNIT)
    if not rest:
        return str(whole)
    # Nine digits, with the zeros before them: those of the number that is a unit more, without its first.
    digits = str(NANO_PER_UNIT + rest)[1:].rstrip("0")
    return f"{whole}.{digits}"


def per_million(price: Decimal) -> int:
    """Convert a price per million tokens to pico-units per token; digits after the sixth decimal are rounded."""
    return int((price * PICO_PER_TOKEN).to_integral_value(ROUND_HALF_UP))


def read_table(text: str) -> Table:
    """Read the table's JSON: prices per million tokens, and names that stand for another name's price."""
    table: dict[str, Any] = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    written = table["models"]
    models = {name: _read_price(entry) for name, entry in written.items() if not isinstance(entry, str)}
    models |= {name: models[other] for name, other in written.items() if isinstance(other, str)}
    return Table(table["version"], tuple(table["source"]), models)


def _half_up(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def _first(names: tuple[str, ...], prices: Mapping[str, Price]) -> tuple[str, Price | None]:
    return next(((name, prices[name]) for name in names if name in prices), (OTHER_MODELS, None))


def _names(model: str) -> Iterator[str]:
    """Yield the names under which a model's price may stand, the most exact first."""
    for name in (model, model.rpartition("/")[2]):
        yield name
        yield _VERSION.sub("", name)


def _read_price(entry: Mapping[str, Any]) -> Price:
    currency = entry.get("currency", USD)
    tiers = tuple((int(tier["above"]), _read_price({**tier, "currency": currency})) for tier in entry.get("tiers", ()))
    parts = {part: per_million(entry[part]) for part in _PARTS if part in entry}
    return Price(**{"output": 0, **parts}, currency=currency, tiers=tiers)


_PARTS = ("input", "cached_input", "cache_write", "output", "thinking_output")


@cache
def _built_in() -> Table:
    return read_table(TABLE.read_text("utf-8"))
