"""The commands about a user's token rates and budgets, and how their answers are read.

Stateless. Of a period the key has the start, so the worker decides by the server's clock, as it knows it, which is
charged; the state expires a day after the period's end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.limits.quotas import TICKS_PER_S
from proxy.limits.token_account import KEPT_S, MOST_DEBT
from proxy.limits.token_status import TokenStatus, amount
from proxy.model import Amounts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.limits.gcra import Limit
    from proxy.limits.periods import Calendar, Period
    from proxy.limits.redis.accounts import UserAccount
    from proxy.limits.redis.channel import Answer, Command
    from proxy.limits.redis.scripts import Scripts
    from proxy.limits.token_limits import TokenLimits

# How long an exchange is known as settled; a settlement of which nobody knows whether it was done is not sent later.
REMEMBERED_S: Final = 600.0
# What one exchange may hold and take, far beyond any: numbers that Lua's doubles add up exactly.
_MOST_TOKENS: Final = 10**12
_MOST_NANO: Final = 10**15


def bounded(amounts: Amounts) -> Amounts:
    """The amounts, as far as the scripts can count."""
    return Amounts(min(max(0, amounts.tokens), _MOST_TOKENS), min(max(0, amounts.nano_usd), _MOST_NANO))


def member_of(id_: bytes, held: Amounts) -> bytes:
    """Write what an exchange holds as the server keeps it; the same each time, so nothing is held twice."""
    return b"%b:%d:%d" % (id_, held.tokens, held.nano_usd)


class Question(NamedTuple):
    """What is asked of a user: the limits, and the periods of their budgets at a moment."""

    account: UserAccount
    limits: TokenLimits
    periods: tuple[Period, ...]

    @classmethod
    def at(cls, account: UserAccount, limits: TokenLimits, at_s: float, calendar: Calendar) -> Question:
        """The question at a moment in Unix time."""
        return cls(account, limits, tuple([calendar.period(budget.every, at_s) for budget in limits.budgets]))

    @property
    def keys(self) -> list[bytes]:
        """The keys of the rates and the periods."""
        tag = self.account.tag
        keys = [token_key(tag, limit) for limit in self.limits.rates]
        for budget, period in zip(self.limits.budgets, self.periods, strict=True):
            keys.append(spent_key(tag, budget.unit, budget.every, period))
        return keys

    def read(self, numbers: Sequence[int], now: int, held: Amounts) -> TokenStatus:
        """Read the pairs of numbers that an answer has of each rate and period."""
        rates = self.limits.rates
        tats = [numbers[2 * index] * limit.quota + numbers[2 * index + 1] for index, limit in enumerate(rates)]
        spent = tuple(numbers[2 * len(rates) :: 2])
        return TokenStatus(self.limits, now, now / TICKS_PER_S, tuple(tats), self.periods, spent, held)

    def read_answer(self, answer: Answer, first: int) -> TokenStatus | None:
        """Read an answer that has `now` and what is reserved before the pairs, from an index on; None if it has not."""
        pairs = len(self.limits.rates) + len(self.limits.budgets)
        if not isinstance(answer, list) or len(answer) != first + 3 + 2 * pairs:
            return None
        if not all(isinstance(number, int) for number in answer):
            return None
        return self.read(answer[first + 3 :], answer[first], Amounts(*answer[first + 1 : first + 3]))


def reserve(
    scripts: Scripts,
    question: Question,
    member: bytes,
    estimate: Amounts,
    *,
    life: int,
    may_ask: bool,
    openings: Sequence[int],
) -> Command:
    """Reserve an estimate; `openings` is what the ledger knows of each budget's period, -1 where it was not asked."""
    account, limits = question.account, question.limits
    arguments: list[bytes | int] = [life, int(may_ask), member, estimate.tokens, len(limits.rates)]
    for limit in limits.rates:
        arguments += [limit.quota, limit.window]
        arguments += divmod(min(estimate.tokens, limit.quota) * limit.window, limit.quota)
    for budget, period, opening in zip(limits.budgets, question.periods, openings, strict=True):
        wanted = min(amount(estimate, budget), budget.limit)
        arguments += [1 if budget.unit == "tokens" else 2, budget.limit, wanted, _expires_ms(period), opening]
    return scripts.reserve.command([account.held_key, account.sums_key, *question.keys], arguments)


def settle(
    scripts: Scripts, question: Question, id_: bytes, member: bytes | None, took: Amounts, *, life: int
) -> Command:
    """Charge what an exchange took, and free what it held."""
    account, limits = question.account, question.limits
    arguments: list[bytes | int] = [life, round(REMEMBERED_S * TICKS_PER_S), id_, member or b"", len(limits.rates)]
    for limit in limits.rates:
        ticks, parts = divmod(took.tokens * limit.window, limit.quota)
        arguments += [limit.quota, min(ticks, MOST_DEBT), parts]
    for budget, period in zip(limits.budgets, question.periods, strict=True):
        arguments += [amount(took, budget), _expires_ms(period)]
    keys = [account.leases_key, account.held_key, account.sums_key, account.settled_key, *question.keys]
    return scripts.settle.command(keys, arguments)


def free(scripts: Scripts, account: UserAccount, id_: bytes, member: bytes, *, life: int) -> Command:
    """Free what an exchange held, and its lease unless the id is empty."""
    return scripts.free.command([account.leases_key, account.held_key, account.sums_key], [life, id_, member])


def restore(scripts: Scripts, account: UserAccount, now: int, *, is_first: bool) -> Command | None:
    """Tell a server that came back empty what is known of a user; None where that is nothing.

    The first of several tells it the script.
    """
    tokens = account.tokens
    if tokens is None:
        return None
    tokens.forget_paid(now)
    keys: list[bytes] = []
    arguments: list[bytes | int] = [len(tokens.tats)]
    for limit, tat in tokens.tats.items():
        keys.append(token_key(account.tag, limit))
        arguments += divmod(tat, limit.quota)
    for unit, every, period, spent in tokens.spent(now / TICKS_PER_S):
        keys.append(spent_key(account.tag, unit, every, period))
        arguments += [spent, _expires_ms(period)]
    script = scripts.restore_tokens
    return (script.whole_command if is_first else script.command)(keys, arguments) if keys else None


def stand(scripts: Scripts, question: Question, *, life: int) -> Command:
    """Ask how a user stands in the rates of requests and in the token limits of a plan."""
    account = question.account
    rates = account.quotas.limits
    arguments = [life, len(rates), len(question.limits.rates), *[limit.window for limit in rates]]
    keys = [account.held_key, account.sums_key, *map(account.rate_key, rates), *question.keys]
    return scripts.stand.whole_command(keys, arguments)


def token_key(tag: bytes, limit: Limit) -> bytes:
    """Where the server keeps the state of a token rate."""
    return b"%btokens:%d/%d" % (tag, limit.quota, limit.window)


def spent_key(tag: bytes, unit: str, every: str, period: Period) -> bytes:
    """Where the server keeps what was spent of a unit in a period."""
    return b"%bspent:%b:%b:%d" % (tag, unit.encode(), every.encode(), period.start_s)


def _expires_ms(period: Period) -> int:
    return (period.end_s + KEPT_S) * 1000
