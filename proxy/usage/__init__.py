"""Usage: what an exchange's tokens were and cost.

`Meter` reads them on the side from the bytes that pass, `Estimates` fills in what the vendor did not say.
"""

from proxy.usage.estimates import Estimates
from proxy.usage.meter import Figures, Meter, model_in

__all__ = ["Estimates", "Figures", "Meter", "model_in"]
