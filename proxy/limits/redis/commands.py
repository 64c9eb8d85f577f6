"""The commands that a server is sent, with the keys and arguments that the scripts of `lua/` want, and their answers.

Of a period the key has the start, so the worker decides by the server's clock, as it knows it, which is charged; the
state expires a day after the period's end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeGuard

from proxy.limits import gcra
from proxy.limits.quotas import TICKS_PER_S
from proxy.limits.redis.scripts import Script
from proxy.limits.token_account import KEPT_S, MOST_DEBT
from proxy.limits.token_status import TokenStatus, amount
from proxy.model import Amounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from proxy.limits.gcra import Limit
    from proxy.limits.periods import Calendar, Period
    from proxy.limits.quotas import Quotas
    from proxy.limits.redis.accounts import UserAccount
    from proxy.limits.redis.channel import Answer, Command
    from proxy.limits.redis.scripts import Scripts
    from proxy.limits.token_limits import TokenLimits
    from proxy.model import Plan

# How long an exchange is known as settled; a settlement of which nobody knows whether it was done is not sent later.
REMEMBERED_S: Final = 600.0
# What one exchange may hold and take, far beyond any: numbers that Lua's doubles add up exactly.
_MOST_TOKENS: Final = 10**12
_MOST_NANO: Final = 10**15
# Of one user in one command.
_MOST_IDS: Final = 500


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
        keys = [self.account.token_key(limit) for limit in self.limits.rates]
        for budget, period in zip(self.limits.budgets, self.periods, strict=True):
            keys.append(self.account.spent_key(budget.unit, budget.every, period))
        return keys

    def read_answer(self, answer: Answer, first: int) -> TokenStatus | None:
        """Read an answer that has from an index on `now`, what is reserved, and a pair of numbers for each limit.

        None if it has not.
        """
        rates = self.limits.rates
        if not are_numbers(answer, first + 3 + 2 * len(rates) + 2 * len(self.periods)):
            return None
        now, held = answer[first], Amounts(*answer[first + 1 : first + 3])
        after_rates = first + 3 + 2 * len(rates)
        tats = read_tats(rates, answer, first + 3, step=2)
        spent = tuple(answer[after_rates::2])
        return TokenStatus(self.limits, now, now / TICKS_PER_S, tats, self.periods, spent, held)


class Commands:
    """Makes commands.

    Args:
        life: How many ticks a lease lives without being renewed, and what is reserved with it.
    """

    def __init__(self, scripts: Scripts, life: int) -> None:
        self._scripts = scripts
        self.life = life

    def greet(self, tag: bytes, name: str) -> Command:
        """Ask for the clock and the name of the server's memory; the name is given to one that has none."""
        return self._scripts.greet.whole_command([tag + b"memory"], [name])

    def probe(self, tag: bytes) -> list[Command]:
        """Do what a request does, for nobody; the server knows the scripts then."""
        keys = [tag + b"probe-" + name for name in (b"leases", b"rate", b"held", b"sums", b"settled")]
        leases, rate, *held = keys
        scripts, life, member = self._scripts, self.life, member_of(b"probe", Amounts())
        return [
            scripts.admit.whole_command([leases, rate], [life, -1, 1_000_000, 1_000_000, 1, 0, b"probe"]),
            scripts.reserve.whole_command(held[:2], [life, 0, member, 0, 0]),
            scripts.hold.whole_command(held[:2], [life, member]),
            scripts.settle.whole_command([leases, *held], [life, life, b"probe", member, 0]),
            scripts.free.whole_command([leases, *held[:2]], [life, b"probe", member]),
        ]

    def admit(self, account: UserAccount, plan: Plan) -> Command:
        """Charge one request to every rate and take a lease; to be finished with the lease's id."""
        limits = account.quotas.limits
        streams = -1 if plan.concurrent_streams is None else plan.concurrent_streams
        arguments: list[bytes | int] = [self.life, streams]
        for limit in limits:
            arguments += [limit.quota, limit.window, *divmod(limit.window, limit.quota)]
        return self._scripts.admit.command([account.leases_key, *map(account.rate_key, limits)], arguments)

    def refund(self, account: UserAccount, limits: Sequence[Limit], answer: Sequence[int]) -> Command:
        """Give back what is left of the charge of an admission, whose answer it was."""
        keys: list[bytes] = []
        arguments: list[int] = []
        for index, limit in enumerate(limits):
            key = account.rate_key(limit)
            keys += [key, key + b":given"]
            arguments += [limit.quota, limit.window, *divmod(limit.window, limit.quota)]
            arguments += answer[2 + 3 * index : 5 + 3 * index]
        return self._scripts.refund.whole_command(keys, arguments)

    def renewals(self, accounts: Iterable[UserAccount], *, are_whole: bool = False) -> Iterator[Command]:
        """Let leases live on, and what is reserved with them; by their digests, or whole."""
        command: Callable[..., Command] = Script.whole_command if are_whole else Script.command
        for account in accounts:
            ids = [admission.id for admission in account.live]
            members = [admission.member or b"" for admission in account.live if admission.is_confirmed]
            for script, keys, words in (
                (self._scripts.renew, [account.leases_key], ids),
                (self._scripts.hold, account.keys(b"held", b"sums"), members),
            ):
                for first in range(0, len(words), _MOST_IDS):
                    yield command(script, keys, [self.life, *words[first : first + _MOST_IDS]])

    def free(self, account: UserAccount, id_: bytes, member: bytes) -> Command:
        """Free what is reserved, and the lease unless its id is empty."""
        keys = [account.leases_key, *account.keys(b"held", b"sums")]
        return self._scripts.free.command(keys, [self.life, id_, member])

    def reserve(
        self, question: Question, member: bytes, estimate: Amounts, openings: Sequence[int], *, may_ask: bool
    ) -> Command:
        """Reserve an estimate; `openings` is what the ledger knows of each period, -1 where it was not asked."""
        account, limits = question.account, question.limits
        arguments: list[bytes | int] = [self.life, int(may_ask), member, estimate.tokens, len(limits.rates)]
        for limit in limits.rates:
            arguments += [limit.quota, limit.window]
            arguments += divmod(min(estimate.tokens, limit.quota) * limit.window, limit.quota)
        for budget, period, opening in zip(limits.budgets, question.periods, openings, strict=True):
            wanted = min(amount(estimate, budget), budget.limit)
            arguments += [1 if budget.unit == "tokens" else 2, budget.limit, wanted, _expires_ms(period), opening]
        return self._scripts.reserve.command([*account.keys(b"held", b"sums"), *question.keys], arguments)

    def settle(self, question: Question, id_: bytes, member: bytes | None, took: Amounts) -> Command:
        """Charge what an exchange took, and free what it held."""
        account, limits = question.account, question.limits
        remembered = round(REMEMBERED_S * TICKS_PER_S)
        arguments: list[bytes | int] = [self.life, remembered, id_, member or b"", len(limits.rates)]
        for limit in limits.rates:
            ticks, parts = divmod(took.tokens * limit.window, limit.quota)
            arguments += [limit.quota, min(ticks, MOST_DEBT), parts]
        for budget, period in zip(limits.budgets, question.periods, strict=True):
            arguments += [amount(took, budget), _expires_ms(period)]
        keys = [account.leases_key, *account.keys(b"held", b"sums", b"settled"), *question.keys]
        return self._scripts.settle.command(keys, arguments)

    def stand(self, question: Question) -> Command:
        """Ask how a user stands in the rates of requests and in the token limits of a plan."""
        account = question.account
        rates = account.quotas.limits
        arguments = [self.life, len(rates), len(question.limits.rates), *[limit.window for limit in rates]]
        keys = [*account.keys(b"held", b"sums"), *map(account.rate_key, rates), *question.keys]
        return self._scripts.stand.whole_command(keys, arguments)

    def restore(self, account: UserAccount, now: int, known: set[Script]) -> Iterator[Command]:
        """Tell a server that came back empty how far a user's limits were used, as far as this worker knows.

        A script that is not in `known` is sent whole, and is known then: by its digest each command of a batch would be
        sent twice.
        """
        keys: list[bytes] = []
        arguments: list[bytes | int] = []
        for limit, tat in zip(account.quotas.limits, account.tats, strict=True):
            if gcra.paid_at(limit, tat) > now:
                keys.append(account.rate_key(limit))
                arguments += [limit.window, *divmod(tat, limit.quota)]
        if keys:
            yield _first_whole(self._scripts.restore, known)(keys, arguments)
        tokens = account.tokens
        if tokens is None:
            return
        tokens.forget_paid(now)
        keys, arguments = [], [len(tokens.tats)]
        for limit, tat in tokens.tats.items():
            keys.append(account.token_key(limit))
            arguments += divmod(tat, limit.quota)
        for unit, every, period, spent in tokens.spent(now / TICKS_PER_S):
            keys.append(account.spent_key(unit, every, period))
            arguments += [spent, _expires_ms(period)]
        if keys:
            yield _first_whole(self._scripts.restore_tokens, known)(keys, arguments)


def _first_whole(
    script: Script, known: set[Script]
) -> Callable[[Sequence[bytes], Sequence[bytes | str | int]], Command]:
    if script in known:
        return script.command
    known.add(script)
    return script.whole_command


def bounded(amounts: Amounts) -> Amounts:
    """The amounts, as far as the scripts can count."""
    return Amounts(min(max(0, amounts.tokens), _MOST_TOKENS), min(max(0, amounts.nano_usd), _MOST_NANO))


def member_of(id_: bytes, held: Amounts) -> bytes:
    """Write what an exchange holds as the server keeps it; the same each time, so nothing is held twice."""
    return b"%b:%d:%d" % (id_, held.tokens, held.nano_usd)


def are_numbers(answer: Answer, count: int) -> TypeGuard[list[int]]:
    """Whether an answer is so many numbers."""
    return isinstance(answer, list) and len(answer) == count and {*map(type, answer)} == {int}


def is_decision(answer: Answer, quotas: Quotas) -> TypeGuard[list[int]]:
    """Whether an answer has the form of those to an admission: outcome and tick, and three numbers for each rate."""
    return isinstance(answer, list) and len(answer) == 2 + 3 * len(quotas.limits) and {*map(type, answer)} == {int}


def read_tats(limits: Sequence[Limit], answer: Sequence[int], first: int, *, step: int = 3) -> tuple[int, ...]:
    """The TATs in parts, of an answer that has ticks and parts of the rates from an index on, each a step further."""
    tats = []
    index = first
    for limit in limits:
        tats.append(answer[index] * limit.quota + answer[index + 1])
        index += step
    return tuple(tats)


def _expires_ms(period: Period) -> int:
    return (period.end_s + KEPT_S) * 1000
