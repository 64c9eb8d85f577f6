"""A plan's rates as they are counted: in ticks, each once, with all of their wording that no request changes.

Made once for a plan and shared by all of its users, so a request pays neither for names nor for policies.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from multidict import istr

from proxy.limits.gcra import Limit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.model import Rate

# Microseconds: fine enough for any rate, and coarse enough that `now + retry_after_s`, computed in floats and rounded
# to the nearest tick, is the very tick that was meant (for 30 years of uptime, and to a tick of a finer clock).
TICKS_PER_S = 1_000_000

# aiohttp looks the name of each field up in lower case, and has that of an `istr`.
RATE_LIMIT_POLICY: Final = istr("RateLimit-Policy")
_LIMIT_REQUESTS: Final = istr("x-ratelimit-limit-requests")
_UNITS = (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1))


class Quotas:
    """The rates of a plan. See `fields` for what the wording means.

    `policy` is the field that tells of all the rates, `rate_limit` waits for each rate's remaining and reset, and
    `counts` has each rate's quota as the SDKs read it. `names` and `counts` go by `limits`.
    """

    __slots__ = ("counts", "limits", "names", "policy", "rate_limit")

    def __init__(self, limits: tuple[Limit, ...]) -> None:
        self.limits = limits
        self.names = tuple(map(rate_name, limits))
        quoted = [f'"{name}"' for name in self.names]
        windows_s = [-(-limit.window // TICKS_PER_S) for limit in limits]
        policies = [
            f"{name};q={limit.quota};w={window_s}"
            for name, limit, window_s in zip(quoted, limits, windows_s, strict=True)
        ]
        self.policy = (RATE_LIMIT_POLICY, ", ".join(policies))
        self.rate_limit = ", ".join(name + ";r=%d;t=%d" for name in quoted)
        self.counts = tuple((_LIMIT_REQUESTS, str(limit.quota)) for limit in limits)


@lru_cache(maxsize=256)  # plans come from the configuration, of which reloads may leave several versions
def quotas_of(rates: tuple[Rate, ...]) -> Quotas:
    """Give the quotas of a plan's rates, made once."""
    return Quotas(limits_of(rates))


def limits_of(rates: Iterable[Rate]) -> tuple[Limit, ...]:
    """Give the rates in ticks, each once: a rate that a plan names twice is charged once."""
    limits = (Limit(rate.quota, max(1, round(rate.window_s * TICKS_PER_S))) for rate in rates)
    return tuple(dict.fromkeys(limits))


def rate_name(limit: Limit) -> str:
    """Name a rate as an operator would write it, like `60-per-10s`; different rates have different names."""
    return "{}-per-{}{}".format(limit.quota, *window_of(limit))


def window_of(limit: Limit) -> tuple[int, str]:
    """Give a rate's window in the largest unit that makes it a whole number."""
    unit, ticks = next(unit for unit in _UNITS if limit.window % unit[1] == 0)
    return limit.window // ticks, unit


NO_QUOTAS = Quotas(())
