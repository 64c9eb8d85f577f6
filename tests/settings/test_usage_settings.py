"""`prices` and `usage`: what they take and refuse, and what becomes of them."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from proxy.cli import check_report
from proxy.settings import Settings, load_settings
from proxy.settings.build_prices import build_prices
from proxy.settings.loading import marked_yaml
from proxy.usage.prices import Tokens

if TYPE_CHECKING:
    from pathlib import Path

UPSTREAMS = {"openai": {"url": "https://api.openai.com", "dialect": "openai", "api_key": "sk-1"}}
PER_TOKEN = "a price is per million tokens, not per token"


def settings(yaml: str) -> Settings:
    """Settings with these lines, as the file's reader hands them on."""
    document = marked_yaml.parse(yaml.encode(), "p.yaml")
    assert document.faults == []
    return Settings.model_validate({"auth": "none", "upstreams": UPSTREAMS} | document.values)


def faults(yaml: str) -> dict[tuple[Any, ...], str]:
    with pytest.raises(ValidationError) as caught:
        settings(yaml)
    return {error["loc"]: error["msg"] for error in caught.value.errors()}


def test_prices_are_exact() -> None:
    """A price of the file goes through a float."""
    found = settings("prices: {m: {input: 0.1, cached_input: 0.0375, cache_write: 0.000123, output: 10}}")
    price = found.prices["m"]
    assert (price.input, price.cached_input, price.cache_write) == (
        Decimal("0.1"),
        Decimal("0.0375"),
        Decimal("0.000123"),
    )
    assert (price.output, price.currency) == (Decimal(10), "USD")


def test_prices_are_built() -> None:
    """A price of the file, its currency or the rate is not what an exchange costs."""
    prices = build_prices(
        settings(
            "prices: {m: {input: 2.5, cached_input: 1.25, output: 10}, n: {input: 1, output: 2, currency: CNY}}\n"
            "usage: {rates: {CNY: 0.14}}"
        )
    )
    assert prices.cost("m", Tokens(input=1000, cached=400, output=100)) == 3_000_000
    assert prices.cost("n", Tokens(input=1000, output=100)) == 168_000
    assert prices.is_known("gpt-4o")


def test_models_of_the_file_are_labels() -> None:
    """A model that the file names is `other` in the metrics, or a pattern of models is a name."""
    prices = build_prices(
        settings(
            "upstreams:\n"
            "  a: {url: https://a.example, dialect: openai, api_key: none, models: [house-model, 'any-*']}\n"
            "routes: [{models: [routed, 'r[0-9]'], upstreams: [{name: a, model: a-deployment}]}]\n"
        )
    )
    names = ("house-model", "routed", "a-deployment", "any-*", "any-thing", "r[0-9]", "r1")
    assert [prices.label(name) for name in names] == ["house-model", "routed", "a-deployment", *["other"] * 4]


def test_prices_from_variables(tmp_path: Path) -> None:
    """A price of a variable's JSON is refused, or goes through a float."""
    file = tmp_path / "p.yaml"
    file.write_text("auth: none\nupstreams: {v: {url: https://v.example, dialect: openai, api_key: none}}\n")
    environ = {
        "FORWARD_SSE_PRICES": '{"gpt-4.1": {"input": 0.0375, "output": 1.5}, "m": {"input": 0.000123, "output": 1}}',
        "FORWARD_SSE_USAGE__RATES": '{"CNY": 0.14}',
    }
    found = load_settings(file, environ)
    assert (found.prices["gpt-4.1"].input, found.prices["m"].input) == (Decimal("0.0375"), Decimal("0.000123"))
    assert found.usage.rates == {"CNY": Decimal("0.14")}


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("-1", f"must be a number of 0 or more, such as 2.5: {PER_TOKEN}"),
        ("nan", f"must be a number of 0 or more, such as 2.5: {PER_TOKEN}"),
        (".inf", f"must be a number of 0 or more, such as 2.5: {PER_TOKEN}"),
        ("true", f"must be a number of 0 or more, such as 2.5: {PER_TOKEN}"),
        ("[1]", f"must be a number of 0 or more, such as 2.5: {PER_TOKEN}"),
        ('"1,5"', f"must be a number of 0 or more, such as 2.5: {PER_TOKEN}"),
        ('"1,000"', f"must be a number of 0 or more, such as 2.5: {PER_TOKEN}"),
        ("1000.01", f"is more than 1000 dollars: {PER_TOKEN}"),
        ("99999999", f"must be at most 10000000: {PER_TOKEN}"),
        ("0.0000025", f"looks like a price per token: {PER_TOKEN}"),
        ("2.5e-06", f"looks like a price per token: {PER_TOKEN}"),
        ("0.1234567", "must have at most 6 decimals"),
    ],
)
def test_price_is_refused(written: str, words: str) -> None:
    """A price that is none, or is probably per token, is taken or explained in other words."""
    assert faults(f"prices: {{m: {{input: {written}, output: 1}}}}")["prices", "m", "input"] == words


def test_bounds_of_prices_are_taken() -> None:
    """A price at the bound, or a large one in a currency of small units, is refused."""
    settings("prices: {m: {input: 0.0001, output: 1000}, e: {input: 1, output: 0}}")
    settings("prices: {n: {input: 1500, output: 6000.5, currency: JPY}}")


@pytest.mark.parametrize(
    ("yaml", "where"),
    [
        ("prices: {m: {input: 0, output: 0}}", ("prices", "m", "input")),
        ("prices: {m: {input: 1}}", ("prices", "m", "output")),
        ("prices: {m: {input: 1, output: 1, currency: usd}}", ("prices", "m", "currency")),
        ("prices: {m: {input: 1, output: 1, currency: 5}}", ("prices", "m", "currency")),
        ("prices: {m: {input: 1, outputs: 1}}", ("prices", "m", "outputs")),
        ('prices: {" ": {input: 1, output: 1}}', ("prices", " ")),
        ("usage: {rates: {cny: 0.14}}", ("usage", "rates", "cny")),
        ("usage: {rates: {CNY: 0}}", ("usage", "rates", "CNY")),
        ("usage: {rates: {CNY: 1001}}", ("usage", "rates", "CNY")),
        ("usage: {rates: {CNY: many}}", ("usage", "rates", "CNY")),
        ("usage: {rates: {USD: 1}}", ("usage", "rates", "USD")),
    ],
)
def test_fault_is_where_it_stands(yaml: str, where: tuple[str, ...]) -> None:
    """A fault is not found, or is reported elsewhere."""
    assert where in faults(yaml)


def test_report_warns_of_a_missing_rate() -> None:
    """`check` says nothing about a currency without a rate, or warns of one that has it."""
    prices = (
        "prices: {m: {input: 1, output: 2, currency: CNY}, n: {input: 1, output: 2, currency: EUR}, "
        "o: {input: 1, output: 2}}"
    )
    found = settings(f"{prices}\nusage: {{rates: {{EUR: 1.1}}}}")
    assert [warning for warning in check_report.warnings(found) if warning.startswith("usage")] == [
        "usage.rates: has no CNY: models with prices in it have no cost in dollars"
    ]
    report = check_report.report(found)
    assert "  m            input 1, output 2 CNY a million tokens\n" in report
    assert "rate           1 EUR is 1.1 USD\n" in report
