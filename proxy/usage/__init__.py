"""Usage: what an exchange's tokens were and cost.

`Meter` reads them on the side from the bytes that pass, `Estimates` fills in what the vendor did not say and foretells
what a request will take, and `Prices` knows what they cost, by the operator's own prices and by those of `prices.json`,
which `make prices` writes.
"""

from proxy.usage.estimates import Estimates
from proxy.usage.meter import Figures, Meter
from proxy.usage.prices import Prices, usd_text

__all__ = ["Estimates", "Figures", "Meter", "Prices", "usd_text"]
