"""Builds the models' prices, and the names that metrics may have of models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.usage.prices import Price, Prices, per_million

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.settings import PriceSettings, Settings


def is_plain(name: str) -> bool:
    """Whether a name of `models` is no pattern."""
    return not set(name) & set("*?[")


def build_prices(settings: Settings) -> Prices:
    """Build the models' prices: those of the file over the built-in table."""
    own = {name: _price(price) for name, price in settings.prices.items()}
    return Prices(own, settings.usage.rates, frozenset(listed_models(settings)))


def _price(price: PriceSettings) -> Price:
    return Price(
        input=per_million(price.input),
        cached_input=None if price.cached_input is None else per_million(price.cached_input),
        cache_write=None if price.cache_write is None else per_million(price.cache_write),
        output=per_million(price.output),
        currency=price.currency,
    )


def listed_models(settings: Settings) -> Iterator[str]:
    """The models that the file names for upstreams and routes, apart from patterns."""
    for models in (settings.upstreams.values(), settings.routes):
        for one in models:
            yield from filter(is_plain, one.models)
    for route in settings.routes:
        yield from (target.model for target in route.upstreams if target.model is not None)
