"""Prices: exact arithmetic, the look-up of models, and a built-in table that is plausible."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.usage import Prices, usd_text
from proxy.usage.prices import TABLE, Cost, Price, Tokens, per_million, read_table

if TYPE_CHECKING:
    from collections.abc import Iterator

# 2.50, 1.25 and 10 dollars a million.
PRICE = Price(input=2_500_000, cached_input=1_250_000, output=10_000_000)
BUILT_IN = read_table(TABLE.read_text())
PICO = st.integers(0, 10**9)
COUNT = st.integers(0, 10**7)
RATE = st.decimals("0.000000001", 1000, places=9)


def half_up(exact: Fraction) -> int:
    return (exact + Fraction(1, 2)).__floor__()


# Arithmetic


def test_cost_of_every_kind_of_token() -> None:
    """A cost counts cached input twice, or takes reasoning for more than output."""
    price = Price(input=3_000_000, cached_input=300_000, cache_write=3_750_000, output=15_000_000)
    tokens = Tokens(input=10_000, cached=6_000, cache_write=1_000, output=2_000, reasoning=1_500)
    # 3000 × 3 + 6000 × 0.3 + 1000 × 3.75 + 2000 × 15, in micro-dollars
    assert price.cost(tokens) == Cost(44_550_000, "USD")


def test_cost_without_cache_prices() -> None:
    """Cache reads and writes without their own price do not cost what input costs."""
    price = Price(input=2_000_000, output=0)
    assert price.cost(Tokens(input=100, cached=40, cache_write=40)).nano == 200_000


def test_cost_of_parts_of_a_nano_dollar() -> None:
    """A price of 0.0375 dollars per million is rounded per token instead of in the sum."""
    price = Price(input=per_million(Decimal("0.0375")), output=0)
    assert [price.cost(Tokens(input=count)).nano for count in (1, 2, 3)] == [38, 75, 113]


def test_cost_with_more_cached_than_input() -> None:
    """A vendor that counts its cache reads apart from the input makes a cost smaller than that of the reads."""
    assert PRICE.cost(Tokens(input=10, cached=1000)).nano == 1_250_000


def test_tier_is_for_the_whole_request() -> None:
    """A tier begins at its bound instead of above it, or is for the tokens above it only."""
    tiers = ((100, Price(input=2000, output=20_000)), (200, Price(input=3000, output=30_000)))
    price = Price(input=1000, output=10_000, tiers=tiers)
    costs = [price.cost(Tokens(input=count, output=1)).nano for count in (100, 101, 200, 201)]
    assert costs == [110, 222, 420, 633]


def test_tier_without_cache_prices() -> None:
    """A tier without a price for cache reads takes that of the tier below it."""
    price = Price(input=1000, cached_input=100, output=0, tiers=((10, Price(input=2000, output=0)),))
    assert price.cost(Tokens(input=20, cached=20)).nano == 40


def test_thinking_costs_its_own_price() -> None:
    """An answer with reasoning tokens, of a model that charges for that, costs as one without."""
    price = Price(input=0, output=1000, thinking_output=4000)
    assert price.cost(Tokens(output=10)).nano == 10
    assert price.cost(Tokens(output=10, reasoning=4)).nano == 40


@given(st.tuples(PICO, PICO, PICO, PICO), st.tuples(COUNT, COUNT, COUNT, COUNT), RATE)
def test_cost_is_exact(prices: tuple[int, ...], counts: tuple[int, ...], rate: Decimal) -> None:
    """A cost differs from the exact one by more than its one rounding, half up."""
    fresh, cached, write, out = prices
    plain, reads, writes, output = counts
    price = Price(input=fresh, cached_input=cached, cache_write=write, output=out, currency="XTS")
    tokens = Tokens(plain + reads + writes, output, reads, writes)
    pico = Fraction(plain * fresh + reads * cached + writes * write + output * out)
    assert price.cost(tokens) == Cost(half_up(pico / 1000), "XTS")
    assert Prices({"m": price}, {"XTS": rate}).cost("m", tokens) == half_up(pico * Fraction(rate) / 1000)


@given(st.integers(-(10**18), 10**18))
def test_usd_text_is_the_amount(nano: int) -> None:
    """The text is another amount, or has an exponent."""
    text = usd_text(nano)
    assert Decimal(text) == Decimal(nano).scaleb(-9)
    assert "e" not in text.lower()


@pytest.mark.parametrize(
    ("nano", "text"),
    [(123_000, "0.000123"), (0, "0"), (1, "0.000000001"), (2_500_000_000, "2.5"), (-1, "-0.000000001")],
)
def test_usd_text(nano: int, text: str) -> None:
    assert usd_text(nano) == text


# Look-up


@pytest.mark.parametrize(
    "model",
    [
        "my-model",
        "my-model-2024-08-06",
        "my-model-20241022",
        "my-model-09-2025",
        "my-model-001",
        "my-model-latest",
        "my-model@20241022",
        "publisher/my-model",
        "publishers/a/models/my-model-latest",
        "publisher/my-model@default",
    ],
)
def test_model_is_found(model: str) -> None:
    """A dated name, or one with a publisher, has no price although the model has one."""
    prices = Prices({"my-model": PRICE}, {})
    assert prices.is_known(model)
    assert prices.cost(model, Tokens(input=1000, cached=200, output=100)) == 3_250_000


@pytest.mark.parametrize("model", [None, "", "my-model-mini", "other", "my-model/", "my-model:free", "x" * 10_000])
def test_model_is_not_found(model: str | None) -> None:
    """A model of another name has the price, or a cost of 0."""
    prices = Prices({"my-model": PRICE}, {})
    assert not prices.is_known(model)
    assert prices.cost(model, Tokens(1, 1)) is None


def test_exact_name_comes_first() -> None:
    """A dated version with a price of its own costs what the other versions cost."""
    prices = Prices({"m": Price(input=1000, output=0), "m-001": Price(input=2000, output=0)}, {})
    assert prices.cost("m-001", Tokens(input=1)) == 2
    assert prices.cost("m-002", Tokens(input=1)) == 1


def test_own_price_comes_before_the_built_in_one() -> None:
    """The built-in price of a dated version, or of a model, holds against the operator's."""
    prices = Prices({"gpt-4o": Price(input=7000, output=0)}, {})
    assert "gpt-4o-2024-05-13" in BUILT_IN.models
    assert [prices.cost(model, Tokens(input=1)) for model in ("gpt-4o", "gpt-4o-2024-05-13")] == [7, 7]


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ("gpt-4o", "gpt-4o"),
        ("anybody/anything/my-model-2031-01-01", "my-model"),
        ("eu-deployment", "eu-deployment"),
        ("my-model-latest", "my-model-latest"),
        ("gpt-4o-of-a-client", "other"),
        ("x" * 10_000, "other"),
        ("", "other"),
        (None, "other"),
    ],
)
def test_label_is_one_of_few(model: str | None, label: str) -> None:
    """A name that a client makes up becomes a label, or one that the operator wrote does not."""
    prices = Prices({"my-model": PRICE}, {}, frozenset({"eu-deployment", "my-model-latest"}))
    assert [prices.label(model), prices.label(model)] == [label, label]
    assert prices.is_known("my-model-latest")
    assert not prices.is_known("eu-deployment")


def test_currency_without_a_rate() -> None:
    """A price in a currency whose rate is unknown counts as dollars."""
    own = {"m": Price(input=1_000_000, output=0, currency="CNY")}
    assert Prices(own, {}).cost("m", Tokens(input=10)) is None
    assert not Prices(own, {}).is_known("m")
    assert Prices(own, {"CNY": Decimal("0.14")}).cost("m", Tokens(input=10)) == 1400


def test_names_of_clients_are_not_all_remembered() -> None:
    """Every name that a client invents stays in the memory."""
    prices = Prices({"m": PRICE}, {})
    for number in range(3000):
        assert not prices.is_known(f"name{number}")
    assert len(prices._found) <= 1024
    assert prices.is_known("m")


# The built-in table


def every_price() -> Iterator[tuple[str, Price]]:
    for name, price in BUILT_IN.models.items():
        yield name, price
        yield from ((name, tier) for _, tier in price.tiers)


def test_table_is_plausible() -> None:
    """A price of the table is above 1000 dollars a million, is 0 for input, or its cache reads cost more than input."""
    for name, price in every_price():
        parts = (price.input, price.output, price.cached_input, price.cache_write, price.thinking_output)
        assert all(part is None or 0 <= part <= per_million(Decimal(1000)) for part in parts), name
        assert price.input > 0, name
        assert price.cached_input is None or price.cached_input <= price.input, name
        assert price.cache_write is None or price.input <= price.cache_write <= 2 * price.input, name
        assert price.thinking_output is None or price.thinking_output >= price.output, name
        assert price.currency == "USD" or name == "qwen-long"


def test_tiers_of_the_table_rise() -> None:
    """A tier of the table is out of order, cheaper than the one below it, or lacks a price that the one below has."""
    for name, price in BUILT_IN.models.items():
        bounds = [above for above, _ in price.tiers]
        assert bounds == sorted(set(bounds)), name
        steps = [price, *(tier for _, tier in price.tiers)]
        for lower, higher in pairwise(steps):
            assert higher.input >= lower.input, name
            assert higher.output >= lower.output, name
            assert (higher.cached_input is None) == (lower.cached_input is None), name
            assert (higher.thinking_output is None) == (lower.thinking_output is None), name


def test_table_has_the_usual_models() -> None:
    """A vendor, or a form in which its models are written, is missing in the table."""
    prices = Prices({}, {"CNY": Decimal("0.14")})
    named = "gpt-4o gpt-4o-mini-2024-07-18 gpt-5 o3-mini text-embedding-3-small claude-sonnet-4-5-20250929"
    more = "claude-3-5-sonnet@20241022 gemini-2.5-pro models/gemini-2.5-flash gemini-2.0-flash-001 gemini-embedding-001"
    qwen = "qwen-max qwen-plus-latest qwen-turbo qwen-flash qwen3-max qwen-vl-max qwen-vl-plus qwen-long qwq-plus"
    models = f"{named} {more} {qwen} text-embedding-v3 text-embedding-v4".split()
    assert [model for model in models if not prices.is_known(model)] == []


def test_table_tells_its_source() -> None:
    """The table has no version or no source."""
    assert Prices({}, {}).version == BUILT_IN.version != ""
    assert any("genai-prices" in source for source in BUILT_IN.source)
