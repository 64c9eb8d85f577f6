"""A plan's token rates and budgets as they are counted, with all of their wording that no request changes.

Made once for a plan and shared by all of its users, as `quotas` are for rates of requests.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from multidict import istr

from proxy.limits.quotas import TICKS_PER_S, limits_of, rate_name
from proxy.usage import usd_text

if TYPE_CHECKING:
    from proxy.limits.gcra import Limit
    from proxy.model import Budget, Plan, Rate

_LIMIT_TOKENS: Final = istr("x-ratelimit-limit-tokens")

# The window of a budget in `RateLimit-Policy`, which is one number: of a month the longest, which promises least.
_WINDOWS_S: Final = {"day": 86_400, "week": 7 * 86_400, "month": 31 * 86_400}


class TokenLimits:
    """The token rates and budgets of a plan, each once; of budgets that differ by their limit alone the smallest.

    `rate_names` and `budget_names` tell them apart. The fields tell of the rates and of the budgets in tokens, whose
    places among the budgets are `told`: `policy` is their part of `RateLimit-Policy`, `rate_limit` waits for the
    remaining and the reset of each, `counts` are the quotas as the SDKs read them.
    """

    __slots__ = ("budget_names", "budgets", "counts", "policy", "rate_limit", "rate_names", "rates", "told")

    def __init__(self, rates: tuple[Limit, ...], budgets: tuple[Budget, ...]) -> None:
        self.rates = rates
        self.budgets = budgets
        self.rate_names = tuple(rate_name(limit).replace("-per-", "-tokens-per-", 1) for limit in rates)
        self.budget_names = tuple(map(budget_name, budgets))
        self.told = tuple(index for index, budget in enumerate(budgets) if budget.unit == "tokens")
        told = [
            (name, limit.quota, -(-limit.window // TICKS_PER_S))
            for name, limit in zip(self.rate_names, rates, strict=True)
        ]
        told += [
            (self.budget_names[index], budgets[index].limit, _WINDOWS_S[budgets[index].every]) for index in self.told
        ]
        self.policy = ", ".join(f'"{name}";q={quota};w={window_s};qu="tokens"' for name, quota, window_s in told)
        self.rate_limit = ", ".join(f'"{name}";r=%d;t=%d;qu="tokens"' for name, _, _ in told)
        self.counts = tuple((_LIMIT_TOKENS, str(quota)) for _, quota, _ in told)


def token_limits_of(plan: Plan) -> TokenLimits | None:
    """Give the token limits of a plan, made once; None where it has none."""
    return _token_limits(plan.token_rates, plan.budgets) if plan.has_token_limits else None


@lru_cache(maxsize=256)  # as `quotas_of`
def _token_limits(rates: tuple[Rate, ...], budgets: tuple[Budget, ...]) -> TokenLimits:
    least: dict[tuple[str, str], Budget] = {}
    for budget in sorted(budgets, key=lambda budget: budget.limit):
        least.setdefault((budget.unit, budget.every), budget)
    return TokenLimits(limits_of(rates), tuple(budget for budget in dict.fromkeys(budgets) if budget in least.values()))


def budget_name(budget: Budget) -> str:
    """Name a budget as an operator would write it, like `50-usd-per-month`."""
    return f"{amount_text(budget)}-{budget.unit}-per-{budget.every}"


def amount_text(budget: Budget) -> str:
    """Write a budget's limit in its unit: nano-dollars as dollars with the decimals that they have."""
    return str(budget.limit) if budget.unit == "tokens" else usd_text(budget.limit)


NO_TOKEN_LIMITS: Final = TokenLimits((), ())
