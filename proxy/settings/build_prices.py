"""Builds the models' prices, and the names that metrics may have of models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.usage.prices import Price, Prices, per_million

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.settings import PriceSettings, Settings

# What makes a name of `models` a pattern.
_GLOB: Final = frozenset("*?[")


def build_prices(settings: Settings) -> Prices:
    """Build the models' prices: those of the file over the built-in table."""
    own = {name: _price(price) for name, price in settings.prices.items()}
    return Prices(own, settings.usage.rates, frozenset(_listed(settings)))


def _price(price: PriceSettings) -> Price:
    return Price(
        input=per_million(price.input),
        cached_input=None if price.cached_input is None else per_million(price.cached_input),
        cache_write=None if price.cache_write is None else per_million(price.cache_write),
        output=per_million(price.output),
        currency=price.currency,
    )


def _listed(settings: Settings) -> Iterator[str]:
    """The models that the file names, apart from patterns."""
    for models in (settings.upstreams.values(), settings.routes):
        for one in models:
            yield from (name for name in one.models if _GLOB.isdisjoint(name))
    for route in settings.routes:
        yield from (target.model for target in route.upstreams if target.model is not None)
