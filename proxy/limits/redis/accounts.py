"""What a worker remembers of the users that it asks the server about: the command ready made, and the last answers.

The server decides. What is kept here words the rate-limit fields of answers that were not admitted, renews leases, and
is what a worker can go on with when the server is gone.
"""

from __future__ import annotations

import asyncio
import time
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING

from redis.crc import key_slot

from proxy.limits.memory.accounts import Account
from proxy.limits.quotas import TICKS_PER_S
from proxy.limits.redis.admission import RedisAdmission

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Iterator

    from proxy.limits.gcra import Limit
    from proxy.limits.memory.store import MemoryStore
    from proxy.limits.periods import Calendar, Period
    from proxy.limits.redis.channel import Command
    from proxy.limits.redis.commands import Commands
    from proxy.limits.redis.links import Link
    from proxy.limits.redis.tokens import Charge
    from proxy.limits.token_account import TokenAccount
    from proxy.limits.token_status import TokenStatus
    from proxy.model import Principal

# One takes about 2 KiB. A user who is forgotten loses nothing: the server knows.
MAX_ACCOUNTS = 50_000
# How many of the oldest are looked at for one that can go.
_MAX_LOOKED_AT = 64

PREFIX = b"forward-sse:"


def digest(*words: str) -> bytes:
    """Stand for words of any length and any characters in a key, told apart from every other sequence of words."""
    text = "".join(f"{len(word)}:{word}" for word in words)
    # A claim may hold lone surrogates, which are text to JSON.
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest().encode()


class ServerClock:
    """The server's clock as last heard of, going on by this machine's monotonic one; in ticks.

    Decides nothing while the server answers. Before the first answer it is this machine's.
    """

    def __init__(self) -> None:
        self._now = asyncio.get_running_loop().time
        self._ahead = time.time_ns() // 1000 - self._own()

    def _own(self) -> int:
        return round(self._now() * TICKS_PER_S)

    def now(self) -> int:
        """The ticks, about."""
        return self._own() + self._ahead

    def now_s(self) -> float:
        """The same in seconds."""
        return self.now() / TICKS_PER_S

    def update(self, now: int) -> None:
        """An answer that just came said so."""
        self._ahead = now - self._own()


class UserAccount(Account[RedisAdmission]):
    """A user: `tag` is what the keys have in common, and keeps them in one hash `slot`; `local` the store seen last.

    `charges` are those that the server has not confirmed, by the exchange's id.
    """

    __slots__ = ("admit_command", "charges", "leases_key", "local", "slot", "tag")

    def __init__(self, key: tuple[str, str]) -> None:
        super().__init__(key)
        self.tag = PREFIX + b"{" + digest(*key) + b"}:"
        self.slot = key_slot(self.tag)
        self.leases_key = self.tag + b"leases"
        self.charges: dict[bytes, Charge] = {}
        # To be finished with a lease's id.
        self.admit_command: Command = ()
        # Weakly: each outage has another, and users may not come back.
        self.local: weakref.ref[MemoryStore] | None = None

    def token_status(self, now: int, calendar: Calendar) -> TokenStatus | None:
        """How the user stands in token limits as far as this worker has heard; None where the plan has none."""
        tokens = self.known_tokens(now, calendar)
        if self.token_limits is None or tokens is None:
            return None
        return tokens.status(self.token_limits, now, now / TICKS_PER_S, calendar)

    def known_tokens(self, now: int, calendar: Calendar) -> TokenAccount | None:
        """What this worker has heard of the user's token limits, with what it has charged since; None of none."""
        if self.tokens is None or not self.charges:
            return self.tokens
        tokens = self.tokens.copy()
        for charge in self.charges.values():
            tokens.charge(charge.question.limits, charge.took, now, now / TICKS_PER_S, calendar)
        return tokens

    def is_counted_in(self, local: MemoryStore) -> bool:
        """Whether that count has been told of this user."""
        return self.local is not None and self.local() is local

    def keys(self, *names: bytes) -> list[bytes]:
        """Where the server keeps what is `held` of token limits, the `sums` of that, and what was `settled` lately."""
        return [self.tag + name for name in names]

    def rate_key(self, limit: Limit) -> bytes:
        """Where it keeps the state of a rate."""
        return b"%brate:%d/%d" % (self.tag, limit.quota, limit.window)

    def token_key(self, limit: Limit) -> bytes:
        """Where it keeps the state of a token rate."""
        return b"%btokens:%d/%d" % (self.tag, limit.quota, limit.window)

    def spent_key(self, unit: str, every: str, period: Period) -> bytes:
        """Where it keeps what was spent of a unit in a period."""
        return b"%bspent:%b:%b:%d" % (self.tag, unit.encode(), every.encode(), period.start_s)


class UserAccounts:
    """The users asked about lately, at most `MAX_ACCOUNTS` and those that hold leases.

    Args:
        at: Gives the link to the server that has a slot.
    """

    def __init__(self, commands: Commands, at: Callable[[int], Link]) -> None:
        self._commands = commands
        self._at = at
        self._accounts: dict[tuple[str, str], UserAccount] = {}

    def __iter__(self) -> Iterator[UserAccount]:
        return iter(tuple(self._accounts.values()))

    def get(self, principal: Principal) -> UserAccount:
        """The user's account, measuring by the principal's plan."""
        key = (principal.issuer, principal.user)
        account = self._accounts.get(key)
        if account is None:
            if len(self._accounts) >= MAX_ACCOUNTS:
                self._forget_one()
            account = self._accounts[key] = UserAccount(key)
        # Identity, as in the memory store: plans live as long as their configuration.
        if account.plan is not principal.plan:
            account.adopt(principal.plan, self._at(account.slot).clock.now())
            account.admit_command = self._commands.admit(account, principal.plan)
        return account

    def _forget_one(self) -> None:
        oldest = list(islice(self._accounts.items(), _MAX_LOOKED_AT))
        for key, account in oldest:
            del self._accounts[key]
            if not account.live and not account.charges:
                return
            self._accounts[key] = account
