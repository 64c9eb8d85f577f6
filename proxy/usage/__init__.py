"""Usage: what an exchange's tokens were and cost.

What enters is the model's name and the numbers of tokens that the vendor reported; what leaves is the cost in
nano-dollars, or None where nobody knows the price. Prices are the operator's own (`prices` of the configuration) and
those of the built-in table, `prices.json`, which `make prices` writes.
"""

from proxy.usage.prices import Cost, Price, Prices, Tokens, usd_text

__all__ = ["Cost", "Price", "Prices", "Tokens", "usd_text"]
